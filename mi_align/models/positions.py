"""Rotary positions: frequencies as numbers, and how they turn a vector."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mi_align.models.config import DecoderConfig, Llama3Scaling
from mi_align.numerics import as_float

__all__ = ["Turn", "frequencies", "rotate", "turn", "window_frequencies"]


class Turn(NamedTuple):
    """Cosines and sines of the angles by which the pairs of a head's features are turned."""

    cos: Float[Array, "#B T half"]
    sin: Float[Array, "#B T half"]


def turn(positions: Int[Array, "#B T"], radians: Float[np.ndarray, "half"]) -> Turn:
    """Position · radians, in float32 or wider, as positions beyond 256 are no longer integers in bfloat16."""
    angles_BTW = positions[..., None] * jnp.asarray(radians)[None, None, :]
    return Turn(jnp.cos(angles_BTW), jnp.sin(angles_BTW))


def frequencies(config: DecoderConfig) -> Float[np.ndarray, "half"]:
    """Radians a position, for each pair of a head's features: base^(−2i/W), stretched as the config says.

    Source: Su et al. 2021 (arXiv 2104.09864), eq. 15; the stretching, Llama 3.1's published code.
    """
    plain = _plain(config.rope_base, config)
    plain = plain if config.rope_scaling is None else _stretched(plain, config.rope_scaling)
    return plain / config.rope_divisor


def window_frequencies(config: DecoderConfig) -> Float[np.ndarray, "half"]:
    """The same in windowed layers: with a base of their own these are not stretched."""
    return frequencies(config) if config.window_rope_base is None else _plain(config.window_rope_base, config)


def _plain(base: float, config: DecoderConfig) -> np.ndarray:
    half = config.head_width // 2
    return base ** (-np.arange(half) / half)


def _stretched(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_length * plain / (2 * np.pi)  # within the original context
    kept = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)


def rotate(x: Float[Array, "B T H W"], by: Turn) -> Float[Array, "B T H W"]:
    """Feature i is turned together with feature i + W/2.

    The inner product of two rotated vectors depends on the *difference* of their positions alone.

    Source: Su et al. 2021 (arXiv 2104.09864), eq. 34, in the half-split layout of Llama's public weights.
    """
    half = x.shape[-1] // 2
    (wide,) = as_float(x)
    cos, sin = (angles.astype(wide.dtype)[:, :, None, :] for angles in by)
    first, second = wide[..., :half], wide[..., half:]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)
