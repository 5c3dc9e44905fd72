"""What the TPU kernels share: the choice of tiles from a model of the chip, and the pieces of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from mi_align.logprobs._pallas_common import Tiles, contract, within

__all__ = [
    "ANY_CHIP",
    "CHIPS",
    "LANES",
    "STRIP",
    "SUBLANES",
    "Chip",
    "add_products",
    "cost",
    "last_row_tile",
    "memory",
    "optional",
    "parameters",
    "scalars",
    "strip_by_strip",
    "tiles_for",
    "traffic",
    "upright",
]

LANES, SUBLANES, MIB = 128, 8, 2**20


class Chip(NamedTuple):
    """What the choice of tiles needs to know of a core.

    Attributes:
      budget: bytes of vector memory that a kernel may use; what is left stays with the compiler.
      balance: floating-point operations in bfloat16 in the time in which main memory delivers one byte.
      alone: whether it is the only core that runs a kernel's grid.
    """

    budget: int
    balance: float
    alone: bool


#: By `device_kind`. Elsewhere: the 16 MiB that every kernel gets without asking.
CHIPS = {
    **dict.fromkeys(("TPU v5 lite", "TPU v5e"), Chip(64 * MIB, 197e12 / 819e9, True)),
    **dict.fromkeys(("TPU v5", "TPU v5p"), Chip(40 * MIB, 459e12 / 2765e9, False)),
    **dict.fromkeys(("TPU v6 lite", "TPU v6e"), Chip(64 * MIB, 918e12 / 1638e9, True)),
}
ANY_CHIP = Chip(14 * MIB, 240.0, False)
#: Rows of a tile of logits that the element-wise part takes at a time, and how many float32 copies of those it keeps.
STRIP, COPIES = LANES, 8
#: Passes through the matrix unit for one product of float32 with all its digits.
FLOAT32_PASSES = 6
#: A step of the grid costs about 0.35 µs whatever it does, and 512 × 512 × 512 products take 1.4 µs on a v5e.
WORTH_A_STEP = 512


def tiles_for(N: int, D: int, V: int, dtype: Any, device_kind: str, *, own: str | None = None) -> Tiles:
    """The tiles of one kernel, from a model of the chip: see `memory` and `traffic`.

    Of the tiles that fit, the smallest whose traffic takes at most two thirds of the time of their arithmetic, but at
    least `WORTH_A_STEP` each way; where no tile is as frugal, the one with the least traffic. (Large tiles compile
    slowly: their matmuls are unrolled.)

    Args:
      N: tokens.
      D: features.
      V: vocabulary.
      dtype: of the hidden states and the vocabulary matrix.
      device_kind: as `jax.devices()[0].device_kind` tells it, e.g. `"TPU v5 lite"`.
      own: `"rows"` or `"vocabulary"` for the kernel that makes that gradient, `"both"` for the one that makes both;
        default: the forward kernel.

    >>> tiles_for(8192, 4096, 128256, "bfloat16", "TPU v5 lite")
    Tiles(rows=1024, vocabulary=1024, features=1024)
    """
    chip, features = CHIPS.get(device_kind, ANY_CHIP), _features(D)
    sizes = [LANES * 2**n for n in range(5)]
    fitting = [
        tiles
        for tiles in (Tiles(rows, vocabulary, features) for rows in sizes for vocabulary in sizes)
        if tiles[:2] == (LANES, LANES)
        or (tiles.rows < 2 * N and tiles.vocabulary < 2 * V and memory(tiles, D, dtype, own) <= chip.budget)
    ]
    passes = FLOAT32_PASSES if jnp.dtype(dtype) == jnp.float32 else 1
    enough = 2 / 3 * 2 * passes / chip.balance

    def cost(tiles: Tiles) -> tuple[float, ...]:
        area, short = tiles.rows * tiles.vocabulary, max(WORTH_A_STEP / min(tiles[:2]), 1)
        return max(traffic(tiles, D, dtype, own), enough), short, area, memory(tiles, D, dtype, own)

    return min(fitting, key=cost)


def _features(D: int) -> int:
    """All features at once if they are few; else the largest divisor of D that is a multiple of 128, or else 512."""
    whole = pl.cdiv(D, LANES) * LANES
    if whole <= 1024:
        return whole
    return max((n for n in range(2 * LANES, 1025, LANES) if D % n == 0), default=512)


def traffic(tiles: Tiles, D: int, dtype: Any, own: str | None = None) -> float:
    """Bytes to and from main memory for each product; a side whose features come in one step is read once and stays."""
    mine, other = (tiles.rows, tiles.vocabulary) if own == "rows" else (tiles.vocabulary, tiles.rows)
    again, size = 0 if tiles.features >= D else 1, jnp.dtype(dtype).itemsize
    if own is None:
        return size * (1 / tiles.rows + again / tiles.vocabulary)
    if own == "both":  # three products; the other side's gradient is read and written in float32
        return (size * ((1 + again) * other + 2 * again * mine) + 8 * other) / (3 * mine * other)
    return size * ((1 + again) * other + again * mine) / (2 * mine * other)


def memory(tiles: Tiles, D: int, dtype: Any, own: str | None = None) -> int:
    """Bytes of vector memory held at once.

    Two buffers of each input tile; the tile of logits, what a step adds to it, and `COPIES` of a strip of it; for a
    gradient the derivative in the inputs' dtype, all D features of the own tile in float32, what a step adds to them,
    and two buffers of the output; for both gradients a block of the other one, and what a step adds to that.
    """
    rows, vocabulary, features = tiles
    size = jnp.dtype(dtype).itemsize
    inputs = 2 * size * features * (rows + vocabulary)
    logits = 2 * 4 * rows * vocabulary + 4 * COPIES * STRIP * max(rows, vocabulary)
    if own is None:
        return inputs + logits
    mine = rows if own == "rows" else vocabulary
    gradient = 4 * mine * (pl.cdiv(D, features) + 1) * features + 2 * size * mine * features
    other = 2 * 4 * rows * features + size * rows * vocabulary if own == "both" else 0
    return inputs + logits + size * rows * vocabulary + gradient + other


def add_products(products: Any, mine: Any, other: Any, k: Any, features: int, D: int) -> None:
    """mine @ otherᵀ over one step of the features, added to those before."""
    x, y = mine[...], other[...]
    if D % features:
        x, y = within(x, k * features, D, 1), within(y, k * features, D, 1)
    here = contract(x, y, (1, 1))

    @pl.when(k == 0)
    def _() -> None:
        products[...] = here

    @pl.when(k > 0)
    def _() -> None:
        products[...] += here


def strip_by_strip(strip: Callable[[Any], None], length: int) -> None:
    """`strip(start)` for each strip of an axis; a loop, for the compiler would unroll whole tiles."""
    jax.lax.fori_loop(0, length // STRIP, lambda n, _: strip(pl.multiple_of(n * STRIP, STRIP)), None)


def upright(row: Array) -> Array:
    """[1, n] as [n, 1]."""
    return jnp.broadcast_to(row.astype(jnp.float32), (SUBLANES, row.shape[1])).T[:, :1]


def optional(refs: Any, there: bool) -> tuple[Any, Any]:
    """The first of `refs` if it is there, and the rest."""
    return (refs[0], refs[1:]) if there else (None, refs)


def last_row_tile(kept: Any, tiles: Tiles) -> Any:
    """The last row tile that is not skipped."""
    return jnp.maximum(pl.cdiv(kept[0], tiles.rows) - 1, 0)


def scalars(kept: Array, scale: Any, soft_cap: Any) -> tuple[Array, Array]:
    """What the scalar core reads before the first tile: `counts` of rows and entries; scale and cap."""
    factors = [jnp.asarray(x, jnp.float32) for x in (scale, 0 if soft_cap is None else soft_cap)]
    return kept, jnp.stack(factors)


def parameters(held: int, *, in_order: bool = False) -> pltpu.CompilerParams:
    """The outermost axis goes to several cores, unless in order; memory beyond what every kernel gets is asked for."""
    return pltpu.CompilerParams(
        dimension_semantics=("arbitrary" if in_order else "parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=held + 2 * MIB if held > ANY_CHIP.budget else None,
    )


def cost(N: int, D: int, V: int, flops: int, arrays: list[Array]) -> pl.CostEstimate:
    """What the compiler plans with: `flops` for each triple of token, feature and entry of the vocabulary."""
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(flops=flops * N * D * V, transcendentals=N * V, bytes_accessed=moved)
