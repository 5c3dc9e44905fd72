"""Objectives: pure functions from logits to a loss or a bound, whichever critic made the logits."""

from mi_align.objectives.anchored import *
from mi_align.objectives.contrastive import *
from mi_align.objectives.group import *
from mi_align.objectives.interpolated import *
from mi_align.objectives.kl import *
from mi_align.objectives.mine import *
from mi_align.objectives.pairwise import *
from mi_align.objectives.policy_gradient import *
from mi_align.objectives.unpaired import *
from mi_align.objectives.variational import *
