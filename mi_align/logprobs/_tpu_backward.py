"""The TPU kernels of the backward pass. `pallas_tpu` says how they go about it.

Grid: tiles of the own side, tiles of the other side, steps over the features, there and back again. On the way there
the tile's logits are made, at the turn their derivative ("slopes"), on the way back the gradients: that of the own side
in vector memory until all other tiles have been; that of the other side, where one kernel makes both, in main memory,
from where each step fetches a block, adds to it, and sends it back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from mi_align.logprobs._pallas_common import PerRow, Tiles, contract, cotangent, logits_of, within
from mi_align.logprobs._tpu_parts import (
    LANES,
    STRIP,
    SUBLANES,
    add_products,
    cost,
    last_row_tile,
    memory,
    optional,
    parameters,
    strip_by_strip,
    upright,
)

__all__ = ["Kind", "gradients"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kernel of the backward pass.

    Attributes:
      own: whose gradient it makes: "rows", "vocabulary", or "both", which goes by the vocabulary.
      tiles: its tiles.
      shape: N, V and D.
      biased: whether there is a bias.
      capped: whether there is a soft cap.
    """

    own: str
    tiles: Tiles
    shape: tuple[int, int, int]
    biased: bool
    capped: bool

    @property
    def by_rows(self) -> bool:
        """Whether the first axis of the tile of logits is that of the rows."""
        return self.own == "rows"

    @property
    def steps(self) -> int:
        """Steps over the features, one way."""
        return pl.cdiv(self.shape[2], self.tiles.features)

    @property
    def sides(self) -> tuple[int, int]:
        """The tile's length along the own side, and along the other."""
        rows, vocabulary, _ = self.tiles
        return (rows, vocabulary) if self.by_rows else (vocabulary, rows)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Own tiles, other tiles, steps."""
        N, V, _ = self.shape
        lengths = (N, V) if self.by_rows else (V, N)
        own, other = (pl.cdiv(length, side) for length, side in zip(lengths, self.sides, strict=True))
        return own, other, 2 * self.steps


def gradients(
    kind: Kind,
    hidden: Array,
    vocabulary: Array,
    per_row: Float[Array, "8 N"],
    bias: Array | None,
    scalars: tuple[Array, Array],
    interpret: Any,
) -> list[Array]:
    """The gradient by the own side; for "both" then that by the rows, in float32; then that by a bias, `[1, V]`."""
    mine, other = (hidden, vocabulary) if kind.by_rows else (vocabulary, hidden)
    (size, across), features, (N, V, D) = kind.sides, kind.tiles.features, kind.shape
    at = _blocks(kind.own, kind.tiles, kind.grid)
    specs = {
        "mine": pl.BlockSpec((size, features), at["mine"]),
        "other": pl.BlockSpec((across, features), at["other"]),
        "per_row": pl.BlockSpec((SUBLANES, kind.tiles.rows), at["per_row"]),
        "bias": pl.BlockSpec((1, kind.tiles.vocabulary), at["bias"]),
        "rows": pl.BlockSpec(memory_space=pl.ANY),
    }
    inputs = {"mine": mine, "other": other, "per_row": per_row}
    outputs = {"out": (pl.BlockSpec((size, features), at["out"]), jax.ShapeDtypeStruct(mine.shape, mine.dtype))}
    scratch = [
        pltpu.VMEM((size, across), jnp.float32),
        pltpu.VMEM((size, across), other.dtype),
        pltpu.VMEM((kind.steps, size, features), jnp.float32),
    ]
    if kind.own == "both":
        whole = pl.cdiv(N, kind.tiles.rows) * kind.tiles.rows, kind.steps * features
        inputs["rows"] = jnp.zeros(whole, jnp.float32)
        outputs["rows"] = specs["rows"], jax.ShapeDtypeStruct(whole, jnp.float32)
        scratch += [pltpu.VMEM((across, features), jnp.float32), pltpu.SMEM((1,), jnp.int32)]
        scratch += [pltpu.SemaphoreType.DMA((2,))]
    if bias is not None:
        inputs["bias"] = bias[None, :]
        if not kind.by_rows:
            d_bias = jax.ShapeDtypeStruct((1, V), bias.dtype)
            outputs["d_bias"] = pl.BlockSpec((1, size), lambda o, x, q, *_: (0, o)), d_bias
            scratch += [pltpu.VMEM((size, 1), jnp.float32)]
    out_specs, out_shape = zip(*outputs.values(), strict=True)
    results = pl.pallas_call(
        functools.partial(_kernel, kind=kind),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=kind.grid,
            in_specs=[specs[name] for name in inputs],
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        out_shape=out_shape,
        input_output_aliases={5: 1} if kind.own == "both" else {},
        compiler_params=parameters(memory(kind.tiles, D, hidden.dtype, kind.own), in_order=kind.own == "both"),
        cost_estimate=cost(N, D, V, 6 if kind.own == "both" else 4, list(inputs.values())),
        name=f"logprobs_backward_{kind.own}",
        interpret=interpret,
    )(*scalars, *inputs.values())
    return list(results)


def _blocks(own: str, tiles: Tiles, grid: tuple[int, int, int]) -> dict[str, Callable[..., Any]]:
    """Which block of each array a step needs. Where a row tile is skipped it is the block already there."""
    by_rows, steps = own == "rows", grid[2] // 2

    def feature(q: Any) -> Any:
        return jnp.where(q < steps, q, 2 * steps - 1 - q)

    def used(o: Any, x: Any, kept: Any) -> Any:
        return (o if by_rows else x) * tiles.rows < kept[0]

    def mine(o: Any, x: Any, q: Any, kept: Any, _: Any) -> tuple[Any, Any]:
        o = jnp.minimum(o, last_row_tile(kept, tiles)) if by_rows else o
        if own == "both":
            return o, jnp.where(used(o, x, kept), feature(q), 0)
        return o, jnp.where(used(o, x, kept), jnp.minimum(q, steps - 1), steps - 1)

    def other(o: Any, x: Any, q: Any, kept: Any, _: Any) -> tuple[Any, Any]:
        stays = grid[1] - 1 if by_rows else jnp.minimum(x, last_row_tile(kept, tiles))
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


def _kernel(kept: Any, scalars: Any, *refs: Any, kind: Kind) -> None:
    """One step of the grid."""
    by_rows, steps, (N, V, D) = kind.by_rows, kind.steps, kind.shape
    mine, other, per_row, *rest = refs
    rest = rest[1:] if kind.own == "both" else rest  # the zeros, which are the gradient by the rows under another name
    bias, (out, *rest) = optional(rest, kind.biased)
    d_rows, rest = optional(rest, kind.own == "both")
    d_bias, (products, slopes, gradient, *rest) = optional(rest, kind.biased and not by_rows)
    travelling, totals = (rest[:3], rest[3:]) if kind.own == "both" else ([], rest)
    own, across, q = (pl.program_id(axis) for axis in range(3))
    row_tile, column_tile = (own, across) if by_rows else (across, own)
    used, back, last = row_tile * kind.tiles.rows < kept[0], q >= steps, across == pl.num_programs(1) - 1

    @pl.when((across == 0) & (q == 0))
    def _() -> None:
        for x in (gradient, *totals):
            x[...] = jnp.zeros_like(x)

    @pl.when(used & jnp.logical_not(back))
    def _() -> None:
        add_products(products, mine, other, q, kind.tiles.features, D)

    @pl.when(used & (q == steps - 1))
    def _() -> None:
        _slopes(kept, scalars, products, per_row, bias, slopes, totals, row_tile, column_tile, kind)

    if kind.own == "both":
        _rows_gradient(d_rows, travelling, slopes, mine, used & back, V, kind)

    @pl.when(used & back)
    def _() -> None:
        end = V if by_rows else jnp.minimum(kept[0], N)
        _times_valid(
            slopes, other, across * other.shape[0], end, (1, 0), functools.partial(_add, gradient, 2 * steps - 1 - q)
        )

    @pl.when(last & back)
    def _() -> None:
        whole = gradient[2 * steps - 1 - q]
        out[...] = (whole if by_rows else scalars[0] * whole).astype(out.dtype)

    @pl.when(last & (q == 2 * steps - 1))
    def _() -> None:
        for total in totals:
            d_bias[...] = jnp.broadcast_to(total[...], (total.shape[0], LANES)).T[:1].astype(d_bias.dtype)


def _slopes(
    kept: Any,
    scalars: Any,
    products: Any,
    per_row: Any,
    bias: Any,
    slopes: Any,
    totals: list[Any],
    row_tile: Any,
    column_tile: Any,
    kind: Kind,
) -> None:
    """The derivative by scale·h·v + bias of a whole tile, and its sum for the bias; 0 where a row or column is none."""
    soft_cap = scalars[1] if kind.capped else None

    def strip(start: Any) -> None:
        here = pl.ds(start, STRIP)
        added = None if bias is None else bias[...] if kind.by_rows else upright(bias[:, here])
        logits = logits_of(products[here, :], added, scalars[0], soft_cap)
        along = [jax.lax.broadcasted_iota(jnp.int32, logits.shape, axis) for axis in (0, 1)]
        along[0] += start
        in_row, in_column = along if kind.by_rows else reversed(along)
        row, column = row_tile * kind.tiles.rows + in_row, column_tile * kind.tiles.vocabulary + in_column
        slope = cotangent(logits, column, _per_row(per_row, here, kind.by_rows), soft_cap)
        slope = jnp.where((row < kept[0]) & (column < kept[1]), slope, 0)
        slopes[here, :] = slope.astype(slopes.dtype)
        for total in totals:
            total[here, :] += jnp.sum(slope, axis=1, keepdims=True)

    strip_by_strip(strip, products.shape[0])


def _rows_gradient(d_rows: Any, travelling: list[Any], slopes: Any, mine: Any, due: Any, V: int, kind: Kind) -> None:
    """Adds slopesᵀ @ vocabulary to a block of the rows' gradient in main memory.

    A block is fetched while its step multiplies, and on its way back until the next block is wanted: `busy` remembers
    that there is one to wait for. The very last is waited for at the end of the grid.
    """
    block, busy, semaphores = travelling
    own, across, q = (pl.program_id(axis) for axis in range(3))
    rows, _, features = kind.tiles
    here = pl.ds(across * rows, rows), pl.ds((2 * kind.steps - 1 - q) * features, features)
    fetch = pltpu.make_async_copy(d_rows.at[here], block, semaphores.at[0])
    send = pltpu.make_async_copy(block, d_rows.at[here], semaphores.at[1])

    @pl.when((own == 0) & (across == 0) & (q == 0))
    def begin() -> None:
        busy[0] = 0

    @pl.when(due)
    def add_block() -> None:
        pl.when(busy[0] == 1)(send.wait)

        fetch.start()

        def add(part: Array) -> None:
            fetch.wait()
            block[...] += part

        _times_valid(slopes, mine, own * mine.shape[0], V, (0, 0), add)
        send.start()
        busy[0] = 1

    done = (own == pl.num_programs(0) - 1) & (across == pl.num_programs(1) - 1) & (q == 2 * kind.steps - 1)

    pl.when(done & (busy[0] == 1))(send.wait)


def _times_valid(
    slopes: Any, x: Any, start: Any, end: Any, axes: tuple[int, int], add: Callable[[Array], None]
) -> None:
    """`add` of slopes times `x`; what `x` holds beyond its end is no number to multiply with, not even by 0."""
    whole = start + x.shape[0] <= end

    @pl.when(whole)
    def _() -> None:
        add(contract(slopes[...], x[...], axes))

    @pl.when(jnp.logical_not(whole))
    def _() -> None:
        add(contract(slopes[...], within(x[...], start, end, 0), axes))


def _add(gradient: Any, step: Any, part: Array) -> None:
    gradient[step] += part


def _per_row(packed: Any, here: Any, by_rows: bool) -> PerRow:
    """The eight rows of numbers: one strip of them, as columns, or all where rows run along the second axis."""
    numbers = packed[:, here].T if by_rows else packed[...]
    fields = [numbers[:, n : n + 1] if by_rows else numbers[n : n + 1] for n in range(len(PerRow._fields))]
    return PerRow(fields[0].astype(jnp.int32), *fields[1:])
