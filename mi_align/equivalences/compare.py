"""How far one sample, or many together, are from a claim, in the measure of the claim's kind."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mi_align.equivalences.claim import Claim, Inputs, Kind, Side

__all__ = ["difference", "sides", "slope_gap", "standard_errors", "sums"]


def difference(kind: Kind, left: Array, right: Array) -> Array:
    """How far one sample is from the claim, relative to max(1, |left|, |right|); infinite where a side is NaN."""
    scale = jnp.maximum(1, jnp.maximum(jnp.abs(left), jnp.abs(right)))
    scale = jnp.where(jnp.isfinite(scale), scale, 1)
    gap = jnp.where(left == right, 0, left - right) / scale
    gap = gap if kind is Kind.INEQUALITY else jnp.abs(gap)
    return jnp.max(jnp.where(jnp.isnan(gap), jnp.inf, gap)).astype(jnp.float64)


def sides(claim: Claim, inputs: Inputs) -> tuple[Array, Array, Array, Array, Array]:
    """A claim on one sample: left, right, twin; how far left and right, with derivatives, are apart; left and twin."""
    twin = claim.twin(inputs)
    if claim.kind is Kind.EXACT and claim.derivatives:
        left, right = _with_derivatives(claim, inputs)
    else:
        left, right = [claim.left(inputs)], [claim.right(inputs)]
    apart = difference(claim.kind, *(jnp.concatenate([jnp.ravel(x) for x in side]) for side in (left, right)))
    return left[0], right[0], twin, apart, difference(claim.kind, left[0], twin)


def _with_derivatives(claim: Claim, inputs: Inputs) -> tuple[list[Array], list[Array]]:
    """Of either side: its value, its gradient under a cotangent, and its Hessian's product with a direction.

    Cotangent and direction are drawn once and for all: the samples differ, so a derivative that is off shows in some.
    """
    rng = np.random.default_rng(0)
    leaves, structure = jax.tree.flatten(inputs)
    smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
    point = [x for x, is_smooth in zip(leaves, smooth, strict=True) if is_smooth]
    direction = [jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in point]

    def evaluated(side: Side) -> list[Array]:
        def scalar(values: list[Array]) -> tuple[Array, Array]:
            fresh = iter(values)
            x = [next(fresh) if is_smooth else x for x, is_smooth in zip(leaves, smooth, strict=True)]
            value = side(jax.tree.unflatten(structure, x))
            cotangent = np.random.default_rng(1).standard_normal(value.shape)
            return jnp.sum(value * jnp.asarray(cotangent, value.dtype)), value

        slopes = jax.value_and_grad(scalar, has_aux=True)
        if claim.derivatives == 1:
            (_, value), gradient = slopes(point)
            return [value, *gradient]
        ((_, value), gradient), (_, curvature) = jax.jvp(slopes, (point,), (direction,))
        return [value, *gradient, *curvature]

    return evaluated(claim.left), evaluated(claim.right)


def sums(kind: Kind, left: Array, right: Array, twin: Array, real: Array) -> tuple[Array, ...]:
    """What claims about averages need of a chunk of samples, of which `real` ones count.

    ASYMPTOTIC: the sums of the three sides. MONTE_CARLO: count, sum and sum of squares of left − right, and of
    left − twin. Nothing for the other kinds, whose programs are then quicker to compile.
    """

    def total(x: Array) -> Array:
        kept = real.reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.sum(jnp.where(kept, x, 0), axis=0, dtype=jnp.float64)

    def moments(x: Array) -> Array:
        return jnp.stack([total(jnp.ones_like(x)), total(x), total(jnp.square(x.astype(jnp.float64)))])

    if kind is Kind.ASYMPTOTIC:
        return total(left), total(right), total(twin)
    return (moments(left - right), moments(left - twin)) if kind is Kind.MONTE_CARLO else ()


def slope_gap(grid: tuple[float, ...], left: np.ndarray, right: np.ndarray) -> float:
    """Difference of the slopes of log |left| and log |right| over log grid, by least squares."""
    slopes = [np.polyfit(np.log(np.asarray(grid)), np.log(np.abs(side)), 1)[0] for side in (left, right)]
    return _finite(abs(slopes[0] - slopes[1]))


def standard_errors(moments: np.ndarray) -> float:
    """|mean| in standard errors of the mean, from count, sum and sum of squares."""
    count, first, second = map(float, moments)
    mean = first / count
    variance = max(second / count - mean**2, 0.0) * count / max(count - 1, 1)
    return _finite(abs(mean) / max(math.sqrt(variance / count), 1e-300))


def _finite(x: float) -> float:
    return math.inf if math.isnan(x) else float(x)
