"""How far a result may lie from the truth, in units in the last place, and why.

A value may be 4 ulp off and an entry of the gradient 8. Where the function itself is ill-conditioned, i.e. where one
rounding of the arguments moves the result by more than that, the bound is that movement: `ulps · ε · Σ |x ∂f/∂x|`.
A constant added to all logits of an objective that ignores it is no argument: conditions are taken around the logit that
makes them smallest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import mpmath
import numpy as np

from tests.conformance import inputs
from tests.precise import Truth

VALUE_ULPS = 4
GRADIENT_ULPS = 8

#: XLA flushes factors below the smallest normal number to 0; a coefficient (a count, a logit) may stand before them.
FLUSHED = 2.0**15

#: Objectives whose gradient adds terms of both signs, none of which the arguments' rounding moves: the bound is `ulps` of
#: the sum of their absolute values instead. Plackett–Luce: a candidate is pushed up at its own stage, down at earlier ones.
SIGNED_SUMS = {"plackett_luce_loss"}


@dataclasses.dataclass
class Worst:
    """The worst error seen, as a share of what is allowed, and where it was.

    Attributes:
      plain: the worst error in ulp among results that need no excuse.
      share: the worst error as a share of its bound; above 1 is a failure.
      case: what was compared when it happened.
    """

    plain: float = 0.0
    share: float = 0.0
    case: str = ""

    def see(self, got: float, truth: mpmath.mpf, ulps: int, condition: Callable[[], mpmath.mpf], dtype: Any, case: Any) -> None:
        unit = ulp(truth, dtype)
        if unit == math.inf:
            share = 0.0 if got == math.copysign(math.inf, truth) else math.inf
        elif not math.isfinite(got):
            share = math.inf
        else:
            error = abs(mpmath.mpf(got) - truth)
            share = float(error / (ulps * unit))
            if share <= 1:
                self.plain = max(self.plain, float(error / unit))
            else:
                bound = ulps * float(np.finfo(dtype).eps) * condition()
                share = float(error / max(bound, ulps * unit))
        if share > self.share:
            self.share = share
            self.case = f"{case}: got {got!r}, truth {mpmath.nstr(truth, 20)}"


def ulp(truth: mpmath.mpf, dtype: Any) -> float:
    """The spacing of floats at the truth; the smallest normal number below that, where XLA flushes to zero."""
    info = np.finfo(dtype)
    if abs(truth) > info.max:
        return math.inf
    return max(float(np.spacing(dtype(abs(float(truth))))), FLUSHED * float(info.tiny))


def compare(
    objective: Callable[..., Any],
    formula: Callable[..., Any],
    arguments: Mapping[str, Any],
    values: np.ndarray,
    gradients: Mapping[str, np.ndarray],
    *,
    where: np.ndarray | None = None,
) -> tuple[Worst, Worst]:
    """A batch of results and their gradients against the truth: the worst value and the worst derivative."""
    worst_value, worst_gradient = Worst(), Worst()
    dtype = values.dtype.type
    digits = 50 if dtype == np.float32 else 330
    for i, example in enumerate(inputs.examples(objective, arguments)):
        truth = Truth(formula, drop(objective, example, None if where is None else where[i]), digits)
        kept = None if where is None else np.flatnonzero(where[i])
        for got, value in zip(np.atleast_1d(values[i]).tolist(), truth.values, strict=False):
            worst_value.see(got, value, VALUE_ULPS, lambda t=truth: t.condition, dtype, example)
        for path, slope in truth.gradient.items():
            name, *index = path
            if name not in gradients:
                continue
            index = [int(kept[index[0]])] if index and kept is not None else index
            got = float(gradients[name][(i, *index)])
            condition = lambda t=truth, p=path: t.gradient_condition[p]
            worst_gradient.see(got, slope, GRADIENT_ULPS, condition, dtype, (path, example))
    return worst_value, worst_gradient


def drop(objective: Callable[..., Any], example: Mapping[str, Any], kept: np.ndarray | None) -> dict[str, Any]:
    """The example without the entries that a mask drops."""
    if kept is None:
        return dict(example)
    axes, masked = inputs.shapes(objective), inputs.masked_axes(objective)
    return {
        name: [v for v, k in zip(x, kept, strict=True) if k] if axes[name] == masked else x for name, x in example.items()
    }
