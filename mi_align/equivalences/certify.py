"""The engine: draws inputs, evaluates both sides of a claim and their derivatives, and keeps the worst case.

Claims that draw alike see the same inputs, a chunk at a time: one compiled function draws the chunk, and one a claim
evaluates both sides, compares, and returns the worst sample. Memory stays flat, and the twin (the claim with one thing
wrong) is judged on the same samples.
"""

from __future__ import annotations

import concurrent.futures
import functools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mi_align import checks
from mi_align.equivalences import compare, splitmix
from mi_align.equivalences.certificate import DTYPES, Certificate, tolerance_of
from mi_align.equivalences.claim import Claim, Inputs, Kind

__all__ = ["certify", "certify_all"]

_CHUNK = 4096  # what is computed of as many samples stays in a core's cache
_ACCELERATOR_CHUNK = 131_072  # a launch costs more than the arithmetic of fewer samples


def certify(claim: Claim, *, samples: int = 1_000_000, dtype: str = "float64", seed: int = 0) -> Certificate:
    """Draw inputs, compare both sides of a claim and their derivatives, and report the worst case.

    Args:
      claim: what to certify.
      samples: how many inputs to draw, unless the claim says fewer.
      dtype: in what the inputs are given: one of `DTYPES`.
      seed: of the random inputs.

    Returns:
      The certificate; its `holds` is False if a single sample was off, or NaN.

    Raises:
      ValueError: no such dtype, or fewer than one sample.
    """
    _check(samples, dtype)
    (trial,) = _try_together([claim], samples, dtype, seed)
    if trial.failure is not None:
        raise trial.failure
    return trial.certificate()


def certify_all(
    claims: Iterable[Claim],
    *,
    samples: int = 1_000_000,
    dtype: str = "float64",
    seed: int = 0,
    workers: int | None = None,
) -> Iterator[Certificate]:
    """Certify many claims, some compiling while others run; certificates come as they are finished.

    A claim that raises is a claim that does not hold: its certificate carries the error, and the others go on.

    Args:
      claims: what to certify.
      samples: inputs a claim, unless the claim says fewer.
      dtype: in what inputs are given: one of `DTYPES`.
      seed: of all random inputs; what a claim sees does not depend on which others are certified.
      workers: threads; by default two a core, at most 16, for one of the two often waits for Python's lock.

    Raises:
      ValueError: no such dtype, or fewer than one sample.
    """
    _check(samples, dtype)
    pool = concurrent.futures.ThreadPoolExecutor(workers or min(2 * (os.cpu_count() or 1), 16))
    try:
        waiting = [pool.submit(_try_together, group, samples, dtype, seed) for group in _groups(claims)]
        for done in concurrent.futures.as_completed(waiting):
            yield from (trial.certificate() for trial in done.result())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check(samples: int, dtype: str) -> None:
    if dtype not in DTYPES:
        raise checks.unknown_name("dtype", dtype, DTYPES)
    if samples < 1:
        raise ValueError(f"`samples` is {samples}, but at least one sample was wanted.")


def _groups(claims: Iterable[Claim]) -> list[list[Claim]]:
    """Claims that draw alike and as often, a few at a time; the dearest first, so that none is left at the end."""
    alike: dict[Any, list[Claim]] = {}
    for claim in claims:
        alike.setdefault((claim.draw, claim.samples), []).append(claim)
    groups = [group[i : i + _TOGETHER] for group in alike.values() for i in range(0, len(group), _TOGETHER)]
    return sorted(groups, key=lambda group: (group[0].samples is not None, -len(group)))


_TOGETHER = 8  # claims a group: more would save little, and keep a thread busy when the others have finished


def _try_together(claims: Sequence[Claim], samples: int, dtype: str, seed: int) -> list[_Trial]:
    """Put claims that draw alike on trial, a chunk of samples after the other."""
    total = min(samples, claims[0].samples or samples)
    chunk = min(total, _CHUNK if jax.default_backend() == "cpu" else _ACCELERATOR_CHUNK)
    trials = [_Trial(claim, total, dtype) for claim in claims]
    with jax.enable_x64(True):
        for first in range(0, total, chunk):
            try:
                inputs = _drawer(claims[0].draw, dtype, chunk)(seed, first)
            except Exception as error:  # a claim's own code, which may raise anything
                for trial in trials:
                    trial.failure = error
            for trial in trials:
                if trial.failure is None:
                    trial.look(inputs, min(chunk, total - first))
    return trials


class _Seen(NamedTuple):
    """What was seen of a claim: its worst error and its twin's, and the sample that was worst for the claim."""

    error: Float[Array | np.ndarray, ""]
    twin_error: Float[Array | np.ndarray, ""]
    worst: Inputs

    @classmethod
    def nothing(cls, inputs: Inputs) -> _Seen:
        """Before the first chunk, whose shapes the worst sample will have."""
        return cls(np.array(-np.inf), np.array(-np.inf), jax.tree.map(lambda x: np.zeros(x.shape[1:], x.dtype), inputs))


