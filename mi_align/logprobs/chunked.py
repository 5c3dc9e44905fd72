"""Tiles of rows × vocabulary in plain XLA: the logits exist one tile at a time.

The outer loop runs over the vocabulary and the inner one over rows. A tile of the vocabulary's gradient is then
finished before the next is begun, and is written once, in its own dtype; what is carried along is as small as the
hidden states.
The inner loop's trip count may be a traced number (`Problem.kept`), so that rows which a mask leaves out cost nothing
under `jit` either; that needs no derivative, as forward and backward are written out here and joined in `joined`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mi_align.logprobs.contract import Coefficients, Needs, Plan, Problem, RowSums, Saved
from mi_align.logprobs.tile_math import Tile, absorb, attract, finish, initial, push
from mi_align.logprobs.tiles import Tiles
from mi_align.numerics import accumulation_dtype

__all__ = ["backward", "forward", "padded_rows"]

Carry = Any
slice_of, put_into = jax.lax.dynamic_slice_in_dim, jax.lax.dynamic_update_slice_in_dim


def padded_rows(rows: int, tiles: Tiles) -> int:
    """The number of rows that `forward` and `backward` want: a multiple of the small tile."""
    return -(-rows // tiles.tail) * tiles.tail


def forward(problem: Problem, plan: Plan, *, pull: bool = False, keep: bool = False) -> tuple[RowSums, Saved]:
    """Sums over the vocabulary; rows from `kept` on that share no tile with an earlier one are −inf or NaN.

    Args:
      problem: N must be `padded_rows`.
      plan: tiles, and what else is wanted.
      pull: whether `Saved.pull` is wanted: one more matrix product, and none in the backward pass.
      keep: whether a backward pass follows that wants `Saved.logits` and `Saved.peaks`, as `plan` says.
    """
    rows, features = problem.hidden.shape
    dtype, tiles = _dtype(problem), _count_tiles(problem, plan)
    kept = plan.kept_tiles if keep else 0
    saved = Saved(
        logits=_kept_logits(problem, plan, kept) if kept else None,
        peaks=jnp.full((tiles, rows), -jnp.inf, dtype) if keep and plan.filter_eps is not None else None,
        pull=jnp.zeros((rows, features), dtype) if pull else None,
    )

    def visit(index: Array, carry: Carry, *, stored: bool) -> Carry:
        tile = _vocabulary_tile(problem, plan, index)

        def visit_rows(start: Array, size: int, carry: Carry) -> Carry:
            state, saved = carry
            part = _take(state, start, size)
            known = _known(saved, tile, start, size) if stored else None
            logits, slope = _logits(problem, tile, start, size, known)
            local = slice_of(problem.targets, start, size) - tile.start
            part, top = absorb(part, logits, local, tile)
            if saved.peaks is not None:
                saved = saved._replace(peaks=jax.lax.dynamic_update_slice(saved.peaks, top[None], (index, start)))
            if saved.pull is not None:
                shrink, weight = attract(_take(state, start, size), part, logits, slope, local, tile)
                pull_R = shrink * slice_of(saved.pull, start, size) + _dot(weight, tile.vectors, (1, 0), problem)
                saved = saved._replace(pull=put_into(saved.pull, pull_R, start, 0))
            return _put(state, part, start), saved

        return _over_rows(problem, plan, visit_rows, carry)

    carry = (initial(rows, dtype, plan.statistics), saved)
    carry = jax.lax.fori_loop(0, kept, lambda j, c: visit(j, c, stored=True), carry) if kept else carry
    if kept < tiles:
        carry = jax.lax.fori_loop(kept, tiles, lambda j, c: visit(j, c, stored=False), carry)
    state, saved = carry
    if saved.pull is not None:
        saved = saved._replace(pull=saved.pull / state.mass[:, None])
    return finish(state, problem.vocabulary.shape[0]), saved


def backward(
    problem: Problem,
    sums: RowSums,
    coefficients: Coefficients,
    plan: Plan,
    saved: Saved,
    needs: Needs,
) -> tuple[Array | None, Array | None, Array | None]:
    """Gradients in scale · hidden (accumulation dtype), vocabulary and bias, of their shapes; None where not needed."""
    dtype, tiles = _dtype(problem), _count_tiles(problem, plan)
    kept = 0 if saved.logits is None else -(-saved.logits.shape[1] // plan.tiles.vocabulary)
    (rows, features), (vocab, _) = problem.hidden.shape, problem.vocabulary.shape
    d_hidden = jnp.zeros((rows, features), dtype) if needs.hidden else None
    d_vocabulary = jnp.zeros((vocab, features), problem.vocabulary.dtype) if needs.vocabulary else None
    d_bias = jnp.zeros((vocab,), dtype) if needs.bias else None

    def visit(index: Array, carry: Carry, *, stored: bool) -> Carry:
        tile = _vocabulary_tile(problem, plan, index)
        d_hidden, d_vocabulary, d_bias = carry

        def visit_rows(start: Array, size: int, carry: Carry) -> Carry:
            known = _known(saved, tile, start, size) if stored else None

            def work(carry: Carry) -> Carry:
                logits, slope = _logits(problem, tile, start, size, known)
                local = slice_of(problem.targets, start, size) - tile.start
                part = _take((sums.top, sums.log_mass, coefficients), start, size)
                back = push(logits, slope, local, tile, *part)
                return _spread(problem, back, tile, start, size, carry)

            if saved.peaks is None:
                return work(carry)
            matters = _matters(problem, plan, saved.peaks, sums, tile, index, start, size)
            return jax.lax.cond(matters, work, _as_is, carry)

        whole = jnp.zeros((plan.tiles.vocabulary, features), dtype) if needs.vocabulary else None
        along = jnp.zeros((plan.tiles.vocabulary,), dtype) if needs.bias else None
        d_hidden, whole, along = _over_rows(problem, plan, visit_rows, (d_hidden, whole, along))
        if whole is not None and problem.scale is not None:
            whole = whole * problem.scale
        return d_hidden, _write(d_vocabulary, whole, tile), _write(d_bias, along, tile)

    carry = (d_hidden, d_vocabulary, d_bias)
    carry = jax.lax.fori_loop(0, kept, lambda j, c: visit(j, c, stored=True), carry) if kept else carry
    if kept < tiles:
        carry = jax.lax.fori_loop(kept, tiles, lambda j, c: visit(j, c, stored=False), carry)
    return carry


def _dtype(problem: Problem) -> jnp.dtype:
    return accumulation_dtype(problem.hidden, problem.vocabulary)


def _operand(x: Array, problem: Problem) -> Array:
    """`x` as the matrix units take it: half precision where both factors have it, but on CPU, where it is slower."""
    half = problem.hidden.dtype == problem.vocabulary.dtype and jax.default_backend() != "cpu"
    return x.astype(problem.hidden.dtype if half else _dtype(problem))


def _dot(x: Array, y: Array, over: tuple[int, int], problem: Problem) -> Array:
    """Σ over axis `over[0]` of x and `over[1]` of y, accumulated and returned in the accumulation dtype."""
    x, y = _operand(x, problem), _operand(y, problem)
    dims = (((over[0],), (over[1],)), ((), ()))
    return jax.lax.dot_general(x, y, dims, precision=jax.lax.Precision.HIGHEST, preferred_element_type=_dtype(problem))


def _count_tiles(problem: Problem, plan: Plan) -> int:
    return -(-problem.vocabulary.shape[0] // plan.tiles.vocabulary)


def _vocabulary_tile(problem: Problem, plan: Plan, index: Array) -> Tile:
    """Tile number `index`. Where tiles do not divide the vocabulary, the last one reaches back into the one before."""
    vocab, size = problem.vocabulary.shape[0], plan.tiles.vocabulary
    start = jnp.minimum(index * size, vocab - size)
    fresh = None if vocab % size == 0 else start + jnp.arange(size) >= index * size
    if problem.entries is not None:
        real = start + jnp.arange(size) < problem.entries
        fresh = real if fresh is None else fresh & real
    bias = None if problem.bias is None else slice_of(problem.bias, start, size).astype(_dtype(problem))
    return Tile(start, slice_of(problem.vocabulary, start, size), bias, fresh)


def _over_rows(problem: Problem, plan: Plan, visit: Callable[[Array, int, Carry], Carry], carry: Carry) -> Carry:
    """`visit(start, size, carry)` over whole tiles of rows, then over small ones for what is left of the kept ones."""
    rows, big, small = problem.hidden.shape[0], plan.tiles.rows, plan.tiles.tail
    kept = rows if problem.kept is None else problem.kept
    whole = kept // big if small < big else 0  # one loop is enough for tiles of one size
    rest = (kept - whole * big + small - 1) // small

    def loop(number: int | Array, size: int, first: int | Array, carry: Carry) -> Carry:
        if isinstance(number, int) and number < 2:
            return visit(jnp.asarray(first), size, carry) if number else carry
        return jax.lax.fori_loop(0, number, lambda i, c: visit(first + i * size, size, c), carry)

    if small < big <= rows:
        carry = loop(whole, big, 0, carry)
    return loop(rest, small, whole * big, carry)


def _take(tree: Any, start: Array, size: int) -> Any:
    return jax.tree.map(lambda x: slice_of(x, start, size), tree)


def _put(tree: Any, part: Any, start: Array) -> Any:
    return jax.tree.map(lambda x, y: put_into(x, y, start, 0), tree, part)


def _known(saved: Saved, tile: Tile, start: Array, size: int) -> Array | None:
    """A tile of the logits that were kept."""
    if saved.logits is None:
        return None
    return jax.lax.dynamic_slice(saved.logits, (start, tile.start), (size, tile.vectors.shape[0]))


def _kept_logits(problem: Problem, plan: Plan, number: int) -> Array:
    """z of the first `number` tiles of the vocabulary. Without a mask it is one product, written where it stays."""
    rows, columns = problem.hidden.shape[0], min(number * plan.tiles.vocabulary, problem.vocabulary.shape[0])
    bias = None if problem.bias is None else problem.bias[:columns].astype(_dtype(problem))
    head = Tile(jnp.asarray(0), problem.vocabulary[:columns], bias, None)
    if problem.kept is None:
        return _logits(problem, head, jnp.asarray(0), rows)[0]
    return _over_rows(
        problem,
        plan,
        lambda start, size, logits: put_into(logits, _logits(problem, head, start, size)[0], start, 0),
        jnp.zeros((rows, columns), _dtype(problem)),
    )


def _logits(
    problem: Problem, tile: Tile, start: Array, size: int, known: Array | None = None
) -> tuple[Array, Array | None]:
    """z of a tile, `[R, C]`, and ∂z/∂u, which is None where it is 1."""
    cap = problem.soft_cap
    if known is None:
        known = _dot(slice_of(problem.hidden, start, size), tile.vectors, (1, 1), problem)
        known = known if problem.scale is None else known * problem.scale
        known = known if tile.bias is None else known + tile.bias[None, :]
        known = known if cap is None else cap * jnp.tanh(known / cap)
    return known, None if cap is None else 1 - jnp.square(known / cap)


def _spread(problem: Problem, push_RC: Array, tile: Tile, start: Array, size: int, carry: Carry) -> Carry:
    """Add what a tile sends back to the hidden states' gradient, and to its own part of the vocabulary's and bias's."""
    d_hidden, whole, along = carry
    if d_hidden is not None:
        d_rows = slice_of(d_hidden, start, size) + _dot(push_RC, tile.vectors, (1, 0), problem)
        d_hidden = put_into(d_hidden, d_rows, start, 0)
    if whole is not None:
        whole = whole + _dot(push_RC, slice_of(problem.hidden, start, size), (0, 0), problem)
    along = along if along is None else along + jnp.sum(push_RC, axis=0)
    return d_hidden, whole, along


def _write(into: Array | None, part: Array | None, tile: Tile) -> Array | None:
    """`part` at its place; where tiles overlap, what the earlier one wrote stays, as `part` is 0 there."""
    if into is None or part is None:
        return None
    part = part.astype(into.dtype)
    if tile.fresh is not None:
        part = part + slice_of(into, tile.start, part.shape[0])
    return put_into(into, part, tile.start, 0)


def _as_is(carry: Carry) -> Carry:
    return carry


def _matters(
    problem: Problem, plan: Plan, peaks: Array, sums: RowSums, tile: Tile, index: Array, start: Array, size: int
) -> Array:
    """Whether any probability in a tile reaches `filter_eps`, or a target lies in it."""
    peak = jax.lax.dynamic_slice(peaks, (index, start), (1, size))[0]
    local = slice_of(problem.targets, start, size) - tile.start
    real = True if problem.kept is None else start + jnp.arange(size) < problem.kept
    target = (local >= 0) & (local < plan.tiles.vocabulary)
    top, log_mass = _take((sums.top, sums.log_mass), start, size)
    reached = peak - top - log_mass >= jnp.log(jnp.asarray(plan.filter_eps, peak.dtype))
    return jnp.any((target | reached) & real)
