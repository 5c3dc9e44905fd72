"""What makes a function a public objective: its hyper-parameters' ranges are checked, and it is compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar, overload

import jax

from mi_align import checks

__all__ = ["objective"]

P = ParamSpec("P")
R = TypeVar("R")


@overload
def objective(function: Callable[P, R], /) -> Callable[P, R]: ...
@overload
def objective(*, static: Sequence[str] = ..., **ranges: checks.Range) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def objective(function: Any = None, /, *, static: Sequence[str] = (), **ranges: checks.Range) -> Any:
    """Compile a function of logits, after looking at the ranges of its concrete hyper-parameters.

    Inside a user's own `jit` the check happens while tracing and the program is unchanged.

    Args:
      function: the pure function.
      static: names of arguments that change the program, such as `axis`; everything else is traced, so that a sweep
        over a hyper-parameter compiles once.
      **ranges: ranges that differ from `checks.RANGES` for this function.
    """
    if function is None:
        return functools.partial(objective, static=static, **ranges)
    compiled = jax.jit(function, static_argnames=tuple(static))

    @functools.wraps(function)
    def checked(*args: Any, **hyper: Any) -> Any:
        for name, value in hyper.items():
            checks.number(name, value, ranges.get(name))
        return compiled(*args, **hyper)

    checked.ranges = ranges  # type: ignore[attr-defined]  # for `Method.configure`
    checked.jitted = compiled  # type: ignore[attr-defined]  # for tests that count compilations
    return checked
