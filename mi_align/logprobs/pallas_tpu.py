"""The TPU way: logits exist one tile at a time, in the chip's own memory, forward and backward.

`forward` goes through the vocabulary once with a running log-sum-exp: 2·N·V·D floating-point operations. `backward`
makes each tile's logits again. On a chip whose core is alone (v5e, v6e) one kernel makes both gradients from them,
6·N·V·D operations of which 2 are recomputation; the vocabulary's gradient stays in the chip's memory until it is whole,
the hidden states' is added to in main memory, in float32. Elsewhere (v5p: two cores) there is a kernel for each
gradient, so that the cores can share its tiles in any order, with logits made twice: 8·N·V·D. A tile's features come in
steps, hence D may be large.

Edges. Neither N, V nor D need be a multiple of a tile: columns beyond V, or beyond `entries`, get the logit −∞ in the
forward pass and the derivative 0 in the backward pass, and what the chip reads beyond an array's end is replaced before
it is multiplied. Row tiles beyond `rows` cost no arithmetic and no traffic; zeros are written there, whatever is in
them.

Layout. One number a token would be padded to 128 by the chip if it lay along the first axis, so that all of them travel
as eight rows, `[8, N]`, and turn inside the kernel where that is needed.

Letters: N tokens, V vocabulary, D features. Grid axes: own tile, other tile, step (over features; in the backward pass
there and back again, so that the step at the turn is not read twice).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from mi_align.logprobs._pallas_common import LOWEST, PerRow, Tiles, counts, inside, logits_of, packed
from mi_align.logprobs._tpu_backward import Kind, gradients
from mi_align.logprobs._tpu_parts import (
    ANY_CHIP,
    CHIPS,
    STRIP,
    add_products,
    cost,
    last_row_tile,
    memory,
    optional,
    parameters,
    scalars,
    strip_by_strip,
    tiles_for,
    upright,
)

__all__ = ["backward", "forward", "tiles_for"]


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
    device_kind: str = "",
    interpret: Any = False,
) -> tuple[Float[Array, " N"], Float[Array, " N"], Float[Array, " N"]]:
    """Each token's logit at its target, largest logit, and log Σ exp(logit − largest), in float32; 0 from `rows` on.

    Args:
      hidden: last hidden states, `[N, D]`, float32 or bfloat16.
      vocabulary: one row a token of the vocabulary, `[V, D]`.
      targets: ids, `[N]`; the target logit of an id outside [0, `entries`) is 0.
      bias: added to the logits, `[V]`; −∞ forbids a token.
      scale: factor of h·v.
      soft_cap: logits are soft_cap·tanh(·/soft_cap). Default: no cap.
      rows: how many rows count. Default: all.
      entries: how many entries of the vocabulary count. Default: all.
      tiles: see `tiles_for`, which is the default.
      device_kind: what `tiles_for` is asked for.
      interpret: `True` or `pltpu.InterpretParams()` run without a TPU.
    """
    (N, D), V = hidden.shape, vocabulary.shape[0]
    tiles = tiles_for(N, D, V, hidden.dtype, device_kind) if tiles is None else tiles
    grid = (pl.cdiv(N, tiles.rows), pl.cdiv(V, tiles.vocabulary), pl.cdiv(D, tiles.features))

    def hidden_block(i: Any, j: Any, k: Any, kept: Any, _: Any) -> tuple[Any, Any]:
        used = i * tiles.rows < kept[0]
        return jnp.minimum(i, last_row_tile(kept, tiles)), jnp.where(used, k, grid[2] - 1)

    def vocabulary_block(i: Any, j: Any, k: Any, kept: Any, _: Any) -> tuple[Any, Any]:
        used = i * tiles.rows < kept[0]
        return jnp.where(used, j, grid[1] - 1), jnp.where(used, k, grid[2] - 1)

    row_block = pl.BlockSpec((1, tiles.rows), lambda i, j, k, *_: (0, i))
    in_specs = [
        pl.BlockSpec((tiles.rows, tiles.features), hidden_block),
        pl.BlockSpec((tiles.vocabulary, tiles.features), vocabulary_block),
        row_block,
    ]
    kept = counts(rows, N, entries, V)
    arrays = [hidden, vocabulary, inside(targets, kept[1])[None, :]]
    if bias is not None:
        in_specs.append(pl.BlockSpec((1, tiles.vocabulary), lambda *at: (0, vocabulary_block(*at)[0])))
        arrays.append(bias[None, :])
    a_row = jax.ShapeDtypeStruct((1, N), jnp.float32)
    results = pl.pallas_call(
        functools.partial(_forward, tiles=tiles, D=D, biased=bias is not None, capped=soft_cap is not None),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=grid,
            in_specs=in_specs,
            out_specs=[row_block] * 3,
            scratch_shapes=[
                pltpu.VMEM((tiles.vocabulary, tiles.rows), jnp.float32),
                *[pltpu.VMEM((1, tiles.rows), jnp.float32)] * 3,
            ],
        ),
        out_shape=[a_row] * 3,
        compiler_params=parameters(memory(tiles, D, hidden.dtype)),
        cost_estimate=cost(N, D, V, 2, arrays),
        name="logprobs_forward",
        interpret=interpret,
    )(*scalars(kept, scale, soft_cap), *arrays)
    target_logit, top, log_mass = (x[0] for x in results)
    return target_logit, top, log_mass


def _forward(kept: Any, scalars: Any, *refs: Any, tiles: Tiles, D: int, biased: bool, capped: bool) -> None:
    """Logits stand as [vocabulary, rows]: the sum over the vocabulary then adds whole vectors."""
    hidden, vocabulary, targets, *rest = refs
    bias, (*outs, products, top, total, chosen) = optional(rest, biased)
    i, j, k = (pl.program_id(axis) for axis in range(3))
    last_j, last_k = pl.num_programs(1) - 1, pl.num_programs(2) - 1

    @pl.when((j == 0) & (k == 0))
    def _() -> None:
        top[...] = jnp.full_like(top, LOWEST)
        total[...] = jnp.zeros_like(total)
        chosen[...] = jnp.zeros_like(chosen)

    @pl.when(i * tiles.rows < kept[0])
    def _() -> None:
        add_products(products, vocabulary, hidden, k, tiles.features, D)

        @pl.when(k == last_k)
        def _() -> None:
            def strip(start: Any) -> None:
                here = pl.ds(start, STRIP)
                added = None if bias is None else upright(bias[:, here])
                logits = logits_of(products[here, :], added, scalars[0], scalars[1] if capped else None)
                column = j * tiles.vocabulary + start + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 0)
                logits = jnp.where(column < kept[1], logits, -jnp.inf)
                chosen[...] += jnp.sum(jnp.where(column == targets[...], logits, 0), axis=0, keepdims=True)
                higher = jnp.maximum(top[...], jnp.max(logits, axis=0, keepdims=True))
                summed = jnp.sum(jnp.exp(logits - higher), axis=0, keepdims=True)
                total[...] = total[...] * jnp.exp(top[...] - higher) + summed
                top[...] = higher

            strip_by_strip(strip, tiles.vocabulary)

    @pl.when((j == last_j) & (k == last_k))
    def _() -> None:
        row = i * tiles.rows + jax.lax.broadcasted_iota(jnp.int32, top.shape, 1)
        for out, result in zip(outs, (chosen[...], top[...], jnp.log(total[...])), strict=True):
            out[...] = jnp.where(row < kept[0], result, 0)


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
    tiles: tuple[Tiles, ...] | None = None,
    device_kind: str = "",
    interpret: Any = False,
) -> tuple[Float[Array, "N D"] | None, Float[Array, "V D"] | None, Float[Array, " V"] | None]:
    """Gradients by scale·`hidden`, `vocabulary` and `bias`, in their dtypes; `PerRow` says what t, a, b, c and m are.

    Sums are in float32. With half-precision inputs the derivative of a tile is rounded to their dtype before it is
    multiplied, as the operands of a matmul in that dtype are.

    Args:
      hidden: as in `forward`; `vocabulary`, `targets`, `bias`, `scale`, `soft_cap`, `rows`, `entries`, `device_kind`
        and `interpret` as well.
      top: what `forward` returned; `log_mass` as well.
      t: factor of the target's indicator, `[N]`; a, b, c: factors of p, p·(z − top) and p²; m: added to every column.
      wanted: whether the gradient by `hidden` is, and whether those by `vocabulary` and `bias` are; what is not is None
        and costs nothing.
      tiles: of each kernel: of the one that makes both gradients, or of those for `hidden` and for `vocabulary`, as far
        as they are wanted. Default: one kernel where it has a core for itself, since it goes through its grid in order.
    """
    (N, D), V = hidden.shape, vocabulary.shape[0]
    alone = CHIPS.get(device_kind, ANY_CHIP).alone if tiles is None else len(tiles) < sum(wanted)
    kernels = ["both"] if alone and all(wanted) else [own for own, w in zip(_SIDES, wanted, strict=True) if w]
    tiles = tiles or tuple(tiles_for(N, D, V, hidden.dtype, device_kind, own=own) for own in kernels)
    per_row = packed(PerRow(targets, top, log_mass, t, a, b, c, m), V)
    arguments = hidden, vocabulary, per_row, bias, scalars(counts(rows, N, entries, V), scale, soft_cap), interpret
    results = {
        own: gradients(Kind(own, each, (N, V, D), bias is not None, soft_cap is not None), *arguments)
        for own, each in zip(kernels, tiles, strict=True)
    }
    if "both" in results:
        d_vocabulary, d_hidden, *d_bias = results["both"]
        return d_hidden[:N, :D].astype(hidden.dtype), d_vocabulary, d_bias[0][0] if d_bias else None
    by_vocabulary = results.get("vocabulary", [])
    return (
        results["rows"][0] if wanted[0] else None,
        by_vocabulary[0] if by_vocabulary else None,
        by_vocabulary[1][0] if by_vocabulary[1:] else None,
    )


_SIDES = ("rows", "vocabulary")
