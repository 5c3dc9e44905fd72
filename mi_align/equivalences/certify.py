"""The engine: draws inputs, evaluates both sides of a claim and their derivatives, and keeps the worst case.

Two compiled functions a claim: one draws a chunk of inputs, and is shared by all claims that draw alike; the other
evaluates both sides, compares, and returns the worst sample. Memory stays flat, and the twin (the claim with one thing
wrong) is judged on the same samples.
"""

from __future__ import annotations

import collections
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
_ACCELERATOR_CHUNK = 131_072  # a launch costs more than the arithmetic of fewer samples


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
        seen = _run(claim, dtype, _stream(claim.id, seed), total, progress)
    error, twin_error = _errors(claim, seen)
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
        worst=seen.worst,
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
        waiting = [pool.submit(one, claim) for claim in _shuffled(claims)]
        for done in concurrent.futures.as_completed(waiting):
            yield done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _shuffled(claims: Iterable[Claim]) -> list[Claim]:
    """One claim of every way of drawing first: no two threads compile the same draw, and the long ones start early."""
    turns: collections.Counter[Any] = collections.Counter()
    ordered = []
    for claim in claims:
        ordered.append((turns[claim.draw], claim.samples is not None, claim))
        turns[claim.draw] += 1
    return [claim for *_, claim in sorted(ordered, key=lambda entry: entry[:2])]


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


@dataclasses.dataclass(frozen=True)
class _Seen:
    """What is kept of the samples seen so far.

    `error` and `twin_error` are the worst cases, `worst` the input of the first; `sums` are what claims about averages
    need, and empty for the others.
    """

    error: float
    twin_error: float
    worst: Inputs
    sums: list[np.ndarray]

    def and_(self, new: _Seen) -> _Seen:
        """Of two sets of samples, both."""
        worst = new.worst if new.error > self.error else self.worst
        sums = [old + more for old, more in zip(self.sums, new.sums, strict=True)]
        return _Seen(max(self.error, new.error), max(self.twin_error, new.twin_error), worst, sums)


def _stream(identifier: str, seed: int) -> np.ndarray:
    """A word for a claim's own stream of random inputs: the same whichever other claims are run."""
    return np.random.SeedSequence([seed, *identifier.encode()]).generate_state(1)[0]


def _run(claim: Claim, dtype: str, stream: np.ndarray, total: int, progress: Callable[[float], None] | None) -> _Seen:
    """All samples, in chunks of flat memory."""
    chunk = min(total, _CHUNK if jax.default_backend() == "cpu" else _ACCELERATOR_CHUNK)
    draw = _drawer(claim.draw, dtype, chunk)
    look = jax.jit(functools.partial(_look, claim), compiler_options=_compiler_options(total))
    seen = None
    for first in range(0, total, chunk):
        new = _fetched(look(draw(stream, first), min(chunk, total - first)))
        seen = new if seen is None else seen.and_(new)
        if progress is not None:
            progress(min(first + chunk, total) / total)
    assert seen is not None  # there is at least one sample
    return seen


def _compiler_options(total: int) -> dict[str, Any] | None:
    """On a CPU, less optimisation: a claim's program runs for a second at most, so compiling it should not take two.

    Of the fusions, those of reductions into YNNPACK calls would make the small reductions of a claim slower.
    """
    if jax.default_backend() != "cpu":
        return None
    return {
        "xla_backend_optimization_level": 0 if 1 < total <= 4 * _CHUNK else 1,  # one sample is a long trajectory
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_experimental_ynn_fusion_type": "",
        "xla_cpu_parallel_codegen_split_count": 1,
    }


@functools.cache
def _drawer(draw: Callable[[PRNGKeyArray], Inputs], dtype: str, chunk: int) -> Callable[..., Inputs]:
    """(stream, number of the first sample) -> a chunk of samples; compiled once for all claims that draw alike."""

    def samples(stream: Array, first: Array) -> Inputs:
        number = first + jnp.arange(chunk)
        words = jnp.stack([jnp.full(chunk, stream, jnp.uint32), number.astype(jnp.uint32)], axis=-1)
        keys = jax.random.wrap_key_data(words, impl="threefry2x32")  # a key a sample, without hashing
        return jax.vmap(lambda key: _cast(draw(key), dtype))(keys)

    return jax.jit(samples, compiler_options=_compiler_options(chunk + 4 * _CHUNK))


def _look(claim: Claim, inputs: Inputs, real: Array) -> tuple[Array, Array, Inputs, tuple[Array, ...]]:
    """Both errors of the worst sample of a chunk, of which the first `real` count; that sample; the chunk's sums."""
    left, right, twin, error, twin_error = jax.vmap(functools.partial(compare.sides, claim))(inputs)
    is_real = jnp.arange(len(error)) < real
    error, twin_error = (jnp.where(is_real, e, -jnp.inf) for e in (error, twin_error))
    index = jnp.argmax(error)
    worst = jax.tree.map(lambda x: x[index], inputs)
    return error[index], jnp.max(twin_error), worst, compare.sums(claim.kind, left, right, twin, is_real)


def _fetched(looked: tuple[Array, Array, Inputs, tuple[Array, ...]]) -> _Seen:
    """What `_look` found, on the host."""
    error, twin_error, worst, sums = jax.device_get(looked)
    return _Seen(float(error), float(twin_error), worst, list(sums))


def _cast(inputs: Inputs, dtype: str) -> Inputs:
    """Floating-point leaves in `dtype`; bfloat16 is a rounding of float32."""

    def cast(x: Array) -> Array:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating) or dtype == "float64":
            return x
        return x.astype(jnp.bfloat16).astype(jnp.float32) if dtype == "bfloat16" else x.astype(jnp.float32)

    return jax.tree.map(cast, inputs)


def _errors(claim: Claim, seen: _Seen) -> tuple[float, float]:
    """The claim's and its twin's error in the measure of the claim's kind."""
    if claim.kind is Kind.ASYMPTOTIC:
        left, right, twin = seen.sums
        return compare.slope_gap(claim.grid, left, right), compare.slope_gap(claim.grid, left, twin)
    if claim.kind is Kind.MONTE_CARLO:
        return compare.standard_errors(seen.sums[0]), compare.standard_errors(seen.sums[1])
    return seen.error, seen.twin_error
