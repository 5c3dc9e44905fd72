"""InfoNCE along all rows and all columns of scale · x yᵀ in one pass over its tiles, which are never held together.

Each tile of scores serves both directions, and backwards both directions' gradients meet in one tile before they are
multiplied with the embeddings: four products where two passes of `token_logps` have eight. What is done to a tile is
`tile_math`'s, once with the tile and once with its transpose. Shape suffixes: N examples, D features, R rows or columns
of a tile.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align.logprobs.contract import Coefficients, RowSums
from mi_align.logprobs.tile_math import State, Tile, absorb, finish, initial, push
from mi_align.logprobs.tiles import choose
from mi_align.numerics import accumulation_dtype, fill

__all__ = ["Surprise", "both_ways"]

slice_of, put_into = jax.lax.dynamic_slice_in_dim, jax.lax.dynamic_update_slice_in_dim


class Surprise(NamedTuple):
    """Of one's own partner, from scores s = scale · x yᵀ, in nats, each `[N]`; 0 under the mask.

    Attributes:
      rows: log Σ_j exp s_ij − s_ii.
      columns: log Σ_j exp s_ji − s_ii.
    """

    rows: Float[Array, " N"]
    columns: Float[Array, " N"]


class _Pairs(NamedTuple):
    x: Array
    y: Array
    scale: Array
    where: Array


@functools.partial(jax.jit, static_argnames="size")
def both_ways(
    x: Float[Array, "N D"],
    y: Float[Array, "N D"],
    scale: float | Float[Array, ""] = 1.0,
    where: Bool[Array, " N"] | None = None,
    *,
    size: int | None = None,
) -> Surprise:
    """Sums over the examples that `where` keeps; differentiable, backwards and once, in x, y and scale.

    Args:
      x: `[N, D]`.
      y: `[N, D]`.
      scale: of the scores.
      where: `[N]`, default all.
      size: of a side of a tile; by default as large as `tiles.choose` has it, and evened out.
    """
    x, y = (a.astype(jnp.result_type(x, y)) for a in (x, y))
    count, dtype = x.shape[0], accumulation_dtype(x)
    where = jnp.ones(count, bool) if where is None else where
    x, y = (fill(a, where[:, None], 0) for a in (x, y))
    number = -(-count // (size or choose(count, count, dtype).rows))  # of tiles a side
    size = -(-count // number)
    more = number * size - count
    x, y = (jnp.pad(a, ((0, more), (0, 0))) for a in (x, y))
    pairs = _Pairs(x, y, jnp.asarray(scale, dtype), jnp.pad(where, (0, more)))
    return jax.tree.map(lambda a: a[:count], _both(size, pairs))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _both(size: int, pairs: _Pairs) -> Surprise:
    return _forward(size, pairs)[0]


def _forward(size: int, pairs: _Pairs) -> tuple[Surprise, tuple[_Pairs, RowSums, RowSums]]:
    count, dtype = pairs.x.shape[0], pairs.scale.dtype

    def visit(i: Array, j: Array, rows: State, column: State) -> tuple[State, State]:
        tile, ahead = _tile(pairs, i, j, size)
        part, _ = absorb(_take(rows, i, size), tile, ahead, _WHOLE)
        column, _ = absorb(column, tile.T, _mirrored(ahead, size), _WHOLE)
        return _put(rows, part, i, size), column

    def visit_column(j: Array, carry: tuple[State, State]) -> tuple[State, State]:
        rows, columns = carry
        begin = rows, initial(size, dtype, False)
        rows, column = jax.lax.fori_loop(0, count // size, lambda i, c: visit(i, j, *c), begin)
        return rows, _put(columns, column, j, size)

    nothing = initial(count, dtype, False)
    rows, columns = (finish(s, count) for s in jax.lax.fori_loop(0, count // size, visit_column, (nothing, nothing)))
    rows, columns = (jax.tree.map(lambda a: fill(a, pairs.where, 0), s) for s in (rows, columns))
    came = Surprise(*(s.log_mass - (s.target_logit - s.top) for s in (rows, columns)))
    return came, (pairs, rows, columns)


def _backward(size: int, saved: tuple[_Pairs, RowSums, RowSums], cotangents: Surprise) -> tuple[Any]:
    pairs, *sums = saved
    by_row, by_column = (
        (s.top, s.log_mass, Coefficients(target=-d, constant=d))
        for s, d in zip(sums, (fill(c, pairs.where, 0) for c in cotangents), strict=True)
    )

    def visit(i: Array, j: Array, d_x: Array, d_y: Array) -> tuple[Array, Array]:
        tile, ahead = _tile(pairs, i, j, size)
        back = push(tile, None, ahead, _WHOLE, *_take(by_row, i, size))
        back = back + push(tile.T, None, _mirrored(ahead, size), _WHOLE, *_take(by_column, j, size)).T
        d_x = put_into(d_x, _take(d_x, i, size) + _product(pairs, back, _take(pairs.y, j, size), (1, 0)), i * size, 0)
        return d_x, d_y + _product(pairs, back, _take(pairs.x, i, size), (0, 0))

    def visit_column(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        d_x, d_y = carry
        begin = d_x, jnp.zeros((size, d_y.shape[1]), d_y.dtype)
        d_x, part = jax.lax.fori_loop(0, pairs.x.shape[0] // size, lambda i, c: visit(i, j, *c), begin)
        return d_x, put_into(d_y, part, j * size, 0)

    begin = (jnp.zeros(pairs.x.shape, pairs.scale.dtype),) * 2
    d_x, d_y = jax.lax.fori_loop(0, pairs.x.shape[0] // size, visit_column, begin)
    d_scale = jnp.sum(pairs.x * d_x)  # s depends on scale · x only
    d_x, d_y = ((pairs.scale * d).astype(pairs.x.dtype) for d in (d_x, d_y))
    return (_Pairs._make((d_x, d_y, d_scale, None)),)


_both.defvjp(_forward, _backward)

#: All entries of a tile count; what they are is in the scores themselves.
_WHOLE = Tile(start=0, vectors=None, bias=None, fresh=None)  # type: ignore[arg-type]


def _tile(pairs: _Pairs, i: Array, j: Array, size: int) -> tuple[Array, Array]:
    """Scores of tile (i, j), −inf where either example is masked, and the column of each row's own partner."""
    scores = pairs.scale * _product(pairs, _take(pairs.x, i, size), _take(pairs.y, j, size), (1, 1))
    both = _take(pairs.where, i, size)[:, None] & _take(pairs.where, j, size)[None, :]
    return fill(scores, both, -jnp.inf), (i - j) * size + jnp.arange(size)


def _mirrored(ahead: Array, size: int) -> Array:
    """The same of the transposed tile."""
    return 2 * jnp.arange(size) - ahead


def _product(pairs: _Pairs, a: Array, b: Array, over: tuple[int, int]) -> Array:
    """Accumulated in the accumulation dtype, from half precision where embeddings have it, but on CPU: it is slower."""
    wide = pairs.scale.dtype
    narrow = wide if jax.default_backend() == "cpu" else pairs.x.dtype
    dims = (((over[0],), (over[1],)), ((), ()))
    highest = jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(a.astype(narrow), b.astype(narrow), dims, highest, preferred_element_type=wide)


def _take(tree: Any, index: Array, size: int) -> Any:
    return jax.tree.map(lambda a: slice_of(a, index * size, size), tree)


def _put(tree: Any, part: Any, index: Array, size: int) -> Any:
    return jax.tree.map(lambda a, b: put_into(a, b, index * size, 0), tree, part)
