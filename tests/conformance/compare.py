"""How far a result may lie from the truth, in units in the last place, and why.

A value may be 4 ulp off and an entry of the gradient 8. Where the function itself is ill-conditioned, i.e. where one
rounding of the arguments moves the result by more than that, the bound is that movement: `ulps · ε · Σ |x ∂f/∂x|`.
A constant added to all logits of an objective that ignores it is no argument: conditions are taken around the logit
that makes them smallest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mpmath
import numpy as np

from tests.conformance import inputs
from tests.precise import Truth

if TYPE_CHECKING:
    from tests.conformance.cases import Case

#: 4, but for EXO's pair loss, a difference of four logarithms of which XLA gives each within 1 to 2.4 ulp, and for
#: Savage's, the square of XLA's logistic, which is up to 2.1 ulp off just below a half.
VALUE_ULPS = {"exo_pair_loss": 8, "savage_loss": 5}
GRADIENT_ULPS = 8

#: XLA flushes factors below the smallest normal number to 0; a coefficient (a count, a logit) may stand before them.
FLUSHED = 2.0**15
#: A soft label divides the probability that may have been flushed, and one of 100,000 candidates may be 1e-8.
FLUSHED_BEFORE = {"exo_loss": 2.0**27}

#: Arguments whose derivative adds terms of both signs: the bound is `ulps` of the sum of their absolute values.
#: Plackett–Luce pulls a candidate up at its own stage and down at earlier ones.
SIGNED_SUMS = {"plackett_luce_loss": {"scores"}}
#: All derivatives of examples of more numbers than this are judged as sums of many terms.
LONG = 50

#: Objectives that return order statistics: what is kept comes first.
SORTED = {"aot_loss"}

Condition = Callable[[], Any]


@dataclasses.dataclass
class Worst:
    """The worst error seen, as a share of what is allowed, and where it was.

    Attributes:
      plain: the worst error in ulp among results that need no excuse.
      plain_at: the arguments that it was seen at.
      excused: how many results were held against their condition number instead.
      share: the worst error as a share of its bound; above 1 is a failure.
      case: what was compared when it happened.
    """

    plain: float = 0.0
    plain_at: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    excused: int = 0
    share: float = 0.0
    case: str = ""

    def see(
        self,
        error: float,
        ulps: float,
        unit: float,
        conditions: Sequence[Condition],
        at: Mapping[str, Any],
        case: str,
    ) -> None:
        """Judge one number.

        Args:
          error: how far it is from the truth, in ulp.
          ulps: how far it may be.
          unit: an ulp, in roundings of a number that a condition of 1 stands for.
          conditions: how far rounding moves the number, the cheapest to find out first; the first that suffices does.
          at: the arguments.
          case: what to say about it.
        """
        share = error / ulps
        if share <= 1:
            if error > self.plain:
                self.plain, self.plain_at = error, at
        elif math.isfinite(error):
            self.excused += 1
            for condition in conditions:
                share = error / (ulps * max(1.0, float(condition() / unit)))
                if share <= 1:
                    break
        if share > self.share:
            self.share, self.case = share, f"{case}, at {at}"

    def merge(self, other: Worst) -> Worst:
        """The worst of both."""
        plain, share = max(self, other, key=lambda w: w.plain), max(self, other, key=lambda w: w.share)
        return Worst(plain.plain, plain.plain_at, self.excused + other.excused, share.share, share.case)


def _in_ulps(got: float, true: mpmath.mpf, truth: Truth, unit: float) -> float:
    """An error in ulp; infinite where one of the two numbers is not finite and the other is."""
    if unit == math.inf:
        return 0.0 if got == math.copysign(math.inf, true) else math.inf
    return float(max(abs(mpmath.mpf(got) - true) - truth.noise, 0) / unit) if math.isfinite(got) else math.inf


def ulp(truth: mpmath.mpf, dtype: Any) -> float:
    """The spacing of floats at the truth; the smallest normal number below that, where XLA flushes to zero."""
    info = np.finfo(dtype)
    if abs(truth) > info.max:
        return math.inf
    return max(float(np.spacing(dtype(abs(float(truth))))), FLUSHED * float(info.tiny))


def units(truth: np.ndarray, dtype: Any, flushed: float = FLUSHED) -> np.ndarray:
    """`ulp` of many numbers; of those beyond the largest float that of the largest."""
    info = np.finfo(dtype)
    size, exponent = np.frexp(np.minimum(np.abs(truth), info.max).astype(dtype))
    spacing = np.ldexp(np.sign(size, dtype=np.float64), exponent - 1 - info.nmant)
    return np.maximum(spacing, flushed * float(info.tiny))


def errors_in_ulps(
    got: np.ndarray, high: np.ndarray, low: np.ndarray, noise: np.ndarray, dtype: Any, flushed: float = FLUSHED
) -> np.ndarray:
    """Many errors at once; the truth is `high + low`, two float64, up to `noise`."""
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.maximum(np.abs((got - high) - low) - noise, 0) / units(high, dtype, flushed)
    error = np.where(np.isfinite(got), error, np.inf)
    overflows = np.abs(high) > np.finfo(dtype).max
    return np.where(overflows, np.where(got == np.copysign(np.inf, high), 0, np.inf), error)


def compare_values(case: Case, values: np.ndarray) -> Worst:
    """The worst value among a case's rows."""
    worst = Worst()
    for row, truth in enumerate(case.truths):
        got = kept_of(values[row], _output_mask(case, row)) if np.ndim(values[row]) else [values[row].item()]
        for value, true in zip(got, truth.values, strict=True):
            _see(worst, value, true, VALUE_ULPS.get(case.name, 4), [lambda t=truth: t.condition], case.dtype, truth)
    return worst


