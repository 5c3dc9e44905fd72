"""The ledger of equivalences: claims as data, the engine that certifies them, the page that shows them."""

from mi_align.equivalences.certificate import Certificate
from mi_align.equivalences.certify import certify, certify_all
from mi_align.equivalences.claim import Claim, Kind

__all__ = ["Certificate", "Claim", "Kind", "certify", "certify_all"]
