"""Single responses with a label: taken from pairs, set against other prompts, or laid side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from mi_align.data.batches import PreferenceBatch, take
from mi_align.data.preference import Preference

__all__ = ["labelled", "mismatched", "side_by_side"]


def labelled(preferences: Sequence[Preference]) -> list[Preference]:
    """Every response by itself: of preferences the chosen ones desirable, the rejected ones not; labelled ones stay."""
    singles = []
    for whole in preferences:
        if whole.desirable is not None:
            singles.append(whole)
            continue
        for i, response in enumerate((whole.chosen, *whole.rejected)):
            singles.append(Preference(whole.prompt, response, (), desirable=i == 0))
    return singles


def mismatched(preferences: Sequence[Preference]) -> list[Preference]:
    """Every labelled response with a second candidate: the response of an example further on that has another prompt.

    KTO estimates KL(π ‖ π_ref) from such responses. Every example takes from as far on as the longest run of one
    prompt, so that each response is taken about once, whether good or bad, also where pairs were taken apart. Which one
    it takes depends on the data alone and not on the batch: the reference can be scored before.

    Raises:
      ValueError: all prompts are the same.
    """
    prompts = [p.prompt for p in preferences]
    offset = max((len(list(run)) for _, run in itertools.groupby(prompts)), default=0)
    if len(set(prompts)) < 2:
        raise ValueError(
            "all examples have the same prompt, but KTO sets responses against prompts that they were not written for. "
            "Give data with several prompts, or take 'apo_zero_unpaired', which does without."
        )
    size = len(preferences)
    others = []
    for i, own in enumerate(preferences):
        places = ((i + offset + j) % size for j in range(size))
        others.append(next(preferences[j].chosen for j in places if prompts[j] != own.prompt))
    return [own._replace(rejected=(other,)) for own, other in zip(preferences, others, strict=True)]


def side_by_side(batch: PreferenceBatch) -> PreferenceBatch:
    """Labelled responses as rows of one desirable and one undesirable response, whatever their prompts.

    For methods that compare the two samples as wholes. Of the smaller sample examples come several times.

    Raises:
      ValueError: one of the two samples is empty.
    """
    if batch.desirable is None:
        raise ValueError("the batch has no labels, but desirable and undesirable responses were wanted.")
    good, bad = (np.flatnonzero(batch.desirable[:, 0] == label) for label in (True, False))
    if not len(good) or not len(bad):
        raise ValueError(
            f"there are {len(good):,} desirable and {len(bad):,} undesirable responses, but some of both were wanted."
        )
    size = np.arange(max(len(good), len(bad)))
    columns = [take(batch, sample[size % len(sample)]) for sample in (good, bad)]
    tokens, response, there = (
        np.concatenate([column[field][:, :1] for column in columns], axis=1)  # type: ignore[index]
        for field in range(3)
    )
    return PreferenceBatch(tokens, response, there)
