"""Log-probabilities: (hidden states, vocabulary matrix, targets) -> one log-probability a token. No loss lives here."""

from mi_align.logprobs.api import TokenStatistics, token_logps, token_statistics
from mi_align.logprobs.layout import Layout
from mi_align.logprobs.tiles import Tiles

__all__ = ["Layout", "Tiles", "TokenStatistics", "token_logps", "token_statistics"]
