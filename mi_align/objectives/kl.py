"""Estimates of KL(π ‖ π_ref) from samples of π, and the KL-regularised value that they enter.

    name    one sample's estimate   mean over π   sign      its own gradient, averaged   as a detached penalty
    kl_k1   −log r                  KL            either    0: never differentiate it    ∇KL(π ‖ π_ref)
    kl_k2   (log r)² / 2            biased        ≥ 0       ∇KL(π ‖ π_ref)               biased
    kl_k3   r − 1 − log r           KL            ≥ 0       ∇KL(π_ref ‖ π)               biased

r = π_ref/π. The two last columns are ledger 44: an estimator's value says nothing about its gradient. To pull a policy
to its reference, subtract β `kl_k1` from the reward (`kl_regularised_value`) or add β `kl_k2` to the loss.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align import checks
from mi_align.elementary import exp_excess
from mi_align.numerics import as_float
from mi_align.objectives._public import objective

__all__ = ["kl_k1", "kl_k2", "kl_k3", "kl_regularised_value"]


def _log_ratio(logp: Array, reference_logp: Array, **others: Any) -> Float[Array, "*batch"]:
    """log π − log π_ref of checked inputs, wide enough to accumulate in."""
    checks.floating(logp=logp, reference_logp=reference_logp, **others)
    checks.same_shape(logp=logp, reference_logp=reference_logp, **others)
    logp, reference_logp = as_float(logp, reference_logp)
    return logp - reference_logp


@objective
def kl_k1(logp: Float[Array, "*batch"], reference_logp: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Unbiased estimate of KL(π ‖ π_ref) from a sample of π, of either sign, in nats.

    k₁ = log π − log π_ref

    When to choose: as a penalty in the reward, without a gradient of its own. Not as a term of the loss: there its
    gradient is the score, whose mean over π is 0.

    Args:
      logp: log π of sampled tokens or sequences, `[...]`, in nats.
      reference_logp: log π_ref of the same, `[...]`. For a sequence, sum the differences of its tokens rather than
        take the difference of two sums: that is 10³–10⁶ times more exact.

    Returns:
      One estimate an entry, `[...]`, in nats; half precision comes back as float32.

    Raises:
      ValueError: shapes differ.
      TypeError: log-probabilities are not floating-point.

    Gradient: ∂k₁/∂log π = 1.

    Equal to: KL(π ‖ π_ref) in the mean over π (ledger 43); of Gaussians a mean of μ apart its variance is μ².

    Source: Schulman 2020, "Approximating KL divergence".

    >>> import jax.numpy as jnp
    >>> kl_k1(jnp.array([-1.0, -2.5]), jnp.array([-1.5, -2.0]))
    Array([ 0.5, -0.5], dtype=float32)
    """
    return _log_ratio(logp, reference_logp)


@objective
def kl_k2(logp: Float[Array, "*batch"], reference_logp: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Biased estimate of KL(π ‖ π_ref) from a sample of π, never negative and of little variance, in nats.

    k₂ = ½ (log π − log π_ref)²

    When to choose: as a term of the loss, differentiated: on samples of π its gradient is unbiased for KL(π ‖ π_ref).

    Args:
      logp: log π of sampled tokens or sequences, `[...]`, in nats.
      reference_logp: log π_ref of the same, `[...]`.

    Returns:
      One estimate an entry, `[...]`, in nats; half precision comes back as float32.

    Raises:
      ValueError: shapes differ.
      TypeError: log-probabilities are not floating-point.

    Gradient: ∂k₂/∂log π = log π − log π_ref.

    Equal to: KL(π ‖ π_ref) to second order in the log-ratio; μ²/2 + μ⁴/8 for Gaussians a mean of μ apart, where the KL
    is μ²/2 (ledger 43). Its mean gradient is exact (44).

    Source: Schulman 2020, "Approximating KL divergence".

    >>> import jax.numpy as jnp
    >>> kl_k2(jnp.array([-1.0, -2.5]), jnp.array([-1.5, -2.0]))
    Array([0.125, 0.125], dtype=float32)
    """
    return jnp.square(_log_ratio(logp, reference_logp)) / 2


@objective
def kl_k3(logp: Float[Array, "*batch"], reference_logp: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Unbiased estimate of KL(π ‖ π_ref) from a sample of π, never negative, in nats.

    k₃ = eᵈ − 1 − d,  d = log π_ref − log π

    When to choose: to report the divergence, while the policies are close: for Gaussians its variance is below that of
    `kl_k1` up to a distance of 1.1 standard deviations, and exponential beyond. GRPO adds it to the loss, where on
    samples of π its gradient is that of KL(π_ref ‖ π).

    Args:
      logp: log π of sampled tokens or sequences, `[...]`, in nats.
      reference_logp: log π_ref of the same, `[...]`.

    Returns:
      One estimate an entry, `[...]`, in nats; half precision comes back as float32. Full relative precision where the
      policies nearly agree: plain eᵈ − 1 − d has no digit left at |d| < 3e-4 in float32.

    Raises:
      ValueError: shapes differ.
      TypeError: log-probabilities are not floating-point.

    Gradient: ∂k₃/∂log π = 1 − eᵈ.

    Equal to: KL(π ‖ π_ref) in the mean over π, if π_ref is 0 where π is (ledger 43); the mean gradient is that of
    KL(π_ref ‖ π) (44).

    Source: Schulman 2020, "Approximating KL divergence"; Shao et al. 2024 (arXiv 2402.03300), eq. 4.

    >>> import jax.numpy as jnp
    >>> kl_k3(jnp.array([-1.0, -2.5]), jnp.array([-1.5, -2.0])).round(4)
    Array([0.1065, 0.1487], dtype=float32)
    """
    return exp_excess(-_log_ratio(logp, reference_logp))


@objective
def kl_regularised_value(
    logp: Float[Array, "*batch"],
    reference_logp: Float[Array, "*batch"],
    reward: Float[Array, "*batch"],
    *,
    beta: float | Float[Array, "*#batch"],
) -> Float[Array, "*batch"]:
    """A sample's share of RLHF's objective E_π[r] − β KL(π ‖ π_ref), to be maximised; in units of the reward.

    J = r − β (log π − log π_ref)

    When to choose: as the reward of `reinforce_loss`, `rloo_loss` and GRPO's kin, which take its gradient from them.
    Its own derivative is not the policy gradient: the samples depend on π too.

    Args:
      logp: log π of sampled responses, `[...]`, in nats.
      reference_logp: log π_ref of the same, `[...]`.
      reward: r of each, `[...]`.
      beta: β > 0, the price of a nat; scalar or `[...]`.

    Returns:
      One value a sample, `[...]`; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or β is out of range.
      TypeError: an input is not floating-point.

    Gradient: ∂J/∂r = 1, ∂J/∂log π = −β.

    Equal to: β log Z − β KL(π ‖ π*) in the mean over π, with π* ∝ π_ref e^{r/β}; hence at most β log Z, where every
    sample has the same J (ledger 1).

    Source: Ziegler et al. 2019 (arXiv 1909.08593), eq. 2; Rafailov et al. 2023 (arXiv 2305.18290), eq. 3.

    >>> import jax.numpy as jnp
    >>> kl_regularised_value(jnp.array([-1.0, -2.5]), jnp.array([-1.5, -2.0]), jnp.array([1.0, 0.0]), beta=0.5)
    Array([0.75, 0.25], dtype=float32)
    """
    log_ratio = _log_ratio(logp, reference_logp, reward=reward)
    checks.broadcastable(jnp.shape(logp), beta=beta)
    return as_float(reward, log_ratio)[0] - beta * log_ratio
