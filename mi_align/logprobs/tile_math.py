"""The arithmetic of one tile of logits: what it adds to the sums over the vocabulary, and what it sends back."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mi_align.logprobs.contract import Coefficients, RowSums

__all__ = ["State", "Tile", "absorb", "attract", "finish", "initial", "push"]


class Tile(NamedTuple):
    """One tile of the vocabulary; `fresh` marks entries that count and that no earlier tile had, None if all do."""

    start: Array
    vectors: Array
    bias: Array | None
    fresh: Array | None


class More(NamedTuple):
    """What statistics need beside the normaliser, relative to the largest logit so far; `[N]` each."""

    drift: Array  # Σ e^{z − top} (z − top)
    squares: Array  # Σ e^{2(z − top)}
    total: Array  # Σ z
    best: Array


class State(NamedTuple):
    """The sums so far, relative to the largest logit so far; `[N]` each."""

    top: Array
    mass: Array  # Σ e^{z − top}
    target: Array
    more: More | None = None


def initial(rows: int, dtype: jnp.dtype, statistics: bool) -> State:
    """No logit seen yet. The largest is finite, so that logits of −inf (a bias that removes an entry) stay harmless."""
    zero, lowest = jnp.zeros(rows, dtype), jnp.full(rows, jnp.finfo(dtype).min, dtype)
    more = More(zero, zero, zero, jnp.zeros(rows, jnp.int32)) if statistics else None
    return State(lowest, zero, zero, more)


def absorb(state: State, logits: Array, local: Array, tile: Tile) -> tuple[State, Array]:
    """The sums with one more tile of logits, and the largest logit of each row in it."""
    size = logits.shape[1]
    seen = _only_fresh(logits, tile, float(jnp.finfo(logits.dtype).min))
    peak = jnp.max(seen, axis=1)
    top = jnp.maximum(state.top, peak)
    weight = jnp.exp(seen - top[:, None])
    mass = state.mass * jnp.exp(state.top - top) + jnp.sum(weight, axis=1)
    here = (local >= 0) & (local < size)
    at_target = jnp.take_along_axis(logits, jnp.clip(local, 0, size - 1)[:, None], axis=1)[:, 0]
    more = None if state.more is None else _absorb_more(state, state.more, logits, seen, peak, tile)
    return State(top, mass, jnp.where(here, at_target, state.target), more), peak


def _absorb_more(state: State, more: More, logits: Array, seen: Array, peak: Array, tile: Tile) -> More:
    top = jnp.maximum(state.top, peak)
    weight, shrink = jnp.exp(seen - top[:, None]), jnp.exp(state.top - top)
    gap = jnp.where(weight > 0, seen - top[:, None], 0)
    fall = jnp.where(state.mass > 0, state.top - top, 0)
    column = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    first = jnp.min(jnp.where(seen == peak[:, None], column, logits.shape[1]), axis=1) + tile.start
    return More(
        drift=shrink * (more.drift + state.mass * fall) + jnp.sum(weight * gap, axis=1),
        squares=jnp.square(shrink) * more.squares + jnp.sum(jnp.square(weight), axis=1),
        total=more.total + jnp.sum(_only_fresh(logits, tile, 0), axis=1),
        best=jnp.where(peak > state.top, first, more.best).astype(jnp.int32),
    )


def finish(state: State, vocab: int) -> RowSums:
    """The sums, once all tiles were absorbed."""
    sums = RowSums(state.target, state.top, jnp.log(state.mass))
    if state.more is None:
        return sums
    return sums._replace(
        gap=state.more.drift / state.mass,
        sum_squares=state.more.squares / jnp.square(state.mass),
        mean_logit=state.more.total / vocab,
        argmax=state.more.best,
    )


def _only_fresh(x: Array, tile: Tile, otherwise: float) -> Array:
    """`x` with another value in columns that do not count, or that the tile before had already."""
    return x if tile.fresh is None else jnp.where(tile.fresh[None, :], x, otherwise)


def _is_target(logits: Array, local: Array) -> Array:
    return jax.lax.broadcasted_iota(local.dtype, logits.shape, 1) == local[:, None]


def attract(
    old: State, new: State, logits: Array, slope: Array | None, local: Array, tile: Tile
) -> tuple[Array, Array]:
    """By what to shrink the rows' pull so far, and with what weights the tile's entries other than the target pull."""
    weight = jnp.exp(logits - new.top[:, None])
    weight = weight if slope is None else weight * slope
    others = jnp.where(_is_target(logits, local), 0, _only_fresh(weight, tile, 0))
    return jnp.exp(old.top - new.top)[:, None], others


def push(
    logits: Array,
    slope: Array | None,
    local: Array,
    tile: Tile,
    top: Array,
    log_mass: Array,
    coefficients: Coefficients,
) -> Array:
    """∂loss/∂u of a tile, `[R, C]`: t·1[target] + p·(a + b·(z − top) + c·p) + m, times ∂z/∂u."""
    t, a, b, c, m = (None if x is None else x[:, None] for x in coefficients)
    below = logits - top[:, None]
    p = jnp.exp(below - log_mass[:, None])
    factor = None if a is None else jnp.broadcast_to(a, p.shape)
    if b is not None:  # an entry removed by a bias of −inf has p = 0 and no finite z
        factor = _plus(factor, b * jnp.where(p > 0, below, 0))
    if c is not None:
        factor = _plus(factor, c * p)
    came = None if factor is None else p * factor
    came = came if m is None else _plus(came, jnp.broadcast_to(m, p.shape))
    came = came if t is None else _plus(came, jnp.where(_is_target(logits, local), t, 0))
    came = jnp.zeros_like(p) if came is None else came
    came = came if slope is None else came * slope
    return _only_fresh(came, tile, 0)


def _plus(x: Array | None, y: Array) -> Array:
    return y if x is None else x + y
