"""Preferences: a prompt, the response that was chosen and those that were not."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Preference", "borrow_negatives"]


class Preference(NamedTuple):
    """A prompt with one chosen and K rejected responses, as text; with K = 0 a demonstration.

    Attributes:
      prompt: everything before the response, with the separator that ends it (`"37+48="`); may be empty.
      chosen: the preferred response; no part of the prompt, no end marker.
      rejected: the K others, each different from `chosen`.
      scores: how good each response is, `chosen` first, on any scale of the data's own; None where nobody said.
      desirable: whether `chosen`, which then stands alone, is a good response; None where it is not a labelled one.
      margin: how much better `chosen` is than the rejected one, in logits; None where nobody said.
    """

    prompt: str
    chosen: str
    rejected: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    desirable: bool | None = None
    margin: float | None = None


def borrow_negatives(preferences: Sequence[Preference], negatives: int) -> list[Preference]:
    """K negatives for each prompt: its own rejected responses first, then what was chosen for the prompts after it.

    The responses of other prompts are what contrastive learning calls in-batch negatives; they make a list of K out of
    data that has pairs. Responses that a prompt already has are passed over. Scores are dropped: nobody gave the
    borrowed ones any.

    Raises:
      ValueError: there are not so many different responses.
    """
    filled = []
    for i, own in enumerate(preferences):
        others = (preferences[(i + j) % len(preferences)].chosen for j in range(1, len(preferences)))
        rejected: dict[str, None] = {}  # an ordered set
        for response in itertools.chain(own.rejected, others):
            if len(rejected) == negatives:
                break
            if response != own.chosen:
                rejected[response] = None
        if len(rejected) < negatives:
            raise ValueError(
                f"`negatives` is {negatives}, but preference {i} finds only {len(rejected)} responses that differ from "
                "its chosen one. Give more preferences."
            )
        filled.append(own._replace(rejected=tuple(rejected), scores=None))
    return filled
