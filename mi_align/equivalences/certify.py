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
        state = _run(claim, dtype, _stream(claim.id, seed), total, progress)
        error, twin_error = _errors(claim, state)
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

    `error` and `twin_error` are the worst cases, `worst` the input of the first; `sums` are what claims about averages
    need, and empty for the others.
    """

    error: Array
    twin_error: Array
    worst: Inputs
    sums: tuple[Array, ...]


def _stream(identifier: str, seed: int) -> np.ndarray:
    """A word for a claim's own stream of random inputs: the same whichever other claims are run."""
    return np.random.SeedSequence([seed, *identifier.encode()]).generate_state(1)[0]


def _run(claim: Claim, dtype: str, stream: np.ndarray, total: int, progress: Callable[[float], None] | None) -> _State:
    """All samples, in chunks of flat memory; looks up for progress a dozen times."""
    chunk = min(total, _CHUNK)
    chunks = math.ceil(total / chunk)
    step = jax.jit(functools.partial(_chunks, claim, dtype, chunk), compiler_options=_compiler_options())
    state = _empty(claim, dtype)
    stride = max(1, chunks // 12)
    for first in range(0, chunks, stride):
        state = step(stream, state, first, min(first + stride, chunks), total)
        if progress is not None:
            jax.block_until_ready(state)
            progress(min((first + stride) * chunk, total) / total)
    return state


def _empty(claim: Claim, dtype: str) -> _State:
    """The state before the first sample."""

    def sample() -> tuple[Inputs, tuple[Array, ...]]:
        x = _cast(claim.draw(jax.random.key(0)), dtype)
        left, right, twin = (jnp.asarray(side(x))[None] for side in (claim.left, claim.right, claim.twin))
        return x, compare.sums(claim.kind, left, right, twin, jnp.ones(1, bool))

    worst, sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(sample))
    return _State(jnp.array(-jnp.inf), jnp.array(-jnp.inf), worst, sums)


def _compiler_options() -> dict[str, Any] | None:
    """On a CPU, less optimisation: a claim's program runs for a second, so compiling it should not take two."""
    if jax.default_backend() != "cpu":
        return None
    return {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}


def _chunks(
    claim: Claim, dtype: str, chunk: int, stream: Array, state: _State, first: Array, last: Array, total: Array
) -> _State:
    def body(index: Array, state: _State) -> _State:
        number = index * chunk + jnp.arange(chunk)
        words = jnp.stack([jnp.full(chunk, stream, jnp.uint32), number.astype(jnp.uint32)], axis=-1)
        keys = jax.random.wrap_key_data(words, impl="threefry2x32")  # a key a sample, without hashing
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
    sums = compare.sums(claim.kind, left, right, twin, real)
    return _State(
        jnp.maximum(state.error, error[index]),
        jnp.maximum(state.twin_error, jnp.max(twin_error)),
        worst,
        jax.tree.map(jnp.add, state.sums, sums),
    )


def _cast(inputs: Inputs, dtype: str) -> Inputs:
    """Floating-point leaves in `dtype`; bfloat16 is a rounding of float32."""

    def cast(x: Array) -> Array:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating) or dtype == "float64":
            return x
        return x.astype(jnp.bfloat16).astype(jnp.float32) if dtype == "bfloat16" else x.astype(jnp.float32)

    return jax.tree.map(cast, inputs)


def _errors(claim: Claim, state: _State) -> tuple[float, float]:
    """The claim's and its twin's error in the measure of the claim's kind."""
    sums = [np.asarray(total) for total in state.sums]
    if claim.kind is Kind.ASYMPTOTIC:
        return compare.slope_gap(claim.grid, sums[0], sums[1]), compare.slope_gap(claim.grid, sums[0], sums[2])
    if claim.kind is Kind.MONTE_CARLO:
        return compare.standard_errors(sums[0]), compare.standard_errors(sums[1])
    return float(state.error), float(state.twin_error)
