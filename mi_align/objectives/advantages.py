"""How much better a response is than its group: what multiplies the score in a policy gradient.

    name                group of two, rewards 1 and 0   what is kept                       used by
    centred_advantage   +½, −½                          direction                          Dr. GRPO
    rloo_advantage      +1, −1                          direction, and unbiased size       RLOO
    group_advantage     ±1 (population), ±0.7 (sample)  order: every group weighs alike    GRPO, DAPO, GSPO, CISPO

The group is the last axis. Equal rewards have exactly no advantage, whatever their size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import as_float, count, fill, masked_mean, masked_sum, pivot
from mi_align.objectives._public import objective

__all__ = ["centred_advantage", "group_advantage", "rloo_advantage"]


def _centred(reward: Array, where: Array | None) -> tuple[Float[Array, "*batch G"], Float[Array, "..."]]:
    """Each reward minus its group's mean (0 under the mask), and how many rewards each group keeps."""
    checks.floating(reward=reward)
    checks.candidates(reward, name="reward")
    checks.mask(where, reward, of="`reward`")
    (reward,) = as_float(reward)
    kept = jnp.broadcast_to(count(reward, where, axis=-1), reward.shape[:-1])[..., None]
    # The mean twice: relative to the group's best, so that equal rewards leave no rounding behind, and then relative to
    # what came of that, where what is left to subtract is no larger than its rounding.
    best = pivot(reward, where, axis=-1)
    reward = fill(reward, where, 0)
    about = jax.lax.stop_gradient(best + masked_mean(reward - best, where, axis=-1)[..., None])
    rest = masked_mean(reward - about, where, axis=-1)[..., None]
    return fill(reward - about - rest, where, 0), kept


@objective
def centred_advantage(
    reward: Float[Array, "*batch G"], *, where: Bool[Array, "*batch G"] | None = None
) -> Float[Array, "*batch G"]:
    """Batch-coupled along the last axis: reward above the group's mean, in units of the reward.

    A_k = r_k − mean_i r_i

    When to choose: for Dr. GRPO, whose groups weigh by how much their rewards differ. Its gradient is (G − 1)/G times
    that of `rloo_advantage`, for a response's own reward is in its baseline.

    Args:
      reward: one number a response, `[..., G]`.
      where: which responses count, `[..., G]`, True = keep. Default all.

    Returns:
      One advantage a response, `[..., G]`; half precision comes back as float32. 0 under the mask.

    Raises:
      ValueError: the group is empty, or the mask is not of the rewards' shape.
      TypeError: rewards are not floating-point, or the mask is not boolean.

    Gradient: ∂A_k/∂r_i = [i = k] − 1/G.

    Equal to: (G − 1)/G `rloo_advantage` (ledger 38).

    Source: Liu et al. 2025 (arXiv 2503.20783).

    >>> import jax.numpy as jnp
    >>> centred_advantage(jnp.array([1.0, 0.0, 0.5, 0.5]))
    Array([ 0.5, -0.5,  0. ,  0. ], dtype=float32)
    """
    return _centred(reward, where)[0]


@objective
def rloo_advantage(
    reward: Float[Array, "*batch G"], *, where: Bool[Array, "*batch G"] | None = None
) -> Float[Array, "*batch G"]:
    """Batch-coupled along the last axis: reward above the mean of the group's others, in units of the reward.

    A_k = r_k − mean_{i≠k} r_i

    When to choose: whenever the gradient should be the reward's own, unbiased at any group size: no response is in its
    own baseline, and nothing is divided by a spread.

    Args:
      reward: one number a response, `[..., G]`.
      where: which responses count, `[..., G]`, True = keep. Default all.

    Returns:
      One advantage a response, `[..., G]`; half precision comes back as float32. 0 under the mask, and for a response
      that has no others.

    Raises:
      ValueError: the group is empty, or the mask is not of the rewards' shape.
      TypeError: rewards are not floating-point, or the mask is not boolean.

    Gradient: ∂A_k/∂r_k = 1, ∂A_k/∂r_i = −1/(G − 1).

    Equal to: G/(G − 1) `centred_advantage` (ledger 38); with two responses ± their difference, as `group_advantage`
    on rewards 0 and 1 with the population's deviation (37).

    Source: Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024 (arXiv
    2402.14740).

    >>> import jax.numpy as jnp
    >>> rloo_advantage(jnp.array([1.0, 0.0, 0.5]))
    Array([ 0.75, -0.75,  0.  ], dtype=float32)
    """
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
    """Batch-coupled along the last axis: reward in standard deviations of its group, GRPO's advantage, without unit.

    A_k = (r_k − mean r) / (std r + ε),  std² = Σ_i (r_i − mean r)² / (G − c)

    When to choose: for GRPO and its kin, when rewards of different prompts have different scales. It gives a prompt
    that is nearly always or nearly never solved the weight of any other.

    Args:
      reward: one number a response, `[..., G]`.
      where: which responses count, `[..., G]`, True = keep. Default all.
      correction: c, taken from the group's size. It changes the numbers: all advantages are √(G/(G − 1)) larger with 0
        (the population's deviation, as theory has it) than with 1 (the sample's, `torch.std`). Default 1, TRL's.
      eps: ε ≥ 0, in units of the reward. Default 1e-4, TRL's (tunix 1e-6, theory 0).

    Returns:
      One advantage a response, `[..., G]`; half precision comes back as float32. 0 under the mask, where all rewards of
      a group are equal, and where a group keeps no more than c.

    Raises:
      ValueError: the group is empty, the mask is not of the rewards' shape, or c or ε is out of range.
      TypeError: rewards are not floating-point, or the mask is not boolean.

    Gradient: ∂A_k/∂r_i = ([i = k] − 1/G)/(std + ε) − A_k A_i / ((G − c) std).

    Equal to: with c = ε = 0 and a share p of rewards 1 and the others 0, √((1−p)/p) and −√(p/(1−p)) (ledger 36); with
    two responses ±1 (37).

    Source: Shao et al. 2024 (arXiv 2402.03300), section 4.1; TRL 1.16 for c and ε.

    >>> import jax.numpy as jnp
    >>> group_advantage(jnp.array([1.0, 0.0]), correction=0.0, eps=0.0)
    Array([ 1., -1.], dtype=float32)
    >>> print(f"{group_advantage(jnp.array([1.0, 0.0]))[0]:.4f}")
    0.7070
    """
    centred, kept = _centred(reward, where)
    degrees = kept - correction
    # In units of the largest, whose square neither overflows nor vanishes: a power of two, so that nothing is rounded.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(centred), axis=-1, keepdims=True))
    spread = (largest > 0) & (degrees > 0)
    unit = jnp.ldexp(jnp.ones_like(largest), jnp.where(spread, jnp.frexp(largest)[1] - 1, 0))
    relative = centred / unit
    variance = masked_sum(jnp.square(relative), axis=-1)[..., None] / jnp.where(degrees > 0, degrees, 1)
    return jnp.where(spread, relative / (jnp.sqrt(jnp.where(spread, variance, 1)) + eps / unit), 0)
