"""Batches of examples of similar lengths, cut to one of a few lengths: little padding, few programs, no state.

The stream of examples is `batch_indices`', in which each comes once an epoch. It is cut into windows of many batches;
inside a window examples are sorted by length, dealt out to batches, and the batches shuffled. So which examples make up
a batch depends on seed and step alone, and resuming needs one integer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from mi_align.data.batches import PreferenceBatch, batch_indices

__all__ = ["Buckets", "Pass", "one_pass", "trimmed"]

#: Lengths in tokens, or "powers" for those of two.
Wanted = Sequence[int] | str

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
    def of(cls, data: PreferenceBatch, wanted: Wanted, *, batch: int, seed: int, steps: int) -> Buckets:
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
        return cls(_lengths(data), _table(data, wanted), batch, seed, steps)

    def batch(self, step: int) -> tuple[Int[np.ndarray, " batch"], int]:
        """The examples of batch number `step`, and the length to which it is cut."""
        picked = _ordered(self, step // WINDOW)[step % WINDOW]
        return picked, _cut(self.table, self.lengths[picked])

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


class Pass(NamedTuple):
    """One batch of a pass over some data.

    Attributes:
      picked: its examples; a last batch that is not full is filled up with examples that came before.
      fresh: how many of them had not come before, the first ones.
      length: to which it is cut, in tokens.
    """

    picked: Int[np.ndarray, " batch"]
    fresh: int
    length: int


def one_pass(data: PreferenceBatch, batch: int, wanted: Wanted | None = None) -> Iterator[Pass]:
    """All of some data, each example once: in their order, or with buckets from the shortest to the longest.

    Args:
      data: the whole data.
      batch: examples a batch.
      wanted: lengths as in `Buckets.of`; None: nothing is cut.

    Raises:
      ValueError: a length < 2.
    """
    size, longest = data.tokens.shape[0], data.tokens.shape[-1]
    table = _table(data, wanted) if wanted else (longest,)
    lengths = _lengths(data) if wanted else np.full(size, longest)
    order = np.argsort(lengths, kind="stable")
    for first in range(0, size, batch):
        picked = order[np.arange(first, first + batch) % size]
        fresh = min(batch, size - first)
        yield Pass(picked, fresh, _cut(table, lengths[picked[:fresh]]))


def _lengths(data: PreferenceBatch) -> Int[np.ndarray, " examples"]:
    """Of each example, the longest of its candidates. Masks come from lengths: a response's last token is the last."""
    of_any = np.any(data.response_mask, axis=1)
    after = np.argmax(of_any[:, ::-1], axis=1)  # tokens behind the last one
    return np.where(np.any(of_any, axis=1), data.tokens.shape[-1] - after, 0)


def _table(data: PreferenceBatch, wanted: Wanted) -> tuple[int, ...]:
    """The lengths to which batches of some data are cut, ascending."""
    longest = data.tokens.shape[-1]
    powers = (2**n for n in range(3, longest.bit_length() + 1))
    table = {int(length) for length in (powers if isinstance(wanted, str) else wanted)}
    if min(table, default=2) < 2:
        raise ValueError(f"`buckets` holds {min(table)}, but lengths of at least 2 tokens were wanted.")
    return (*sorted(length for length in table if length < longest), longest)


def _cut(table: Sequence[int], lengths: Int[np.ndarray, " batch"]) -> int:
    """The least length of a table that holds these."""
    return table[int(np.searchsorted(table, lengths.max()))]


def trimmed(batch: PreferenceBatch, length: int) -> PreferenceBatch:
    """The first `length` positions in time."""
    return batch._replace(tokens=batch.tokens[..., :length], response_mask=batch.response_mask[..., :length])
