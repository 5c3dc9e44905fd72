"""Attention, by the kernel that a platform has for it.

XLA's way holds the scores, `[batch, heads, time, time]`; the kernels do not, and skip what causality and windows hide:
cuDNN's flash attention on a GPU, JAX's Splash attention, a Pallas kernel, on a TPU.

Shape suffixes: B batch, T time, S slots of a cache (or time again), H query heads, G key-value heads, W features of a
head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from mi_align.logprobs import Layout
from mi_align.models.config import DecoderConfig
from mi_align.numerics import as_float

__all__ = ["EVEN", "Attend", "attend", "attention_of", "kernel_of"]

#: (queries, keys, values, which slots a token may look at or None) -> mixed values.
Attend = Callable[[Array, Array, Array, Array | None], Array]

Kernel = Literal["xla", "cudnn", "splash"]

#: What cuDNN's times are multiples of.
EVEN = 2

#: What Splash's tiles and a TPU's lanes are multiples of.
_LANES = 128
#: Positions of a tile: the largest of these that divides the padded time.
_TILES = (512, 256, 128)


def kernel_of(config: DecoderConfig, dtype: jnp.dtype, layout: Layout | None, *, masked: bool) -> Kernel:
    """Which kernel a decoder attends by: what `config.attention` names, or for "auto" what its devices have.

    Where rows hold several sequences, or a cache the tokens before them, XLA attends whatever is named.

    Args:
      config: the decoder's shape.
      dtype: of the computation.
      layout: of the mesh, whose devices are asked; None: JAX's default ones.
      masked: whether more than causality and windows hides a slot.

    Raises:
      ValueError: the kernel that is named knows no such dtype or soft cap.
    """
    if masked:
        return "xla"
    half, capped = dtype in (jnp.bfloat16, jnp.float16), config.attention_soft_cap is not None
    if config.attention == "auto":
        platform = _platform(layout)
        if platform == "tpu" and dtype != jnp.float64:
            return "splash"
        fits = half and not capped and config.head_width % 8 == 0 and config.head_width <= _LANES
        return "cudnn" if platform in ("gpu", "cuda") and fits else "xla"
    if config.attention == "cudnn" and (capped or not half):
        raise ValueError(
            f"`attention` is 'cudnn', which knows neither {dtype} nor soft caps: bfloat16 or float16, and a model "
            "without a cap on its scores, were wanted. Set `compute_dtype: bfloat16`, or take 'auto'."
        )
    if config.attention == "splash" and dtype == jnp.float64:
        raise ValueError("`attention` is 'splash', which knows no float64. Take 'auto' or 'xla'.")
    return config.attention


def attention_of(config: DecoderConfig, kernel: Kernel, layout: Layout | None) -> Callable[..., Array]:
    """The attention of a decoder's layers by a kernel that `kernel_of` chose: an `Attend` of a layer's `windowed=`.

    That of "cudnn" wants times that are multiples of `EVEN`: its gradient refuses odd ones.
    """
    scale = config.head_width**-0.5 if config.attention_scale is None else config.attention_scale
    if kernel == "xla":
        by_hand = _platform(layout) == "cpu"
        by_mask = functools.partial(attend, scale=scale, soft_cap=config.attention_soft_cap, by_hand=by_hand)
        return lambda query, key, value, mask, *, windowed: by_mask(query, key, value, mask)
    if kernel == "cudnn":
        within: Callable[..., Array] = functools.partial(_cudnn, scale=scale)
    else:
        within = functools.partial(_splash, scale=scale, soft_cap=config.attention_soft_cap, layout=layout)
    far, near = (functools.partial(within, window=window) for window in (None, config.window))

    def by_window(query: Array, key: Array, value: Array, mask: Array | None, *, windowed: Array) -> Array:
        if len(set(config.windowed_layers)) == 1:
            return (near if config.windowed_layers[0] else far)(query, key, value)
        return jax.lax.cond(windowed, near, far, query, key, value)

    return by_window


def attend(
    query: Float[Array, "B T H W"],
    key: Float[Array, "B S G W"],
    value: Float[Array, "B S G W"],
    mask: Bool[Array, "#B T S"] | None,
    *,
    scale: float,
    soft_cap: float | None = None,
    by_hand: bool = False,
) -> Float[Array, "B T H W"]:
    """Attention to what the mask allows, or causal without one; each key-value head is shared by H/G query heads.

    `jax.nn.dot_product_attention` knows no soft cap and takes its softmax in float32 whatever comes in, so a cap and
    float64 are done by hand; on a CPU everything is, over which XLA then takes half the time.
    """
    if by_hand or soft_cap is not None or query.dtype == jnp.float64:
        return _attend_by_hand(query, key, value, mask, scale=scale, soft_cap=soft_cap)
    whole = None if mask is None else mask[:, None]
    return jax.nn.dot_product_attention(query, key, value, mask=whole, scale=scale, is_causal=mask is None)


def _attend_by_hand(
    query: Float[Array, "B T H W"],
    key: Float[Array, "B S G W"],
    value: Float[Array, "B S G W"],
    mask: Bool[Array, "#B T S"] | None,
    *,
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "B T H W"]:
    """Heads before time, so that both products are over adjacent axes; divided by the sums where they are smallest."""
    query_BHTW = jnp.swapaxes(query * scale, 1, 2)
    key_BHSW, value_BHSW = (
        jnp.repeat(jnp.swapaxes(x, 1, 2), query.shape[2] // x.shape[2], axis=1) for x in (key, value)
    )
    (scores_BHTS,) = as_float(jnp.einsum("bhtw,bhsw->bhts", query_BHTW, key_BHSW))
    if soft_cap is not None:
        scores_BHTS = soft_cap * jnp.tanh(scores_BHTS / soft_cap)
    allowed_BHTS = jnp.tri(query.shape[1], dtype=bool)[None, None] if mask is None else mask[:, None]
    scores_BHTS = jnp.where(allowed_BHTS, scores_BHTS, 0.5 * jnp.finfo(scores_BHTS.dtype).min)
    top_BHT1 = jax.lax.stop_gradient(jnp.max(scores_BHTS, axis=-1, keepdims=True))
    weights_BHTS = jnp.exp(scores_BHTS - top_BHT1)
    mass_BHT1 = jnp.sum(weights_BHTS, axis=-1, keepdims=True)
    mixed_BHTW = jnp.einsum("bhts,bhsw->bhtw", weights_BHTS.astype(query.dtype), value_BHSW)
    return jnp.swapaxes((mixed_BHTW / mass_BHT1).astype(query.dtype), 1, 2)


def _cudnn(query: Array, key: Array, value: Array, *, scale: float, window: int | None) -> Array:
    behind = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        query, key, value, scale=scale, is_causal=True, local_window_size=behind, implementation="cudnn"
    )


def _splash(
    query: Float[Array, "B T H W"],
    key: Float[Array, "B T G W"],
    value: Float[Array, "B T G W"],
    *,
    scale: float,
    soft_cap: float | None,
    window: int | None,
    layout: Layout | None,
) -> Float[Array, "B T H W"]:
    """Splash attention on each device's examples and heads; interpreted where there is no TPU."""
    local = functools.partial(_splash_here, scale=scale, soft_cap=soft_cap, window=window, platform=_platform(layout))
    if layout is None:
        return local(query, key, value)
    heads: tuple[str, ...] | None = layout.staying or None
    if query.shape[2] % layout.size(layout.staying):
        heads = None
    elif key.shape[2] % layout.size(layout.staying):
        key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    examples = layout.tokens if query.shape[0] % layout.size(layout.tokens) == 0 else None
    spec = P(examples, None, heads)
    return jax.shard_map(local, mesh=layout.mesh, in_specs=spec, out_specs=spec, check_vma=False)(query, key, value)


