"""Batches as a Grain data set, for pipelines that are made of such: an extra, `pip install 'mi-align[grain]'`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mi_align.data.batches import PreferenceBatch, batch_indices, take

if TYPE_CHECKING:
    import grain

__all__ = ["grain_batches"]


def grain_batches(data: PreferenceBatch, *, batch: int, seed: int, steps: int) -> grain.MapDataset[PreferenceBatch]:
    """The batches of a run, element n being that of step n, to be mapped, prefetched or read by several processes.

        stream = iter(grain_batches(data, batch=16, seed=0, steps=1000).to_iter_dataset())

    A stream's state is a step, as a run's is.

    Args:
      data: all examples.
      batch: examples in a batch.
      seed: of their order, as in `batch_indices`.
      steps: how many batches.

    Raises:
      ModuleNotFoundError: Grain is not installed.
    """
    try:
        import grain
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("Grain is not installed: pip install 'mi-align[grain]'.") from error
    size = len(data.tokens)

    def of_step(step: int) -> PreferenceBatch:
        return take(data, batch_indices(size, batch, seed=seed, step=step))

    return grain.MapDataset.range(steps).map(of_step)
