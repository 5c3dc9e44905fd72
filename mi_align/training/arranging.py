"""How the batches of a run lie in rows: one shape for all of them, found before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from mi_align.data import Packing, PreferenceBatch, batch_indices, pack, plan_packing
from mi_align.training.config import RunConfig
from mi_align.training.scoring import Batch

__all__ = ["Arrangement", "arrangement"]


_FACTS = ("examples", "rows", "length", "fill")


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """What becomes of a batch before it is scored.

    Attributes:
      packing: the shape of all packs; None: every candidate has a row of its own, as it was encoded.
    """

    packing: Packing | None

    def __call__(self, batch: PreferenceBatch) -> Batch:
        """The batch as it is scored, the same for the same batch."""
        return batch if self.packing is None else pack(batch, self.packing)

    def facts(self) -> dict[str, float]:
        """What a user wants to know of it, as metrics."""
        return {} if self.packing is None else {f"packing/{x}": getattr(self.packing, x) for x in _FACTS}

    def rules(self) -> dict[str, Any]:
        """What the last bits of scores depend on."""
        return {} if self.packing is None else {"packing": [int(x) for x in self.packing[:4]]}


def arrangement(
    config: RunConfig, train: PreferenceBatch, evaluation: PreferenceBatch | None, *, steps: int, devices: int
) -> Arrangement:
    """The arrangement of a run: a pack is what one device scores at a time, and has as many rows as the fullest needs.

    All packs that the run will make are packed here, as to their lengths: of every step, of the reference's and the
    evaluation's passes over the data. So shapes are static, and no batch fails later.

    Args:
      config: the settings.
      train: what it trains on.
      evaluation: what it evaluates on; None: nothing.
      steps: how many the run makes.
      devices: over how many the examples of a batch are spread.

    Raises:
      ValueError: devices and micro-batches do not divide the batch, or a group is longer than a row.
    """
    if config.data.packing == "none":
        return Arrangement(None)
    parts = devices * config.micro_batches
    if config.batch % parts:
        raise ValueError(
            f"`batch` is {config.batch}, but a multiple of {parts} was wanted: packed, each of {config.micro_batches} "
            f"micro-batches has the same number of examples for each of {devices} devices. Change one of them."
        )
    packs = [(train, _all_steps(config, len(train.tokens), steps).reshape(-1, config.batch // parts))]
    for data in (train, evaluation):
        if data is not None:
            packs += [(data, x.reshape(-1, config.batch // parts)) for x in _passes(config, len(data.tokens))]
    return Arrangement(plan_packing(packs, shared=config.data.packing == "shared", length=config.data.row_length))


def _all_steps(config: RunConfig, size: int, steps: int) -> np.ndarray:
    return batch_indices(size, config.batch * steps, seed=config.seed, step=0)


def _passes(config: RunConfig, size: int) -> Iterator[np.ndarray]:
    """A reference's pass fills the last batch up with the first examples, an evaluation's with nothing (−1)."""
    part = config.batch // config.micro_batches
    yield np.arange(-(-size // part) * part) % size
    whole = np.arange(-(-size // config.batch) * config.batch)
    yield np.where(whole < size, whole, -1)
