"""The engine: draws inputs, evaluates both sides of a claim and their derivatives, and keeps the worst case.

Everything of a claim happens in one compiled function: draw a chunk, evaluate, compare, keep the worst sample seen so
far, next chunk. Memory stays flat, Python is out of the loop, and the twin (the claim with one thing wrong) is judged
on the same samples.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align import checks
from mi_align.equivalences.claim import Claim, Inputs, Kind, Side

__all__ = ["DTYPES", "Certificate", "certify", "tolerance_of"]

DTYPES = ("float64", "float32", "bfloat16")

#: What a comparison may leave by default, relative to max(1, |left|, |right|). In bfloat16 the inputs are rounded to
#: that format and both sides are computed in float32, as the objectives do.
DEFAULTS = {
    Kind.EXACT: {"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-5},
    Kind.INEQUALITY: {"float64": 1e-12, "float32": 1e-6, "bfloat16": 1e-6},
    Kind.OPTIMUM: {"float64": 1e-8, "float32": 1e-3, "bfloat16": 1e-3},
    Kind.ASYMPTOTIC: {"float64": 0.05, "float32": 0.1, "bfloat16": 0.1},
    Kind.MONTE_CARLO: {"float64": 4.0, "float32": 4.0, "bfloat16": 4.0},
}

_CHUNK = 8192


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What came of certifying one claim.

    Attributes:
      id, title, statement, kind, source: the claim's.
      samples: how many inputs were drawn.
      dtype: in what the inputs were given.
      error: the worst case, in the kind's own measure (see `Kind`).
      tolerance: what it may be.
      holds: error ≤ tolerance, and nothing was NaN.
      twin_error: the same measure for the twin.
      twin_fails: twin_error > tolerance; None where the twin is not judged (dtypes other than float64).
      derivatives: how many orders of derivative were compared too.
      worst: the input that made the worst case.
      seconds: compilation included.
      device: where it ran.
    """

    id: str
    title: str
    statement: str
    kind: str
    source: str
    samples: int
    dtype: str
    error: float
    tolerance: float
    holds: bool
    twin_error: float
    twin_fails: bool | None
    derivatives: int
    worst: Any
    seconds: float
    device: str


def tolerance_of(claim: Claim, dtype: str) -> float:
    """What the claim's comparison may leave in `dtype`."""
    return float(claim.tolerance.get(dtype, DEFAULTS[claim.kind][dtype]))


