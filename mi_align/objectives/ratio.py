"""GRPO's kin that do not clip token ratios: one ratio a response (GSPO), or a ratio that is only a weight (CISPO)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from mi_align.numerics import Mean, fill, masked_mean
from mi_align.objectives._public import objective
from mi_align.objectives._tokens import Kept, Responses, Scalar, Tokens, penalty, tokens
from mi_align.objectives.policy_gradient import ppo_loss, reinforce_loss

__all__ = ["cispo_loss", "gspo_loss"]


@objective
def gspo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: Scalar = 0.04,
    clip_low: Scalar = 3e-4,
    clip_high: Scalar = 4e-4,
    ratio_cap: Scalar = math.inf,
) -> Responses:
    """PPO's surrogate on one ratio a response, the geometric mean of its tokens' ratios (GSPO).

    ℓ_k = −min(ρ_k A_k, clip(ρ_k, 1 − ε_low, 1 + ε_high) A_k) + β mean_t k₃_kt,  log ρ_k = mean_t log(π/π_old)_kt

    When to choose: when rewards are of whole responses and token ratios are noisy: long responses, mixtures of experts.

    Args:
      logp: log π of sampled tokens, `[..., G, T]`, in nats.
      old_logp: log of the policy that sampled them, `[..., G, T]`; a constant.
      advantage: A, one a response, `[..., G]`; a constant.
      where: which tokens count, `[..., G, T]`, True = keep. Default all.
      reference_logp: log π_ref of the tokens, `[..., G, T]`. Default none: no penalty.
      beta: β > 0, the penalty's weight where there is a reference. Default 0.04 (DeepSeekMath).
      clip_low: ε_low in (0, 1]. Default 3e-4 (GSPO): a mean over tokens moves little. TRL's default, 0.2, hardly clips.
      clip_high: ε_high > 0. Default 4e-4 (GSPO).
      ratio_cap: cap of the ratio where A < 0, as in `ppo_loss`. Default infinity.

    Returns:
      One loss a response, `[..., G]`, whose mean over responses is the loss; half precision comes back as float32. 0,
      with no gradient, for a response of which no token is kept.

    Raises:
      ValueError: shapes differ, an axis is empty, the mask is not of the tokens' shape, or a hyper-parameter is out of
        range.
      TypeError: an input is not floating-point, or the mask is not boolean.

    Gradient: ∂ℓ_k/∂log π_kt = [−ρ_k A_k (0 where clipped) + β (1 − π_ref/π)] / T_k; none in π_old and A.

    Equal to: `grpo_loss` in gradient at π = π_old, and for responses of one token.

    Source: Zheng et al. 2025 (arXiv 2507.18071), eq. 5–7; TRL's `importance_sampling_level="sequence"`.

    >>> import jax.numpy as jnp, numpy as np
    >>> logp = jnp.array([[-1.0, -1.5], [-2.0, -2.0]])
    >>> old_logp = logp - jnp.array([[0.0, 0.2], [0.1, 0.0]])
    >>> np.asarray(gspo_loss(logp, old_logp, jnp.array([1.0, -1.0]), clip_high=0.1)).round(4)
    array([-1.1   ,  1.0513], dtype=float32)
    """
    logp, old_logp, advantage = tokens(logp, old_logp, advantage, where)
    log_ratio = masked_mean(logp - jax.lax.stop_gradient(old_logp), where, axis=-1)
    clips: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    surrogate = ppo_loss(log_ratio, jnp.zeros_like(log_ratio), advantage, **clips)
    some = None if where is None else jnp.any(where, axis=-1)
    return fill(surrogate, some, 0) + masked_mean(penalty(logp, reference_logp, where, beta), where, axis=-1)


@objective
def cispo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: Scalar = 0.04,
    ratio_cap: Scalar = 5.0,
) -> Mean:
    """Batch-coupled: REINFORCE of every token, weighed by its capped ratio, which is a constant (CISPO).

    ℓ = mean_{k,t} [−sg(min(ρ_kt, c)) A_k log π_kt + β k₃_kt],  ρ = π/π_old, sg without a gradient

    When to choose: when clipping would take the gradient from the rare tokens that matter: here every token keeps its
    own, at most c times.

    Args:
      logp: log π of sampled tokens, `[..., G, T]`, in nats.
      old_logp: log of the policy that sampled them, `[..., G, T]`; a constant.
      advantage: A, one a response, `[..., G]`; a constant.
      where: which tokens count, `[..., G, T]`, True = keep. Default all.
      reference_logp: log π_ref of the tokens, `[..., G, T]`. Default none: no penalty.
      beta: β > 0, the penalty's weight where there is a reference. Default 0.04 (DeepSeekMath).
      ratio_cap: c ≥ 1, the largest weight. Default 5 (what TRL recommends as `epsilon_high` there).

    Returns:
      The sum over kept tokens and their number, to be merged like `dapo_loss`'s. Its value means nothing, its gradient
      does. 0 where no token is kept.

    Raises:
      ValueError: shapes differ, an axis is empty, the mask is not of the tokens' shape, or a hyper-parameter is out of
        range.
      TypeError: an input is not floating-point, or the mask is not boolean.

    Gradient: of `value()`, [−min(ρ, c) A + β (1 − π_ref/π)] / Σ_k T_k; none in π_old and A.

    Equal to: `dapo_loss` in gradient where no ratio is clipped.

    Source: MiniMax 2025 (arXiv 2506.13585), eq. 4; TRL's `loss_type="cispo"`.

    >>> import jax.numpy as jnp
    >>> logp = jnp.log(jnp.array([[0.5, 0.25], [0.25, 0.5]]))
    >>> print(f"{cispo_loss(logp, jnp.full((2, 2), jnp.log(0.25)), jnp.array([1.0, -1.0])).value():.3f}")
    0.000
    """
    logp, old_logp, advantage = tokens(logp, old_logp, advantage, where)
    weight = jax.lax.stop_gradient(jnp.exp(jnp.minimum(logp - old_logp, jnp.log(ratio_cap))))
    weight = jnp.where(advantage[..., None] == 0, 0, weight)  # uncapped, it may be infinite
    losses = reinforce_loss(logp, weight * advantage[..., None]) + penalty(logp, reference_logp, where, beta)
    return Mean.of(losses, where)
