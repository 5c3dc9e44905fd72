"""Training: a state, a pure step over it, and metrics that add up exactly over micro-batches and devices."""

from mi_align.training.losses import preference_loss, supervised_loss
from mi_align.training.metrics import Metrics, merge, preference_metrics, summarise
from mi_align.training.parts import join, partition
from mi_align.training.scoring import ROUNDED, TokenLogps, candidates, scorer
from mi_align.training.state import Follow, TrainState, follow_policy, init_state
from mi_align.training.step import Loss, Step, scan_steps, train_step

__all__ = [
    "ROUNDED",
    "Follow",
    "Loss",
    "Metrics",
    "Step",
    "TokenLogps",
    "TrainState",
    "candidates",
    "follow_policy",
    "init_state",
    "join",
    "merge",
    "partition",
    "preference_loss",
    "preference_metrics",
    "scan_steps",
    "scorer",
    "summarise",
    "supervised_loss",
    "train_step",
]
