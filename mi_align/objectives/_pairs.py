"""What every loss of one positive and one negative needs: both logits checked, everything in one dtype."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from mi_align import checks
from mi_align.numerics import accumulation_dtype

__all__ = ["pair"]


def pair(positive: Array, negative: Array, **hyper: Any) -> tuple[Array, ...]:
    """s⁺, s⁻ and the hyper-parameters, which are scalars or one value a pair, in a dtype wide enough to accumulate."""
    checks.floating(positive=positive, negative=negative)
    checks.same_shape(positive=positive, negative=negative)
    checks.broadcastable(jnp.shape(positive), **hyper)
    dtype = accumulation_dtype(positive, negative)
    return tuple(jnp.asarray(x, dtype) for x in (positive, negative, *hyper.values()))
