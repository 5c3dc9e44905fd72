"""Losses of one positive and one negative that see the two levels, not only their difference.

Adding a constant to both logits changes these losses: each response is measured against a fixed point (0 for the
implicit reward: the reference policy), so the chosen response's own likelihood is held. `contrastive.nca_loss` (MIO)
with one negative belongs to the same kind.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align import checks
from mi_align.numerics import as_float, sigmoid, sigmoid_difference, softplus
from mi_align.objectives._public import objective

__all__ = ["apo_down_loss", "apo_zero_loss", "bco_pair_loss", "centring_penalty", "nwj_pair_loss", "sppo_hard_loss"]


def _levels(positive: Array, negative: Array, **hyper: Any) -> tuple[Float[Array, "*batch"], ...]:
    """Both logits, checked, wide enough to accumulate in."""
    checks.floating(positive=positive, negative=negative)
    checks.same_shape(positive=positive, negative=negative)
    checks.broadcastable(jnp.shape(positive), **hyper)
    return as_float(positive, negative)


@objective
def bco_pair_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Two binary classifications in one: −log σ(s⁺) − log σ(−s⁻)."""
    positive, negative = _levels(positive, negative)
    return softplus(-positive) + softplus(negative)


@objective
def sppo_hard_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    target: float | Float[Array, "*#batch"],
) -> Float[Array, "*batch"]:
    """Both levels regressed on ±t: (s⁺ − t)² + (s⁻ + t)²; SPPO with t = 1/(2β) on log-ratios."""
    positive, negative = _levels(positive, negative, target=target)
    return jnp.square(positive - target) + jnp.square(negative + target)


@objective
def apo_zero_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Chosen above the reference and rejected below it: [1 − σ(s⁺)] + σ(s⁻)."""
    positive, negative = _levels(positive, negative)
    return sigmoid(-positive) + sigmoid(negative)


@objective
def apo_down_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Both levels down, rejected more so: σ(s⁺) + [1 − σ(s⁺ − s⁻)]."""
    positive, negative = _levels(positive, negative)
    return _down(positive, negative)


@jax.custom_jvp
def _down(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    return sigmoid(positive) + sigmoid(negative - positive)


@_down.defjvp
def _down_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (positive, negative), (dp, dn) = primals, tangents
    u = negative - positive
    # σ′(s⁺) − σ′(u) = (σ(u) − σ(s⁺)) (σ(u) − σ(−s⁺)): the slopes are nearly equal wherever s⁻ is near 0 or 2 s⁺.
    bend = sigmoid_difference(u, positive) * sigmoid_difference(u, -positive)
    return _down(positive, negative), bend * dp + sigmoid(u) * sigmoid(-u) * dn


@objective
def nwj_pair_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """A constant push on the chosen level and an exponential brake on the rejected one: −s⁺ + exp(s⁻)."""
    positive, negative = _levels(positive, negative)
    return jnp.exp(negative) - positive


@objective
def centring_penalty(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Squared sum of a pair's logits, (s⁺ + s⁻)²: fixes the level that a Bradley–Terry loss leaves free."""
    positive, negative = _levels(positive, negative)
    return jnp.square(positive + negative)
