"""More functions of the margin u = s⁺ − s⁻: what `pairwise` leaves out of the family f(u).

name                         f(u)                               −f′(0)         trains
exponential_loss             e⁻ᵘ                                1              GPO, boosting
truncated_quadratic_loss     max(0, m − u)²                     2m             GPO
savage_loss                  σ(−u)²                             ¼              GPO
discopop_loss                −log σ(u) and e⁻ᵘ, blended         ¾ − 0.077/τ    DiscoPOP
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.elementary import exp_excess, sigmoid, softplus
from mi_align.objectives._pairs import pair
from mi_align.objectives._public import objective

__all__ = ["discopop_loss", "exponential_loss", "savage_loss", "truncated_quadratic_loss"]


@objective
def exponential_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The exponential of minus the positive's lead.

    ℓ = e⁻ᵘ,  u = s⁺ − s⁻

    When to choose: to work hardest on the worst pairs. A single mislabelled pair can rule a batch, and the loss
    overflows for u below −88 in float32 (−709 in float64).

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.

    Returns:
      One loss a pair, `[...]`, > 0; half precision comes back as float32.

    Raises:
      ValueError: shapes differ.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = −e⁻ᵘ = −∂ℓ/∂s⁻.

    Equal to: the family of ledger 47.

    Source: Freund & Schapire 1997; Tang et al. 2024 (arXiv 2402.05749), GPO.

    >>> import jax.numpy as jnp
    >>> exponential_loss(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.5])).round(2)
    Array([0.37, 1.65], dtype=float32)
    """
    positive, negative = pair(positive, negative)
    return jnp.exp(negative - positive)


@objective
def truncated_quadratic_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    margin: float | Float[Array, "*#batch"] = 1.0,
) -> Float[Array, "*batch"]:
    """The square of how far the positive's lead falls short of the margin.

    ℓ = max(0, m − u)²,  u = s⁺ − s⁻

    When to choose: like `hinge_loss`, with a pull that fades out smoothly; or like `squared_loss`, without pulling back
    pairs that are beyond the target.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.
      margin: m, the lead that is enough, in logits; scalar or `[...]`. Default 1 (GPO).

    Returns:
      One loss a pair, `[...]`, in squared logits, ≥ 0; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or the margin is not finite.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = −2 max(0, m − u) = −∂ℓ/∂s⁻.

    Equal to: `hinge_loss` squared; the family of ledger 47.

    Source: Tang et al. 2024 (arXiv 2402.05749), GPO.

    >>> import jax.numpy as jnp
    >>> truncated_quadratic_loss(jnp.array([0.25, 3.0]), jnp.array([0.0, 0.0]))
    Array([0.5625, 0.    ], dtype=float32)
    """
    positive, negative, margin = pair(positive, negative, margin=margin)
    return jnp.square(jax.nn.relu(margin - (positive - negative)))


