"""The GPU way: logits exist one tile at a time, in registers, forward and backward.

`forward` goes through the vocabulary once with a running log-sum-exp, 2·N·V·D floating-point operations; where the rows
alone are too few programs for the device, each program takes a share of the vocabulary, and the shares are added in a
fixed order. `backward` goes over chunks of rows × vocabulary: a kernel recomputes a chunk's logits and hands over only
their derivative, in the inputs' dtype, for two matmuls of the library: 6·N·V·D operations, 2 of them recomputation.
Nothing depends on the order in which programs end, as it would with atomic additions: the same bits in every run.

Memory beside inputs and gradients: one chunk of derivatives, and the hidden states' gradient in float32; where the rows
are several chunks, or h·v is scaled, one chunk of the vocabulary's gradient in float32 too.

Edges. Neither N, V nor D need be a multiple of anything: loads beyond an end are masked. Row tiles from `rows` on cost
the kernels nothing. The matmuls go over the smallest of a few lengths that covers `rows`: a loop of a number of steps
that only the device knows would stop for the host at each of them.

Kernels go through Triton, for Hopper and Ampere alike. XLA compiles them only where there is a GPU, Triton's own
compiler also without one (`benchmarks/triton_aot.py`).

Letters: N tokens, V vocabulary, D features.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float, Int

from mi_align.logprobs._pallas_common import (
    LOWEST,
    PerRow,
    Tiles,
    contract,
    cotangent,
    counts,
    inside,
    logits_of,
    within,
)

__all__ = ["backward", "forward", "tiles_for"]

KIB = 2**10
HOPPER = ("H100", "H200", "GH200")
#: Shared memory that one block may use, by the part of `device_kind` that names the generation; elsewhere 96 KiB.
SHARED = dict.fromkeys(HOPPER, 227 * KIB) | {"A100": 163 * KIB}
ANY_SHARED = 96 * KIB
WARPS, STAGES = 8, 3
#: Programs that keep every multiprocessor busy: four for each of 132.
PROGRAMS = 528
#: Rows and vocabulary of a chunk of the backward pass; of a wide vocabulary matrix half as much is as fast.
CHUNK, WIDE = (8192, 4096), 2048
#: Into how many lengths the rows are divided, of which the matmuls take one, and how short it may be.
LENGTHS, SHORTEST = 8, 512


def tiles_for(N: int, D: int, V: int, dtype: Any, device_kind: str) -> Tiles:
    """The tiles of a program, from a model of the device's memory.

    Float32 sums of a tile live in the registers of `WARPS` warps: 128 × 128 take 64 of the 255 that a thread has, which
    leaves room for the element-wise part. Hopper's matrix units read their operands from shared memory and leave room
    for twice as many: a sixth faster there, where hidden states are read again for each tile of the vocabulary.
    Products of float32 with all digits run outside the matrix units, where a quarter is enough. Shared memory holds
    `STAGES` tiles of both inputs; the features of a step shrink until they fit.

    Args:
      N: tokens.
      D: features.
      V: vocabulary.
      dtype: of the hidden states and the vocabulary matrix.
      device_kind: as `jax.devices()[0].device_kind` tells it, e.g. `"NVIDIA H100 80GB HBM3"`.

    >>> tiles_for(8192, 4096, 128256, "bfloat16", "NVIDIA H100 80GB HBM3")
    Tiles(rows=128, vocabulary=256, features=64)
    """
    size = jnp.dtype(dtype).itemsize
    side = 128 if size <= 2 else 64
    wide = 2 * side if size <= 2 and any(name in device_kind for name in HOPPER) else side
    rows, vocabulary, features = _power_of_two(N, side), _power_of_two(V, wide), _power_of_two(D, side // 2)
    shared = next((bytes_ for name, bytes_ in SHARED.items() if name in device_kind), ANY_SHARED)
    while STAGES * size * features * (rows + vocabulary) > shared and features > 16:
        features //= 2
    return Tiles(rows, vocabulary, features)


def _power_of_two(length: int, most: int) -> int:
    """The smallest power of two that covers `length`, from 16 on, which the matrix units want, to `most`."""
    return min(max(pl.next_power_of_2(length), 16), most)


def forward(
    hidden: Float[Array, "N D"],
    vocabulary: Float[Array, "V D"],
    targets: Int[Array, " N"],
    bias: Float[Array, " V"] | None = None,
    *,
    scale: Any = 1.0,
    soft_cap: Any = None,
    rows: Int[Array, ""] | int | None = None,
    entries: Int[Array, ""] | int | None = None,
    tiles: Tiles | None = None,
    shares: int | None = None,
    device_kind: str = "",
    interpret: bool = False,
) -> tuple[Float[Array, " N"], Float[Array, " N"], Float[Array, " N"]]:
    """Each token's logit at its target, largest logit, and log Σ exp(logit − largest), in float32; 0 from `rows` on.

    Args:
      hidden: last hidden states, `[N, D]`, float32, bfloat16 or float16.
      vocabulary: one row a token of the vocabulary, `[V, D]`.
      targets: ids, `[N]`; the target logit of an id outside [0, `entries`) is 0.
      bias: added to the logits, `[V]`; −∞ forbids a token.
      scale: factor of h·v.
      soft_cap: logits are soft_cap·tanh(·/soft_cap). Default: no cap.
      rows: how many rows count. Default: all.
      entries: how many entries of the vocabulary count. Default: all.
      tiles: see `tiles_for`, which is the default.
      shares: into how many parts the vocabulary goes. Default: as many as make no more than `PROGRAMS` programs, a few
        full waves.
      device_kind: what `tiles_for` is asked for.
      interpret: `True` runs without a GPU.
    """
    (N, D), V = hidden.shape, vocabulary.shape[0]
    tiles = tiles or tiles_for(N, D, V, hidden.dtype, device_kind)
    row_tiles, column_tiles = pl.cdiv(N, tiles.rows), pl.cdiv(V, tiles.vocabulary)
    each = pl.cdiv(column_tiles, min(shares or max(1, PROGRAMS // row_tiles), column_tiles))
    shares = pl.cdiv(column_tiles, each)
    kept = counts(rows, N, entries, V)
    arrays = [hidden, vocabulary, inside(targets, kept[1]), *([] if bias is None else [bias])]
    part = jax.ShapeDtypeStruct((shares, N), jnp.float32)
    chosen, top, total = pl.pallas_call(
        functools.partial(_forward, tiles=tiles, each=each, capped=soft_cap is not None),
        grid=(shares, row_tiles),  # all shares of a few rows at a time, whose hidden states then stay in the cache
        out_shape=[part] * 3,
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        name="logprobs_forward",
        interpret=interpret,
    )(kept, _factors(scale, soft_cap), *arrays)
    highest = jnp.max(top, axis=0)
    log_mass = jnp.log(jnp.sum(total * jnp.exp(top - highest[None, :]), axis=0))
    used = jnp.arange(N) < kept[0]
    return jnp.where(used, jnp.sum(chosen, axis=0), 0), jnp.where(used, highest, 0), jnp.where(used, log_mass, 0)


def _forward(kept: Any, factors: Any, *refs: Any, tiles: Tiles, each: int, capped: bool) -> None:
    """One row tile against one share of the vocabulary: the target's logit, the maximum, and Σ exp(logit − maximum)."""
    hidden, vocabulary, targets, *bias, chosen_out, top_out, total_out = refs
    (N, _), V = hidden.shape, vocabulary.shape[0]
    share, first_row = pl.program_id(0), pl.program_id(1) * tiles.rows
    here = pl.ds(first_row, tiles.rows)
    in_reach = first_row + jnp.arange(tiles.rows) < N
    target = plgpu.load(targets.at[here], mask=in_reach, other=-1)
    soft_cap = factors[1] if capped else None

    def tile(j: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        chosen, top, total = carry
        start = j * tiles.vocabulary
        logits = _logits(hidden, vocabulary, bias, first_row, start, factors[0], soft_cap, tiles)
        column = (start + jnp.arange(tiles.vocabulary))[None, :]
        logits = jnp.where(column < kept[1], logits, -jnp.inf)
        chosen = chosen + jnp.sum(jnp.where(column == target[:, None], logits, 0), axis=1)
        higher = jnp.maximum(top, jnp.max(logits, axis=1))
        total = total * jnp.exp(top - higher) + jnp.sum(jnp.exp(logits - higher[:, None]), axis=1)
        return chosen, higher, total

    nothing = jnp.zeros(tiles.rows, jnp.float32)
    start = share * each
    end = jnp.minimum(start + each, pl.cdiv(V, tiles.vocabulary))
    end = jnp.where(first_row < kept[0], end, start)
    results = jax.lax.fori_loop(start, end, tile, (nothing, jnp.full_like(nothing, LOWEST), nothing))
    for out, result in zip((chosen_out, top_out, total_out), results, strict=True):
        plgpu.store(out.at[share, here], result, mask=in_reach)


def _logits(
    hidden: Any, vocabulary: Any, bias: Any, first_row: Any, first_column: Any, scale: Any, soft_cap: Any, tiles: Tiles
) -> Float[Array, "rows vocabulary"]:
    """A tile of logits; what lies beyond the arrays' ends counts as 0."""
    (N, D), V = hidden.shape, vocabulary.shape[0]
    row_in_reach = (first_row + jnp.arange(tiles.rows) < N)[:, None]
    in_reach = first_column + jnp.arange(tiles.vocabulary) < V
    columns = pl.ds(first_column, tiles.vocabulary)

    def step(k: Any, products: Array) -> Array:
        features = pl.ds(k * tiles.features, tiles.features)
        feature_in_reach = (k * tiles.features + jnp.arange(tiles.features) < D)[None, :]
        h = hidden.at[pl.ds(first_row, tiles.rows), features]
        v = vocabulary.at[columns, features]
        x = plgpu.load(h, mask=row_in_reach & feature_in_reach, other=0)
        y = plgpu.load(v, mask=in_reach[:, None] & feature_in_reach, other=0)
        return products + contract(x, y, (1, 1))

    nothing = jnp.zeros((tiles.rows, tiles.vocabulary), jnp.float32)
    products = jax.lax.fori_loop(0, pl.cdiv(D, tiles.features), step, nothing)
    added = [plgpu.load(b.at[columns], mask=in_reach, other=0)[None, :] for b in bias]
    return logits_of(products, added[0] if added else None, scale, soft_cap)


def backward(
    hidden: Float[Array, "N D"],
    vocabulary: Float[Array, "V D"],
    targets: Int[Array, " N"],
    bias: Float[Array, " V"] | None,
    top: Float[Array, " N"],
    log_mass: Float[Array, " N"],
    t: Float[Array, " N"],
    a: Float[Array, " N"],
    b: Float[Array, " N"],
    c: Float[Array, " N"],
    m: Float[Array, " N"],
    *,
    scale: Any = 1.0,
    soft_cap: Any = None,
    rows: Int[Array, ""] | int | None = None,
    entries: Int[Array, ""] | int | None = None,
    wanted: tuple[bool, bool] = (True, True),
    tiles: Tiles | None = None,
    chunk: tuple[int, int] | None = None,
    device_kind: str = "",
    interpret: bool = False,
) -> tuple[Float[Array, "N D"] | None, Float[Array, "V D"] | None, Float[Array, " V"] | None]:
    """Gradients by scale·`hidden`, `vocabulary` and `bias`, in their dtypes; `PerRow` says what t, a, b, c and m are.

    Sums are in float32. With half-precision inputs the derivative of a chunk is rounded to their dtype before it is
    multiplied, as the operands of a matmul in that dtype are.

    Args:
      hidden: as in `forward`; `vocabulary`, `targets`, `bias`, `scale`, `soft_cap`, `rows`, `entries`, `device_kind`
        and `interpret` as well.
      top: what `forward` returned; `log_mass` as well.
      t: factor of the target's indicator, `[N]`; a, b, c: factors of p, p·(z − top) and p²; m: added to every column.
      wanted: whether the gradient by `hidden` is, and whether those by `vocabulary` and `bias` are; what is not is None
        and costs nothing.
      tiles: of the kernel.
      chunk: rows and vocabulary of a chunk. Default: `CHUNK`, half of it from `WIDE` features on.
    """
    (N, D), V = hidden.shape, vocabulary.shape[0]
    tiles = tiles or tiles_for(N, D, V, hidden.dtype, device_kind)
    chunk = chunk or (CHUNK if D < WIDE else (CHUNK[0], CHUNK[1] // 2))
    kept = counts(rows, N, entries, V)
    numbers = [inside(targets, V), *(x.astype(jnp.float32) for x in (top, log_mass, t, a, b, c, m))]
    arrays = [hidden, vocabulary, *PerRow(*numbers), *([] if bias is None else [bias])]
    factors = _factors(scale, soft_cap)
    plain = isinstance(scale, int | float) and scale == 1

    def over(length: int) -> tuple[Array | None, Array | None, Array | None]:
        """All three, from the first `length` rows."""
        sizes = min(chunk[0], length), min(chunk[1], V)
        slopes_at = functools.partial(
            _slopes_at, arrays, kept, factors, length, sizes, tiles, bias is not None, soft_cap is not None, interpret
        )
        front = hidden[:length] if rows is None else within(hidden[:length], 0, kept[0], 0)
        return _over_chunks(slopes_at, front, vocabulary, sizes, None if plain else factors[0], wanted)

    def padded(length: int) -> tuple[Array | None, Array | None, Array | None]:
        d_hidden, d_vocabulary, d_bias = over(length)
        d_hidden = None if d_hidden is None else jnp.pad(d_hidden, ((0, N - length), (0, 0)))
        return d_hidden, d_vocabulary, d_bias

    if rows is None:
        slopes = over(N)
    else:
        step = min(N, max(SHORTEST, tiles.rows * pl.cdiv(pl.cdiv(N, LENGTHS), tiles.rows)))
        lengths = [min(N, step * (i + 1)) for i in range(pl.cdiv(N, step))]
        which = jnp.clip((kept[0] - 1) // step, 0, len(lengths) - 1)
        slopes = jax.lax.switch(which, [functools.partial(padded, length) for length in lengths])
    d_hidden, d_vocabulary, d_bias = slopes
    return (
        None if d_hidden is None else d_hidden.astype(hidden.dtype),
        d_vocabulary,
        None if bias is None or d_bias is None or not wanted[1] else d_bias.astype(bias.dtype),
    )


def _slopes_at(
    arrays: list[Array],
    kept: Array,
    factors: Array,
    length: int,
    sizes: tuple[int, int],
    tiles: Tiles,
    biased: bool,
    capped: bool,
    interpret: bool,
    row: Any,
    column: Any,
) -> list[Array]:
    """The derivative by the logits of the chunk that is wanted from `row` and `column` on; 0 wherever another chunk has
    been, or none is wanted. With a bias also its sums over the rows of each tile, in float32."""
    hidden, vocabulary, *_ = arrays
    bounds = jnp.stack(
        [*kept, row, _start(row, sizes[0], length), column, _start(column, sizes[1], vocabulary.shape[0])]
    ).astype(jnp.int32)
    row_tiles, column_tiles = pl.cdiv(sizes[0], tiles.rows), pl.cdiv(sizes[1], tiles.vocabulary)
    slopes = jax.ShapeDtypeStruct(sizes, jnp.promote_types(hidden.dtype, vocabulary.dtype))
    sums = jax.ShapeDtypeStruct((row_tiles, sizes[1]), jnp.float32)
    return pl.pallas_call(
        functools.partial(_slopes, tiles=tiles, biased=biased, capped=capped),
        grid=(column_tiles, row_tiles),  # as in `forward`: a chunk of the vocabulary stays in the cache
        out_shape=[slopes, sums] if biased else [slopes],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        name="logprobs_slopes",
        interpret=interpret,
    )(bounds, factors, *arrays)


def _over_chunks(
    slopes_at: Any,
    hidden: Array,
    vocabulary: Array,
    chunk: tuple[int, int],
    scale: Array | None,
    wanted: tuple[bool, bool],
) -> tuple[Array | None, Array | None, Array | None]:
    """Both gradients and that of a bias: for each chunk of the vocabulary all chunks of rows.

    The last chunk of an axis is as long as the others and begins earlier; its `slopes` are 0 where it goes over old
    ground, so that adding it changes nothing there.
    """
    (N, D), V = hidden.shape, vocabulary.shape[0]
    row_chunks = pl.cdiv(N, chunk[0])
    # One product makes a chunk's gradient, whose sums cuBLAS takes in float32 whatever it writes.
    d_v_dtype = vocabulary.dtype if row_chunks == 1 and scale is None else jnp.dtype(jnp.float32)

    def vocabulary_chunk(j: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        d_hidden, d_vocabulary, d_bias = carry
        column = _start(j * chunk[1], chunk[1], V)
        v = jax.lax.dynamic_slice(vocabulary, (column, 0), (chunk[1], D))

        def row_chunk(i: Any, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            d_hidden, d_v, d_b = carry
            row = _start(i * chunk[0], chunk[0], N)
            slopes, *sums = slopes_at(i * chunk[0], j * chunk[1])
            d_b = d_b + jnp.sum(sums[0], axis=0) if sums else d_b
            if wanted[0]:
                d_hidden = _add_at(d_hidden, contract(slopes, v, (1, 0)), row)
            if wanted[1]:
                h = jax.lax.dynamic_slice(hidden, (row, 0), (chunk[0], D))
                d_v = d_v + contract(slopes, h, (0, 0), d_v_dtype)
            return d_hidden, d_v, d_b

        nothing = jnp.zeros((chunk[1], D if wanted[1] else 0), d_v_dtype), jnp.zeros(chunk[1], jnp.float32)
        carry = d_hidden, *nothing
        d_hidden, d_v, d_b = (
            jax.lax.fori_loop(0, row_chunks, row_chunk, carry) if row_chunks > 1 else row_chunk(0, carry)
        )
        if not wanted[1]:
            return d_hidden, d_vocabulary, d_bias
        d_v = d_v if scale is None else scale * d_v
        return d_hidden, _add_at(d_vocabulary, d_v, column), _add_at(d_bias, d_b, column)

    shapes = ((N, D) if wanted[0] else (0,)), (vocabulary.shape if wanted[1] else (0,)), (V,)
    dtypes = jnp.float32, vocabulary.dtype, jnp.float32
    nothing = tuple(jnp.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True))
    d_hidden, d_vocabulary, d_bias = jax.lax.fori_loop(0, pl.cdiv(V, chunk[1]), vocabulary_chunk, nothing)
    return d_hidden if wanted[0] else None, d_vocabulary if wanted[1] else None, d_bias


def _start(wanted: Any, length: int, limit: int) -> Any:
    """Where a chunk begins: where it is wanted, or earlier, so as to end within the array."""
    return jnp.minimum(wanted, limit - length).astype(jnp.int32)


def _add_at(total: Array, part: Array, start: Any) -> Array:
    """`total` with `part` added from `start` on along the first axis."""
    old = jax.lax.dynamic_slice_in_dim(total, start, part.shape[0], 0)
    return jax.lax.dynamic_update_slice_in_dim(total, old + part.astype(total.dtype), start, 0)


def _slopes(bounds: Any, factors: Any, *refs: Any, tiles: Tiles, biased: bool, capped: bool) -> None:
    """One tile of the derivative by scale·h·v + bias. Bounds: `counts`; wanted and actual row; and column."""
    hidden, vocabulary, *rest = refs
    numbers, rest = rest[: len(PerRow._fields)], rest[len(PerRow._fields) :]
    bias, (out, *sums) = (rest[:1], rest[1:]) if biased else ([], rest)
    j, i = pl.program_id(0) * tiles.vocabulary, pl.program_id(1) * tiles.rows
    soft_cap = factors[1] if capped else None
    first_row, first_column = bounds[3] + i, bounds[5] + j
    row, column = first_row + jnp.arange(tiles.rows), first_column + jnp.arange(tiles.vocabulary)
    used = (row >= bounds[2]) & (row < bounds[0])
    rows = pl.ds(first_row, tiles.rows)
    per_row = PerRow(*(plgpu.load(x.at[rows], mask=used, other=0)[:, None] for x in numbers))
    logits = _logits(hidden, vocabulary, bias, first_row, first_column, factors[0], soft_cap, tiles)
    slope = cotangent(logits, column[None, :], per_row, soft_cap)
    wanted = used[:, None] & ((column >= bounds[4]) & (column < bounds[1]))[None, :]
    slope = jnp.where(wanted, slope, 0)
    here, columns = pl.ds(i, tiles.rows), pl.ds(j, tiles.vocabulary)
    row_in_reach, in_reach = i + jnp.arange(tiles.rows) < out.shape[0], j + jnp.arange(tiles.vocabulary) < out.shape[1]
    plgpu.store(out.at[here, columns], slope.astype(out.dtype), mask=row_in_reach[:, None] & in_reach[None, :])
    for total in sums:
        plgpu.store(total.at[pl.program_id(1), columns], jnp.sum(slope, axis=0), mask=in_reach)


def _factors(scale: Any, soft_cap: Any) -> Float[Array, " 2"]:
    """Scale and cap, as the kernels read them."""
    return jnp.stack([jnp.asarray(x, jnp.float32) for x in (scale, 0 if soft_cap is None else soft_cap)])
