"""Minimisation to the last digits in a few dimensions, for claims about an optimum."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.equivalences.spectrum import spectrum

__all__ = ["Minimum", "minimise"]

_HALVINGS = 12
_LONGEST = 4.0


class Minimum(NamedTuple):
    """Where the iteration ended, the function there, and the largest entry of its gradient: 0 if it has converged."""

    point: Float[Array, "n"]
    value: Float[Array, ""]
    residual: Float[Array, ""]


def minimise(
    function: Callable[[Float[Array, "n"]], Float[Array, ""]], start: Float[Array, "n"], *, steps: int = 30
) -> Minimum:
    """Newton's method, downhill on curvature of either sign, a step of at most 4 halved until it does not lead up.

    Steps are in units of |curvature|, so that a minimum at infinity that is approached exponentially is approached by
    one unit a step. A direction in which nothing changes is to be fixed by the caller.

    Args:
      function: smooth, bounded below, of few variables.
      start: where to begin.
      steps: how many steps; convergence is quadratic at a finite minimum.
    """
    precision = float(jnp.finfo(start.dtype).eps)

    def one_step(_: int, x: Array) -> Array:
        curvature, directions = spectrum(jax.hessian(function)(x))
        slope = directions.T @ jax.grad(function)(x)
        step = directions @ (slope / jnp.maximum(jnp.abs(curvature), precision / 100))
        step = step * jnp.minimum(1, _LONGEST / jnp.maximum(jnp.max(jnp.abs(step)), 1))
        trials = x[None] - jnp.outer(0.5 ** jnp.arange(_HALVINGS, dtype=x.dtype), step)
        here = function(x)
        # Rounding may make the last, tiniest steps look as if they led up.
        down = jax.vmap(function)(trials) <= here + 4 * precision * jnp.maximum(1, jnp.abs(here))
        return jnp.where(jnp.any(down), trials[jnp.argmax(down)], x)

    point = jax.lax.fori_loop(0, steps, one_step, start)
    return Minimum(point, function(point), jnp.max(jnp.abs(jax.grad(function)(point))))