def certify(
    claim: Claim,
    *,
    samples: int = 1_000_000,
    dtype: str = "float64",
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Certificate:
    """Draw inputs, compare both sides, and report the worst case."""
    if dtype not in DTYPES:
        raise checks.unknown_name("dtype", dtype, DTYPES)
    start = time.perf_counter()
    total = min(samples, claim.samples or samples)
    with jax.enable_x64(True):
        key = jax.random.fold_in(jax.random.key(seed), _number(claim.id))
        state = _run(claim, dtype, key, total, progress)
        error, twin_error = _errors(claim, state, total)
        worst = jax.tree.map(np.asarray, state.worst)
    limit = tolerance_of(claim, dtype)
    return Certificate(
        id=claim.id,
        title=claim.title,
        statement=claim.statement,
        kind=str(claim.kind),
        source=claim.source,
        samples=total,
        dtype=dtype,
        error=error,
        tolerance=limit,
        holds=error <= limit,
        twin_error=twin_error,
        twin_fails=twin_error > limit if dtype == "float64" else None,
        derivatives=claim.derivatives if claim.kind is Kind.EXACT else 0,
        worst=worst,
        seconds=time.perf_counter() - start,
        device=jax.devices()[0].device_kind,
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _State:
    """What is kept of the samples seen so far.

    `error` and `twin_error` are the worst cases; `left`, `right`, `twin` sums over samples (ASYMPTOTIC) and `moments`
    count, Σd, Σd² of left − right and of left − twin (MONTE_CARLO).
    """

    error: Array
    twin_error: Array
    worst: Inputs
    left: Array
    right: Array
    twin: Array
    moments: Array


def _number(identifier: str) -> int:
    """A number of a claim's own for its stream of random inputs: the same whichever other claims are run."""
    return int.from_bytes(identifier.encode(), "little") % (2**31)


def _run(claim: Claim, dtype: str, key: PRNGKeyArray, total: int, progress: Callable[[float], None] | None) -> _State:
    """All samples, in chunks of flat memory; looks up for progress a dozen times."""
    chunk = min(total, _CHUNK)
    chunks = math.ceil(total / chunk)
    step = jax.jit(functools.partial(_chunks, claim, dtype, chunk), donate_argnums=1)
    state = jax.jit(functools.partial(_empty, claim, dtype))(key)
    stride = max(1, chunks // 12)
    for first in range(0, chunks, stride):
        state = step(key, state, first, min(first + stride, chunks), total)
        if progress is not None:
            jax.block_until_ready(state)
            progress(min((first + stride) * chunk, total) / total)
    return state


def _empty(claim: Claim, dtype: str, key: PRNGKeyArray) -> _State:
    x = _cast(claim.draw(key), dtype)
    side = jnp.zeros_like(claim.left(x), jnp.float64)
    nothing = jnp.array(-jnp.inf)
    return _State(nothing, nothing, x, side, side, side, jnp.zeros((2, 3)))


def _chunks(
    claim: Claim, dtype: str, chunk: int, key: PRNGKeyArray, state: _State, first: Array, last: Array, total: Array
) -> _State:
    def body(index: Array, state: _State) -> _State:
        number = index * chunk + jnp.arange(chunk)
        keys = jax.vmap(functools.partial(jax.random.fold_in, key))(number)
        return _absorb(claim, dtype, state, keys, number < total)

    return jax.lax.fori_loop(first, last, body, state)


def _absorb(claim: Claim, dtype: str, state: _State, keys: PRNGKeyArray, real: Array) -> _State:
    """Look at one chunk of samples."""
    inputs = jax.vmap(lambda k: _cast(claim.draw(k), dtype))(keys)
    directions = jax.vmap(lambda k: jax.random.fold_in(k, 1))(keys)
    left, right, twin = (jax.vmap(side)(inputs) for side in (claim.left, claim.right, claim.twin))
    error = jax.vmap(functools.partial(_difference, claim.kind))(left, right)
    if claim.kind is Kind.EXACT and claim.derivatives:
        error = jnp.maximum(error, jax.vmap(functools.partial(_derivative_error, claim))(inputs, directions))
    twin_error = jax.vmap(functools.partial(_difference, claim.kind))(left, twin)
    error, twin_error = (jnp.where(real, jnp.where(jnp.isnan(e), jnp.inf, e), -jnp.inf) for e in (error, twin_error))
    index = jnp.argmax(error)
    is_worse = error[index] > state.error
    worst = jax.tree.map(lambda new, old: jnp.where(is_worse, new[index], old), inputs, state.worst)
    sums = [_kept_sum(side, real) for side in (left, right, twin)]
    moments = jnp.stack([_moments(left, side, real) for side in (right, twin)])
    return _State(
        jnp.maximum(state.error, error[index]),
        jnp.maximum(state.twin_error, jnp.max(twin_error)),
        worst,
        state.left + sums[0],
        state.right + sums[1],
        state.twin + sums[2],
        state.moments + moments,
    )


def _cast(inputs: Inputs, dtype: str) -> Inputs:
    """Floating-point leaves in `dtype`; bfloat16 is a rounding of float32."""

    def cast(x: Array) -> Array:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating) or dtype == "float64":
            return x
        return x.astype(jnp.bfloat16).astype(jnp.float32) if dtype == "bfloat16" else x.astype(jnp.float32)

    return jax.tree.map(cast, inputs)


def _difference(kind: Kind, left: Array, right: Array) -> Array:
    """How far one sample is from the claim, relative to max(1, |left|, |right|); infinite where a side is NaN."""
    scale = jnp.maximum(1, jnp.maximum(jnp.abs(left), jnp.abs(right)))
    scale = jnp.where(jnp.isfinite(scale), scale, 1)
    gap = jnp.where(left == right, 0, left - right) / scale
    gap = gap if kind is Kind.INEQUALITY else jnp.abs(gap)
    return jnp.max(jnp.where(jnp.isnan(gap), jnp.inf, gap)).astype(jnp.float64)


def _derivative_error(claim: Claim, inputs: Inputs, key: PRNGKeyArray) -> Array:
    """Difference of the sides' gradients along a random cotangent, and of the Hessians along a random direction."""
    leaves, structure = jax.tree.flatten(inputs)
    smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
    point = [x for x, is_smooth in zip(leaves, smooth, strict=True) if is_smooth]

    def rebuilt(values: list[Array]) -> Inputs:
        fresh = iter(values)
        return jax.tree.unflatten(structure, [next(fresh) if s else x for x, s in zip(leaves, smooth, strict=True)])

    def slope(side: Side) -> Callable[[list[Array]], list[Array]]:
        def scalar(values: list[Array]) -> Array:
            out = side(rebuilt(values))
            return jnp.sum(out * jax.random.normal(key, jnp.shape(out), out.dtype))

        return jax.grad(scalar)

    slopes = slope(claim.left)(point), slope(claim.right)(point)
    if claim.derivatives > 1:
        along = [jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype) for i, x in enumerate(point)]
        curved = [jax.jvp(slope(side), (point,), (along,))[1] for side in (claim.left, claim.right)]
        slopes = (slopes[0] + curved[0], slopes[1] + curved[1])
    return jnp.max(jnp.stack([_difference(Kind.EXACT, a, b) for a, b in zip(*slopes, strict=True)]))


def _kept_sum(side: Array, real: Array) -> Array:
    shape = (-1,) + (1,) * (side.ndim - 1)
    return jnp.sum(jnp.where(real.reshape(shape), side, 0), axis=0, dtype=jnp.float64)


def _moments(left: Array, right: Array, real: Array) -> Array:
    """Count, sum and sum of squares of the differences of scalar sides."""
    d = (left - right).reshape(len(left), -1)[:, 0]
    d = jnp.where(real, d, 0).astype(jnp.float64)
    return jnp.stack([jnp.sum(real, dtype=jnp.float64), jnp.sum(d), jnp.sum(d * d)])


def _errors(claim: Claim, state: _State, total: int) -> tuple[float, float]:
    """The claim's and its twin's error in the measure of the claim's kind."""
    if claim.kind is Kind.ASYMPTOTIC:
        slopes = [_slope(claim.grid, np.asarray(side) / total) for side in (state.left, state.right, state.twin)]
        return _finite(abs(slopes[0] - slopes[1])), _finite(abs(slopes[0] - slopes[2]))
    if claim.kind is Kind.MONTE_CARLO:
        return _finite(_standard_errors(state.moments[0])), _finite(_standard_errors(state.moments[1]))
    return float(state.error), float(state.twin_error)


def _slope(grid: tuple[float, ...], values: np.ndarray) -> float:
    """Slope of log |values| over log grid, by least squares."""
    return float(np.polyfit(np.log(np.asarray(grid)), np.log(np.abs(values)), 1)[0])


def _standard_errors(moments: Array) -> float:
    """|mean| in standard errors of the mean."""
    count, first, second = map(float, moments)
    mean = first / count
    variance = max(second / count - mean**2, 0.0) * count / max(count - 1, 1)
    return abs(mean) / max(math.sqrt(variance / count), 1e-300) if mean else 0.0


def _finite(x: float) -> float:
    return math.inf if math.isnan(x) else x
