"""Ledger 21, continued: under gradient flow MIO's chosen level settles, while DPO's margin grows for ever."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import scores
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.populations import mio_pair_loss
from mi_align.objectives import bradley_terry_loss

__all__ = ["CLAIMS"]

#: Times at which levels are looked at. Of an exponential law the first are logarithms: e^t is the grid.
_EARLY = tuple(float(x) for x in np.exp(np.linspace(6, 18, 7)))
_LATE = tuple(float(x) for x in np.geomspace(1e2, 1e5, 7))


def _flow(slope: Callable[[Array], Array], start: Array, times: tuple[float, ...], steps: int = 200) -> Array:
    """The solution of ẏ = −slope(y) at some times, by Runge and Kutta's fourth order in log(1 + t)."""
    stops = np.log1p(np.concatenate([[0.0], times]))

    def segment(state: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        first, width = bounds[0], (bounds[1] - bounds[0]) / steps

        def step(i: int, y: Array) -> Array:
            at = first + i * width

            def velocity(shift: float, y: Array) -> Array:
                return -jnp.exp(at + shift * width) * slope(y)

            k1 = velocity(0, y)
            k2 = velocity(0.5, y + width / 2 * k1)
            k3 = velocity(0.5, y + width / 2 * k2)
            k4 = velocity(1, y + width * k3)
            return y + width / 6 * (k1 + 2 * k2 + 2 * k3 + k4)

        state = jax.lax.fori_loop(0, steps, step, state)
        return state, state

    bounds = (jnp.asarray(stops[:-1], start.dtype), jnp.asarray(stops[1:], start.dtype))
    return jax.lax.scan(segment, start, bounds)[1]


def _start(key: PRNGKeyArray) -> Inputs:
    x = scores.uniforms(key, a=(), c=())
    return {name: 2 * value for name, value in x.items()}


def _distance_of_chosen(x: Inputs) -> Array:
    """|a − ln 2| under MIO's gradient flow at the times log(grid)."""
    path = _flow(lambda a: jax.grad(mio_pair_loss)(a, x["c"]), x["a"], tuple(np.log(_EARLY)))
    return jnp.abs(path - jnp.log(2.0))


def _rejected_path(x: Inputs) -> Array:
    """c under MIO's gradient flow."""
    return _flow(lambda c: jax.grad(mio_pair_loss, 1)(x["a"], c), x["c"], _LATE)


def _margin_path(x: Inputs) -> Array:
    """a − c under DPO's gradient flow on both."""
    path = _flow(lambda y: jax.grad(lambda y: bradley_terry_loss(y[0], y[1]))(y), jnp.stack([x["a"], x["c"]]), _LATE)
    return path[:, 0] - path[:, 1]


def _elapsed(x: Inputs) -> Array:
    """Twice the growth of e^{−c} − c under MIO and half that of e^u + u, u = a − c, under DPO, a unit of time."""
    u, start = _margin_path(x), x["a"] - x["c"]
    c = _rejected_path(x)
    mio = 2 * (jnp.exp(-c) - c - jnp.exp(-x["c"]) + x["c"])
    dpo = (jnp.exp(u) + u - jnp.exp(start) - start) / 2
    return jnp.stack([mio, dpo]) / _late(x)[None, :]


def _late(x: Inputs) -> Array:
    return jnp.asarray(_LATE, x["a"].dtype)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="21f",
        title="Gradient flow: the chosen level settles exponentially, at the rate 1/3",
        statement=r"|a(t) - \log 2| = \Theta\left(e^{-t/3}\right)",
        kind=Kind.ASYMPTOTIC,
        draw=_start,
        left=_distance_of_chosen,
        right=lambda x: jnp.asarray(_EARLY, x["a"].dtype) ** (-1 / 3),
        twin=lambda x: jnp.asarray(_EARLY, x["a"].dtype) ** (-1 / 2),
        slip="the rate 1/2",
        source="derived here",
        samples=256,
        grid=_EARLY,
    ),
    Claim(
        id="21g",
        title="Gradient flow: MIO's rejected level falls as −log(t/2)",
        statement=r"e^{-c(t)} \sim \tfrac t2",
        kind=Kind.ASYMPTOTIC,
        draw=_start,
        left=lambda x: jnp.exp(-_rejected_path(x)),
        right=lambda x: _late(x) / 2,
        twin=lambda x: jnp.sqrt(_late(x)) / 2,
        slip="the square root of time",
        source="derived here",
        samples=256,
        grid=_LATE,
    ),
    Claim(
        id="21h",
        title="Gradient flow: DPO's margin grows as log(2t), for ever",
        statement=r"e^{a(t) - c(t)} \sim 2t",
        kind=Kind.ASYMPTOTIC,
        draw=_start,
        left=lambda x: jnp.exp(_margin_path(x)),
        right=lambda x: 2 * _late(x),
        twin=lambda x: 2 * jnp.sqrt(_late(x)),
        slip="the square root of time",
        source="derived here",
        samples=256,
        grid=_LATE,
    ),
    Claim(
        id="21i",
        title="Both flows in closed form, whose leading terms are the rates",
        statement=r"\mathrm{MIO}:\ e^{-c} - c = \tfrac t2 + \mathrm{const},\qquad"
        r" \mathrm{DPO}:\ e^{u} + u = 2t + \mathrm{const}\quad (u = a - c)",
        kind=Kind.EXACT,
        draw=_start,
        left=_elapsed,
        right=lambda x: jnp.ones((2, len(_LATE)), x["a"].dtype),
        twin=lambda x: jnp.full((2, len(_LATE)), 1 + 1e-6, x["a"].dtype),
        slip="time multiplied by 1 + 1e-6",
        source="derived here",
        derivatives=0,
        tolerance={"float64": 1e-8, "float32": 1e-3, "bfloat16": 1e-3},
        why="what fourth-order steps leave; in float32, rounding over fourteen hundred of them",
        samples=256,
    ),
)
