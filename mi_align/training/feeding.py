"""What a run is fed with: batch = f(seed, step) as it lies in rows and on devices, the reference's scores beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from mi_align.data import Buckets, PreferenceBatch, batch_indices, one_pass, take, trimmed
from mi_align.training.arranging import Arrangement
from mi_align.training.config import RunConfig
from mi_align.training.inputs import Inputs
from mi_align.training.reference_cache import cached_reference
from mi_align.training.scoring import ROUNDED, TokenLogps
from mi_align.training.scoring import Batch as Examples
from mi_align.training.sharding import place, put, shardings
from mi_align.training.state import Params

__all__ = ["Batch", "Feed", "reference_scores"]

#: What a step takes: examples, and the reference's scores of them.
Batch = tuple[Examples, np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Feed:
    """The batches of a run.

    Attributes:
      config: the settings.
      train: all that is trained on.
      evaluation: what is evaluated; None: nothing.
      scores: the reference's, of both; None where it is scored in the step, or not at all.
      arrange: how examples lie in rows.
      buckets: batches of similar lengths; None: all are of one length.
      mesh: over which they are spread; None: one device.
    """

    config: RunConfig
    train: PreferenceBatch
    evaluation: PreferenceBatch | None
    scores: tuple[np.ndarray | None, np.ndarray | None]
    arrange: Arrangement
    buckets: Buckets | None
    mesh: Mesh | None

    def batch(self, step: int) -> Batch:
        """What step number `step` trains on, always the same."""
        scores = self.scores[0]
        if self.buckets is not None:
            picked, length = self.buckets.batch(step)
            cut = trimmed(take(self.train, picked), length)
            return place((cut, None if scores is None else scores[picked][..., : length - 1]), self.mesh)
        picked = batch_indices(len(self.train.tokens), self.config.batch, seed=self.config.seed, step=step)
        part = self.arrange(take(self.train, picked))
        return place((part, None if scores is None else scores[picked]), self.mesh)

    def evaluated(self) -> Iterator[Batch]:
        """All of the evaluation data; the last batch is filled up with examples without candidates.

        They come in their order, or where training has buckets in that of their lengths, cut like training's.
        """
        data, scores = self.evaluation, self.scores[1]
        if data is None:
            return
        for picked, count, length in one_pass(data, self.config.batch, self.config.data.buckets):
            there = np.arange(len(picked)) < count
            part = take(data, picked)
            part = part._replace(
                candidate_mask=part.candidate_mask & there[:, None],
                response_mask=part.response_mask & there[:, None, None],
            )
            kept = None if scores is None else scores[picked][..., : length - 1]
            yield place((self.arrange(trimmed(part, length)), kept), self.mesh)


def reference_scores(
    config: RunConfig,
    inputs: Inputs,
    score: TokenLogps,
    arrange: Arrangement,
    *,
    folder: Path,
    mesh: Mesh | None,
    tick: Callable[[float], None],
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The reference's log-probabilities of training and evaluation data, from the cache in `folder` or made now."""
    params = inputs.model.params
    params = params if mesh is None else put(params, shardings(params, mesh))
    program = jax.jit(score, compiler_options=ROUNDED)

    def compiled(params: Params, batch: Any) -> jax.Array:
        return program(params, place(arrange(batch), mesh))

    rules = {
        "soft_cap": inputs.model.config.logit_soft_cap,
        "compute_dtype": config.model.compute_dtype,
        "jax": jax.__version__,
        "device": jax.default_backend(),
        **arrange.rules(),
    }
    way: dict[str, Any] = {
        "batch": config.batch // config.micro_batches,
        "buckets": config.data.buckets,
        "folder": folder,
        "rules": rules,
        "tick": tick,
    }
    train = cached_reference(compiled, params, inputs.train, **way)
    return train, None if inputs.evaluation is None else cached_reference(compiled, params, inputs.evaluation, **way)
