"""RLHF, DPO and contrastive learning as one thing: critics make logits, objectives take them, methods pair the two."""

from mi_align import critics, objectives
from mi_align.critics import Candidates
from mi_align.methods import METHODS, Method

__all__ = ["METHODS", "Candidates", "Method", "critics", "objectives"]

__version__ = "0.1.0"
