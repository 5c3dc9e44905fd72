"""What the Pallas kernels of both kinds of device share: the arithmetic of one tile of logits, and who may enter.

Every formula is written for one tile that never leaves the chip, and for either orientation of it: rows of tokens along
the first axis or along the second. Whatever is one number a row or one number a column comes with an axis of length 1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

__all__ = ["LOWEST", "PerRow", "Tiles", "contract", "cotangent", "counts", "inside", "logits_of", "packed", "within"]

#: Where a running maximum starts: finite, so that a bias of −inf, which forbids a token, never meets another −inf.
LOWEST = float(jnp.finfo(jnp.float32).min)


class Tiles(NamedTuple):
    """How much of each axis one step of a kernel holds.

    Attributes:
      rows: tokens.
      vocabulary: rows of the vocabulary matrix.
      features: of each of them; the matmul runs over these in steps.
    """

    rows: int
    vocabulary: int
    features: int


class PerRow(NamedTuple):
    """What the derivative of a loss needs to know about each token; all in float32.

    The loss's derivative by the capped logits z is  t·onehot + p·(a + b·(z − top) + c·p) + m,
    p = exp(z − top − log_mass): a log-probability has t = g, a = −g; the log-normaliser a = g; the entropy
    a = g·(log_mass − entropy), b = −g; the mean logit over the vocabulary m = g/V; Σp² has a = −2g·Σp², c = 2g.

    Attributes:
      target: token id; one outside the vocabulary meets no column.
      top: the row's largest logit.
      log_mass: log Σ exp(z − top) of the row.
      t: factor of the target's indicator.
      a: factor of p.
      b: factor of p·(z − top).
      c: factor of p².
      m: the same for every column.
    """

    target: Array
    top: Array
    log_mass: Array
    t: Array
    a: Array
    b: Array
    c: Array
    m: Array


def contract(x: Array, y: Array, axes: tuple[int, int], dtype: Any = jnp.float32) -> Float[Array, "x y"]:
    """Sum over one axis of each, in float32: exact products for half precision, all digits for float32.

    `dtype` is what the sums are rounded to.
    """
    common = jnp.promote_types(x.dtype, y.dtype)
    precision = jax.lax.Precision.HIGHEST if common == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(
        x.astype(common),
        y.astype(common),
        (((axes[0],), (axes[1],)), ((), ())),
        precision=precision,
        preferred_element_type=dtype,
    )


def logits_of(products: Array, bias: Array | None, scale: Any, soft_cap: Any) -> Array:
    """soft_cap · tanh((scale·products + bias) / soft_cap); without a cap the argument itself."""
    logits = scale * products if bias is None else scale * products + bias.astype(jnp.float32)
    return logits if soft_cap is None else soft_cap * jnp.tanh(logits / soft_cap)


def cotangent(logits: Array, column: Int[Array, "..."], row: PerRow, soft_cap: Any) -> Array:
    """The loss's derivative by scale·h·v + bias, for a tile of capped logits and the numbers of its columns."""
    below = logits - row.top
    p = jnp.exp(below - row.log_mass)
    finite = jnp.where(p > 0, below, 0)  # a forbidden token's logit is −inf, and 0 · inf no number
    slope = p * (row.a + row.b * finite + row.c * p) + row.m + jnp.where(column == row.target, row.t, 0)
    return slope if soft_cap is None else slope * (1 - jnp.square(logits / soft_cap))


def within(x: Array, start: Any, limit: Any, axis: int) -> Array:
    """`x` with 0 where its position along `axis`, counted from `start`, is not below `limit`."""
    position = start + jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
    return jnp.where(position < limit, x, jnp.zeros((), x.dtype))


def counts(rows: Any, N: int, entries: Any, V: int) -> Int[Array, " 2"]:
    """How many rows count, and how many entries of the vocabulary: None for all, no fewer than 0."""
    given = ((N if rows is None else rows), N), ((V if entries is None else entries), V)
    return jnp.stack([jnp.clip(jnp.asarray(number, jnp.int32), 0, most) for number, most in given])


def inside(targets: Int[Array, " N"], V: Any) -> Int[Array, " N"]:
    """Ids, with −1 for those outside [0, V), so that none meets a column of the padding."""
    return jnp.where((targets >= 0) & (targets < V), targets, -1).astype(jnp.int32)


def packed(row: PerRow, V: int) -> Float[Array, "8 N"]:
    """What `cotangent` needs of each row, a line each; ids are whole numbers in float32 up to 2²⁴."""
    if V > 2**24:
        raise ValueError(f"`vocabulary` has {V} rows, but at most 2²⁴ were wanted: ids travel as float32.")
    lines = [x.astype(jnp.float32) for x in (inside(row.target, V), *row[1:])]
    return jnp.stack(lines)
