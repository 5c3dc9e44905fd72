"""One positive against K negatives of the same prompt."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import as_float, fill, masked_sum
from mi_align.objectives._public import objective

__all__ = ["info_nce_loss"]


@objective
def info_nce_loss(
    positive: Float[Array, "*batch"],
    negatives: Float[Array, "*batch K"],
    *,
    where: Bool[Array, "*batch K"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy of picking the positive among itself and K negatives, in nats."""
    checks.floating(positive=positive, negatives=negatives)
    checks.negatives_match(positive, negatives)
    checks.mask(where, negatives, of="`negatives`")
    positive, negatives = as_float(positive, negatives)
    gap = fill(negatives - positive[..., None], where, -jnp.inf)
    # log(1 + Σ eᵍ) around the largest exponent, 0 included: log1p keeps every digit when the positive dominates.
    peak = jax.lax.stop_gradient(jnp.maximum(jnp.max(gap, axis=-1), 0))
    rest = masked_sum(jnp.exp(gap - peak[..., None]), axis=-1)
    return peak + jnp.log1p(jnp.expm1(-peak) + rest)
