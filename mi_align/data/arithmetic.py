"""Preferences that need no file and no network, and whose labels can be verified: sums, and mistakes made in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

from mi_align.data.preference import Preference

__all__ = ["arithmetic_preferences", "solve"]

_PROMPT = re.compile(r"(\d+)([+-])(\d+)=")


def solve(prompt: str) -> str:
    """The right answer to a generated prompt: `solve("37+48=")` is `"85"`."""
    match = _PROMPT.fullmatch(prompt)
    if match is None:
        raise ValueError(f"{prompt!r} is no generated prompt: one like '37+48=' or '52-17=' was wanted.")
    left, sign, right = match.groups()
    return str(int(left) + int(right) if sign == "+" else int(left) - int(right))


def arithmetic_preferences(count: int, *, negatives: int = 1, digits: int = 2, seed: int = 0) -> list[Preference]:
    """Sums and differences, each with its right answer against K plausible wrong ones.

    The wrong answers are mistakes that people make: a carry or borrow forgotten, one digit off by one, the operands
    swapped, the other operation done; where these give too few different numbers, near misses fill up. Most differ from
    the right answer in one token, which is what makes likelihood displacement visible.

    Args:
      count: how many preferences; all prompts differ.
      negatives: K, how many wrong answers each.
      digits: operands lie in [0, 10^digits).
      seed: the same seed gives the same list, and a longer list begins with the shorter one.

    Returns:
      A list of `Preference`.

    Raises:
      ValueError: `count`, `negatives` or `digits` < 1, or more prompts wanted than there are.

    >>> arithmetic_preferences(2, negatives=3)[0].prompt
    '21-71='
    """
    for name, value in {"count": count, "negatives": negatives, "digits": digits}.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}, but at least 1 was wanted.")
    limit = 10**digits
    if count > 2 * limit**2:
        raise ValueError(f"`count` is {count}, but {digits} digits make only {2 * limit**2} prompts. Raise `digits`.")
    problems = np.random.default_rng([seed, digits]).permutation(2 * limit**2)[:count]
    return [_preference(int(problem), limit, negatives, seed) for problem in problems]


def _preference(problem: int, limit: int, negatives: int, seed: int) -> Preference:
    """The preference with number `problem`: sign, left and right operand are its digits in base `limit`."""
    rest, right = divmod(problem, limit)
    minus, left = divmod(rest, limit)
    prompt = f"{left}{'-' if minus else '+'}{right}="
    answer = solve(prompt)
    wrong: dict[str, None] = {}  # an ordered set
    for mistake in _mistakes(left, right, bool(minus), np.random.default_rng([seed, problem])):
        if mistake != answer:
            wrong[mistake] = None
        if len(wrong) == negatives:
            break
    return Preference(prompt, answer, tuple(wrong))


def _mistakes(left: int, right: int, minus: bool, rng: np.random.Generator) -> Iterator[str]:
    """Wrong answers without end: the kinds of mistake in random order, then nearer and farther misses."""
    answer = left - right if minus else left + right
    kinds: list[Callable[[], int]] = [
        lambda: _without_carry(left, right, minus),
        lambda: _one_digit_off(answer, rng),
        lambda: _one_digit_off(answer, rng),
        lambda: right - left if minus else _reversed(left) + right,
        lambda: left + right if minus else left - right,
    ]
    for kind in rng.permutation(len(kinds)):
        yield str(kinds[kind]())
    distance = 1
    while True:
        for sign in (1, -1):
            yield str(answer + sign * distance)
        distance += 1


def _without_carry(left: int, right: int, minus: bool) -> int:
    """Each column by itself: 37 + 48 = 75, 52 − 17 = 45."""
    total, place = 0, 1
    while left or right:
        (left, a), (right, b) = divmod(left, 10), divmod(right, 10)
        total += place * ((a - b if minus else a + b) % 10)
        place *= 10
    return total


def _one_digit_off(answer: int, rng: np.random.Generator) -> int:
    """One digit of the answer, anywhere, one up or one down."""
    place = 10 ** int(rng.integers(len(str(abs(answer)))))
    return answer + place * int(rng.choice((-1, 1)))


def _reversed(number: int) -> int:
    """The digits of an operand swapped: 37 becomes 73."""
    return int(str(number)[::-1])
