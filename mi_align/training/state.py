"""What training carries from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from mi_align import checks
from mi_align.training.parts import Params

__all__ = ["Follow", "Params", "TrainState", "follow_policy", "init_state"]


class TrainState(NamedTuple):
    """A pytree: together with the data's seed it determines everything that follows.

    Attributes:
      step: how many steps have been made; also the number of the next batch.
      params: what is trained.
      opt_state: the optimiser's state.
      frozen: the parameters that are not trained, where some are not (`partition`); else None.
      reference: a live reference policy in the place of `params`, fixed or following it; None where there is none.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    frozen: Params | None = None
    reference: Params | None = None


#: (reference, parameters after step n, n) -> the next reference.
Follow = Callable[[Params, Params, Int[Array, ""]], Params]


def init_state(
    params: Params,
    optimiser: optax.GradientTransformation,
    *,
    frozen: Params | None = None,
    reference: Params | None = None,
) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimiser.init(params), frozen, reference)


def follow_policy(*, decay: float, every: int = 1) -> Follow:
    """A reference that comes after the policy: every so many steps, r ← decay · r + (1 − decay) · policy.

    With `decay` 0 it is synchronised, with one near 1 a moving average.

    Raises:
      ValueError: `decay` outside [0, 1), or `every` < 1.

    Source: Gorbatovski et al. 2024 (arXiv 2404.09656), their α being 1 − decay.
    """
    checks.number("decay", decay)
    if every < 1:
        raise ValueError(f"`every` is {every}, but at least 1 step was wanted.")

    def follow(reference: Params, params: Params, step: Array) -> Params:
        now = step % every == 0
        return jax.tree.map(
            lambda r, p: jnp.where(now, decay * r + (1 - decay) * p, r).astype(r.dtype), reference, params
        )

    return follow
