"""What losses of whole lists of candidates share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mi_align import checks
from mi_align.elementary import expm1
from mi_align.numerics import as_float, fill, masked_sum

__all__ = ["candidates", "gaps_to_peak", "positions"]


def candidates(scores: Array, where: Array | None, weights: Array | None = None) -> tuple[Array, ...]:
    """A list of logits (and its soft labels), checked, wide enough to accumulate in."""
    checks.floating(scores=scores)
    checks.candidates(scores)
    checks.mask(where, scores)
    if weights is None:
        return as_float(scores)
    checks.floating(weights=weights)
    checks.same_shape(scores=scores, weights=weights)
    return as_float(scores, weights)


def positions(x: Array) -> Array:
    """Every entry's place on the last axis."""
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)


def gaps_to_peak(scores: Array, where: Array | None) -> tuple[Array, Array]:
    """Every score minus the row's largest kept one (0 under the mask), and Σ eᵍᵃᵖ of the others.

    Where the largest has more than half of the softmax's mass, derivatives pass through it as the pivot of all gaps:
    that keeps the digits of 1 − p for p near 1. Elsewhere it is a constant, which keeps those of a small p.
    """
    scores = fill(scores, where, -jnp.inf)
    is_peak = positions(scores) == jnp.argmax(scores, axis=-1, keepdims=True)
    others = ~is_peak if where is None else ~is_peak & where
    peak = jnp.expand_dims(masked_sum(scores, is_peak, axis=-1), -1)
    peak = fill(peak, jnp.isfinite(peak), 0)
    rest = masked_sum(jnp.exp(fill(scores - peak, others, -jnp.inf)), axis=-1)
    pivot = jnp.where(jnp.expand_dims(rest < 1, -1), peak, jax.lax.stop_gradient(peak))
    gap = fill(scores - pivot, others, 0)
    own = peak - pivot  # 0, with a derivative unless the peak is the pivot
    rest = masked_sum(jnp.exp(gap), others, axis=-1, careful=True) + expm1(jnp.squeeze(own, -1))
    return jnp.where(is_peak, own, gap), rest
