"""The TPU way: logits exist one tile at a time, in the chip's own memory, forward and backward.

`forward` goes through the vocabulary once with a running log-sum-exp: 2·N·V·D floating-point operations. `backward` is
two kernels, one for each gradient; each recomputes its logits, so that 8·N·V·D are spent where 4 are unavoidable and 2
more buy the logits back. A tile's features come in steps, hence D may be large; the gradient of the tile's own side
(rows of tokens, or rows of the vocabulary) stays in the chip's memory until it is whole and is written once.

Edges. Neither N, V nor D need be a multiple of a tile: columns beyond V get the logit −∞ in the forward pass and the
derivative 0 in the backward pass, and what the chip reads beyond an array's end is replaced before it is multiplied.
Row tiles beyond `rows` cost no arithmetic and no traffic; zeros are written there, whatever they hold.

Layout. One number a token would be padded to 128 by the chip if it lay along the first axis, so that all of them travel
as eight rows, `[8, N]`, and turn inside the kernel where that is needed.

Letters: N tokens, V vocabulary, D features. Grid axes: own tile, other tile, step (over features; in the backward pass
there and back again, so that the step at the turn is not read twice).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from mi_align.logprobs._pallas_common import (
    LOWEST,
    PerRow,
    Tiles,
    contract,
    cotangent,
    inside,
    logits_of,
    packed,
    within,
)

__all__ = ["backward", "forward", "tiles_for"]

LANES, SUBLANES, MIB = 128, 8, 2**20


class Chip(NamedTuple):
    """What the choice of tiles needs to know of a core.

    Attributes:
      budget: bytes of vector memory that a kernel may use; what is left stays with the compiler.
      balance: floating-point operations in bfloat16 in the time in which main memory delivers one byte.
    """

    budget: int
    balance: float


#: By `device_kind`. Elsewhere: the 16 MiB that every kernel gets without asking.
CHIPS = {
    **dict.fromkeys(("TPU v5 lite", "TPU v5e"), Chip(64 * MIB, 197e12 / 819e9)),
    **dict.fromkeys(("TPU v5", "TPU v5p"), Chip(40 * MIB, 459e12 / 2765e9)),
    **dict.fromkeys(("TPU v6 lite", "TPU v6e"), Chip(64 * MIB, 918e12 / 1638e9)),
}
ANY_CHIP = Chip(14 * MIB, 240.0)
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
      own: `"rows"` or `"vocabulary"` for the kernel that makes that gradient; default: the forward kernel.

    >>> tiles_for(8192, 4096, 128256, "bfloat16", "TPU v5 lite")
    Tiles(rows=512, vocabulary=2048, features=1024)
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
    """Bytes read from main memory for each product; a side whose features come in one step is read once and stays."""
    mine, other = (tiles.vocabulary, tiles.rows) if own == "vocabulary" else (tiles.rows, tiles.vocabulary)
    again = 0 if tiles.features >= D else 1
    elements = 1 / mine + again / other if own is None else (1 + again) / (2 * mine) + again / (2 * other)
    return jnp.dtype(dtype).itemsize * elements


def memory(tiles: Tiles, D: int, dtype: Any, own: str | None = None) -> int:
    """Bytes of vector memory held at once.

    Two buffers of each input tile; the tile of logits and `COPIES` of a strip of it; for a gradient its derivative in
    the inputs' dtype, all D features of the own tile in float32, and two buffers of the output.
    """
    rows, vocabulary, features = tiles
    size = jnp.dtype(dtype).itemsize
    inputs = 2 * size * features * (rows + vocabulary)
    logits = 4 * rows * vocabulary + 4 * COPIES * STRIP * max(rows, vocabulary)
    if own is None:
        return inputs + logits
    mine = rows if own == "rows" else vocabulary
    gradient = mine * (4 * pl.cdiv(D, features) * features + 2 * size * features)
    return inputs + logits + size * rows * vocabulary + gradient


def forward(
    hidden: Float[Array, "N D"],
    vocabulary: Float[Array, "V D"],
    targets: Int[Array, " N"],
    bias: Float[Array, " V"] | None = None,
    *,
    scale: Any = 1.0,
    soft_cap: Any = None,
    rows: Int[Array, ""] | int | None = None,
    tiles: Tiles | None = None,
    device_kind: str = "",
    interpret: Any = False,
) -> tuple[Float[Array, " N"], Float[Array, " N"]]:
    """Each token's logit at its target, and log Σ exp(logits), both in float32; 0 for rows from `rows` on.

    Args:
      hidden: last hidden states, `[N, D]`, float32 or bfloat16.
      vocabulary: one row a token of the vocabulary, `[V, D]`.
      targets: ids, `[N]`; the target logit of an id outside [0, V) is 0.
      bias: added to the logits, `[V]`; −∞ forbids a token.
      scale: factor of h·v.
      soft_cap: logits are soft_cap·tanh(·/soft_cap). Default: no cap.
      rows: how many rows count. Default: all.
      tiles: see `tiles_for`, which is the default.
      device_kind: what `tiles_for` is asked for.
      interpret: `True` or `pltpu.InterpretParams()` run without a TPU.
    """
    (N, D), V = hidden.shape, vocabulary.shape[0]
    tiles = tiles_for(N, D, V, hidden.dtype, device_kind) if tiles is None else tiles
    grid = (pl.cdiv(N, tiles.rows), pl.cdiv(V, tiles.vocabulary), pl.cdiv(D, tiles.features))

    def hidden_block(i: Any, j: Any, k: Any, kept: Any, _: Any) -> tuple[Any, Any]:
        used = i * tiles.rows < kept[0]
        return jnp.minimum(i, _last(kept, tiles)), jnp.where(used, k, grid[2] - 1)

    def vocabulary_block(i: Any, j: Any, k: Any, kept: Any, _: Any) -> tuple[Any, Any]:
        used = i * tiles.rows < kept[0]
        return jnp.where(used, j, grid[1] - 1), jnp.where(used, k, grid[2] - 1)

    row_block = pl.BlockSpec((1, tiles.rows), lambda i, j, k, *_: (0, i))
    in_specs = [
        pl.BlockSpec((tiles.rows, tiles.features), hidden_block),
        pl.BlockSpec((tiles.vocabulary, tiles.features), vocabulary_block),
        row_block,
    ]
    arrays = [hidden, vocabulary, inside(targets, V)[None, :]]
    if bias is not None:
        in_specs.append(pl.BlockSpec((1, tiles.vocabulary), lambda *at: (0, vocabulary_block(*at)[0])))
        arrays.append(bias[None, :])
    a_row = jax.ShapeDtypeStruct((1, N), jnp.float32)
    target_logit, log_normaliser = pl.pallas_call(
        functools.partial(_forward, tiles=tiles, V=V, D=D, biased=bias is not None, capped=soft_cap is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=in_specs,
            out_specs=[row_block, row_block],
            scratch_shapes=[
                pltpu.VMEM((tiles.vocabulary, tiles.rows), jnp.float32),
                *[pltpu.VMEM((1, tiles.rows), jnp.float32)] * 3,
            ],
        ),
        out_shape=[a_row, a_row],
        compiler_params=_parameters(memory(tiles, D, hidden.dtype)),
        cost_estimate=_cost(N, D, V, 2, arrays),
        name="logprobs_forward",
        interpret=interpret,
    )(*_scalars(rows, N, scale, soft_cap), *arrays)
    return target_logit[0], log_normaliser[0]


def _forward(kept: Any, scalars: Any, *refs: Any, tiles: Tiles, V: int, D: int, biased: bool, capped: bool) -> None:
    """Logits stand as [vocabulary, rows]: the sum over the vocabulary then adds whole vectors."""
    hidden, vocabulary, targets, *rest = refs
    bias, (target_logit, log_normaliser, products, top, total, chosen) = _optional(rest, biased)
    i, j, k = (pl.program_id(axis) for axis in range(3))
    last_j, last_k = pl.num_programs(1) - 1, pl.num_programs(2) - 1

    @pl.when((j == 0) & (k == 0))
    def _() -> None:
        top[...] = jnp.full_like(top, LOWEST)
        total[...] = jnp.zeros_like(total)
        chosen[...] = jnp.zeros_like(chosen)

    @pl.when(i * tiles.rows < kept[0])
    def _() -> None:
        _add_products(products, vocabulary, hidden, k, tiles.features, D)

        @pl.when(k == last_k)
        def _() -> None:
            def strip(start: Any) -> None:
                here = pl.ds(start, STRIP)
                added = None if bias is None else _upright(bias[:, here])
                logits = logits_of(products[here, :], added, scalars[0], scalars[1] if capped else None)
                column = j * tiles.vocabulary + start + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
                logits = jnp.where(column < V, logits, -jnp.inf)
                chosen[...] += jnp.sum(jnp.where(column == targets[...], logits, 0), axis=0, keepdims=True)
                higher = jnp.maximum(top[...], jnp.max(logits, axis=0, keepdims=True))
                summed = jnp.sum(jnp.exp(logits - higher), axis=0, keepdims=True)
                total[...] = total[...] * jnp.exp(top[...] - higher) + summed
                top[...] = higher

            _strip_by_strip(strip, tiles.vocabulary)

    @pl.when((j == last_j) & (k == last_k))
    def _() -> None:
        row = i * tiles.rows + jax.lax.broadcasted_iota(jnp.int32, top.shape, 1)
        target_logit[...] = jnp.where(row < kept[0], chosen[...], 0)
        log_normaliser[...] = jnp.where(row < kept[0], top[...] + jnp.log(total[...]), 0)


def backward(
    hidden: Float[Array, "N D"],
    vocabulary: Float[Array, "V D"],
    targets: Int[Array, " N"],
    bias: Float[Array, " V"] | None,
    log_normaliser: Float[Array, " N"],
    t: Float[Array, " N"],
    a: Float[Array, " N"],
    b: Float[Array, " N"],
    c: Float[Array, " N"],
    m: Float[Array, " N"],
    *,
    scale: Any = 1.0,
    soft_cap: Any = None,
    rows: Int[Array, ""] | int | None = None,
    tiles: tuple[Tiles, Tiles] | None = None,
    device_kind: str = "",
    interpret: Any = False,
) -> tuple[Float[Array, "N D"], Float[Array, "V D"], Float[Array, " V"] | None]:
    """Gradients by `hidden`, `vocabulary` and `bias`, in their dtypes; `PerRow` says what t, a, b, c and m are.

    Sums are in float32. With half-precision inputs the derivative of a tile is rounded to their dtype before it is
    multiplied, as the operands of a matmul in that dtype are.

    Args:
      hidden: as in `forward`; `vocabulary`, `targets`, `bias`, `scale`, `soft_cap`, `rows`, `device_kind` and
        `interpret` as well.
      log_normaliser: what `forward` returned.
      t: factor of the target's indicator, `[N]`; a, b, c: factors of p, p·z and p²; m: added to every column.
      tiles: of the kernel for `hidden`, and of the one for `vocabulary`.
    """
    (N, D), V = hidden.shape, vocabulary.shape[0]
    for_rows, for_vocabulary = tiles or (
        tiles_for(N, D, V, hidden.dtype, device_kind, own=own) for own in ("rows", "vocabulary")
    )
    per_row = packed(PerRow(targets, log_normaliser, t, a, b, c, m), V)
    arguments = (hidden, vocabulary, per_row, bias, _scalars(rows, N, scale, soft_cap), soft_cap is not None, interpret)
    (d_hidden,) = _gradient("rows", *arguments, tiles=for_rows)
    d_vocabulary, *d_bias = _gradient("vocabulary", *arguments, tiles=for_vocabulary)
    return d_hidden, d_vocabulary, d_bias[0][0] if d_bias else None


def _gradient(
    own: str,
    hidden: Array,
    vocabulary: Array,
    per_row: Array,
    bias: Array | None,
    scalars: tuple[Array, Array],
    capped: bool,
    interpret: Any,
    *,
    tiles: Tiles,
) -> list[Array]:
    """The gradient by the `own` side: for each of its tiles, all tiles of the other side, and all features twice."""
    by_rows = own == "rows"
    mine, other = (hidden, vocabulary) if by_rows else (vocabulary, hidden)
    size, across = (tiles.rows, tiles.vocabulary) if by_rows else (tiles.vocabulary, tiles.rows)
    D, steps = hidden.shape[1], pl.cdiv(hidden.shape[1], tiles.features)
    grid = (pl.cdiv(mine.shape[0], size), pl.cdiv(other.shape[0], across), 2 * steps)
    at = _blocks(by_rows, tiles, grid)
    in_specs = [
        pl.BlockSpec((size, tiles.features), at["mine"]),
        pl.BlockSpec((across, tiles.features), at["other"]),
        pl.BlockSpec((SUBLANES, tiles.rows), at["per_row"]),
    ]
    arrays = [mine, other, per_row]
    out_specs = [pl.BlockSpec((size, tiles.features), at["out"])]
    out_shape = [jax.ShapeDtypeStruct(mine.shape, mine.dtype)]
    scratch = [
        pltpu.VMEM((size, across), jnp.float32),
        pltpu.VMEM((size, across), other.dtype),
        pltpu.VMEM((steps, size, tiles.features), jnp.float32),
    ]
    if bias is not None:
        in_specs.append(pl.BlockSpec((1, tiles.vocabulary), at["bias"]))
        arrays.append(bias[None, :])
        if not by_rows:
            out_specs.append(pl.BlockSpec((1, size), lambda o, x, q, *_: (0, o)))
            out_shape.append(jax.ShapeDtypeStruct((1, mine.shape[0]), bias.dtype))
            scratch.append(pltpu.VMEM((size, 1), jnp.float32))
    return pl.pallas_call(
        functools.partial(
            _backward,
            tiles=tiles,
            limit=other.shape[0],
            D=D,
            V=vocabulary.shape[0],
            by_rows=by_rows,
            biased=bias is not None,
            capped=capped,
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2, grid=grid, in_specs=in_specs, out_specs=out_specs, scratch_shapes=scratch
        ),
        out_shape=out_shape,
        compiler_params=_parameters(memory(tiles, D, hidden.dtype, own)),
        cost_estimate=_cost(hidden.shape[0], D, vocabulary.shape[0], 4, arrays),
        name=f"logprobs_backward_{own}",
        interpret=interpret,
    )(*scalars, *arrays)


def _blocks(by_rows: bool, tiles: Tiles, grid: tuple[int, int, int]) -> dict[str, Callable[..., Any]]:
    """Which block of each array a step needs. Where a row tile is skipped it is the block already there."""
    steps = grid[2] // 2

    def feature(q: Any) -> Any:
        return jnp.where(q < steps, q, 2 * steps - 1 - q)

    def used(o: Any, x: Any, kept: Any) -> Any:
        return (o if by_rows else x) * tiles.rows < kept[0]

    def mine(o: Any, x: Any, q: Any, kept: Any, _: Any) -> tuple[Any, Any]:
        o = jnp.minimum(o, _last(kept, tiles)) if by_rows else o
        return o, jnp.where(used(o, x, kept), jnp.minimum(q, steps - 1), steps - 1)

    def other(o: Any, x: Any, q: Any, kept: Any, _: Any) -> tuple[Any, Any]:
        stays = grid[1] - 1 if by_rows else jnp.minimum(x, _last(kept, tiles))
        return jnp.where(used(o, x, kept), x, stays), jnp.where(used(o, x, kept), feature(q), 0)

    def out(o: Any, x: Any, q: Any, *_: Any) -> tuple[Any, Any]:
        return o, jnp.where((x == grid[1] - 1) & (q >= steps), feature(q), steps - 1)

    rows, columns = (mine, other) if by_rows else (other, mine)
    return {
        "mine": mine,
        "other": other,
        "out": out,
        "per_row": lambda *at: (0, rows(*at)[0]),
        "bias": lambda *at: (0, columns(*at)[0]),
    }


def _backward(
    kept: Any,
    scalars: Any,
    *refs: Any,
    tiles: Tiles,
    limit: int,
    D: int,
    V: int,
    by_rows: bool,
    biased: bool,
    capped: bool,
) -> None:
    """One step: products of the first half of the steps, gradient in the second; the derivative is made in between."""
    mine, other, per_row, *rest = refs
    bias, (out, *rest) = _optional(rest, biased)
    d_bias, (products, slopes, gradient, *rest) = _optional(rest, biased and not by_rows)
    own, across, q = (pl.program_id(axis) for axis in range(3))
    last, steps = pl.num_programs(1) - 1, pl.num_programs(2) // 2
    row_tile, column_tile = (own, across) if by_rows else (across, own)
    used = row_tile * tiles.rows < kept[0]

    @pl.when((across == 0) & (q == 0))
    def _() -> None:
        for x in (gradient, *rest):
            x[...] = jnp.zeros_like(x)

    @pl.when(used & (q < steps))
    def _() -> None:
        _add_products(products, mine, other, q, tiles.features, D)

    @pl.when(used & (q == steps - 1))
    def _() -> None:
        def strip(start: Any) -> None:
            here = pl.ds(start, STRIP)
            added = None if bias is None else bias[...] if by_rows else _upright(bias[:, here])
            soft_cap = scalars[1] if capped else None
            logits = logits_of(products[here, :], added, scalars[0], soft_cap)
            along = [jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1)]
            along[0] += start
            in_row, in_column = along if by_rows else reversed(along)
            row, column = row_tile * tiles.rows + in_row, column_tile * tiles.vocabulary + in_column
            slope = cotangent(logits, column, _per_row(per_row, here, by_rows), soft_cap)
            slope = jnp.where((row < kept[0]) & (column < V), slope, 0)
            slopes[here, :] = slope.astype(slopes.dtype)
            for total in rest:
                total[here, :] += jnp.sum(slope, axis=1, keepdims=True)

        _strip_by_strip(strip, products.shape[0])

    @pl.when(used & (q >= steps))
    def _() -> None:
        start, end = across * other.shape[0], limit if by_rows else jnp.minimum(kept[0], limit)
        _add_gradient(gradient, 2 * steps - 1 - q, slopes, other, start, end)

    @pl.when((across == last) & (q >= steps))
    def _() -> None:
        out[...] = (scalars[0] * gradient[2 * steps - 1 - q]).astype(out.dtype)

    @pl.when((across == last) & (q == 2 * steps - 1))
    def _() -> None:
        for total in rest:
            d_bias[...] = jnp.broadcast_to(total[...], (total.shape[0], LANES)).T[:1].astype(d_bias.dtype)


def _add_gradient(gradient: Any, step: Any, slopes: Any, other: Any, start: Any, end: Any) -> None:
    """slopes @ other; what `other` holds beyond its end is no number to multiply with, not even by 0."""
    whole = start + other.shape[0] <= end

    @pl.when(whole)
    def _() -> None:
        gradient[step] += contract(slopes[...], other[...], (1, 0))

    @pl.when(jnp.logical_not(whole))
    def _() -> None:
        gradient[step] += contract(slopes[...], within(other[...], start, end, 0), (1, 0))


def _add_products(products: Any, mine: Any, other: Any, k: Any, features: int, D: int) -> None:
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


def _strip_by_strip(strip: Callable[[Any], None], length: int) -> None:
    """`strip(start)` for each strip of an axis; a loop, for the compiler would unroll whole tiles."""
    jax.lax.fori_loop(0, length // STRIP, lambda n, _: strip(pl.multiple_of(n * STRIP, STRIP)), None)


def _per_row(packed: Any, here: Any, by_rows: bool) -> PerRow:
    """The eight rows of numbers: one strip of them, as columns, or all where rows run along the second axis."""
    numbers = packed[:, here].T if by_rows else packed[...]
    fields = [numbers[:, n : n + 1] if by_rows else numbers[n : n + 1] for n in range(len(PerRow._fields))]
    return PerRow(fields[0].astype(jnp.int32), *fields[1:])


def _upright(row: Array) -> Array:
    """[1, n] as [n, 1]."""
    return jnp.broadcast_to(row.astype(jnp.float32), (SUBLANES, row.shape[1])).T[:, :1]


def _optional(refs: Any, there: bool) -> tuple[Any, Any]:
    """The first of `refs` if it is there, and the rest."""
    return (refs[0], refs[1:]) if there else (None, refs)


def _last(kept: Any, tiles: Tiles) -> Any:
    """The last row tile that is not skipped."""
    return jnp.maximum(pl.cdiv(kept[0], tiles.rows) - 1, 0)


def _scalars(rows: Any, N: int, scale: Any, soft_cap: Any) -> tuple[Array, Array]:
    """What the scalar core reads before the first tile: the number of rows; scale and cap."""
    kept = jnp.minimum(jnp.asarray(N if rows is None else rows, jnp.int32), N).reshape(1)
    factors = [jnp.asarray(x, jnp.float32) for x in (scale, 0 if soft_cap is None else soft_cap)]
    return kept, jnp.stack(factors)


def _parameters(held: int) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary", "arbitrary"),
        vmem_limit_bytes=held + 2 * MIB if held > ANY_CHIP.budget else None,
    )


def _cost(N: int, D: int, V: int, flops: int, arrays: list[Array]) -> pl.CostEstimate:
    moved = sum(x.size * x.dtype.itemsize for x in arrays)
    return pl.CostEstimate(flops=flops * N * D * V, transcendentals=N * V, bytes_accessed=moved)
