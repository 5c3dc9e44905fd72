"""Losses of single responses that are labelled desirable or not: no pairs are needed."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import AxisName, as_float, masked_mean, sigmoid, softplus
from mi_align.objectives._public import objective

__all__ = ["apo_zero_unpaired_loss", "bco_loss", "kto_loss", "kto_reference_point"]


def _signed(score: Array, desirable: Array, level: Array | float, **hyper: Any) -> Float[Array, "*batch"]:
    """The score above `level` if the response is desirable, below it if not: what ought to grow."""
    checks.floating(score=score)
    checks.labels(desirable, score, name="desirable", of="`score`")
    checks.broadcastable(jnp.shape(score), **hyper)
    (score,) = as_float(score)
    return jnp.where(desirable, score - level, level - score)


@objective
def kto_loss(
    score: Float[Array, "*batch"],
    desirable: Bool[Array, "*batch"],
    *,
    reference_point: float | Float[Array, "*#batch"],
    desirable_weight: float | Float[Array, "*#batch"] = 1.0,
    undesirable_weight: float | Float[Array, "*#batch"] = 1.0,
) -> Float[Array, "*batch"]:
    """Kahneman–Tversky value of one response, turned into a loss.

    ℓ = λ_D [1 − σ(s − z)] if desirable, λ_U [1 − σ(z − s)] if not
    """
    hyper = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    signed = _signed(score, desirable, reference_point, reference_point=reference_point, **hyper)
    return jnp.where(desirable, desirable_weight, undesirable_weight) * sigmoid(-signed)


@objective(static=["axis_name"])
def kto_reference_point(
    score: Float[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Batch-coupled: KTO's reference point z = max(0, mean s) of mismatched prompts and responses, without gradient."""
    checks.floating(score=score)
    checks.mask(where, score, of="`score`")
    (score,) = as_float(score)
    return jax.lax.stop_gradient(jnp.maximum(masked_mean(score, where, axis_name=axis_name), 0))


@objective
def apo_zero_unpaired_loss(score: Float[Array, "*batch"], desirable: Bool[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Desirable above the reference, undesirable below it: 1 − σ(s) or σ(s)."""
    return kto_loss(score, desirable, reference_point=0.0)


@objective
def bco_loss(
    score: Float[Array, "*batch"],
    desirable: Bool[Array, "*batch"],
    *,
    shift: float | Float[Array, "*#batch"] = 0.0,
) -> Float[Array, "*batch"]:
    """Binary cross-entropy of the label given the score: −log σ(s − δ) or −log σ(δ − s)."""
    return softplus(-_signed(score, desirable, shift, shift=shift))
