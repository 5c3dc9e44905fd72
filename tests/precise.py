"""Formulas at as many digits as it takes, with every partial derivative.

A formula is written once, over the functions below, and evaluated on mpmath numbers that record what was done to them
(reverse-mode differentiation on a tape). The digits are at least 50, and as many more as float64's range asks for: then
a plain formula such as log(eᵃ + eᵇ) − a is right to the last digit of the smallest float64, however much cancels in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import mpmath
from mpmath import mpf

DIGITS = 50


class Number:
    """An mpmath number that remembers which numbers it was computed from, and its derivative to each."""

    __slots__ = ("gradient", "sources", "spread", "value")
    tape: ClassVar[list[Number]] = []

    def __init__(self, value: Any, *sources: tuple[Number, Any]) -> None:
        self.value, self.sources, self.gradient, self.spread = mpf(value), sources, mpf(0), mpf(0)
        Number.tape.append(self)

    def __add__(self, other: Any) -> Number:
        other = number(other)
        return Number(self.value + other.value, (self, 1), (other, 1))

    def __mul__(self, other: Any) -> Number:
        other = number(other)
        return Number(self.value * other.value, (self, other.value), (other, self.value))

    def __truediv__(self, other: Any) -> Number:
        other = number(other)
        ratio = self.value / other.value
        return Number(ratio, (self, 1 / other.value), (other, -ratio / other.value))

    def __pow__(self, n: int) -> Number:
        return Number(self.value**n, (self, n * self.value ** (n - 1)))

    def __neg__(self) -> Number:
        return Number(-self.value, (self, -1))

    def __sub__(self, other: Any) -> Number:
        return self + -number(other)

    def __rsub__(self, other: Any) -> Number:
        return -self + other

    def __rtruediv__(self, other: Any) -> Number:
        return number(other) / self

    def __lt__(self, other: Any) -> bool:
        return self.value < number(other).value

    def __gt__(self, other: Any) -> bool:
        return self.value > number(other).value

    __radd__, __rmul__ = __add__, __mul__


def number(x: Any) -> Number:
    return x if isinstance(x, Number) else Number(x)


def exp(x: Any) -> Number:
    x = number(x)
    value = mpmath.exp(x.value)
    return Number(value, (x, value))


def log(x: Any) -> Number:
    x = number(x)
    return Number(mpmath.log(x.value), (x, 1 / x.value))


def sqrt(x: Any) -> Number:
    x = number(x)
    value = mpmath.sqrt(x.value)
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


def _flatten(arguments: Mapping[str, Any]) -> list[tuple[tuple[Any, ...], Any]]:
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


class Truth:
    """A formula at one point: its value (or values), and the derivative of their sum to every real argument.

    Attributes:
      values: the formula's results, a list.
      gradient: path of an argument, such as ("negatives", 3), to the derivative.
      noise: what the working precision leaves undecided.
      spread: the same with every term of the derivative taken absolutely, so that nothing cancels.
    """

    def __init__(
        self,
        formula: Callable[..., Any],
        arguments: Mapping[str, Any],
        *,
        range_digits: int = 330,
        levels: Collection[str] = (),
    ) -> None:
        """`levels` names the arguments that a common constant may be added to, if the formula ignores it."""
        self.formula, self.arguments, self.levels = formula, arguments, levels
        self.point = dict(_flatten(arguments))
        furthest = max([abs(x) for x in self.point.values()], default=0.0)
        self.digits = DIGITS + 2 * int(min(range_digits, 0.45 * furthest))
        self.noise = (1 + mpf(furthest)) * mpf(10) ** (10 - self.digits)
        self.values, self.gradient, self.spread = self._evaluate(self.point)

    def _evaluate(self, point: Mapping[Path, Any]) -> tuple[list[mpf], dict[Path, mpf], dict[Path, mpf]]:
        with mpmath.workdps(self.digits):
            Number.tape = []
            numbers = {path: Number(x) for path, x in point.items()}
            results = self.formula(**{name: _replace(x, (name,), numbers) for name, x in self.arguments.items()})
            results = [number(r) for r in (results if isinstance(results, list) else [results])]
            for result in results:
                result.gradient, result.spread = result.gradient + 1, result.spread + 1
            for node in reversed(Number.tape):
                if node.spread:
                    for source, slope in node.sources:
                        source.gradient += slope * node.gradient
                        source.spread += abs(slope) * node.spread
            values = [r.value for r in results]
            return values, {p: x.gradient for p, x in numbers.items()}, {p: x.spread for p, x in numbers.items()}

    @functools.cached_property
    def sizes(self) -> dict[Path, mpf]:
        """How large every argument is; a logit whose level means nothing is measured from the best of the others."""
        sizes = {path: abs(mpf(x)) for path, x in self.point.items()}
        level = [path for path in self.point if path[0] in self.levels]
        if level and abs(sum(self.gradient[p] for p in level)) < 1e-30 * sum(self.spread[p] for p in level):
            origins = sorted(self.point[p] for p in level)[:: max(1, len(level) // 16)]
            centred = [{p: abs(mpf(self.point[p]) - origin) for p in level} for origin in origins]
            sizes |= min(centred, key=lambda s: sum(x * abs(self.gradient[p]) for p, x in s.items()))
        return sizes

    @functools.cached_property
    def condition(self) -> mpf:
        """Σ |x ∂f/∂x|: how far the value moves when every argument moves by a relative 1."""
        return sum((x * abs(self.gradient[path]) for path, x in self.sizes.items()), mpf(0))

    @functools.cached_property
    def gradient_condition(self) -> dict[Path, mpf]:
        """The same for every entry of the gradient."""
        total = dict.fromkeys(self.point, mpf(0))
        for path, x in self.sizes.items():
            if x:
                for p, bend in self.hessian_times({path: x}).items():
                    total[p] += abs(bend)
        return total

    def hessian_times(self, direction: Mapping[Path, Any]) -> dict[Path, mpf]:
        """The second derivative of the values' sum times a direction, by a difference of exact gradients."""
        with mpmath.workdps(self.digits):
            step = mpf(10) ** -(DIGITS // 2)
            ahead = self._evaluate({p: x + step * direction.get(p, 0) for p, x in self.point.items()})[1]
            return {path: (ahead[path] - slope) / step for path, slope in self.gradient.items()}
