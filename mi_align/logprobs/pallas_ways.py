"""The Pallas kernels as ways: what `contract` asks for, by a kernel where there is one and by `chunked` for the rest.

A kernel's forward pass makes what a log-probability needs. Statistics, and the pull of a frozen head, are
made by `chunked`; the backward pass is the kernel's in any case, as its form of gradient is the contract's. A kernel
keeps no logits and looks at no tile's largest: `api` refuses `memory_budget`, `filter_eps` and `tiles` beside it.

Elsewhere than on its own platform a kernel is interpreted, operation by operation, for tests.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mi_align.logprobs import chunked, pallas_gpu, pallas_tpu
from mi_align.logprobs.contract import Coefficients, Needs, Plan, Problem, RowSums, Saved
from mi_align.logprobs.joined import Way
from mi_align.logprobs.tiles import Tiles

__all__ = ["PALLAS_WAYS"]

#: Both kernels' (forward, backward), and the platforms, as lowering names them, for which they are compiled.
_KERNELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "pallas_gpu": (pallas_gpu, ("cuda", "rocm")),
    "pallas_tpu": (pallas_tpu, ("tpu",)),
}


def _forward(
    name: str, problem: Problem, plan: Plan, *, pull: bool = False, keep: bool = False
) -> tuple[RowSums, Saved]:
    if plan.statistics or pull:
        return chunked.forward(problem, plan, pull=pull, keep=False)
    kernel, platforms = _KERNELS[name]
    sums = _run(kernel.forward, platforms, problem, problem.hidden, problem.vocabulary, problem.targets, problem.bias)
    return RowSums(*sums), Saved()


def _backward(
    name: str,
    problem: Problem,
    sums: RowSums,
    coefficients: Coefficients,
    plan: Plan,
    saved: Saved,
    needs: Needs,
) -> tuple[Array | None, Array | None, Array | None]:
    kernel, platforms = _KERNELS[name]
    arrays = problem.hidden, problem.vocabulary, problem.targets, problem.bias
    numbers = [jnp.zeros_like(sums.top) if x is None else x for x in coefficients]
    wanted = needs.hidden, needs.vocabulary or needs.bias
    backward = functools.partial(kernel.backward, wanted=wanted)
    d_hidden, d_vocabulary, d_bias = _run(backward, platforms, problem, *arrays, sums.top, sums.log_mass, *numbers)
    wide = None if d_hidden is None else d_hidden.astype(sums.top.dtype)
    return wide, d_vocabulary if needs.vocabulary else None, d_bias if needs.bias else None


def _run(kernel: Callable[..., Any], platforms: tuple[str, ...], problem: Problem, *arrays: Array | None) -> Any:
    """The kernel where the program is compiled for its platform, interpreted elsewhere."""

    def call(interpret: bool, scale: Array | None, cap: Array | None, rows: Any, entries: Any, *arrays: Any) -> Any:
        factor = 1.0 if scale is None else scale
        options = {"scale": factor, "soft_cap": cap, "rows": rows, "entries": entries, "interpret": interpret}
        return kernel(*arrays, **options, device_kind=jax.devices()[0].device_kind)

    compiled, interpreted = (functools.partial(call, interpret) for interpret in (False, True))
    inputs = problem.scale, problem.soft_cap, problem.kept, problem.entries, *arrays
    return jax.lax.platform_dependent(*inputs, default=interpreted, **dict.fromkeys(platforms, compiled))


def _padded_rows(rows: int, tiles: Tiles) -> int:
    """As `chunked`, which makes the statistics, wants it; a kernel has no grid for no rows."""
    return max(tiles.tail, chunked.padded_rows(rows, tiles))


#: By their names in `implementation=`.
PALLAS_WAYS = {
    name: Way(name, functools.partial(_forward, name), functools.partial(_backward, name), _padded_rows)
    for name in _KERNELS
}
