"""Log-probabilities: (hidden states, vocabulary matrix, targets) -> one log-probability a token. No loss lives here."""

from mi_align.logprobs.api import TokenStatistics, token_logps, token_statistics
from mi_align.logprobs.in_batch import in_batch_clip_loss, in_batch_info_nce_bound, in_batch_info_nce_loss
from mi_align.logprobs.layout import Layout
from mi_align.logprobs.tiles import Tiles

__all__ = [
    "Layout",
    "Tiles",
    "TokenStatistics",
    "in_batch_clip_loss",
    "in_batch_info_nce_bound",
    "in_batch_info_nce_loss",
    "token_logps",
    "token_statistics",
]
