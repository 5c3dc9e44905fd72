"""Checkpoints with Orbax: written beside the training, whole or not at all; the last few and the best few kept."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp

from mi_align.training.parts import Params, path_of
from mi_align.training.state import TrainState

__all__ = ["Best", "Checkpoints", "Stop", "stopping"]


@dataclasses.dataclass(frozen=True)
class Best:
    """Which checkpoints stay beside the last ones.

    Attributes:
      count: how many.
      metric: by which number; a checkpoint that was saved without it counts for none.
      highest: whether more is better.
    """

    count: int
    metric: str
    highest: bool = False


class Checkpoints:
    """The checkpoints of one run, in one folder; close it, or use it in a `with` block, so that the last is written.

    A checkpoint holds the whole state, bit for bit, and a dictionary of JSON's types. It is written in the background,
    into a temporary folder that gets its name when it is complete: a run that is killed meanwhile loses that one alone.
    """

    def __init__(self, folder: str | Path, *, keep: int = 2, best: Best | None = None, read_only: bool = False) -> None:
        """Open a folder, or make it.

        Args:
          folder: of the checkpoints, one folder a step.
          keep: how many of the last ones stay.
          best: which others do. Default: none.
          read_only: nothing is made, written or taken away, so that the run may be going on.
        """
        import orbax.checkpoint as ocp

        for name in ("absl", "orbax"):
            logging.getLogger(name).setLevel(logging.ERROR)  # Orbax tells every step it takes
        self.folder = Path(folder).absolute()
        self._best = best
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_kept(keep, best),
            best_fn=None if best is None else _measure(best),  # without it Orbax writes no metrics
            create=not read_only,
            read_only=read_only,
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "about": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def __enter__(self) -> Checkpoints:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for what is being written."""
        self.close()

    def steps(self) -> list[int]:
        """The steps of which there is a whole checkpoint."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the best checkpoint; None where none was saved with the metric."""
        found = [(self._manager.metrics(step), step) for step in self.steps()]
        measured = [(m[self._best.metric], step) for m, step in found if m] if self._best else []
        if self._best is None or not measured:
            return None
        return (max if self._best.highest else min)(measured)[1]

    def save(self, state: TrainState, about: Mapping[str, Any], numbers: Mapping[str, float] | None = None) -> None:
        """Begin to write a checkpoint; one of the same step stays as it is.

        Args:
          state: all of it.
          about: is kept with it; of JSON's types.
          numbers: metrics of this state, among which that of `best` is looked for.
        """
        import orbax.checkpoint as ocp

        step = int(state.step)
        if step not in self.steps():
            parts = {"state": ocp.args.StandardSave(_plain(state)), "about": ocp.args.JsonSave(dict(about))}
            found = (numbers or {}).get(self._best.metric, math.nan) if self._best else math.nan
            measured = {self._best.metric: float(found)} if self._best and math.isfinite(found) else None
            self._manager.save(step, args=ocp.args.Composite(**parts), metrics=measured, force=True)

    def restore(self, like: TrainState, step: int | None = None) -> tuple[TrainState, dict[str, Any]]:
        """A state and what was said about it.

        Args:
          like: a state of the same structure, shapes and shardings: arrays, or `jax.ShapeDtypeStruct`s.
          step: which one; None: the last.

        Raises:
          FileNotFoundError: there is none.
          ValueError: it is that of another model or optimiser; the first difference is named.
        """
        import orbax.checkpoint as ocp

        step = self._manager.latest_step() if step is None else step
        if step is None or step not in self.steps():
            raise FileNotFoundError(f"{self.folder} has no checkpoint{'' if step is None else f' of step {step}'}.")
        wanted = {name: _abstract(leaf) for name, leaf in _plain(like).items()}
        self._check(step, wanted)
        found = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted), about=ocp.args.JsonRestore())
        )
        leaves = [found["state"][name] for name in wanted]
        return jax.tree.unflatten(jax.tree.structure(like), leaves), dict(found["about"])

    def parameters(self, like: Params, step: int) -> tuple[Params, dict[str, Any]]:
        """What was trained, without the optimiser's state, and what was said about it.

        Args:
          like: parameters of the same structure, shapes and shardings, as in `restore`.
          step: one of `steps()`.

        Raises:
          ValueError: it is that of another model; the first difference is named.
        """
        import orbax.checkpoint as ocp

        names = [f"params.{path_of(keys)}" for keys, _ in jax.tree_util.tree_leaves_with_path(like)]
        wanted = dict(zip(names, map(_abstract, jax.tree.leaves(like)), strict=True))
        self._check(step, wanted, only="params.")
        restore_args = ocp.checkpoint_utils.construct_restore_args(wanted)
        how = ocp.args.PyTreeRestore(item=wanted, restore_args=restore_args, partial_restore=True)
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = reader.restore(self.folder / str(step) / "state", args=how)
        about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))["about"]
        return jax.tree.unflatten(jax.tree.structure(like), [found[name] for name in names]), dict(about)

    def close(self) -> None:
        """Wait for what is being written, and end."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _check(self, step: int, wanted: Mapping[str, jax.ShapeDtypeStruct], only: str = "") -> None:
        there = {name: x for name, x in self._manager.item_metadata(step)["state"].items() if name.startswith(only)}
        stored = {name: (tuple(x.shape), jnp.dtype(x.dtype)) for name, x in there.items()}
        asked = {name: (tuple(x.shape), jnp.dtype(x.dtype)) for name, x in wanted.items()}
        for name in (*asked, *stored):
            if stored.get(name) != asked.get(name):
                known, here = (_told(table.get(name)) for table in (stored, asked))
                raise ValueError(
                    f"the checkpoint {self.folder / str(step)} is that of another run: `{name}` is {known} there and "
                    f"{here} here. Give the settings with which it was written, or another `output`."
                )


def _kept(keep: int, best: Best | None) -> Any:
    """Orbax's rule: of each checkpoint, whether it stays."""
    from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

    if best is None or best.count == 0:
        return LatestN(keep)
    policy = BestN(
        get_metric_fn=_measure(best),
        reverse=not best.highest,
        n=best.count,
        keep_checkpoints_without_metrics=False,
    )
    return AnyPreservationPolicy([LatestN(keep), policy])


def _measure(best: Best) -> Callable[[Mapping[str, float]], float]:
    return lambda metrics: metrics[best.metric]


def _plain(state: TrainState) -> dict[str, Any]:
    """The leaves by their paths: what is stored does not depend on how JAX, Flax or Optax name their containers."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(state)}


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _told(entry: tuple[tuple[int, ...], jnp.dtype] | None) -> str:
    return "absent" if entry is None else f"{entry[1].name}{list(entry[0])}"


class Stop:
    """Whether the process has been asked to end."""

    requested = False


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """While this lasts, the first SIGTERM or Ctrl-C asks the run to end after its step; the second does as ever."""
    stop = Stop()
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.requested = True
        restore()

    def restore() -> None:
        for name, handler in before.items():
            signal.signal(name, handler)

    for name in (signal.SIGTERM, signal.SIGINT):
        before[int(name)] = signal.signal(name, ask)
    try:
        yield stop
    finally:
        restore()