class _Trial:
    """A claim, and what was seen of it so far."""

    def __init__(self, claim: Claim, total: int, dtype: str) -> None:
        self.claim, self.total, self.dtype = claim, total, dtype
        self.seen: _Seen | None = None
        self.sums: list[np.ndarray] = []
        self.seconds = 0.0
        self.failure: Exception | None = None
        self._look = jax.jit(
            functools.partial(_look, claim), compiler_options=_compiler_options(is_brief=1 < total <= _CHUNK)
        )

    def look(self, inputs: Inputs, real: int) -> None:
        """Take a chunk of inputs into account, of which the first `real` count."""
        start = time.perf_counter()
        try:
            seen = self.seen or _Seen.nothing(inputs)
            self.seen, sums = jax.block_until_ready(self._look(seen, inputs, real))
        except Exception as failure:  # a claim's own code, which may raise anything
            self.failure = failure
            return
        chunk = [np.asarray(x) for x in sums]
        self.sums = [a + b for a, b in zip(self.sums, chunk, strict=True)] if self.sums else chunk
        self.seconds += time.perf_counter() - start

    def certificate(self) -> Certificate:
        """What came of it."""
        claim, limit = self.claim, tolerance_of(self.claim, self.dtype)
        seen = jax.device_get(self.seen or _Seen.nothing(()))
        names = ("id", "title", "statement", "slip", "source", "why", "figure")
        error, twin_error = (math.inf, math.nan) if self.failure else _errors(claim, seen, self.sums)
        judged = self.dtype == "float64" and not self.failure
        return Certificate(
            **{name: getattr(claim, name) for name in names},
            kind=str(claim.kind),
            derivatives=claim.derivatives if claim.kind is Kind.EXACT else 0,
            samples=self.total,
            dtype=self.dtype,
            error=error,
            tolerance=limit,
            holds=error <= limit,
            twin_error=twin_error,
            twin_fails=twin_error > limit if judged else None,
            worst=f"{type(self.failure).__name__}: {self.failure}" if self.failure else seen.worst,
            seconds=self.seconds,
            device=jax.devices()[0].device_kind,
        )


def _errors(claim: Claim, seen: _Seen, sums: Sequence[np.ndarray]) -> tuple[float, float]:
    """The claim's and its twin's error in the measure of the claim's kind."""
    if claim.kind is Kind.ASYMPTOTIC:
        left, right, twin = sums
        return compare.slope_gap(claim.grid, left, right), compare.slope_gap(claim.grid, left, twin)
    if claim.kind is Kind.MONTE_CARLO:
        return compare.standard_errors(sums[0]), compare.standard_errors(sums[1])
    return float(seen.error), float(seen.twin_error)


def _compiler_options(*, is_brief: bool) -> dict[str, Any] | None:
    """On a CPU, less optimisation: a claim's program runs for a second at most, so compiling it should not take two.

    A brief one, of few samples, gets none; a single sample does not count as few, for it is a long trajectory. Of the
    fusions, those of reductions into YNNPACK calls would make the small reductions of a claim slower.
    """
    if jax.default_backend() != "cpu":
        return None
    options = {
        "xla_backend_optimization_level": 0 if is_brief else 1,
        "xla_cpu_use_fusion_emitters": False,
        "xla_cpu_experimental_ynn_fusion_type": "",
        "xla_cpu_parallel_codegen_split_count": 1,
        "xla_cpu_multi_thread_eigen": False,  # the cores have other claims to certify
    }
    return {name: value for name, value in options.items() if _is_known(name, value)}


@functools.cache
def _is_known(option: str, value: Any) -> bool:
    """Whether this XLA has a compile option: they come and go with its versions."""
    try:
        jax.jit(lambda x: x, compiler_options={option: value}).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


@functools.cache
def _drawer(draw: Callable[[PRNGKeyArray], Inputs], dtype: str, chunk: int) -> Callable[..., Inputs]:
    """(seed, number of the first sample) -> a chunk of samples."""

    def samples(seed: Array, first: Array) -> Inputs:
        return jax.vmap(lambda key: _cast(draw(key), dtype))(splitmix.sample_keys(seed, first, chunk))

    return jax.jit(samples, compiler_options=_compiler_options(is_brief=chunk < _CHUNK))


def _look(claim: Claim, seen: _Seen, inputs: Inputs, real: Array) -> tuple[_Seen, tuple[Array, ...]]:
    """What is seen after a chunk of inputs, of which the first `real` count; and the chunk's sums."""
    left, right, twin, error, twin_error = jax.vmap(functools.partial(compare.sides, claim))(inputs)
    is_real = jnp.arange(len(error)) < real
    error, twin_error = (jnp.where(is_real, e, -jnp.inf) for e in (error, twin_error))
    index = jnp.argmax(error)
    is_worse = error[index] > seen.error
    worst = jax.tree.map(lambda x, old: jnp.where(is_worse, x[index], old), inputs, seen.worst)
    now = _Seen(jnp.maximum(error[index], seen.error), jnp.maximum(jnp.max(twin_error), seen.twin_error), worst)
    return now, compare.sums(claim.kind, left, right, twin, is_real)


def _cast(inputs: Inputs, dtype: str) -> Inputs:
    """Floating-point leaves in `dtype`; bfloat16 is a rounding of float32."""

    def cast(x: Array) -> Array:
        x = jnp.asarray(x)
        if not jnp.issubdtype(x.dtype, jnp.floating) or dtype == "float64":
            return x
        return x.astype(jnp.bfloat16).astype(jnp.float32) if dtype == "bfloat16" else x.astype(jnp.float32)

    return jax.tree.map(cast, inputs)