def compare_gradients(case: Case, gradients: Mapping[str, np.ndarray]) -> Worst:
    """The worst partial derivative among a case's rows."""
    worst = Worst()
    for row, truth in enumerate(case.truths):
        got = by_path(case, gradients, row)
        for path, slope in truth.gradient.items():
            is_difference = path[0] in SIGNED_SUMS.get(case.name, ())
            conditions = gradient_conditions(truth, path, is_difference=is_difference)
            _see(worst, got[path], slope, GRADIENT_ULPS, conditions, case.dtype, truth)
    return worst


def _see(
    worst: Worst, got: float, true: mpmath.mpf, ulps: float, conditions: list[Condition], dtype: type, truth: Truth
) -> None:
    unit = ulp(true, dtype)
    case = f"got {got!r}, true {mpmath.nstr(true, 20)}"
    error, roundings = _in_ulps(got, true, truth, unit), unit / float(np.finfo(dtype).eps)
    worst.see(error, ulps, roundings, conditions, truth.arguments, case)


def by_path(case: Case, arrays: Mapping[str, np.ndarray], row: int) -> dict[tuple[Any, ...], float]:
    """One row of a batch of arrays by the paths of the truth, which count kept entries only."""
    found: dict[tuple[Any, ...], float] = {}
    for name, x in arrays.items():
        if inputs.hidden_by_mask(case.objective, name):
            found |= {(name, i): v for i, v in enumerate(kept_of(x[row], case.arguments["where"][row]))}
        else:
            found |= {(name, *index): float(v) for index, v in np.ndenumerate(x[row])}
    return found


def gradient_conditions(truth: Truth, path: tuple[Any, ...], *, is_difference: bool = False) -> list[Condition]:
    """How far rounding moves one derivative, the cheapest to find out first.

    `is_difference`: it adds terms of both signs, whose own rounding counts.
    """
    long = len(truth.point) > LONG
    terms = (lambda: truth.spread[path]) if is_difference or long else lambda: 0
    return [
        terms,
        lambda: truth.least_gradient_condition[path] + terms(),
        lambda: truth.gradient_condition[path] + terms(),
    ]


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
