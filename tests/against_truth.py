"""Any objective on any inputs against its oracle: the worst value and derivative, as shares of what is allowed.

The truth is evaluated on MPFR's numbers, for speed, and for one example of the batch on mpmath's too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from tests.conformance.compare import FLUSHED, LONG, Condition, Worst, errors_in_ulps, gradient_conditions, units
from tests.oracles import ORACLES
from tests.precise import (
    MPFR,
    MPMATH,
    Arithmetic,
    Evaluation,
    Number,
    Truth,
    computing,
    digits_for,
    flatten,
    noise_at,
)

Arrays = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Judge:
    """What is known about an objective's rounding.

    Attributes:
      formula: its oracle.
      dtype: what it is evaluated in.
      value_ulps: what a value may be off, where the condition number does not allow for more.
      gradient_ulps: the same for a derivative.
      levels: arguments to which a common constant may be added, if the formula ignores it.
      differences: arguments whose derivative is a difference of terms: the bound is ulps of the terms' absolute sum.
      both_ways: arguments that move the value by terms of both signs, each of which is rounded.
      hidden: arguments of which the mask `where` drops entries; the formula never sees those.
      in_order: whether the results are order statistics: what is kept comes first.
      slack: by how much the condition number's bound may be exceeded.
      flushed: what may stand before a factor that was below the smallest normal number, and became 0.
    """

    formula: Callable[..., Any]
    dtype: type
    value_ulps: float = 4
    gradient_ulps: float = 8
    levels: Collection[str] = ()
    differences: Collection[str] = ()
    both_ways: Collection[str] = ()
    hidden: Collection[str] = ()
    in_order: bool = False
    slack: float = 1
    flushed: float = FLUSHED

    @property
    def range_digits(self) -> int:
        """How small a number may be, in powers of ten, and count."""
        return 50 if self.dtype == np.float32 else 330

    @property
    def free(self) -> Callable[..., Any]:
        """The formula without constants: they have no derivative, but their rounding moves the result."""
        return getattr(self.formula, "free", self.formula)


def worst_errors(
    objective: Callable[..., Any], arguments: Arrays, *, formula: Callable[..., Any] | None = None, **known: Any
) -> tuple[Worst, Worst]:
    """The worst value and derivative of an objective over a batch of examples.

    Args:
      objective: the function, or one that perturbs it.
      arguments: arrays by name, an example a row, and integers that all share. Those of floats are differentiated.
      formula: what to compare with. Default the oracle of the function's own name.
      **known: other fields of `Judge`.
    """
    dtype = next(x.dtype for x in arguments.values() if np.ndim(x) and x.dtype.kind == "f").type
    judge = Judge(formula or ORACLES[objective.__name__], dtype, **known)
    shared = {name: x for name, x in arguments.items() if np.ndim(x) == 0}
    batched = {name: x for name, x in arguments.items() if name not in shared}
    with jax.enable_x64(dtype == np.float64):
        values, slopes = jax.tree.map(np.asarray, _evaluate(objective)(batched, shared))
    examples = _examples(batched, shared)
    rows = [_Row.of(judge, x, values[i], {n: s[i] for n, s in slopes.items()}) for i, x in enumerate(examples)]
    _confirm(rows[0], judge)
    return _worst_value(rows, judge), _worst_slope(rows, judge)


class _Numbers(NamedTuple):
    """What came, what is true in two floats (a float64 and what it leaves over), and the condition as far as known."""

    got: np.ndarray
    high: np.ndarray
    low: np.ndarray
    condition: np.ndarray

    @classmethod
    def of(cls, got: np.ndarray, true: list[Any]) -> _Numbers:
        high = np.array([float(x) for x in true])
        low = np.array([float(x - h) if abs(h) < np.inf else 0.0 for x, h in zip(true, high.tolist(), strict=True)])
        return cls(got.astype(np.float64), high, low, np.zeros_like(high))


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
    """One example's results and derivatives, result by result.

    Attributes:
      plain: the arguments that the formula saw.
      noise: what the truth leaves undecided.
      values: of each result.
      slopes: of each result to each argument.
    """

    plain: dict[str, Any]
    noise: float
    values: _Numbers
    slopes: _Numbers

    @classmethod
    def of(cls, judge: Judge, example: Arrays, values: np.ndarray, slopes: Arrays) -> _Row:
        plain, got_values, got_slopes = _kept(judge, example, values, slopes)
        point = dict(flatten(plain))
        furthest = max((abs(x) for x in point.values()), default=0.0)
        digits = digits_for(furthest, judge.range_digits)
        with computing(MPFR, digits):
            evaluation = Evaluation(judge.formula, plain, point)
            true_values = _Numbers.of(got_values, [r.value for r in evaluation.results])
            true_slopes = _Numbers.of(got_slopes, [d for r in evaluation.results for d in _slopes(evaluation, r)])
            spread = _spread(evaluation, judge)
        true_slopes = true_slopes._replace(condition=(spread * _is_difference(point, judge)).ravel())
        if not judge.levels and judge.free is judge.formula:
            counted = np.array([path[0] in judge.both_ways for path in point])
            moves = np.maximum(np.abs(true_slopes.high).reshape(len(got_values), -1), counted * spread)
            with np.errstate(over="ignore"):
                true_values = true_values._replace(condition=moves @ np.abs(list(point.values())))
        return cls(plain, noise_at(furthest, digits), true_values, true_slopes)


def _kept(judge: Judge, example: Arrays, values: np.ndarray, slopes: Arrays) -> tuple[dict, np.ndarray, np.ndarray]:
    """The arguments, the results and their derivatives that the mask leaves, the last in the arguments' order."""
    mask = example.get("where", ...)
    plain = {n: (x[mask] if n in judge.hidden else x).tolist() for n, x in example.items() if n != "where"}
    results = np.sort(mask)[::-1] if judge.in_order and mask is not ... else mask
    rows = {n: slopes[n][results] if values.ndim else slopes[n][None] for n in plain if n in slopes}
    entries = [(s[:, mask] if n in judge.hidden else s).reshape(len(s), -1) for n, s in rows.items()]
    return plain, values[results] if values.ndim else values[None], np.concatenate(entries, axis=1).ravel()


