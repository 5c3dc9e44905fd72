"""The engine: draws inputs, evaluates both sides of a claim and their derivatives, and keeps the worst case.

Everything of a claim happens in one compiled function: draw a chunk, evaluate, compare, keep the worst sample seen so
far, next chunk. Memory stays flat, Python is out of the loop, and the twin (the claim with one thing wrong) is judged
on the same samples.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align import checks
from mi_align.equivalences import compare
from mi_align.equivalences.certificate import DTYPES, Certificate, tolerance_of
from mi_align.equivalences.claim import Claim, Inputs, Kind

__all__ = ["certify", "certify_all"]

_CHUNK = 8192


def certify(
    claim: Claim,
    *,
    samples: int = 1_000_000,
    dtype: str = "float64",
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Certificate:
    """Draw inputs, compare both sides of a claim and their derivatives, and report the worst case.

    Args:
      claim: what to certify.
      samples: how many inputs to draw, unless the claim says fewer.
      dtype: in what the inputs are given: one of `DTYPES`.
      seed: of the random inputs.
      progress: called now and then with the share of samples done.

    Returns:
      The certificate; its `holds` is False if a single sample was off, or NaN.

    Raises:
      ValueError: no such dtype, or fewer than one sample.
    """
    if dtype not in DTYPES:
        raise checks.unknown_name("dtype", dtype, DTYPES)
    if samples < 1:
        raise ValueError(f"`samples` is {samples}, but at least one sample was wanted.")
    start = time.perf_counter()
    total = min(samples, claim.samples or samples)
    with jax.enable_x64(True):
        key = jax.random.fold_in(jax.random.key(seed), _number(claim.id))
        state = _run(claim, dtype, key, total, progress)
        error, twin_error = _errors(claim, state, total)
        worst = jax.tree.map(np.asarray, state.worst)
    limit = tolerance_of(claim, dtype)
    return Certificate(
        **_described(claim),
        samples=total,
        dtype=dtype,
        error=error,
        tolerance=limit,
        holds=error <= limit,
        twin_error=twin_error,
        twin_fails=twin_error > limit if dtype == "float64" else None,
        worst=worst,
        seconds=time.perf_counter() - start,
        device=jax.devices()[0].device_kind,
    )


def certify_all(
    claims: Iterable[Claim],
    *,
    samples: int = 1_000_000,
    dtype: str = "float64",
    seed: int = 0,
    progress: Callable[[Claim, float], None] | None = None,
    workers: int | None = None,
) -> Iterator[Certificate]:
    """Certify many claims, one compiling while another runs; certificates come as they are finished.

    A claim that raises is a claim that does not hold: its certificate carries the error, and the others go on.

    Args:
      claims: what to certify.
      samples: inputs a claim, unless the claim says fewer.
      dtype: in what inputs are given: one of `DTYPES`.
      seed: of all random inputs; each claim has a stream of its own.
      progress: called with a claim and the share of its samples that is done.
      workers: threads; by default one a core, at most 8.
    """

    def one(claim: Claim) -> Certificate:
        report = functools.partial(progress, claim) if progress is not None else None
        try:
            return certify(claim, samples=samples, dtype=dtype, seed=seed, progress=report)
        except Exception as error:
            return _failed(claim, samples, dtype, error)

    pool = concurrent.futures.ThreadPoolExecutor(workers or min(os.cpu_count() or 1, 8))
    try:
        # The expensive claims first, so that none is left alone at the end.
        waiting = [pool.submit(one, claim) for claim in sorted(claims, key=lambda c: c.samples is None)]
        for done in concurrent.futures.as_completed(waiting):
            yield done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _failed(claim: Claim, samples: int, dtype: str, error: Exception) -> Certificate:
    """The certificate of a claim that could not be evaluated."""
    return Certificate(
        **_described(claim),
        samples=samples,
        dtype=dtype,
        error=math.inf,
        tolerance=tolerance_of(claim, dtype),
        holds=False,
        twin_error=math.nan,
        twin_fails=None,
        worst=f"{type(error).__name__}: {error}",
        seconds=0.0,
        device=jax.devices()[0].device_kind,
    )


def _described(claim: Claim) -> dict[str, Any]:
    """What a certificate repeats of its claim."""
    names = ("id", "title", "statement", "slip", "source", "why", "figure")
    derivatives = claim.derivatives if claim.kind is Kind.EXACT else 0
    return {**{name: getattr(claim, name) for name in names}, "kind": str(claim.kind), "derivatives": derivatives}


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
    step = jax.jit(functools.partial(_chunks, claim, dtype, chunk), compiler_options=_compiler_options())
    state = _empty(jax.eval_shape(functools.partial(_sample, claim, dtype), key))
    stride = max(1, chunks // 12)
    for first in range(0, chunks, stride):
        state = step(key, state, first, min(first + stride, chunks), total)
        if progress is not None:
            jax.block_until_ready(state)
            progress(min((first + stride) * chunk, total) / total)
    return state


def _sample(claim: Claim, dtype: str, key: PRNGKeyArray) -> tuple[Inputs, Array]:
    x = _cast(claim.draw(key), dtype)
    return x, claim.left(x)


def _empty(shapes: tuple[Inputs, jax.ShapeDtypeStruct]) -> _State:
    """The state before the first sample, from the shapes of a sample and of the left side."""
    worst = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes[0])
    nothing, side = jnp.array(-jnp.inf), jnp.zeros(shapes[1].shape)
    return _State(nothing, nothing, worst, side, side, side, jnp.zeros((2, 3)))


def _compiler_options() -> dict[str, Any] | None:
    """On a CPU, less optimisation: a claim's program runs for a second, so compiling it should not take two."""
    if jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}


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
    left, right, twin = (jax.vmap(side)(inputs) for side in (claim.left, claim.right, claim.twin))
    error = jax.vmap(functools.partial(compare.difference, claim.kind))(left, right)
    if claim.kind is Kind.EXACT and claim.derivatives:
        error = jnp.maximum(error, jax.vmap(functools.partial(compare.derivative_error, claim))(inputs))
    twin_error = jax.vmap(functools.partial(compare.difference, claim.kind))(left, twin)
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
        left, right, twin = (np.asarray(side) / total for side in (state.left, state.right, state.twin))
        return compare.slope_gap(claim.grid, left, right), compare.slope_gap(claim.grid, left, twin)
    if claim.kind is Kind.MONTE_CARLO:
        right, twin = np.asarray(state.moments)
        return compare.standard_errors(right), compare.standard_errors(twin)
    return float(state.error), float(state.twin_error)
