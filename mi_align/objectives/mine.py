"""MINE: Donsker and Varadhan's bound, trained with a moving average of its denominator."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.elementary import expm1, log1p
from mi_align.numerics import AxisName, centred_log_mean_exp, count, masked_mean, pivot
from mi_align.objectives._public import objective
from mi_align.objectives._samples import SampleAxis, if_sampled, samples

__all__ = ["MineState", "mine_init", "mine_step"]


class MineState(NamedTuple):
    """What MINE remembers between batches; a pytree, so that it is jitted, scanned, sharded and saved like any other.

    Attributes:
      log_average: log of the moving average of the batches' mean(e^b), `[...]`, in nats; −inf before the first batch.
      weight: the share of that average that is filled, `[...]`: 0 before the first batch, 1 − ρᵗ after t of them.
    """

    log_average: Float[Array, "..."]
    weight: Float[Array, "..."]


def mine_init(shape: tuple[int, ...] = (), dtype: jnp.dtype = jnp.float32) -> MineState:
    """The state before the first batch.

    Args:
      shape: that of the estimates: the scores' without the sample's axis. Default `()`, one estimate.
      dtype: in which the average is kept. Default float32, for float32 and half-precision scores.

    Returns:
      The state for `mine_step`, which keeps shape and dtype.

    >>> mine_init()
    MineState(log_average=Array(-inf, dtype=float32), weight=Array(0., dtype=float32))
    """
    return MineState(jnp.full(shape, -jnp.inf, dtype), jnp.zeros(shape, dtype))


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
    """Batch-coupled: the value of Donsker and Varadhan's bound with MINE's gradient, in nats, and the new state.

    I = mean(a) − log mean(e^b);  its derivatives are those of  mean(a) − mean(e^b) / A_t  with A_t held,
    A_t the average of the mean(e^b) of batches 1 … t with weights ∝ ρ^{t − i}

    The gradient of log mean(e^b) over a batch divides by that batch's own mean, which is biased; a denominator from
    many batches takes the bias away as ρ → 1. The average is kept as a logarithm, and starts from the
    first batch alone.

    When to choose: to train a critic to Donsker and Varadhan's bound in batches that are small against e^KL. In large
    ones `donsker_varadhan_bound` itself does, without a state.

    Args:
      state: from `mine_init` or the step before.
      joint: scores of pairs that belong together, `[..., N]`; logits, in nats.
      marginal: scores of pairs that do not, `[..., M]`; other axes as `joint`'s.
      decay: ρ in [0, 1), how much of the past each step keeps; 0 gives `donsker_varadhan_bound`. Default 0.99, the
        authors' rate of 0.01.
      where_joint: which entries of `joint` count, `[..., N]`, True = keep. Default all.
      where_marginal: the same for `marginal`, `[..., M]`.
      axis: the sample's axis or axes. Default the last.
      axis_name: mapped axes over which the sample is spread; state and bound are then the same on all of them.

    Returns:
      The bound `[...]` without `axis`, in nats, to be maximised; half precision comes back as float32. 0, with no
      gradient, where a sample has no kept entry.
      The new state, without a gradient; the old one where no entry of `marginal` is kept.

    Raises:
      ValueError: other axes than `axis` differ, a sample is empty, a mask is not of its sample's shape, the state is
        not of the estimates', or ρ is out of range.
      TypeError: scores are not floating-point, or a mask is not boolean.

    Gradient: ∂I/∂a_i = 1/N, ∂I/∂b_j = −e^{b_j} / (M A_t), at most M⁻¹ (1 − ρᵗ)/(1 − ρ) · e^{b_j} / mean(e^b).

    Equal to: `donsker_varadhan_bound` in value, and in gradient at the first step; the bias of its gradient is that of
    A_t, which vanishes as ρ → 1 while the critic stands still (ledger 11).

    Source: Belghazi et al. 2018 (arXiv 1801.04062), section 3.2. Common code starts the average from 1 instead, and
    clamps it from below.

    >>> import jax.numpy as jnp
    >>> bound, state = mine_step(mine_init(), jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0, -1.0]))
    >>> print(f"{bound:.4f}")
    1.1910
    """
    joint, marginal = samples(joint, marginal, where_joint, where_marginal, axis)
    over: dict[str, Any] = {"axis": axis, "axis_name": axis_name}
    top = pivot(marginal, where_marginal, **over)
    mean = masked_mean(joint - top, where_joint, **over)
    checks.same_shape(**{"state.log_average": state.log_average, "the estimates": mean})
    log_mean = centred_log_mean_exp(marginal, top, where_marginal, **over)
    fixed = jax.lax.stop_gradient(log_mean)
    new, log_ratio = _advance(state, fixed, jnp.squeeze(top, axis), decay)
    # 0 in value; in derivatives it puts the moving average in the place of the batch's own denominator.
    moved = jnp.exp(log_ratio) * expm1(log_mean - fixed)
    bound = if_sampled(mean - fixed - moved, (joint, where_joint), (marginal, where_marginal), **over)
    some = count(marginal, where_marginal, **over) > 0
    return bound, jax.tree.map(lambda after, before: jnp.where(some, after, before).astype(before.dtype), new, state)


def _advance(
    state: MineState, log_mean: Array, top: Array, decay: float | Array
) -> tuple[MineState, Float[Array, "..."]]:
    """The state after a batch with mean(e^b) = e^(log_mean + top), and log of that mean over the new average."""
    weight = decay * state.weight + (1 - decay)
    share = (1 - decay) / weight
    # Relative to the batch's own top, so that the ratio has no rounding of large scores in it.
    log_average = jnp.logaddexp(state.log_average - top + log1p(-share), log_mean + jnp.log(share))
    return jax.lax.stop_gradient((MineState(log_average + top, weight), log_mean - log_average))
