"""One preference: a prompt, the response that was chosen and those that were not."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Preference"]


class Preference(NamedTuple):
    """A prompt with one chosen and K ≥ 1 rejected responses, as text.

    Attributes:
      prompt: everything before the response, with the separator that ends it (`"37+48="`); may be empty.
      chosen: the preferred response; no part of the prompt, no end marker.
      rejected: the K others, each different from `chosen`.
    """

    prompt: str
    chosen: str
    rejected: tuple[str, ...]