def _platform(layout: Layout | None) -> str:
    return jax.default_backend() if layout is None else layout.mesh.devices.flat[0].platform


def _splash_here(
    query: Array, key: Array, value: Array, *, scale: float, soft_cap: float | None, window: int | None, platform: str
) -> Array:
    # Pallas takes a moment to import, and most who import models attend by XLA.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    time = query.shape[1]
    padded = -(-time // _LANES) * _LANES  # no token looks at what comes after it, padding included
    tile = next(tile for tile in _TILES if padded % tile == 0)
    shape = (padded, padded)
    mask = splash.CausalMask(shape) if window is None else splash.LocalMask(shape, (window - 1, 0), 0)
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * query.shape[2]),
        block_sizes=splash.BlockSizes(
            block_q=tile, block_kv=tile, block_q_dkv=tile, block_kv_dkv=tile, block_q_dq=tile, block_kv_dq=tile
        ),
        head_shards=1,
        q_seq_shards=1,
        attn_logits_soft_cap=soft_cap,
        interpret=platform != "tpu",
    )
    scaled = (query * scale).astype(query.dtype)
    rows = (jnp.pad(x, ((0, 0), (0, padded - time), (0, 0), (0, 0))).swapaxes(1, 2) for x in (scaled, key, value))
    return jax.vmap(kernel)(*rows).swapaxes(1, 2)[:, :time]
