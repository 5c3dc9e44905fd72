"""Text to token ids, a byte at a time: no vocabulary to train or download, and no text that it cannot say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

__all__ = ["ByteTokenizer", "Tokenizer"]


class Tokenizer(Protocol):
    """What the data room asks of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def bos_id(self) -> int:
        """The id that opens every prompt, so that something predicts its first token."""

    @property
    def eos_id(self) -> int:
        """The id that ends every complete response."""

    def encode(self, text: str) -> np.ndarray:
        """The ids of `text` alone, int32, without BOS and EOS."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, BOS and EOS left out."""


class ByteTokenizer:
    """UTF-8 bytes as ids 0–255, then EOS and BOS. Prompt and response never merge across their boundary.

    >>> ByteTokenizer().encode("6+7=").tolist()
    [54, 43, 55, 61]
    """

    vocab_size = 258
    eos_id = 256
    bos_id = 257
    fingerprint = "bytes"

    def encode(self, text: str) -> np.ndarray:
        """The bytes of `text`, int32."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no UTF-8 (a model may say such) become U+FFFD."""
        return bytes(int(i) for i in ids if i < 256).decode("utf-8", errors="replace")
