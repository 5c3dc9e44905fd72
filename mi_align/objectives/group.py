"""GRPO and its kin on clipped token ratios: one surrogate, and four ways to add up the tokens of sampled responses.

    name           a token's weight in the loss            returns                    clip
    grpo_loss      1 / (its response's tokens · responses)  one number a response      0.2, 0.2
    dr_grpo_loss   1 / (max_length · responses)             one number a response      0.2, 0.2
    bnpo_loss      1 / (tokens of this micro-batch)         `Mean`, its `value()`      0.2, 0.2
    dapo_loss      1 / (tokens of the whole batch)          `Mean`, to be merged       0.2, 0.28

Numbers a response are averaged over responses. A `Mean` is added up over micro-batches (`merge`) and devices (`psum` of
both its fields) before its `value()` is taken, so that accumulation is exact; `ratio` has the kin with other ratios.

All take the same arguments. Advantages come from `group_advantage` (`centred_advantage` for Dr. GRPO). The penalty is
β `kl_k3` of each token, and absent without a reference, as is TRL's default; DeepSeekMath's β is 0.04.
"""

from __future__ import annotations

import math
from typing import Any

from mi_align.numerics import Mean, masked_mean, masked_sum
from mi_align.objectives._public import objective
from mi_align.objectives._tokens import Kept, Responses, Scalar, Tokens, clipped_surrogate

__all__ = ["bnpo_loss", "dapo_loss", "dr_grpo_loss", "grpo_loss"]


@objective
def grpo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: Scalar = 0.04,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
    ratio_cap: Scalar = math.inf,
) -> Responses:
    """PPO's surrogate averaged over each response's own tokens: GRPO as published.

    ℓ_k = mean_t [−min(ρ_kt A_k, clip(ρ_kt, 1 − ε_low, 1 + ε_high) A_k) + β k₃_kt],  ρ = π/π_old

    When to choose: when every response should weigh alike. A token of a long response then weighs less, so that long
    wrong answers are punished less a token; `dr_grpo_loss` and `dapo_loss` weigh tokens alike.

    Args:
      logp: log π of sampled tokens, `[..., G, T]`, in nats.
      old_logp: log of the policy that sampled them, `[..., G, T]`; a constant.
      advantage: A, one a response, `[..., G]`; a constant.
      where: which tokens count, `[..., G, T]`, True = keep. Default all.
      reference_logp: log π_ref of the tokens, `[..., G, T]`. Default none: no penalty.
      beta: β > 0, the penalty's weight where there is a reference. Default 0.04 (DeepSeekMath).
      clip_low: ε_low in (0, 1]. Default 0.2.
      clip_high: ε_high > 0. Default 0.2.
      ratio_cap: cap of the ratio where A < 0, as in `ppo_loss`. Default infinity.

    Returns:
      One loss a response, `[..., G]`, whose mean over responses is the loss; half precision comes back as float32. 0,
      with no gradient, for a response of which no token is kept.

    Raises:
      ValueError: shapes differ, an axis is empty, the mask is not of the tokens' shape, or a hyper-parameter is out of
        range.
      TypeError: an input is not floating-point, or the mask is not boolean.

    Gradient: ∂ℓ_k/∂log π_kt = [−ρA (0 where clipped) + β (1 − π_ref/π)] / T_k; none in π_old and A.

    Equal to: at π = π_old, with population advantages and rewards 0 and 1, √(p(1 − p)) times the mean score of right
    responses minus that of wrong ones (ledger 36).

    Source: Shao et al. 2024 (arXiv 2402.03300), eq. 3; TRL's `loss_type="grpo"`.

    >>> import jax.numpy as jnp
    >>> logp = jnp.log(jnp.array([[0.5, 0.25], [0.25, 0.5]]))
    >>> grpo_loss(logp, jnp.full((2, 2), jnp.log(0.25)), jnp.array([1.0, -1.0])).round(4)
    Array([-1.1,  1.5], dtype=float32)
    """
    clips: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    losses = clipped_surrogate(logp, old_logp, advantage, where, reference_logp, beta, **clips)
    return masked_mean(losses, where, axis=-1)


