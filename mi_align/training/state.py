"""What training carries from step to step."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

__all__ = ["Params", "TrainState", "init_state"]

Params = Any  # a pytree of arrays


class TrainState(NamedTuple):
    """A pytree: together with the data's seed it determines everything that follows.

    Attributes:
      step: how many steps have been made; also the number of the next batch.
      params: the parameters.
      opt_state: the optimiser's state.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState


def init_state(params: Params, optimiser: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimiser.init(params))
