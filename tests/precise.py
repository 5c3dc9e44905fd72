"""Formulas at as many digits as it takes, with every partial derivative.

A formula is written once, over the functions below, and evaluated on mpmath numbers that record what was done to them
(reverse-mode differentiation on a tape). The digits are at least 50, and as many more as float64's range asks for: then
a plain formula such as log(eᵃ + eᵇ) − a is right to the last digit of the smallest float64, however much cancels in it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mpmath
from mpmath import mpf

DIGITS = 50


class Number:
    """An mpmath number that remembers which numbers it was computed from, and its derivative to each."""

    __slots__ = ("gradient", "sources", "spread", "value")
    tape: list[Number] = []

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


class Truth:
    """A formula at one point: its value (or values), and the derivative of their sum to every real argument.

    Attributes:
      values: the formula's results, a list.
      gradient: path of an argument, such as ("negatives", 3), to the derivative.
    """

    def __init__(self, formula: Callable[..., Any], arguments: Mapping[str, Any], range_digits: int = 330) -> None:
        self.formula, self.arguments, self.range_digits = formula, arguments, range_digits
        self.point = dict(_flatten(arguments))
        self.values, self.gradient = self._evaluate(self.point)

    def _evaluate(self, point: Mapping[tuple[Any, ...], Any]) -> tuple[list[mpf], dict[tuple[Any, ...], mpf]]:
        spread = max([abs(x) for x in point.values()], default=0)
        with mpmath.workdps(DIGITS + 2 * int(min(self.range_digits, 0.45 * spread))):
            Number.tape = []
            numbers = {path: Number(x) for path, x in point.items()}
            results = self.formula(**{name: _replace(x, (name,), numbers) for name, x in self.arguments.items()})
            results = [number(r) for r in (results if isinstance(results, list) else [results])]
            for result in results:
                result.gradient += 1
                result.spread += 1
            for node in reversed(Number.tape):
                if node.spread:
                    for source, slope in node.sources:
                        source.gradient += slope * node.gradient
                        source.spread += abs(slope) * node.spread
            self.spread = {path: x.spread for path, x in numbers.items()}
            return [r.value for r in results], {path: x.gradient for path, x in numbers.items()}

    @functools.cached_property
    def condition(self) -> mpf:
        """Σ |x ∂f/∂x|: how far the value moves when every argument moves by a relative 1."""
        return sum((abs(x * self.gradient[path]) for path, x in self.point.items()), mpf(0))

    @functools.cached_property
    def gradient_condition(self) -> dict[tuple[Any, ...], mpf]:
        """The same for every entry of the gradient."""
        total = dict.fromkeys(self.point, mpf(0))
        with mpmath.workdps(DIGITS + self.range_digits):
            step = mpf(10) ** -(DIGITS // 2)
            for path, x in self.point.items():
                if not x:
                    continue
                _, moved = self._evaluate({**self.point, path: x * (1 + step)})
                for p, g in moved.items():
                    total[p] += abs(g - self.gradient[p]) / step
        return total