@objective
def dr_grpo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    max_length: Scalar,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: Scalar = 0.04,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
    ratio_cap: Scalar = math.inf,
) -> Responses:
    """PPO's surrogate summed over each response's tokens, over one length for all: Dr. GRPO, without a bias to length.

    ℓ_k = Σ_t [−min(ρ_kt A_k, clip(ρ_kt, 1 − ε_low, 1 + ε_high) A_k) + β k₃_kt] / L_max,  ρ = π/π_old

    When to choose: with `centred_advantage`, for the unbiased gradient of the reward up to the constant L_max.

    Args:
      logp: log π of sampled tokens, `[..., G, T]`, in nats.
      old_logp: log of the policy that sampled them, `[..., G, T]`; a constant.
      advantage: A, one a response, `[..., G]`; a constant.
      max_length: L_max > 0, the most tokens that sampling allows; the same in every batch, not the batch's T.
      where: which tokens count, `[..., G, T]`, True = keep. Default all.
      reference_logp: log π_ref of the tokens, `[..., G, T]`. Default none: no penalty.
      beta: β > 0, the penalty's weight where there is a reference. Default 0.04 (DeepSeekMath).
      clip_low: ε_low in (0, 1]. Default 0.2.
      clip_high: ε_high > 0. Default 0.2.
      ratio_cap: cap of the ratio where A < 0, as in `ppo_loss`. Default infinity.

    Returns:
      One loss a response, `[..., G]`, whose mean over responses is the loss; half precision comes back as float32. 0,
      with no gradient, for a response of which no token is kept.

    Raises:
      ValueError: shapes differ, an axis is empty, the mask is not of the tokens' shape, or a hyper-parameter is out of
        range.
      TypeError: an input is not floating-point, or the mask is not boolean.

    Gradient: ∂ℓ_k/∂log π_kt = [−ρA (0 where clipped) + β (1 − π_ref/π)] / L_max; none in π_old and A.

    Equal to: T_k/L_max `grpo_loss`; at π = π_old in gradient to `rloo_loss` · (G − 1)/(G L_max) (ledger 38).

    Source: Liu et al. 2025 (arXiv 2503.20783); TRL's `loss_type="dr_grpo"`.

    >>> import jax.numpy as jnp
    >>> logp = jnp.log(jnp.array([[0.5, 0.25], [0.25, 0.5]]))
    >>> dr_grpo_loss(logp, jnp.full((2, 2), jnp.log(0.25)), jnp.array([1.0, -1.0]), max_length=8).round(4)
    Array([-0.275,  0.375], dtype=float32)
    """
    clips: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    losses = clipped_surrogate(logp, old_logp, advantage, where, reference_logp, beta, **clips)
    return masked_sum(losses, where, axis=-1) / max_length


