"""MINE: Donsker and Varadhan's bound, trained with a moving average of its denominator."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import AxisName, centred_log_mean_exp, count, expm1, masked_mean, pivot
from mi_align.objectives._public import objective
from mi_align.objectives.variational import SampleAxis, if_sampled, samples

__all__ = ["MineState", "mine_init", "mine_step"]


class MineState(NamedTuple):
    """What MINE remembers between batches.

    Attributes:
      log_average: log of the moving average of the batches' mean e^b, `[...]`, in nats; −inf before the first batch.
      weight: how much of that average is filled, from 0 (no batch yet) to 1, `[...]`.
    """

    log_average: Float[Array, "..."]
    weight: Float[Array, "..."]


def mine_init(shape: tuple[int, ...] = (), dtype: jnp.dtype = jnp.float32) -> MineState:
    """The state before the first batch, for estimates of `shape`."""
    return MineState(jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, dtype))


def _advance(state: MineState, log_mean: Array, top: Array, decay: Array | float) -> tuple[MineState, Array]:
    """The state after a batch whose log mean e^b is `log_mean` + `top`, and log of that mean over the new average."""
    weight = decay * state.weight + (1 - decay)
    share = (1 - decay) / weight
    log_average = jnp.logaddexp(state.log_average - top + jnp.log1p(-share), log_mean + jnp.log(share))
    new = MineState(log_average + top, weight)
    return jax.lax.stop_gradient((new, log_mean - log_average))


@objective(static=["axis", "axis_name"])
def mine_step(
    state: MineState,
    joint: Float[Array, "..."],
    marginal: Float[Array, "..."],
    *,
    decay: float | Float[Array, ""] = 0.99,
    where_joint: Bool[Array, "..."] | None = None,
    where_marginal: Bool[Array, "..."] | None = None,
    axis: SampleAxis = -1,
    axis_name: AxisName = None,
) -> tuple[Float[Array, "..."], MineState]:
    """One batch: a number that is Donsker and Varadhan's bound and whose gradient is MINE's, and the new state."""
    joint, marginal = samples(joint, marginal, where_joint, where_marginal, axis)
    top = pivot(marginal, where_marginal, axis=axis, axis_name=axis_name)
    mean = masked_mean(joint - top, where_joint, axis=axis, axis_name=axis_name)
    checks.same_shape(**{"state.log_average": state.log_average, "mean(joint, axis)": mean})
    log_mean = centred_log_mean_exp(marginal, top, where_marginal, axis=axis, axis_name=axis_name)
    new, log_ratio = _advance(state, jax.lax.stop_gradient(log_mean), jnp.squeeze(top, axis), decay)
    # 0 in value; in derivatives it puts the moving average in the place of the batch's own denominator.
    surrogate = jnp.exp(log_ratio) * expm1(log_mean - jax.lax.stop_gradient(log_mean))
    bound = if_sampled(
        mean - jax.lax.stop_gradient(log_mean) - surrogate,
        joint,
        marginal,
        where_joint,
        where_marginal,
        axis,
        axis_name,
    )
    some = count(marginal, where_marginal, axis=axis, axis_name=axis_name) > 0
    return bound, jax.tree.map(lambda after, before: jnp.where(some, after, before).astype(before.dtype), new, state)
