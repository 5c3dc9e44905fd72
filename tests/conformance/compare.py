"""How far a result may lie from the truth, in units in the last place, and why.

A value may be 4 ulp off and an entry of the gradient 8. Where the function itself is ill-conditioned, i.e. where one
rounding of the arguments moves the result by more than that, the bound is that movement: `ulps · ε · Σ |x ∂f/∂x|`.
A constant added to all logits of an objective that ignores it is no argument: conditions are taken around the logit
that makes them smallest.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np

from tests.conformance import inputs
from tests.precise import Truth

if TYPE_CHECKING:
    from tests.conformance.cases import Case

#: 4, but for EXO's pair loss: a difference of four logarithms of which XLA gives each within 1 to 2.4 ulp.
VALUE_ULPS = {"exo_pair_loss": 8}
GRADIENT_ULPS = 8

#: XLA flushes factors below the smallest normal number to 0; a coefficient (a count, a logit) may stand before them.
FLUSHED = 2.0**15

#: Objectives whose gradient adds terms of both signs, none of which the arguments' rounding moves: the bound is `ulps`
#: of the sum of their absolute values. Plackett–Luce pulls a candidate up at its own stage and down at earlier ones.
SIGNED_SUMS = {"plackett_luce_loss"}
LONG = 50

#: Objectives that return order statistics: what is kept comes first.
SORTED = {"aot_loss"}


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

    def see(
        self, got: float, true: mpmath.mpf, ulps: int, condition: Callable[[], mpmath.mpf], dtype: Any, truth: Truth
    ) -> None:
        """Compare one number with what is true of it; `truth` says how far to trust that, and where it comes from."""
        unit = ulp(true, dtype)
        if unit == math.inf:
            share = 0.0 if got == math.copysign(math.inf, true) else math.inf
        elif not math.isfinite(got):
            share = math.inf
        else:
            error = max(abs(mpmath.mpf(got) - true) - truth.noise, 0)
            share = float(error / (ulps * unit))
            if share <= 1:
                self.plain = max(self.plain, float(error / unit))
            else:
                bound = ulps * float(np.finfo(dtype).eps) * condition()
                share = float(error / max(bound, ulps * unit))
        if share > self.share:
            self.share = share
            self.case = f"got {got!r}, true {mpmath.nstr(true, 20)}, at {truth.arguments}"


def ulp(truth: mpmath.mpf, dtype: Any) -> float:
    """The spacing of floats at the truth; the smallest normal number below that, where XLA flushes to zero."""
    info = np.finfo(dtype)
    if abs(truth) > info.max:
        return math.inf
    return max(float(np.spacing(dtype(abs(float(truth))))), FLUSHED * float(info.tiny))


def compare_values(case: Case, values: np.ndarray) -> Worst:
    """The worst value among a case's rows."""
    worst = Worst()
    for row, truth in enumerate(case.truths):
        got = kept_of(values[row], _output_mask(case, row)) if np.ndim(values[row]) else [values[row].item()]
        for value, true in zip(got, truth.values, strict=True):
            condition = functools.partial(getattr, truth, "condition")
            worst.see(value, true, VALUE_ULPS.get(case.name, 4), condition, case.dtype, truth)
    return worst


def compare_gradients(case: Case, gradients: Mapping[str, np.ndarray]) -> Worst:
    """The worst partial derivative among a case's rows."""
    worst = Worst()
    for row, truth in enumerate(case.truths):
        got = by_path(case, gradients, row)
        for path, slope in truth.gradient.items():
            condition = functools.partial(_gradient_condition, case.name, truth, path)
            worst.see(got[path], slope, GRADIENT_ULPS, condition, case.dtype, truth)
    return worst


def by_path(case: Case, arrays: Mapping[str, np.ndarray], row: int) -> dict[tuple[Any, ...], float]:
    """One row of a batch of arrays by the paths of the truth, which count kept entries only."""
    found: dict[tuple[Any, ...], float] = {}
    for name, x in arrays.items():
        if inputs.hidden_by_mask(case.objective, name):
            found |= {(name, i): v for i, v in enumerate(kept_of(x[row], case.arguments["where"][row]))}
        else:
            found |= {(name, *index): float(v) for index, v in np.ndenumerate(x[row])}
    return found


def _gradient_condition(name: str, truth: Truth, path: tuple[Any, ...]) -> mpmath.mpf:
    if name in SIGNED_SUMS or len(truth.point) > LONG:  # a long list's second derivatives take too long
        return truth.spread[path]
    return truth.gradient_condition[path]


def _output_mask(case: Case, row: int) -> np.ndarray:
    """The mask over a result that is a list itself: the arguments' own, or as many ranks as there are kept entries."""
    mask = case.arguments["where"][row]
    return np.sort(mask)[::-1] if case.name in SORTED else mask


def drop(objective: Callable[..., Any], example: Mapping[str, Any]) -> dict[str, Any]:
    """The example without its mask and the entries that it drops."""
    return {
        name: kept_of(x, example["where"]) if inputs.hidden_by_mask(objective, name) else x
        for name, x in example.items()
        if name != "where"
    }


def kept_of(x: Any, mask: Any) -> list:
    """The entries of a list that a mask keeps."""
    return np.asarray(x)[np.asarray(mask)].tolist()