def _slopes(evaluation: Evaluation, result: Number, *, absolute: bool = False) -> list[Any]:
    return list(evaluation.derivatives([result], absolute=absolute).values())


def _is_difference(point: Mapping[Any, Any], judge: Judge) -> np.ndarray:
    """Which arguments' derivative is a difference of terms; all of a long list's are judged as such."""
    return np.array([len(point) > LONG or path[0] in judge.differences for path in point])


def _spread(evaluation: Evaluation, judge: Judge) -> np.ndarray:
    """The sum of the absolute terms of every derivative, `[results, arguments]`; 0 where none is asked for."""
    if len(evaluation.inputs) <= LONG and not judge.differences and not judge.both_ways:
        return np.zeros((len(evaluation.results), len(evaluation.inputs)))
    return np.array([_slopes(evaluation, r, absolute=True) for r in evaluation.results], dtype=float)


class _Comparison(NamedTuple):
    """All numbers of one kind, in a row: which example each belongs to, its place there, and how far off it is."""

    owner: np.ndarray
    place: np.ndarray
    got: np.ndarray
    true: np.ndarray
    unit: np.ndarray
    error: np.ndarray
    condition: np.ndarray

    @classmethod
    def of(cls, numbers: list[_Numbers], noise: np.ndarray, judge: Judge) -> _Comparison:
        sizes = [n.got.size for n in numbers]
        owner, place = np.repeat(np.arange(len(sizes)), sizes), np.concatenate([np.arange(n) for n in sizes])
        got, high, low, condition = (np.concatenate(parts) for parts in zip(*numbers, strict=True))
        error = errors_in_ulps(got, high, low, noise[owner], judge.dtype, judge.flushed)
        return cls(owner, place, got, high, units(high, judge.dtype, judge.flushed), error, condition)


