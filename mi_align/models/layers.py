"""What a block is made of. The dtype of the parameters is the dtype of the computation; norms never go below float32.

Shape suffixes: B batch, T time, S slots of a cache (or time again), D features, H query heads, G key-value heads, W
features of a head, N and M features before and after a matrix, R the rank of an adapter.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from mi_align.models.attention import Attend
from mi_align.models.config import DecoderConfig
from mi_align.models.positions import Turn, rotate
from mi_align.numerics import as_float

__all__ = [
    "ACTIVATIONS",
    "Attention",
    "Block",
    "Context",
    "FeedForward",
    "KeysAndValues",
    "Linear",
    "LowRank",
    "Norm",
]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class Context(NamedTuple):
    """What every layer is told beside the stream.

    Attributes:
      positions: of each token in its sequence.
      turn: of rotary positions; None where positions were learned.
      mask: which slots a token may look at; None: those up to its own, where a row is one sequence without a cache, and
        the window's, which kernels know.
    """

    positions: Int[Array, "#B T"]
    turn: Turn | None
    mask: Bool[Array, "#B T S"] | None


class KeysAndValues(NamedTuple):
    """One layer's cache, by position."""

    keys: Float[Array, "B S G W"]
    values: Float[Array, "B S G W"]


class Norm(nnx.Module):
    """RMSNorm, x · scale / sqrt(mean(x²) + ε), or LayerNorm, with the mean taken off first and a shift added.

    Source: Zhang & Sennrich 2019 (arXiv 1910.07467); Ba et al. 2016 (arXiv 1607.06450).
    """

    def __init__(self, config: DecoderConfig, width: int, *, dtype: jnp.dtype) -> None:
        """Make a norm over the last axis, of `width` features."""
        self.scale = nnx.Param(jnp.zeros(width, dtype) if config.norm_offset else jnp.ones(width, dtype))
        self.shift = nnx.Param(jnp.zeros(width, dtype)) if config.norm == "layer" else None
        self.epsilon, self.offset = config.norm_epsilon, config.norm_offset

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalise the last axis."""
        (wide,) = as_float(x)
        wide = wide if self.shift is None else wide - jnp.mean(wide, axis=-1, keepdims=True)
        normalised = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.epsilon)
        scale = jnp.broadcast_to(self.scale[...], x.shape)
        if self.offset:  # Gemma multiplies before it rounds, Llama after
            return (normalised * (1 + scale.astype(wide.dtype))).astype(x.dtype)
        scaled = normalised.astype(x.dtype) * scale
        return scaled if self.shift is None else scaled + jnp.broadcast_to(self.shift[...], x.shape)


class LowRank(nnx.Module):
    """s · (x a) b: what an adapter adds to the output of a matrix, without a matrix of its size (`models.lora`).

    Its parameters may be wider than the stream, float32 beside bfloat16; the products are in the stream's dtype.
    """

    def __init__(self, a: Float[Array, "... N R"], b: Float[Array, "... R M"], *, scale: float) -> None:
        """Hold two factors, `[layers, …]` each as all parameters of blocks are."""
        self.a, self.b, self.scale = nnx.Param(a), nnx.Param(b), scale

    def __call__(self, x: Float[Array, "... N"]) -> Float[Array, "... M"]:
        """Down to the rank, and up again."""
        return (x @ self.a[...].astype(x.dtype)) @ self.b[...].astype(x.dtype) * self.scale


class Linear(nnx.Linear):
    """x W + bias, and beside it an adapter if there is one."""

    def __init__(self, *sizes: int, **options: Any) -> None:
        """Make a matrix without an adapter."""
        super().__init__(*sizes, **options)
        self.lora: LowRank | None = nnx.data(None)

    def __call__(self, x: Float[Array, "... N"]) -> Float[Array, "... M"]:
        """Map the last axis."""
        y = super().__call__(x)
        return y if self.lora is None else y + self.lora(x)


def _linear(fan_in: int, fan_out: int, *, bias: bool, gain: float = 1.0, dtype: jnp.dtype, rngs: nnx.Rngs) -> Linear:
    """A matrix, and a bias of 0 if there is one, whose output has `gain²` times its input's variance."""
    init = nnx.initializers.variance_scaling(gain**2, "fan_in", "normal")
    return Linear(fan_in, fan_out, use_bias=bias, kernel_init=init, param_dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Causal self-attention; optionally with rotary positions, a window, and fewer key-value heads than query heads."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        """Make the four projections."""
        width, inner = config.width, config.heads * config.head_width
        shared, bias = config.key_value_heads * config.head_width, config.qkv_bias
        gain = (2 * config.layers) ** -0.5
        self.query = _linear(width, inner, bias=bias, dtype=dtype, rngs=rngs)
        self.key = _linear(width, shared, bias=bias, dtype=dtype, rngs=rngs)
        self.value = _linear(width, shared, bias=bias, dtype=dtype, rngs=rngs)
        self.out = _linear(inner, width, bias=config.out_bias, gain=gain, dtype=dtype, rngs=rngs)
        self.query_norm, self.key_norm = (
            Norm(config, config.head_width, dtype=dtype) if config.qk_norm else None for _ in range(2)
        )
        self.head_width = config.head_width

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: KeysAndValues | None, attend: Attend
    ) -> tuple[Float[Array, "B T D"], KeysAndValues | None]:
        """Mix each position with itself and those before it, of which earlier calls left keys and values."""
        query, key, value = (
            projection(x).reshape(*x.shape[:2], -1, self.head_width)
            for projection in (self.query, self.key, self.value)
        )
        query = query if self.query_norm is None else self.query_norm(query)
        key = key if self.key_norm is None else self.key_norm(key)
        if context.turn is not None:
            query, key = rotate(query, context.turn), rotate(key, context.turn)
        if cache is not None:
            example = jnp.arange(x.shape[0])[:, None]
            at = (example, context.positions)
            cache = KeysAndValues(cache.keys.at[at].set(key), cache.values.at[at].set(value))
            key, value = cache
        mixed = attend(query, key, value, context.mask)
        return self.out(mixed.reshape(*x.shape[:2], -1)), cache


class FeedForward(nnx.Module):
    """down(activation(gate x) · up x), or without a gate down(activation(up x)).

    Source: Shazeer 2020 (arXiv 2002.05202).
    """

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        """Make the two or three matrices."""
        inner, bias = config.feed_forward_width, config.mlp_bias
        gain = (2 * config.layers) ** -0.5
        self.gate = _linear(config.width, inner, bias=bias, dtype=dtype, rngs=rngs) if config.gated else None
        self.up = _linear(config.width, inner, bias=bias, dtype=dtype, rngs=rngs)
        self.down = _linear(inner, config.width, bias=bias, gain=gain, dtype=dtype, rngs=rngs)
        self.activation = config.activation

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Transform each position by itself."""
        bend = ACTIVATIONS[self.activation]
        return self.down(bend(self.up(x)) if self.gate is None else bend(self.gate(x)) * self.up(x))


class Block(nnx.Module):
    """Attention, then a feed-forward layer, each added to the stream; normalised before, and if so wanted after."""

    def __init__(self, config: DecoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        """Make one block."""
        norm = functools.partial(Norm, config, config.width, dtype=dtype)
        self.attention_norm = norm()
        self.attention = Attention(config, dtype=dtype, rngs=rngs)
        self.attention_post_norm = norm() if config.post_norms else None
        self.feed_forward_norm = norm()
        self.feed_forward = FeedForward(config, dtype=dtype, rngs=rngs)
        self.feed_forward_post_norm = norm() if config.post_norms else None

    def __call__(
        self, x: Float[Array, "B T D"], context: Context, cache: KeysAndValues | None, attend: Attend
    ) -> tuple[Float[Array, "B T D"], KeysAndValues | None]:
        """One block's step of the residual stream."""
        mixed, cache = self.attention(self.attention_norm(x), context, cache, attend)
        x = x + (mixed if self.attention_post_norm is None else self.attention_post_norm(mixed))
        added = self.feed_forward(self.feed_forward_norm(x))
        return x + (added if self.feed_forward_post_norm is None else self.feed_forward_post_norm(added)), cache
