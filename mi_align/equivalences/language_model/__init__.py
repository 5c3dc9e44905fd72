"""The ledger's claims on a language model (L1–L4): one loss and one gradient of all parameters, on a real batch.

A claim here compares what two formulas do to the *model*: the mean loss of a batch, and the whole tree of its
derivatives with respect to the parameters. The model comes as an argument, a `Setting`: this room knows no models.
"""

from mi_align.equivalences.language_model.certificate import ModelCertificate
from mi_align.equivalences.language_model.certify import certify_model
from mi_align.equivalences.language_model.identities import IDENTITIES, LossIdentity
from mi_align.equivalences.language_model.setting import Setting

__all__ = ["IDENTITIES", "LossIdentity", "ModelCertificate", "Setting", "certify_model"]
