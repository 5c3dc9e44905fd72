"""Formulas at as many digits as it takes, with every partial derivative.

A formula is written once, over the functions below, and evaluated on numbers of many digits that record what was done
to them (reverse-mode differentiation on a tape). The digits are at least 50, and as many more as float64's range asks
for: then a plain formula such as log(eᵃ + eᵇ) − a is right to the last digit of the smallest float64, however much
cancels in it. The numbers are mpmath's or, five times as fast and written independently of it, MPFR's.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, NamedTuple

import gmpy2
import mpmath
from mpmath import mpf

DIGITS = 50


class Arithmetic(NamedTuple):
    """Whose numbers a formula is evaluated on.

    Attributes:
      real: a number from a float or an integer.
      exp, log, sqrt: functions of such numbers.
      digits: the context in which numbers have so many.
    """

    real: Callable[..., Any]
    exp: Callable[[Any], Any]
    log: Callable[[Any], Any]
    sqrt: Callable[[Any], Any]
    digits: Callable[[int], AbstractContextManager]


MPMATH = Arithmetic(mpf, mpmath.exp, mpmath.log, mpmath.sqrt, mpmath.workdps)
MPFR = Arithmetic(
    gmpy2.mpfr, gmpy2.exp, gmpy2.log, gmpy2.sqrt, lambda digits: gmpy2.context(precision=int(digits * 3.33) + 1)
)


class Number:
    """A number that remembers which numbers it was computed from, and its derivative to each."""

    __slots__ = ("gradient", "sources", "value")
    arithmetic: ClassVar[Arithmetic] = MPMATH
    tape: ClassVar[list[Number]] = []

    def __init__(self, value: Any, *sources: tuple[Number, Any]) -> None:
        self.value, self.sources, self.gradient = value, sources, 0
        Number.tape.append(self)

    def __add__(self, other: Any) -> Number:
        if isinstance(other, Number):
            return Number(self.value + other.value, (self, 1), (other, 1))
        return Number(self.value + other, (self, 1))

    def __mul__(self, other: Any) -> Number:
        if isinstance(other, Number):
            return Number(self.value * other.value, (self, other.value), (other, self.value))
        return Number(self.value * other, (self, other))

    def __truediv__(self, other: Any) -> Number:
        if not isinstance(other, Number):
            return Number(self.value / other, (self, Number.arithmetic.real(1) / other))
        ratio = self.value / other.value
        return Number(ratio, (self, 1 / other.value), (other, -ratio / other.value))

    def __pow__(self, n: int) -> Number:
        return Number(self.value**n, (self, n * self.value ** (n - 1)))

    def __neg__(self) -> Number:
        return Number(-self.value, (self, -1))

    def __sub__(self, other: Any) -> Number:
        if isinstance(other, Number):
            return Number(self.value - other.value, (self, 1), (other, -1))
        return Number(self.value - other, (self, 1))

    def __rsub__(self, other: Any) -> Number:
        return Number(other - self.value, (self, -1))

    def __rtruediv__(self, other: Any) -> Number:
        ratio = other / self.value
        return Number(ratio, (self, -ratio / self.value))

    def __lt__(self, other: Any) -> bool:
        return self.value < (other.value if isinstance(other, Number) else other)

    def __gt__(self, other: Any) -> bool:
        return self.value > (other.value if isinstance(other, Number) else other)

    __radd__, __rmul__ = __add__, __mul__


def number(x: Any) -> Number:
    return x if isinstance(x, Number) else Number(Number.arithmetic.real(x))


def exp(x: Any) -> Number:
    x = number(x)
    value = Number.arithmetic.exp(x.value)
    return Number(value, (x, value))


def log(x: Any) -> Number:
    x = number(x)
    return Number(Number.arithmetic.log(x.value), (x, 1 / x.value))


def sqrt(x: Any) -> Number:
    x = number(x)
    value = Number.arithmetic.sqrt(x.value)
    return Number(value, (x, 1 / (2 * value)))


def sigmoid(x: Any) -> Number:
    return 1 / (1 + exp(-number(x)))


def softplus(x: Any) -> Number:
    return log(1 + exp(x))


def relu(x: Any) -> Number:
    x = number(x)
    return x if x.value > 0 else 0 * x


def clip(x: Any, low: Any, high: Any) -> Number:
    return min(max(number(x), number(low)), number(high))


def constant(x: Any) -> Number:
    """`x` without its derivative."""
    return Number(number(x).value)


def log_sum_exp(xs: Sequence[Any]) -> Number:
    return log(sum(exp(x) for x in xs))


def mean(xs: Sequence[Any]) -> Number:
    return sum(xs) / len(xs)


def flatten(arguments: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], Any]]:
    """Every real number among the arguments with the path that leads to it; bools and integers are no numbers here."""
    flat: list[tuple[tuple[Any, ...], Any]] = []

    def walk(path: tuple[Any, ...], x: Any) -> None:
        if isinstance(x, list):
            for i, entry in enumerate(x):
                walk((*path, i), entry)
        elif isinstance(x, float):
            flat.append((path, x))

    for name, x in arguments.items():
        walk((name,), x)
    return flat


def _replace(x: Any, path: tuple[Any, ...], numbers: Mapping[tuple[Any, ...], Any]) -> Any:
    if isinstance(x, list):
        return [_replace(entry, (*path, i), numbers) for i, entry in enumerate(x)]
    return numbers.get(path, x)


Path = tuple[Any, ...]


def digits_for(furthest: float, range_digits: int) -> int:
    """How many digits plain formulas need at arguments up to `furthest`, for results down to 10^−`range_digits`."""
    return DIGITS + 2 * int(min(range_digits, 0.45 * furthest))


def noise_at(furthest: float, digits: int) -> float:
    """What so many digits leave undecided of a result; far below the smallest float it is 0."""
    return (1 + furthest) * 10.0 ** (10 - digits)


@contextmanager
def computing(arithmetic: Arithmetic, digits: int) -> Iterator[None]:
    """Formulas are evaluated on these numbers, with so many digits, within."""
    before, Number.arithmetic = Number.arithmetic, arithmetic
    try:
        with arithmetic.digits(digits):
            yield
    finally:
        Number.arithmetic = before


class Evaluation:
    """A formula's results at one point, on a tape from which any of them is differentiated."""

    def __init__(self, formula: Callable[..., Any], arguments: Mapping[str, Any], point: Mapping[Path, Any]) -> None:
        """`point` has every real number among the arguments, by its path."""
        Number.tape = self.tape = []
        self.inputs = {path: number(x) for path, x in point.items()}
        results = formula(**{name: _replace(x, (name,), self.inputs) for name, x in arguments.items()})
        self.results = [number(r) for r in (results if isinstance(results, list) else [results])]

    def derivatives(self, of: Iterable[Number], *, absolute: bool = False) -> dict[Path, Any]:
        """What the sum of some results changes by with every input; `absolute`: with no term cancelling another."""
        for node in self.tape:
            node.gradient = 0
        for result in of:
            result.gradient += 1
        for node in reversed(self.tape):
            if node.gradient:
                for source, slope in node.sources:
                    source.gradient += (abs(slope) if absolute else slope) * node.gradient
        return {path: x.gradient for path, x in self.inputs.items()}