@objective
def dapo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: Scalar = 0.04,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.28,
    ratio_cap: Scalar = math.inf,
) -> Mean:
    """Batch-coupled: PPO's surrogate averaged over all tokens of a batch, with more room upwards (DAPO).

    ℓ = mean_{k,t} [−min(ρ_kt A_k, clip(ρ_kt, 1 − ε_low, 1 + ε_high) A_k) + β k₃_kt],  ρ = π/π_old

    When to choose: when every token should weigh alike (TRL's default). The wider upper clip lets unlikely tokens grow.

    Args:
      logp: log π of sampled tokens, `[..., G, T]`, in nats.
      old_logp: log of the policy that sampled them, `[..., G, T]`; a constant.
      advantage: A, one a response, `[..., G]`; a constant.
      where: which tokens count, `[..., G, T]`, True = keep. Default all.
      reference_logp: log π_ref of the tokens, `[..., G, T]`. Default none: no penalty.
      beta: β > 0, the penalty's weight where there is a reference. Default 0.04 (DeepSeekMath).
      clip_low: ε_low in (0, 1]. Default 0.2.
      clip_high: ε_high > 0. Default 0.28 (DAPO; TRL's 0.2 is symmetric).
      ratio_cap: cap of the ratio where A < 0, as in `ppo_loss`. Default infinity.

    Returns:
      The sum over kept tokens and their number. Merge those of all micro-batches and devices that make up one step,
      then take `value()`: the loss of the whole batch, exactly. 0 where no token is kept.

    Raises:
      ValueError: shapes differ, an axis is empty, the mask is not of the tokens' shape, or a hyper-parameter is out of
        range.
      TypeError: an input is not floating-point, or the mask is not boolean.

    Gradient: of `value()`, [−ρA (0 where clipped) + β (1 − π_ref/π)] / Σ_k T_k; none in π_old and A.

    Equal to: `grpo_loss` of the same clip where all responses have one length.

    Source: Yu et al. 2025 (arXiv 2503.14476), eq. 8; TRL's `loss_type="dapo"`.

    >>> import jax.numpy as jnp
    >>> logp = jnp.log(jnp.array([[0.5, 0.25], [0.25, 0.5]]))
    >>> print(f"{dapo_loss(logp, jnp.full((2, 2), jnp.log(0.25)), jnp.array([1.0, -1.0])).value():.3f}")
    0.180
    """
    clips: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    return Mean.of(clipped_surrogate(logp, old_logp, advantage, where, reference_logp, beta, **clips), where)


@objective
def bnpo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: Scalar = 0.04,
    clip_low: Scalar = 0.2,
    clip_high: Scalar = 0.2,
    ratio_cap: Scalar = math.inf,
) -> Mean:
    """Batch-coupled: PPO's surrogate averaged over the tokens of one micro-batch, as TRL's "bnpo" has it.

    ℓ = mean_{k,t} [−min(ρ_kt A_k, clip(ρ_kt, 1 − ε_low, 1 + ε_high) A_k) + β k₃_kt],  ρ = π/π_old

    When to choose: to reproduce runs that averaged this way. It is `dapo_loss` with a symmetric clip, whose `value()`
    is taken for each micro-batch on its own; the loss then depends on how a batch is cut.

    Args:
      logp: log π of sampled tokens, `[..., G, T]`, in nats.
      old_logp: log of the policy that sampled them, `[..., G, T]`; a constant.
      advantage: A, one a response, `[..., G]`; a constant.
      where: which tokens count, `[..., G, T]`, True = keep. Default all.
      reference_logp: log π_ref of the tokens, `[..., G, T]`. Default none: no penalty.
      beta: β > 0, the penalty's weight where there is a reference. Default 0.04 (DeepSeekMath).
      clip_low: ε_low in (0, 1]. Default 0.2.
      clip_high: ε_high > 0. Default 0.2.
      ratio_cap: cap of the ratio where A < 0, as in `ppo_loss`. Default infinity.

    Returns:
      The sum over kept tokens and their number; `value()` is the micro-batch's loss. 0 where no token is kept.

    Raises:
      ValueError: shapes differ, an axis is empty, the mask is not of the tokens' shape, or a hyper-parameter is out of
        range.
      TypeError: an input is not floating-point, or the mask is not boolean.

    Gradient: of `value()`, [−ρA (0 where clipped) + β (1 − π_ref/π)] / Σ_k T_k; none in π_old and A.

    Equal to: `dapo_loss` at the same clip and one micro-batch a step.

    Source: TRL's `loss_type="bnpo"`, after Xiao et al. 2025 (arXiv 2506.02864).

    >>> import jax.numpy as jnp
    >>> logp = jnp.log(jnp.array([[0.5, 0.25], [0.25, 0.5]]))
    >>> print(f"{bnpo_loss(logp, jnp.full((2, 2), jnp.log(0.25)), jnp.array([1.0, -1.0])).value():.3f}")
    0.200
    """
    clips: dict[str, Any] = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    return dapo_loss(logp, old_logp, advantage, where=where, reference_logp=reference_logp, beta=beta, **clips)
