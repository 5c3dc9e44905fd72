"""The bound between InfoNCE's and TUBA's, from the scores of every x against every y."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import as_float, centred_log_mean_exp, expm1, fill, masked_mean, masked_sum, mean_expm1, pivot
from mi_align.objectives._public import objective

__all__ = ["interpolated_bound"]


def _log_of_near(mean_minus_one: Array, mean: Array) -> Float[Array, "..."]:
    """log of a mean that comes in two forms: from the first where it is near 1, from the second where it is small."""
    near = mean_minus_one > -0.5
    return jnp.where(near, jnp.log1p(jnp.where(near, mean_minus_one, 0)), jnp.log(jnp.where(near, 1, mean)))


def _log_mean_exp_of_others(below: Array, is_top: Array, kept: Array) -> Float[Array, "*batch N N"]:
    """For each entry of a row, the log of the mean of e^x of the row's others; `below` is relative to the row's top.

    Leaving out an entry that is not the largest never cancels, since the largest, e⁰ = 1, stays; leaving out the
    largest is a sum of its own. So the cost is that of the scores, N².
    """
    rest = kept & ~is_top
    others = jnp.maximum(masked_sum(jnp.ones_like(below), kept, axis=-1)[..., None] - 1, 1)
    relative, weight = fill(expm1(fill(below, rest, 0)), rest, 0), fill(jnp.exp(fill(below, rest, 0)), rest, 0)
    without = _log_of_near(
        (masked_sum(relative, axis=-1)[..., None] - relative) / others,
        (1 + (masked_sum(weight, axis=-1)[..., None] - weight)) / others,
    )
    second = pivot(below, rest, axis=-1)
    without_top = second + centred_log_mean_exp(below, second, rest, axis=-1)[..., None]
    return jnp.where(is_top, without_top, without)


def _log_mixture(alpha: Array, u: Array, v: Array) -> Float[Array, "..."]:
    """log[α eᵘ + (1 − α) eᵛ], for 0 ≤ α ≤ 1 with both ends."""
    top = jax.lax.stop_gradient(jnp.maximum(jnp.where(alpha > 0, u, -jnp.inf), jnp.where(alpha < 1, v, -jnp.inf)))
    # Only a part that has no weight can lie above the top, and so far that its exponential overflows.
    ceiling = jnp.finfo(u.dtype).maxexp * 0.69
    u, v = jnp.minimum(u - top, ceiling), jnp.minimum(v - top, ceiling)
    return top + _log_of_near(alpha * expm1(u) + (1 - alpha) * expm1(v), alpha * jnp.exp(u) + (1 - alpha) * jnp.exp(v))


@objective(
    alpha=checks.Range(at_least=0, at_most=1, remedy="It weighs the batch's own baseline against the given one.")
)
def interpolated_bound(
    scores: Float[Array, "*batch N N"],
    *,
    alpha: float | Float[Array, ""],
    log_baseline: float | Float[Array, "*#batch N"],
    where: Bool[Array, "*batch N"] | None = None,
) -> Float[Array, "*batch"]:
    """Between InfoNCE (α = 1) and TUBA (α = 0): a baseline that mixes the batch's own with a learnt one, in nats."""
    checks.floating(scores=scores)
    checks.square(scores)
    checks.broadcastable(scores.shape[:-1], log_baseline=log_baseline)
    where = jnp.ones(scores.shape[:-1], bool) if where is None else where
    checks.mask(where, scores[..., 0], of="the rows of `scores`")
    (scores,) = as_float(scores)
    alpha, log_baseline = (jnp.asarray(x, scores.dtype) for x in (alpha, log_baseline))
    kept = where[..., None] & where[..., None, :]
    own = jnp.broadcast_to(jnp.eye(scores.shape[-1], dtype=bool), scores.shape)
    top = pivot(scores, kept, axis=-1)
    below = fill(scores, kept, 0) - top
    is_top = jax.nn.one_hot(jnp.argmax(fill(scores, kept, -jnp.inf), axis=-1), scores.shape[-1], dtype=bool)
    given = jnp.broadcast_to(log_baseline, scores.shape[:-1])[..., None] - top
    baseline = _log_mixture(alpha, _log_mean_exp_of_others(below, is_top, kept), given)
    joint = masked_sum(below, own, axis=-1)[..., None] - baseline
    marginal = below - masked_sum(baseline, own, axis=-1)[..., None]
    pairs = kept & ~own
    bound = masked_mean(joint, pairs, axis=(-2, -1)) - mean_expm1(marginal, pairs, axis=(-2, -1))
    return jnp.where(jnp.any(pairs, axis=(-2, -1)), bound, 0)
