"""Rotary positions: frequencies as numbers, and how they turn a vector."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mi_align.models.config import DecoderConfig, Llama3Scaling
from mi_align.numerics import as_float

__all__ = ["frequencies", "rotate"]


def frequencies(config: DecoderConfig, *, windowed: bool = False) -> Float[np.ndarray, "half"]:
    """Radians a position, for each pair of a head's features: base^(−2i/W), stretched as the config says.

    Source: Su et al. 2021 (arXiv 2104.09864), eq. 15; the stretching, Llama 3.1's published code.
    """
    half = config.head_width // 2
    other = windowed and config.window_rope_base is not None
    base = config.window_rope_base if other and config.window_rope_base is not None else config.rope_base
    plain = base ** (-np.arange(half) / half)
    if other:
        return plain
    if config.rope_scaling is not None:
        plain = _stretched(plain, config.rope_scaling)
    return plain / config.rope_divisor


def _stretched(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_length * plain / (2 * np.pi)  # within the original context
    kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)


def rotate(
    x: Float[Array, "B T H W"], positions: Int[Array, "B T"], radians: Float[Array, "half"]
) -> Float[Array, "B T H W"]:
    """Feature i is turned together with feature i + W/2, by position · radians.

    The inner product of two rotated vectors depends on the *difference* of their positions alone. Angles are computed
    in float32 or wider, as positions beyond 256 are no longer integers in bfloat16.

    Source: Su et al. 2021 (arXiv 2104.09864), eq. 34, in the half-split layout of Llama's public weights.
    """
    half = x.shape[-1] // 2
    (wide,) = as_float(x)
    angles_BTW = positions[..., None] * jnp.asarray(radians, wide.dtype)[None, None, :]
    cos, sin = jnp.cos(angles_BTW)[:, :, None, :], jnp.sin(angles_BTW)[:, :, None, :]
    first, second = wide[..., :half], wide[..., half:]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
