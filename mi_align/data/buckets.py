"""Batches of examples of similar lengths, cut to one of a few lengths: little padding, few programs, no state.

The stream of examples is `batch_indices`', in which each comes once an epoch. It is cut into windows of many batches;
inside a window examples are sorted by length, dealt out to batches, and the batches shuffled. So which examples make up
a batch depends on seed and step alone, and resuming needs one integer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from mi_align.data.batches import PreferenceBatch, batch_indices

__all__ = ["Buckets", "trimmed"]

#: Batches in a window: enough for neighbours in length, few enough that an epoch stays well mixed.
WINDOW = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Buckets:
    """Which examples make up each batch of a run, and to which length it is cut.

    A run over S steps sees the examples that it would see without buckets in as many.

    Attributes:
      lengths: of each example, the longest of its candidates, in tokens.
      table: the lengths to which batches are cut, ascending; the last is that of the whole data.
      size: examples a batch.
      seed: of the order.
      steps: of the run; its last window ends there, so that what has begun is finished.
    """

    lengths: Int[np.ndarray, " examples"]
    table: tuple[int, ...]
    size: int
    seed: int
    steps: int

    @classmethod
    def of(cls, data: PreferenceBatch, wanted: Sequence[int] | str, *, batch: int, seed: int, steps: int) -> Buckets:
        """The buckets of some data.

        Args:
          data: the whole data.
          wanted: lengths in tokens, or "powers" for those of two; what is longer than all of them is not cut.
          batch: examples a batch.
          seed: of the order.
          steps: of the run.

        Raises:
          ValueError: a length < 2.
        """
        longest = data.tokens.shape[-1]
        # Masks come from lengths: the last token of a response is the last of its candidate.
        ends = data.response_mask * np.arange(1, longest + 1)
        powers = (2**n for n in range(3, longest.bit_length() + 1))
        table = {int(length) for length in (powers if isinstance(wanted, str) else wanted)}
        if min(table, default=2) < 2:
            raise ValueError(f"`buckets` holds {min(table)}, but lengths of at least 2 tokens were wanted.")
        shorter = sorted(length for length in table if length < longest)
        return cls(ends.max((1, 2)), (*shorter, longest), batch, seed, steps)

    def batch(self, step: int) -> tuple[Int[np.ndarray, " batch"], int]:
        """The examples of batch number `step`, and the length to which it is cut."""
        picked = _ordered(self, step // WINDOW)[step % WINDOW]
        return picked, self.table[int(np.searchsorted(self.table, self.lengths[picked].max()))]

    def share(self) -> float:
        """How much of the token positions of the run's first window is still computed."""
        cut = [self.batch(step)[1] for step in range(min(WINDOW, self.steps))]
        return float(np.mean(cut)) / self.table[-1]

    def __str__(self) -> str:
        """What they are and what they save, in words."""
        return (
            f"batches are cut to {', '.join(f'{n:,}' for n in self.table)} tokens, which leaves out "
            f"{1 - self.share():.0%} of all positions as padding"
        )


@functools.lru_cache(maxsize=2)
def _ordered(buckets: Buckets, number: int) -> Int[np.ndarray, "batches batch"]:
    steps = range(number * WINDOW, min((number + 1) * WINDOW, max(buckets.steps, number * WINDOW + 1)))
    size, seed = len(buckets.lengths), buckets.seed
    stream = np.concatenate([batch_indices(size, buckets.size, seed=seed, step=step) for step in steps])
    by_length = stream[np.argsort(buckets.lengths[stream], kind="stable")]
    order = np.random.default_rng([seed, number, 1]).permutation(len(steps))
    return by_length.reshape(len(steps), buckets.size)[order]


def trimmed(batch: PreferenceBatch, length: int) -> PreferenceBatch:
    """The first `length` positions in time."""
    return batch._replace(tokens=batch.tokens[..., :length], response_mask=batch.response_mask[..., :length])
