"""Any objective on any inputs against its oracle: the worst value and derivative, as shares of what is allowed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import numpy as np

from tests.conformance.compare import Worst
from tests.oracles import ORACLES
from tests.precise import Truth

Example = dict[str, Any]

#: Spreads of logits; "ties" repeats few values, "shifted" adds one large number to all.
REGIMES = (1e-6, 0.1, 3.0, 60.0, 1e4, "ties", "shifted")


def logits(rng: np.random.Generator, regime: float | str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Normal numbers on a binary grid, so that sums and differences of a few of them are exact."""
    if regime == "ties":
        return rng.choice([-2.5, 0.0, 0.625, 0.625, 40.0], shape).astype(dtype)
    scale = 3.0 if regime == "shifted" else float(regime)
    grid = 2.0 ** (np.ceil(np.log2(scale)) - np.finfo(dtype).nmant + (15 if regime == "shifted" else 5))
    return (np.round(scale * np.clip(rng.normal(size=shape), -4, 4) / grid) * grid).astype(dtype)


def worst_errors(
    objective: Callable[..., Any],
    examples: Sequence[Example],
    *,
    name: str | None = None,
    value_ulps: float = 4,
    gradient_ulps: float = 8,
    levels: Collection[str] = (),
    differences: Collection[str] = (),
) -> tuple[Worst, Worst]:
    """The worst value and derivative of an objective over examples of one shape.

    Args:
      objective: the function, or one that perturbs it.
      examples: arguments by name; all arrays and floats are differentiated.
      name: whose oracle to compare with. Default the function's own name.
      value_ulps: what a value may be off, where the condition number does not allow for more.
      gradient_ulps: the same for a derivative.
      levels: arguments to which a common constant may be added, if the formula ignores it.
      differences: arguments whose derivative is a difference of terms: the bound is ulps of the terms' absolute sum.
    """
    stacked = {key: np.stack([np.asarray(e[key]) for e in examples]) for key in examples[0]}
    dtype = next(iter(stacked.values())).dtype
    digits, formula = 50 if dtype == np.float32 else 330, ORACLES[name or objective.__name__]
    with jax.enable_x64(dtype == np.float64):
        values, slopes = jax.tree.map(np.asarray, _evaluate(objective)(stacked))
    value, gradient = Worst(), Worst()
    for row, example in enumerate(examples):
        plain = {key: np.asarray(x).tolist() for key, x in example.items()}
        for k, got in enumerate(np.ravel(values[row]).tolist()):
            truth = Truth(_entry(formula, k), plain, range_digits=digits, levels=levels)
            # A constant has no derivative, but its rounding moves the result like that of any other argument.
            free = Truth(_entry(getattr(formula, "free", formula), k), plain, range_digits=digits, levels=levels)
            condition = functools.partial(getattr, free, "condition")
            value.see(got, truth.values[0], value_ulps, condition, dtype.type, truth)
            for path, slope in truth.gradient.items():
                condition = functools.partial(_condition, free, path, path[0] in differences)
                rows = slopes[path[0]][row].reshape(values[row].size, *np.shape(plain[path[0]]))
                gradient.see(float(rows[(k, *path[1:])]), slope, gradient_ulps, condition, dtype.type, truth)
    return value, gradient


def _condition(truth: Truth, path: tuple[Any, ...], is_difference: bool) -> Any:
    """How far rounding the arguments, and the terms of a difference, moves a derivative."""
    return truth.gradient_condition[path] + (truth.spread[path] if is_difference else 0)


def _entry(formula: Callable[..., Any], k: int) -> Callable[..., Any]:
    """The k-th number of a formula that gives a list, or the one number of one that does not."""

    def entry(**arguments: Any) -> Any:
        result = formula(**arguments)
        return result[k] if isinstance(result, list) else result

    return entry


@functools.cache
def _evaluate(objective: Callable[..., Any]) -> Callable[..., Any]:
    def values_and_slopes(arguments: Example) -> tuple[jax.Array, Example]:
        return objective(**arguments), jax.jacrev(lambda a: objective(**a))(arguments)

    return jax.jit(jax.vmap(values_and_slopes))
