"""Parts of the vocabulary: what each gives in terms of the whole, how several combine, and how they go round a ring."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mi_align.logprobs.contract import Coefficients, Needs, Plan, Problem, RowSums, Saved
from mi_align.logprobs.joined import Way
from mi_align.numerics import accumulation_dtype

__all__ = ["Place", "across", "part", "ring"]

Axes = tuple[str, ...]
WaySlopes = tuple[Array | None, Array | None, Array | None]


class Place(NamedTuple):
    """Which entries of the whole vocabulary a matrix holds.

    Attributes:
      first: the entry in its first row.
      vocab: how many entries there are in the whole.
      padded: whether some matrix has rows from `vocab` on, which do not count.
    """

    first: int | Array
    vocab: int
    padded: bool


def part(way: Way, place: Place) -> Way:
    """`way` on a part of the vocabulary: its sums are the whole's contributions from there, its slopes the part's.

    Targets are counted from the part's first row.
    """

    def here(problem: Problem) -> tuple[Problem, float]:
        entries = jnp.asarray(place.vocab - place.first, jnp.int32) if place.padded else None
        return problem._replace(entries=entries), problem.vocabulary.shape[0] / place.vocab

    def forward(problem: Problem, plan: Plan, *, pull: bool = False, keep: bool = False) -> tuple[RowSums, Saved]:
        problem, share = here(problem)
        sums, saved = way.forward(problem, plan, pull=pull, keep=keep)
        mean = None if sums.mean_logit is None else sums.mean_logit * share
        best = None if sums.argmax is None else sums.argmax + place.first
        return sums._replace(mean_logit=mean, argmax=best), saved

    def backward(
        problem: Problem, sums: RowSums, of: Coefficients, plan: Plan, saved: Saved, needs: Needs
    ) -> WaySlopes:
        problem, share = here(problem)
        of = of._replace(uniform=None if of.uniform is None else of.uniform * share)
        return way.backward(problem, sums, of, plan, saved, needs)

    return Way(way.name, forward, backward, way.padded_rows, way.pulls)


def across(way: Way, axes: Axes) -> Way:
    """`way` on the part of each device along mapped axes, its sums combined to those of all; slopes stay partial."""

    def forward(problem: Problem, plan: Plan, *, pull: bool = False, keep: bool = False) -> tuple[RowSums, Saved]:
        sums, saved = way.forward(problem, plan, pull=pull, keep=keep)
        sums, share = combine(jax.tree.map(lambda x: x[None], sums), axes)
        if saved.pull is not None:
            saved = saved._replace(pull=_weighed(share[0][:, None], saved.pull))
        return sums, saved

    return Way(way.name, forward, way.backward, way.padded_rows, way.pulls)


def ring(way: Way, axis: str, number: int, place: Place) -> Way:
    """`way` on parts of the vocabulary that pass along a mapped axis of `number` devices, each to the one before.

    `place.first` is the first entry of the first device's part, from which targets are counted too. A part moves on
    while it is worked with, and comes home in the end; backwards its gradient goes with it and is whole when it does.
    """

    def at(step: Array, problem: Problem, block: tuple[Array, Array | None]) -> tuple[Way, Problem]:
        rows = problem.vocabulary.shape[0]
        start = (jax.lax.axis_index(axis) + step) % number * rows
        problem = problem._replace(vocabulary=block[0], bias=block[1], targets=problem.targets - start)
        return part(way, place._replace(first=place.first + start)), problem

    def on(tree: Any) -> Any:
        pairs = [(i, (i - 1) % number) for i in range(number)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, axis, pairs), tree)

    def forward(problem: Problem, plan: Plan, *, pull: bool = False, keep: bool = False) -> tuple[RowSums, Saved]:
        def visit(step: Array, carry: tuple[Any, RowSums]) -> tuple[Any, RowSums]:
            block, sums = carry
            here, local = at(step, problem, block)
            more, _ = here.forward(local, plan, pull=False, keep=False)
            return on(block), combine(jax.tree.map(lambda *x: jnp.stack(x), sums, more), ())[0]

        dtype = accumulation_dtype(problem.hidden, problem.vocabulary)
        carry = (problem.vocabulary, problem.bias), _nothing(problem.hidden.shape[0], dtype, plan.statistics)
        return jax.lax.fori_loop(0, number, visit, carry)[1], Saved()

    def backward(
        problem: Problem, sums: RowSums, of: Coefficients, plan: Plan, saved: Saved, needs: Needs
    ) -> WaySlopes:
        def visit(step: Array, carry: tuple[Any, Any, Array | None]) -> tuple[Any, Any, Array | None]:
            block, slopes, d_hidden = carry
            here, local = at(step, problem, block)
            more_hidden, *more = here.backward(local, sums, of, plan, Saved(), needs)
            return on(block), on(_plus(slopes, tuple(more))), _plus(d_hidden, more_hidden)

        wanted = needs.hidden, needs.vocabulary, needs.bias
        dtype = accumulation_dtype(problem.hidden, problem.vocabulary)
        like = (problem.hidden, problem.vocabulary, problem.bias)
        zeros = [jnp.zeros(x.shape, dtype) if w and x is not None else None for w, x in zip(wanted, like, strict=True)]
        carry = (problem.vocabulary, problem.bias), tuple(zeros[1:]), zeros[0]
        _, (d_vocabulary, d_bias), d_hidden = jax.lax.fori_loop(0, number, visit, carry)
        return d_hidden, d_vocabulary, d_bias

    return Way(way.name, forward, backward, way.padded_rows, pulls=False)


def combine(parts: RowSums, axes: Axes) -> tuple[RowSums, Array]:
    """Sums of the whole from those of parts, along the first axis and mapped ones; and each part's probability."""
    top = jnp.max(parts.top, axis=0)
    top = jax.lax.pmax(top, axes) if axes else top
    fall = parts.top - top[None]
    masses = jnp.exp(fall + parts.log_mass)

    def total(x: Array | None, weight: Array | None = None) -> Array | None:
        if x is None:
            return None
        x = jnp.sum(x if weight is None else _weighed(weight, x), axis=0)
        return jax.lax.psum(x, axes) if axes else x

    target, mass = total(parts.target_logit), total(masses)
    assert target is not None and mass is not None
    share = masses / mass[None]
    sums = RowSums(target, top, jnp.log(mass), mean_logit=total(parts.mean_logit))
    if parts.gap is None or parts.argmax is None:
        return sums, share
    last = jnp.iinfo(parts.argmax.dtype).max
    first = jnp.min(jnp.where(parts.top == top[None], parts.argmax, last), axis=0)
    return sums._replace(
        gap=total(parts.gap + fall, share),
        sum_squares=total(parts.sum_squares, jnp.square(share)),
        argmax=jax.lax.pmin(first, axes) if axes else first,
    ), share


def _weighed(weight: Array, x: Array) -> Array:
    """weight · x, 0 where the weight is, whatever x is there: a part without entries has no mean."""
    return jnp.where(weight > 0, weight * x, 0)


def _nothing(rows: int, dtype: jnp.dtype, statistics: bool) -> RowSums:
    """The sums of a part without entries."""
    zero, none = jnp.zeros(rows, dtype), jnp.full(rows, -jnp.inf, dtype)
    sums = RowSums(zero, jnp.full(rows, jnp.finfo(dtype).min, dtype), none)
    if not statistics:
        return sums
    return sums._replace(gap=zero, sum_squares=zero, mean_logit=zero, argmax=zero.astype(jnp.int32))


def _plus(x: Any, y: Any) -> Any:
    return jax.tree.map(lambda a, b: a + b.astype(a.dtype), x, y)
