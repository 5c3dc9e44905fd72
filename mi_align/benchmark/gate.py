"""Nothing is timed before it was found right: the truth in float64, and how far from it the plain way is."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mi_align.benchmark.kernels import at_target, logits
from mi_align.benchmark.task import Task

__all__ = ["FACTOR", "Gate", "Verdict", "exact_rows"]

#: A row may be so many times as far from float64 as the plain way in the same dtype: it sums in another order.
FACTOR = 2.0

#: Below so many units of float32's rounding no two orders of summation agree. The hidden gradient is a sum over the
#: vocabulary: its rounding walks at random, √V units far, and how far depends on how a product of that size is blocked.
_FLOOR = 16
_ENTRIES = 1 << 24  # of the vocabulary's gradient that are compared
_BLOCK = 1 << 24  # entries of the vocabulary matrix in float64 at a time


class Exact(NamedTuple):
    """Float64 log-probabilities of some rows, and the gradients of a weighted sum of them.

    Attributes:
      logps: `[n]`.
      pull: weights `[n]`, vocabulary entries `[J]` -> gradients in hidden `[n, D]` and in those entries `[J, D]`.
    """

    logps: np.ndarray
    pull: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def exact_rows(hidden: np.ndarray, vocabulary: np.ndarray, targets: np.ndarray, soft_cap: float | None) -> Exact:
    """The formula in float64 NumPy: hidden `[n, D]`, vocabulary `[V, D]`, targets `[n]`."""
    h, (vocab, features) = hidden.astype(np.float64), vocabulary.shape
    step = max(1, _BLOCK // features)
    blocks = [slice(start, start + step) for start in range(0, vocab, step)]
    z = np.concatenate([h @ vocabulary[block].astype(np.float64).T for block in blocks], axis=1)
    z = z if soft_cap is None else soft_cap * np.tanh(z / soft_cap)
    rows, top = np.arange(len(h)), z.max(axis=1, keepdims=True)
    log_p = z - top - np.log(np.exp(z - top).sum(axis=1, keepdims=True))

    def pull(weights: np.ndarray, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        d_z = -weights[:, None] * np.exp(log_p)
        d_z[rows, targets] += weights
        d_z = d_z if soft_cap is None else d_z * (1 - (z / soft_cap) ** 2)
        d_hidden = sum(d_z[:, block] @ vocabulary[block].astype(np.float64) for block in blocks)
        return np.asarray(d_hidden), d_z[:, entries].T @ h

    return Exact(log_p[rows, targets], pull)


class Verdict(NamedTuple):
    """How a contender came out.

    Attributes:
      right: whether every error is allowed.
      error: the largest of its errors over what is allowed for it; ≤ 1 is right.
      errors: largest relative error of "value", and of the gradients in "hidden" and "vocabulary".
      allowed: of each.
    """

    right: bool
    error: float
    errors: dict[str, float]
    allowed: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Outputs:
    """Value, and where asked for the gradients, at the probe."""

    value: np.ndarray
    hidden: np.ndarray | None = None
    vocabulary: np.ndarray | None = None

    def errors(self, truth: _Outputs) -> dict[str, float]:
        """Largest error of each, relative to the largest entry of the truth; NaN counts as infinite.

        A value that is one number is their sum, and its error relative to the sum of their sizes.
        """
        found = {}
        for name in ("value", "hidden", "vocabulary"):
            came, wanted = getattr(self, name), getattr(truth, name)
            if came is not None:
                scale = np.abs(wanted).max() or 1.0
                if came.ndim == 0 < wanted.ndim:
                    wanted, scale = wanted.sum(), np.abs(wanted).sum() or 1.0
                error = np.abs(came.astype(np.float64) - wanted).max() / scale
                found[name] = float(error) if np.isfinite(error) else float("inf")
        return found


class Gate:
    """The truth about a task at its probe, computed once, and every contender's distance from it."""

    def __init__(self, task: Task) -> None:
        """Compute the truth, and the plain way's own error in the task's dtype."""
        self.task = task
        flat = np.asarray(task.probe).reshape(-1)
        self._rows = np.flatnonzero(flat)
        self._index = np.unravel_index(self._rows, task.targets.shape)
        vocab, features = task.vocabulary.shape
        targets = np.asarray(task.targets)[self._index]
        spread = np.arange(0, vocab, max(1, vocab * features // _ENTRIES))
        self._entries = np.unique(np.concatenate([spread, targets, [vocab - 1]]))
        self.truth = self._exactly(targets)
        by_plain = self._plainly().errors(self.truth)
        units = {"value": _FLOOR, "hidden": max(_FLOOR, math.sqrt(vocab)), "vocabulary": _FLOOR}
        eps = float(jnp.finfo(jnp.float32).eps)
        self.allowed = {name: max(FACTOR * error, units[name] * eps) for name, error in by_plain.items()}

    def judge(self, outputs: Sequence[jax.Array]) -> Verdict:
        """What a contender made at the probe: values or their sum, then the gradients in hidden and vocabulary."""
        value, *gradients = (np.asarray(x) for x in outputs)
        hidden = gradients[0] if gradients else None
        came = _Outputs(
            value.astype(np.float64),
            None if hidden is None else hidden[self._index],
            gradients[1][self._entries] if len(gradients) > 1 else None,
        )
        errors = came.errors(self.truth)
        if hidden is not None:
            errors["elsewhere"] = self._elsewhere(hidden)
        allowed = {name: self.allowed.get(name, 0.0) for name in errors}
        worst = max(_over(error, allowed[name]) for name, error in errors.items())
        return Verdict(worst <= 1, worst, errors, allowed)

    def _elsewhere(self, hidden: np.ndarray) -> float:
        """The largest hidden gradient where the probe asked for none."""
        rest = hidden.reshape(-1, hidden.shape[-1]).copy()
        rest[self._rows] = 0
        return float(np.abs(rest.astype(np.float32)).max())

    def _scattered(self, logps: jax.Array) -> jax.Array:
        return jnp.zeros(self.task.targets.shape, logps.dtype).at[self._index].set(logps)

    def _exactly(self, targets: np.ndarray) -> _Outputs:
        task = self.task
        hidden = np.asarray(task.hidden[self._index])
        exact = exact_rows(hidden, np.asarray(task.vocabulary), targets, task.case.soft_cap)
        with jax.enable_x64(True):

            def total(logps: jax.Array) -> tuple[jax.Array, jax.Array]:
                values = task.outcome(self._scattered(logps), task.probe)
                return jnp.sum(values), values

            weights, values = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(exact.logps))
        return _Outputs(np.asarray(values), *exact.pull(np.asarray(weights), self._entries))

    def _plainly(self) -> _Outputs:
        """The plain way in two programs: compiled as one, it leaves out the rounding of the logits at some sizes."""
        task = self.task

        @jax.jit
        def rest(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            values = task.outcome(self._scattered(at_target(z, task.targets[self._index])), task.probe)
            return jnp.sum(values), values

        first = jax.jit(functools.partial(logits, soft_cap=task.case.soft_cap))

        def total(hidden: jax.Array, vocabulary: jax.Array) -> tuple[jax.Array, jax.Array]:
            return rest(first(hidden, vocabulary))

        slopes, values = jax.grad(total, (0, 1), has_aux=True)(task.hidden[self._index], task.vocabulary)
        return _Outputs(np.asarray(values), np.asarray(slopes[0]), np.asarray(slopes[1])[self._entries])


def _over(error: float, allowed: float) -> float:
    return error / allowed if allowed else (0.0 if error == 0 else float("inf"))