class Truth:
    """A formula at one point: its value (or values), and the derivative of their sum to every real argument.

    Attributes:
      values: the formula's results, a list.
      gradient: path of an argument, such as ("negatives", 3), to the derivative.
      noise: what the working precision leaves undecided.
    """

    def __init__(
        self,
        formula: Callable[..., Any],
        arguments: Mapping[str, Any],
        *,
        range_digits: int = 330,
        levels: Collection[str] = (),
        arithmetic: Arithmetic = MPMATH,
    ) -> None:
        """`levels` names the arguments that a common constant may be added to, if the formula ignores it."""
        self.formula, self.arguments, self.levels, self.arithmetic = formula, arguments, levels, arithmetic
        self.point = dict(flatten(arguments))
        furthest = max([abs(x) for x in self.point.values()], default=0.0)
        self.digits = digits_for(furthest, range_digits)
        self.noise = noise_at(furthest, self.digits)
        self.values, self.gradient = self._evaluate(self.point)

    def _evaluate(self, point: Mapping[Path, Any], *, absolute: bool = False) -> tuple[list[Any], dict[Path, Any]]:
        with computing(self.arithmetic, self.digits):
            evaluation = Evaluation(self.formula, self.arguments, point)
            slopes = evaluation.derivatives(evaluation.results, absolute=absolute)
            return [r.value for r in evaluation.results], {p: self.arithmetic.real(x) for p, x in slopes.items()}

    @functools.cached_property
    def spread(self) -> dict[Path, Any]:
        """The gradient with every term of it taken absolutely, so that nothing cancels."""
        return self._evaluate(self.point, absolute=True)[1]

    @functools.cached_property
    def sizes(self) -> dict[Path, float]:
        """How large every argument is; a logit whose level means nothing is measured from the best of the others."""
        sizes = {path: abs(x) for path, x in self.point.items()}
        level = [path for path in self.point if path[0] in self.levels]
        with computing(self.arithmetic, self.digits):
            drift, terms = abs(sum(self.gradient[p] for p in level)), sum(self.spread[p] for p in level)
        if level and drift < 1e-30 * terms:
            origins = sorted(self.point[p] for p in level)[:: max(1, len(level) // 16)]
            centred = [{p: abs(self.point[p] - origin) for p in level} for origin in origins]
            sizes |= min(centred, key=lambda s: sum(x * abs(self.gradient[p]) for p, x in s.items()))
        return sizes

    @functools.cached_property
    def condition(self) -> Any:
        """Σ |x ∂f/∂x|: how far the value moves when every argument moves by a relative 1."""
        return sum(x * abs(self.gradient[path]) for path, x in self.sizes.items())

    @functools.cached_property
    def gradient_condition(self) -> Mapping[Path, Any]:
        """The same for every entry of the gradient, each worked out when it is asked for."""
        return _Conditions(self)

    @functools.cached_property
    def least_gradient_condition(self) -> dict[Path, Any]:
        """No more than `gradient_condition`, from one product: all arguments move, each along its own derivative."""
        along = {p: -x if self.gradient[p] < 0 else x for p, x in self.sizes.items()}
        return {p: abs(bend) for p, bend in self.hessian_times(along).items()}

    def hessian_times(self, direction: Mapping[Path, Any]) -> dict[Path, Any]:
        """The second derivative of the values' sum times a direction, by a difference of exact gradients."""
        with computing(self.arithmetic, self.digits):
            step = self.arithmetic.real(10) ** -(DIGITS // 2)
            ahead = self._evaluate({p: x + step * direction.get(p, 0) for p, x in self.point.items()})[1]
            return {path: (ahead[path] - slope) / step for path, slope in self.gradient.items()}


class _Conditions(dict[Path, Any]):
    """Path -> Σ_q |x_q ∂²f/∂x_path ∂x_q|: one row of the Hessian, and the Hessian is symmetric."""

    def __init__(self, truth: Truth) -> None:
        super().__init__()
        self.truth = truth

    def __missing__(self, path: Path) -> Any:
        row = self.truth.hessian_times({path: 1})
        self[path] = sum(abs(bend) * self.truth.sizes[q] for q, bend in row.items())
        return self[path]
