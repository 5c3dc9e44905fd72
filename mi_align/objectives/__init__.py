"""Objectives: pure functions from logits to a loss or a bound, whichever critic made the logits."""

from mi_align.objectives import (
    advantages,
    anchored,
    baselines,
    contrastive,
    generalised,
    group,
    kl,
    mine,
    order,
    pairwise,
    policy_gradient,
    ranking,
    ratio,
    unpaired,
    variational,
    weighted,
)
from mi_align.objectives.advantages import *
from mi_align.objectives.anchored import *
from mi_align.objectives.baselines import *
from mi_align.objectives.contrastive import *
from mi_align.objectives.generalised import *
from mi_align.objectives.group import *
from mi_align.objectives.kl import *
from mi_align.objectives.mine import *
from mi_align.objectives.order import *
from mi_align.objectives.pairwise import *
from mi_align.objectives.policy_gradient import *
from mi_align.objectives.ranking import *
from mi_align.objectives.ratio import *
from mi_align.objectives.unpaired import *
from mi_align.objectives.variational import *
from mi_align.objectives.weighted import *

__all__: list[str] = []
__all__ += advantages.__all__
__all__ += anchored.__all__
__all__ += baselines.__all__
__all__ += contrastive.__all__
__all__ += generalised.__all__
__all__ += group.__all__
__all__ += kl.__all__
__all__ += mine.__all__
__all__ += order.__all__
__all__ += pairwise.__all__
__all__ += policy_gradient.__all__
__all__ += ranking.__all__
__all__ += ratio.__all__
__all__ += unpaired.__all__
__all__ += variational.__all__
__all__ += weighted.__all__
