"""The machine's own ceilings, measured beside what is compared with them: matrix products of the same shapes, a copy.

The work is what no way can avoid. With N positions, D features and V vocabulary entries, the logits are one product of
2·N·D·V operations, and so is each of the two gradients; making the logits again in the backward pass is not counted.
Inputs are read and outputs written once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mi_align.benchmark.harness import median
from mi_align.benchmark.program import Pass
from mi_align.benchmark.task import Task

__all__ = ["Ceilings", "ceilings", "least_bytes", "least_flops", "products", "runs"]

#: Logits of the measured products hold at most so many bytes; larger ones are timed at fewer positions, and scaled.
_LARGEST = {"cpu": 1 << 29, "gpu": 8 << 30, "tpu": 2 << 30}
_COPY = 1 << 30  # bytes that a copy moves at most


def products(which: Pass, *, frozen: bool = False) -> tuple[str, ...]:
    """The matrix products of a pass."""
    if which == "forward":
        return ("logits",)
    return ("logits", "d_hidden") if frozen else ("logits", "d_hidden", "d_vocabulary")


def least_flops(tokens: int, features: int, vocab: int, which: Pass, *, frozen: bool = False) -> int:
    """Multiplications and additions of the products alone."""
    return 2 * tokens * features * vocab * len(products(which, frozen=frozen))


def least_bytes(tokens: int, features: int, vocab: int, which: Pass, itemsize: int, *, frozen: bool = False) -> int:
    """What must be read and written: hidden, vocabulary, targets, one float32 a position, and the gradients."""
    moved = (tokens + vocab) * features * itemsize + 8 * tokens
    if which == "gradient":
        moved += (tokens + (0 if frozen else vocab)) * features * itemsize
    return moved


class Ceilings(NamedTuple):
    """Seconds that each product would take at all positions of a task, and a copy's bytes a second."""

    seconds: dict[str, float]
    bytes_per_second: float


def runs(task: Task, which: Pass) -> dict[str, Callable[[], Any]]:
    """The products of a pass and a copy, as blocking calls."""
    hidden = task.hidden.reshape(-1, task.case.features)[: _rows(task)]
    made = {"logits": _product("nd,vd->nv", hidden, task.vocabulary)}
    if which == "gradient":
        slopes = made["logits"]()  # as random as they will be: a GPU multiplies constants faster
        made["d_hidden"] = _product("nv,vd->nd", slopes, task.vocabulary)
        made["d_vocabulary"] = _product("nv,nd->vd", slopes, hidden)
    return made | {"copy": _copy(jnp.ones(_copied(task, which) // 8, jnp.float32))}


def _product(subscripts: str, left: Any, right: Any) -> Callable[[], Any]:
    compiled = jax.jit(lambda x, y: jnp.einsum(subscripts, x, y, precision=jax.lax.Precision.HIGHEST))
    return lambda: jax.block_until_ready(compiled(left, right))


def _copy(x: jax.Array) -> Callable[[], Any]:
    scaled = jax.jit(lambda x: x * 1.5)
    return lambda: jax.block_until_ready(scaled(x))


def _rows(task: Task) -> int:
    entry = task.case.vocab * task.hidden.dtype.itemsize
    return max(1, min(task.tokens, _LARGEST.get(jax.default_backend(), 1 << 30) // entry))


def _copied(task: Task, which: Pass) -> int:
    sizes = (task.tokens, task.case.features, task.case.vocab)
    return max(8, min(_COPY, least_bytes(*sizes, which, task.hidden.dtype.itemsize)))


def ceilings(task: Task, which: Pass, samples: Mapping[str, Sequence[float]]) -> Ceilings:
    """From the samples of `runs`."""
    scale = task.tokens / _rows(task)
    seconds = {name: scale * median(samples[name]) for name in products(which)}
    return Ceilings(seconds, 8 * math.floor(_copied(task, which) / 8) / median(samples["copy"]))
