"""A reward for each response turned into a loss whose gradient is the policy gradient's, or PPO's stand-in for it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import as_float, count, fill, masked_mean, masked_sum, pivot
from mi_align.objectives._public import objective

__all__ = [
    "centred_advantage",
    "group_advantage",
    "ppo_loss",
    "ppo_value_loss",
    "reinforce_loss",
    "rloo_advantage",
    "rloo_loss",
]


def _centred(reward: Array, where: Array | None) -> tuple[Array, Array]:
    """Each reward minus its group's mean (0 under the mask), and how many were kept."""
    checks.floating(reward=reward)
    checks.candidates(reward, name="reward")
    checks.mask(where, reward, of="`reward`")
    (reward,) = as_float(reward)
    # Relative to one of them, so that equal rewards have exactly no advantage.
    above = fill(reward, where, 0) - pivot(reward, where, axis=-1)
    mean = masked_mean(above, where, axis=-1)[..., None]
    kept = jnp.broadcast_to(count(reward, where, axis=-1), reward.shape[:-1])[..., None]
    return fill(above - mean, where, 0), kept


@objective
def centred_advantage(
    reward: Float[Array, "*batch G"], *, where: Bool[Array, "*batch G"] | None = None
) -> Float[Array, "*batch G"]:
    """Reward above the group's own mean: A = r − mean r (Dr. GRPO)."""
    return _centred(reward, where)[0]


@objective
def rloo_advantage(
    reward: Float[Array, "*batch G"], *, where: Bool[Array, "*batch G"] | None = None
) -> Float[Array, "*batch G"]:
    """Reward above the mean of the group's others: A_k = r_k − mean_{i≠k} r_i; 0 for a response that has no others."""
    centred, kept = _centred(reward, where)
    return centred * (kept / jnp.maximum(kept - 1, 1))


@objective
def group_advantage(
    reward: Float[Array, "*batch G"],
    *,
    where: Bool[Array, "*batch G"] | None = None,
    correction: float | Float[Array, ""] = 1.0,
    eps: float | Float[Array, ""] = 1e-4,
) -> Float[Array, "*batch G"]:
    """Reward in standard deviations of its group: A = (r − mean r) / (std r + ε); 0 where all rewards are equal."""
    centred, kept = _centred(reward, where)
    degrees = kept - correction
    variance = masked_sum(jnp.square(centred), axis=-1)[..., None] / jnp.where(degrees > 0, degrees, 1)
    spread = (variance > 0) & (degrees > 0)
    return jnp.where(spread, centred / (jnp.sqrt(jnp.where(spread, variance, 1)) + eps), 0)


@objective
def reinforce_loss(logp: Float[Array, "..."], advantage: Float[Array, "..."]) -> Float[Array, "..."]:
    """−A log π: on samples of π its gradient is the policy gradient's, unbiased; no gradient reaches A."""
    checks.floating(logp=logp, advantage=advantage)
    checks.same_shape(logp=logp, advantage=advantage)
    logp, advantage = as_float(logp, advantage)
    return -jax.lax.stop_gradient(advantage) * logp


@objective
def rloo_loss(
    logp: Float[Array, "*batch G"], reward: Float[Array, "*batch G"], *, where: Bool[Array, "*batch G"] | None = None
) -> Float[Array, "*batch G"]:
    """REINFORCE with the group's others as the baseline: −(r_k − mean_{i≠k} r_i) log π_k."""
    checks.floating(logp=logp)
    checks.same_shape(logp=logp, reward=reward)
    return reinforce_loss(fill(as_float(logp)[0], where, 0), rloo_advantage(reward, where=where))


@objective
def ppo_loss(
    logp: Float[Array, "..."],
    old_logp: Float[Array, "..."],
    advantage: Float[Array, "..."],
    *,
    clip_low: float | Float[Array, ""] = 0.2,
    clip_high: float | Float[Array, ""] = 0.2,
    ratio_cap: float | Float[Array, ""] = math.inf,
) -> Float[Array, "..."]:
    """PPO's clipped surrogate of one action: −min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A), ρ = π/π_old."""
    checks.floating(logp=logp, old_logp=old_logp, advantage=advantage)
    checks.same_shape(logp=logp, old_logp=old_logp, advantage=advantage)
    logp, old_logp, advantage = as_float(logp, old_logp, advantage)
    log_ratio = logp - jax.lax.stop_gradient(old_logp)
    advantage = jax.lax.stop_gradient(advantage)
    # The bound that min(…) applies depends on the sign of A; in the log domain a ratio beyond it never overflows.
    rising = jnp.minimum(log_ratio, jnp.log1p(clip_high))
    falling = jnp.maximum(log_ratio, jnp.log1p(-clip_low))
    return -advantage * jnp.exp(jnp.minimum(jnp.where(advantage > 0, rising, falling), jnp.log(ratio_cap)))


@objective
def ppo_value_loss(
    value: Float[Array, "..."],
    old_value: Float[Array, "..."],
    returns: Float[Array, "..."],
    *,
    clip: float | Float[Array, ""] = 0.2,
) -> Float[Array, "..."]:
    """PPO's clipped regression of the value on the return: ½ max[(v − R)², (clip(v, v_old ± ε) − R)²]."""
    checks.floating(value=value, old_value=old_value, returns=returns)
    checks.same_shape(value=value, old_value=old_value, returns=returns)
    value, old_value, returns = as_float(value, old_value, returns)
    near = jnp.clip(value, old_value - clip, old_value + clip)
    return jnp.maximum(jnp.square(value - returns), jnp.square(near - returns)) / 2
