"""What a block is made of. The dtype of the parameters is the dtype of the computation; norms never go below float32.

Shape suffixes: B batch, T time, D features, H query heads, G key-value heads, W features of a head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mi_align.models.config import DecoderConfig
from mi_align.numerics import as_float

__all__ = ["Attention", "Block", "RMSNorm", "SwiGLU", "attend", "rotate"]


def rotate(x: Float[Array, "B T H W"], positions: Int[Array, "T"], base: float) -> Float[Array, "B T H W"]:
    """Rotary positions: feature i is turned together with feature i + W/2, by positions · base^(−2i/W) radians.

    The inner product of two rotated vectors depends on the *difference* of their positions alone. Angles are computed
    in float32 or wider, as positions beyond 256 are no longer integers in bfloat16.

    Source: Su et al. 2021 (arXiv 2104.09864), eq. 34, in the half-split layout of Llama's public weights.
    """
    half = x.shape[-1] // 2
    (wide,) = as_float(x)
    angles_TW = jnp.outer(positions, jnp.asarray(base, wide.dtype) ** (-jnp.arange(half, dtype=wide.dtype) / half))
    cos, sin = jnp.cos(angles_TW)[None, :, None, :], jnp.sin(angles_TW)[None, :, None, :]
    first, second = wide[..., :half], wide[..., half:]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(
    query: Float[Array, "B T H W"], key: Float[Array, "B T G W"], value: Float[Array, "B T G W"]
) -> Float[Array, "B T H W"]:
    """Causal attention, each key-value head shared by H/G query heads.

    `jax.nn.dot_product_attention` takes its softmax in float32 whatever comes in, so float64 is done by hand.
    """
    if query.dtype != jnp.float64:
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)
    key_BTHW, value_BTHW = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    scores_BHTS = jnp.einsum("bthw,bshw->bhts", query, key_BTHW) * query.shape[-1] ** -0.5
    past_BHTS = jnp.tri(query.shape[1], dtype=bool)[None, None]
    return jnp.einsum("bhts,bshw->bthw", jax.nn.softmax(scores_BHTS, where=past_BHTS), value_BTHW)


class RMSNorm(nnx.Module):
    """x · scale / sqrt(mean(x²) + ε) (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, width: int, *, epsilon: float, dtype: jnp.dtype) -> None:
        """Make a norm over the last axis, of `width` features."""
        self.scale = nnx.Param(jnp.ones(width, dtype))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise the last axis."""
        (wide,) = as_float(x)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normalised = (wide * jax.lax.rsqrt(mean_square + self.epsilon)).astype(x.dtype)
        return normalised * jnp.broadcast_to(self.scale[...], x.shape)


def _linear(fan_in: int, fan_out: int, *, gain: float = 1.0, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A matrix without bias whose output has `gain²` times its input's variance."""
    init = nnx.initializers.variance_scaling(gain**2, "fan_in", "normal")
    return nnx.Linear(fan_in, fan_out, use_bias=False, kernel_init=init, param_dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Causal self-attention with rotary positions and, optionally, fewer key-value heads than query heads."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        """Make the four projections."""
        key_value_width = config.key_value_heads * config.head_width
        self.query = _linear(config.width, config.width, dtype=dtype, rngs=rngs)
        self.key = _linear(config.width, key_value_width, dtype=dtype, rngs=rngs)
        self.value = _linear(config.width, key_value_width, dtype=dtype, rngs=rngs)
        self.out = _linear(config.width, config.width, gain=(2 * config.layers) ** -0.5, dtype=dtype, rngs=rngs)
        self.head_width = config.head_width
        self.rope_base = config.rope_base

    def __call__(self, x: Float[Array, "B T D"], positions: Int[Array, "T"]) -> Float[Array, "B T D"]:
        """Mix each position with itself and those before it."""
        query_BTHW, key_BTGW, value_BTGW = (
            projection(x).reshape(*x.shape[:2], -1, self.head_width)
            for projection in (self.query, self.key, self.value)
        )
        query_BTHW = rotate(query_BTHW, positions, self.rope_base)
        key_BTGW = rotate(key_BTGW, positions, self.rope_base)
        mixed_BTHW = attend(query_BTHW, key_BTGW, value_BTGW)
        return self.out(mixed_BTHW.reshape(x.shape))


class SwiGLU(nnx.Module):
    """down(silu(gate x) · up x) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        """Make the three matrices."""
        inner = config.feed_forward_width
        self.gate = _linear(config.width, inner, dtype=dtype, rngs=rngs)
        self.up = _linear(config.width, inner, dtype=dtype, rngs=rngs)
        self.down = _linear(inner, config.width, gain=(2 * config.layers) ** -0.5, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Transform each position by itself."""
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention, then a feed-forward layer, each added to the normalised stream (pre-norm)."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        """Make one block."""
        self.attention_norm = RMSNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype)
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.feed_forward_norm = RMSNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype)
        self.feed_forward = SwiGLU(config, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"], positions: Int[Array, "T"]) -> Float[Array, "B T D"]:
        """One block's step of the residual stream."""
        x = x + self.attention(self.attention_norm(x), positions)
        return x + self.feed_forward(self.feed_forward_norm(x))