@objective
def savage_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Squared probability of the wrong order.

    ℓ = σ(−u)² = 1/(1 + eᵘ)²,  u = s⁺ − s⁻

    When to choose: labels are noisy. The loss is bounded by 1, so that hopeless pairs let go; it is not convex.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.

    Returns:
      One loss a pair, `[...]`, between 0 and 1; half precision comes back as float32.

    Raises:
      ValueError: shapes differ.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = −2 σ(−u)² σ(u) = −∂ℓ/∂s⁻.

    Equal to: the family of ledger 47.

    Source: Masnadi-Shirazi & Vasconcelos 2008, whose margin is u/2; Tang et al. 2024 (arXiv 2402.05749), GPO.

    >>> import jax.numpy as jnp
    >>> savage_loss(jnp.array([1.0, -4.0]), jnp.array([0.0, 0.0])).round(2)
    Array([0.07, 0.96], dtype=float32)
    """
    positive, negative = pair(positive, negative)
    return jnp.square(sigmoid(negative - positive))


@objective
def discopop_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    temperature: float | Float[Array, "*#batch"] = 0.05,
) -> Float[Array, "*batch"]:
    """The loss that a language model found by search: logistic below zero, exponential above it.

    ℓ = (1 − m) log(1 + e⁻ᵘ) + m e⁻ᵘ,  m = σ(u/τ),  u = s⁺ − s⁻

    When to choose: to repeat DiscoPOP's results. It is not convex: for small τ there is a dip just below u = 0.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.
      temperature: τ > 0, over which one loss gives way to the other, in logits; scalar or `[...]`. Default 0.05 (the
        paper's and TRL's).

    Returns:
      One loss a pair, `[...]`, > 0; half precision comes back as float32. Right on the whole range, where the formula
      as written gives inf · 0 below u = −88.

    Raises:
      ValueError: shapes differ, or τ is out of range.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = m (1−m) [e⁻ᵘ − log(1 + e⁻ᵘ)]/τ − (1−m) σ(−u) − m e⁻ᵘ = −∂ℓ/∂s⁻.

    Equal to: `bradley_terry_loss` far below 0, `exponential_loss` far above it.

    Source: Lu et al. 2024 (arXiv 2406.08414); TRL's `loss_type="discopop"`.

    >>> import jax.numpy as jnp
    >>> discopop_loss(jnp.array([0.5, -200.0]), jnp.array([0.0, 0.0])).round(2)
    Array([  0.61, 200.  ], dtype=float32)
    """
    positive, negative, temperature = pair(positive, negative, temperature=temperature)
    return _discovered(positive - negative, temperature)


#: Exponents that are far from an overflow, and whose halves are not far from one, in either precision.
_LARGE = 80.0


@jax.custom_jvp
def _discovered(u: Float[Array, "*batch"], temperature: Float[Array, "*#batch"]) -> Float[Array, "*batch"]:
    """DiscoPOP's curve; its slopes are written out because e⁻ᵘ overflows where they do not, and cancels elsewhere."""
    v = u / temperature
    return sigmoid(-v) * softplus(-u) + _sigmoid_times_exp(v, -u)


@_discovered.defjvp
def _discovered_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (u, temperature), (du, dt) = primals, tangents
    v = u / temperature
    logistic, exponential = softplus(-u), _sigmoid_times_exp(v, -u)
    # The value may overflow where its slope, a part of it, does not: half of a large exponent is multiplied in last.
    exponent = jax.lax.stop_gradient(jnp.minimum(v, 0) - u)
    half = jnp.where(exponent > _LARGE, exponent / 2, 0)
    # e⁻ᵘ − log(1 + e⁻ᵘ) cancels for u > 0, where it is w ↦ eʷ − 1 − w at w = log(1 + e⁻ᵘ), and overflows for u < 0.
    excess = sigmoid(v) * exp_excess(jnp.where(u > 0, logistic, 0))
    switch = sigmoid(-v) * jnp.where(u > 0, excess, exponential - sigmoid(v) * logistic)
    above = switch / temperature - (sigmoid(-v) * sigmoid(-u) + exponential)
    falling = sigmoid(-v) * (sigmoid(v) * logistic / temperature + sigmoid(-u))
    below = _sigmoid_times_exp(v, -u - half) * (sigmoid(-v) / temperature - 1) * jnp.exp(half) - falling
    return _discovered(u, temperature), jnp.where(u > 0, above, below) * du - switch * v / temperature * dt


@jax.custom_jvp
def _sigmoid_times_exp(x: Float[Array, "*batch"], y: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """σ(x) eʸ where either factor alone may overflow or vanish."""
    return sigmoid(jnp.abs(x)) * jnp.exp(jnp.minimum(x, 0) + y)


@_sigmoid_times_exp.defjvp
def _sigmoid_times_exp_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    value = _sigmoid_times_exp(x, y)
    return value, value * (sigmoid(-x) * dx + dy)
