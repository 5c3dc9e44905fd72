"""Log-probabilities: (hidden states, vocabulary matrix, targets) -> one log-probability a token. No loss lives here."""

from mi_align.logprobs.reference import token_logps

__all__ = ["token_logps"]
