"""Estimates of KL(π ‖ π_ref) from samples of π, and the KL-regularised value that they enter."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align import checks
from mi_align.numerics import as_float, exp_excess
from mi_align.objectives._public import objective

__all__ = ["kl_k1", "kl_k2", "kl_k3", "kl_regularised_value"]


def _log_ratio(logp: Array, reference_logp: Array, **others: Any) -> Float[Array, "..."]:
    """log π − log π_ref of checked inputs, wide enough to accumulate in."""
    checks.floating(logp=logp, reference_logp=reference_logp, **others)
    checks.same_shape(logp=logp, reference_logp=reference_logp, **others)
    logp, reference_logp = as_float(logp, reference_logp)
    return logp - reference_logp


@objective
def kl_k1(logp: Float[Array, "..."], reference_logp: Float[Array, "..."]) -> Float[Array, "..."]:
    """Unbiased estimate of KL(π ‖ π_ref), of either sign: log π − log π_ref, in nats."""
    return _log_ratio(logp, reference_logp)


@objective
def kl_k2(logp: Float[Array, "..."], reference_logp: Float[Array, "..."]) -> Float[Array, "..."]:
    """Biased estimate of KL(π ‖ π_ref) with little variance: ½ (log π − log π_ref)², in nats."""
    return jnp.square(_log_ratio(logp, reference_logp)) / 2


@objective
def kl_k3(logp: Float[Array, "..."], reference_logp: Float[Array, "..."]) -> Float[Array, "..."]:
    """Unbiased, non-negative estimate of KL(π ‖ π_ref): e^d − 1 − d, d = log π_ref − log π, in nats."""
    return exp_excess(-_log_ratio(logp, reference_logp))


@objective
def kl_regularised_value(
    logp: Float[Array, "..."],
    reference_logp: Float[Array, "..."],
    reward: Float[Array, "..."],
    *,
    beta: float | Float[Array, "*#batch"],
) -> Float[Array, "..."]:
    """A sample's share of E_π[r] − β KL(π ‖ π_ref): r − β (log π − log π_ref). Maximised."""
    log_ratio = _log_ratio(logp, reference_logp, reward=reward)
    checks.broadcastable(jnp.shape(logp), beta=beta)
    return as_float(reward, log_ratio)[0] - beta * log_ratio
