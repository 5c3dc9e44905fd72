"""What of a model a run trains: all of it, parts by their names, or an adapter alone.

What is frozen is held once. A step is not given its memory, so that nothing has to be copied for it; the reference
shares it; and checkpoints do not hold it, but a hash by which a resumed run knows that it has read the same again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mi_align.models import Pretrained, fresh_adapter, is_adapter, load_adapter
from mi_align.training.checkpoints import Checkpoints
from mi_align.training.config import ModelConfig
from mi_align.training.metrics import Metrics
from mi_align.training.parts import Params, partition
from mi_align.training.scoring import ROUNDED
from mi_align.training.sharding import shardings
from mi_align.training.state import TrainState
from mi_align.training.step import Step

__all__ = ["CompiledStep", "check_frozen", "compiled_step", "parts_of", "restored", "with_adapter", "without_frozen"]


def with_adapter(config: ModelConfig, model: Pretrained, seed: int) -> Pretrained:
    """The model with the adapter that the configuration wants: one from a folder, a fresh one, or none."""
    if config.adapter is not None:
        return load_adapter(model, config.adapter)
    if config.lora is None:
        return model
    key = jax.random.fold_in(jax.random.key(seed), 1)  # the seed's own key draws a fresh model
    return fresh_adapter(model, config.lora, key)


def parts_of(config: ModelConfig, model: Pretrained) -> tuple[Params, Params | None]:
    """What is trained, and the frozen rest; None where all is trained.

    Raises:
      ValueError: `trained` names no parameter.
    """
    if model.lora is not None:
        # A reward's head is trained beside an adapter of what it reads.
        return partition(model.params, lambda path: is_adapter(path) or path == "score")
    if not config.trained:
        return model.params, None
    params, frozen = partition(model.params, lambda path: path.startswith(config.trained))
    if not jax.tree.leaves(params):
        raise ValueError(f"`model.trained` is {list(config.trained)}, but no parameter's path begins so.")
    return params, frozen


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A step as a program that takes over the memory of what moves, and leaves what is frozen where it is.

    Attributes:
      program: (state without its frozen part, frozen part, batch) -> the next one and metrics; compiled by `jax.jit`.
    """

    program: Any

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        """Make one step."""
        moved, metrics = self.program(without_frozen(state), state.frozen, batch)
        return moved._replace(frozen=state.frozen), metrics

    def lower(self, state: TrainState, batch: Any) -> Any:
        """As of a function that `jax.jit` gave back."""
        return self.program.lower(without_frozen(state), state.frozen, batch)


def compiled_step(step: Step, state: TrainState, mesh: Mesh | None) -> CompiledStep:
    """The program of a step for states that lie as this one does."""

    def moving(moved: TrainState, frozen: Params | None, batch: Any) -> tuple[TrainState, Metrics]:
        moved, metrics = step(moved._replace(frozen=frozen), batch)
        return without_frozen(moved), metrics

    # Without being told, the compiler may lay the new state out otherwise, and the second step would compile again.
    out = None if mesh is None else (shardings(without_frozen(state), mesh), None)
    return CompiledStep(jax.jit(moving, donate_argnums=0, out_shardings=out, compiler_options=ROUNDED))


def without_frozen(state: TrainState) -> TrainState:
    """What moves: all that a checkpoint has to hold."""
    return state._replace(frozen=None)


def restored(checkpoints: Checkpoints, state: TrainState, frozen_hash: str | None) -> TrainState:
    """The last checkpoint's state, beside the frozen part that `state` has.

    Raises:
      ValueError: the checkpoint was written beside another frozen part, or is that of another model or optimiser.
    """
    found, about = checkpoints.restore(without_frozen(state))
    check_frozen(about, frozen_hash, checkpoints.folder / str(int(found.step)))
    return found._replace(frozen=state.frozen)


def check_frozen(about: Mapping[str, Any], frozen_hash: str | None, checkpoint: Path) -> None:
    """What is frozen is not in a checkpoint, but has to be what it was trained beside.

    Raises:
      ValueError: it is not.
    """
    if about.get("frozen") != frozen_hash:
        raise ValueError(
            f"the checkpoint {checkpoint} was written beside other frozen parameters than those that were read now. "
            "Give it the base that it was trained on, or another `output`."
        )