def _worst(compared: _Comparison, rows: list[_Row], ulps: float, judge: Judge, conditions: Callable) -> Worst:
    """The worst of all numbers; `conditions` of those that need an excuse are looked up one by one."""
    eps = judge.slack * float(np.finfo(judge.dtype).eps)
    known = np.maximum(1, eps * compared.condition / compared.unit)
    shares = compared.error / (ulps * known)
    plain, excused = np.where(compared.error <= ulps, compared.error, -1), np.where(shares <= 1, shares, -1)
    worst = Worst(excused=int(((compared.error > ulps) & (shares <= 1)).sum()))
    if plain.max(initial=0) > 0:
        worst.plain, worst.plain_at = float(plain.max()), rows[compared.owner[plain.argmax()]].plain
    if excused.max(initial=0) > 0:
        worst.share, worst.case = float(excused.max()), f"at {rows[compared.owner[excused.argmax()]].plain}"
    for i in np.flatnonzero(shares > 1).tolist():
        row = rows[compared.owner[i]]
        case = f"got {compared.got[i].item()!r}, true {compared.true[i].item()!r}"
        error, unit = float(compared.error[i]), float(compared.unit[i])
        worst.see(error, ulps, unit / eps, conditions(row, int(compared.place[i])), row.plain, case)
    return worst


def _worst_value(rows: list[_Row], judge: Judge) -> Worst:
    def conditions(row: _Row, k: int) -> list[Condition]:
        return [lambda: _truth(row, k, judge, judge.free).condition]

    noise = np.array([row.noise for row in rows])
    compared = _Comparison.of([row.values for row in rows], noise, judge)
    return _worst(compared, rows, judge.value_ulps, judge, conditions)


def _worst_slope(rows: list[_Row], judge: Judge) -> Worst:
    truth_of = functools.lru_cache(maxsize=1)(lambda row, k: _truth(row, k, judge, judge.free))

    def conditions(row: _Row, i: int) -> list[Condition]:
        k, place = divmod(i, row.slopes.got.size // row.values.got.size)
        truth = truth_of(row, k)
        path = list(truth.point)[place]
        return gradient_conditions(truth, path, is_difference=path[0] in judge.differences)

    noise = np.array([row.noise for row in rows])
    compared = _Comparison.of([row.slopes for row in rows], noise, judge)
    return _worst(compared, rows, judge.gradient_ulps, judge, conditions)


def _truth(row: _Row, k: int, judge: Judge, formula: Callable[..., Any], arithmetic: Arithmetic = MPFR) -> Truth:
    """The truth about an example's k-th result."""
    digits, levels = judge.range_digits, judge.levels
    return Truth(_entry(formula, k), row.plain, range_digits=digits, levels=levels, arithmetic=arithmetic)


def _confirm(row: _Row, judge: Judge) -> None:
    """mpmath's numbers agree with MPFR's about an example's first result and its derivatives."""
    truth = _truth(row, 0, judge, judge.formula, MPMATH)
    mpfr = [row.values.high[0], *row.slopes.high[: len(truth.gradient)]]
    mpmath = [float(x) for x in (truth.values[0], *truth.gradient.values())]
    np.testing.assert_allclose(mpfr, mpmath, rtol=1e-15, atol=row.noise)


def _examples(batched: Arrays, shared: Arrays) -> Iterator[dict[str, np.ndarray]]:
    """The batch taken apart."""
    for i in range(len(next(iter(batched.values())))):
        yield {name: np.asarray(x[i]) for name, x in batched.items()} | {n: np.asarray(x) for n, x in shared.items()}


def _entry(formula: Callable[..., Any], k: int) -> Callable[..., Any]:
    """The k-th number of a formula that gives a list, or the one number of one that does not."""

    def entry(**arguments: Any) -> Any:
        result = formula(**arguments)
        return result[k] if isinstance(result, list) else result

    return entry


@functools.cache
def _evaluate(objective: Callable[..., Any]) -> Callable[..., Any]:
    """All values of a batch, and every value's derivative to all floats of its example."""

    def values_and_slopes(example: Arrays, shared: Arrays) -> tuple[jax.Array, Arrays]:
        varied = {name: x for name, x in example.items() if x.dtype.kind == "f"}
        fixed = {name: x for name, x in example.items() if name not in varied} | dict(shared)
        return objective(**varied, **fixed), jax.jacrev(lambda a: objective(**a, **fixed))(varied)

    return jax.jit(jax.vmap(values_and_slopes, in_axes=(0, None)))
