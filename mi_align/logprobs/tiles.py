"""Tile sizes from a small model of the device: how much of the logits there is at a time."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

__all__ = ["TILE_BYTES", "Tiles", "choose", "kept_tiles", "tile_bytes"]

#: Bytes of one tile of logits, by platform. On CPU it should stay in the last cache beside the tile of the vocabulary
#: matrix, which is read three times; on GPU and TPU it only has to be large enough that the matrix units, not the
#: memory, set the pace, for which 1024 rows and columns are plenty. An H100 took 8% less for 8192 × 4096 than for half.
TILE_BYTES = {"cpu": 8 << 20, "gpu": 128 << 20, "tpu": 64 << 20}

#: How many times as tall as wide a tile is; 1 where nothing is said. On a GPU whatever a tall tile adds to the hidden
#: gradient is added by the matrix product itself, in place.
ASPECT = {"gpu": 2}

#: Rows of a tile divided by rows of a small one: what is left over after whole tiles is done in these, so that the cost
#: of a mask is proportional to what it keeps, to within N/R/8 of a tile.
TAIL = 8


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Sizes of a tile of logits.

    Attributes:
      rows: positions, R.
      tail: positions of the small tiles that follow whole ones; a divisor of `rows`.
      vocabulary: vocabulary entries, C.
    """

    rows: int
    tail: int
    vocabulary: int

    def __post_init__(self) -> None:
        """Refuse what no loop can run over."""
        if min(self.rows, self.tail, self.vocabulary) < 1 or self.rows % self.tail:
            raise ValueError(
                f"`tiles` is {self}, but sizes of at least 1 were wanted, and a `tail` that divides `rows`. "
                "Leave `tiles` out to have them chosen."
            )


def tile_bytes(platform: str | None = None) -> int:
    """`TILE_BYTES` of a platform, by default of the one where JAX computes; an unknown one counts as a GPU."""
    return TILE_BYTES.get(jax.default_backend() if platform is None else platform, TILE_BYTES["gpu"])


def choose(
    rows: int,
    vocab: int,
    dtype: jnp.dtype,
    *,
    masked: bool = False,
    platform: str | None = None,
    limit: int | None = None,
) -> Tiles:
    """Sizes for `rows` positions over `vocab` entries.

    A tile is as tall as it is wide, or `ASPECT` times as tall, where both sides are long: a matrix product of R rows
    and C columns reads each of its operands once per tile, so that the traffic per operation falls with both. The width
    is then evened out, so that the last tile is not a sliver (50,257 = 34 · 1,479 rather than 24 · 2,048 + 1,105).

    Args:
      rows: number of positions, before any mask.
      vocab: number of vocabulary entries.
      dtype: of the logits.
      masked: whether a mask may leave fewer rows: tiles are then at most a quarter of them.
      platform: "cpu", "gpu" or "tpu"; default: where JAX computes.
      limit: size of a tile of logits in bytes; default: `tile_bytes` of the platform.
    """
    entries = max(1, (limit or tile_bytes(platform)) // jnp.dtype(dtype).itemsize)
    aspect = ASPECT.get(jax.default_backend() if platform is None else platform, 1)
    side = aspect << (max(1, math.isqrt(entries // aspect)).bit_length() - 1)
    tall = min(side, max(1, -(-rows // 4))) if masked else min(side, rows)
    tail = max(1, -(-tall // TAIL))
    tall = tail * max(1, tall // tail)
    wide = min(vocab, max(1, entries // max(tall, side // 4)))
    number = -(-vocab // wide)
    return Tiles(rows=tall, tail=tail, vocabulary=min(vocab, _even(-(-vocab // number), vocab)))


def _even(width: int, vocab: int) -> int:
    """`width`, or up to a sixteenth more where that makes it a multiple of 64 or a divisor of `vocab`."""
    room = range(width, width + max(1, width // 16) + 1)
    return next((w for w in room if vocab % w == 0), next((w for w in room if w % 64 == 0), width))


def kept_tiles(budget: int, rows: int, vocab: int, tiles: Tiles, dtype: jnp.dtype) -> int:
    """Of how many vocabulary tiles the logits fit in `budget` bytes."""
    one = rows * tiles.vocabulary * jnp.dtype(dtype).itemsize
    return min(-(-vocab // tiles.vocabulary), budget // max(1, one))
