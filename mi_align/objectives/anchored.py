"""Losses of one positive and one negative that see the two levels, not only their difference.

Adding a constant to both logits changes these losses: each response is measured against a fixed point (0 for the
implicit reward: the reference policy), so the chosen response's own likelihood is held. `contrastive.nca_loss` (MIO)
with one negative belongs to the same kind.

    name               f(s⁺, s⁻)                  at (0, 0)    pulls on (s⁺, s⁻) there    trains
    bco_pair_loss      sp(−s⁺) + sp(s⁻)           2 log 2      ½, −½                      BCO (pairs)
    sppo_hard_loss     (s⁺ − t)² + (s⁻ + t)²      2t²          2t, −2t                    SPPO
    apo_zero_loss      σ(−s⁺) + σ(s⁻)             1            ¼, −¼                      APO-zero
    apo_down_loss      σ(s⁺) + σ(s⁻ − s⁺)         1            0, −¼                      APO-down
    nwj_pair_loss      e^{s⁻} − s⁺                1            1, −1                      NWJ-PO
    centring_penalty   (s⁺ + s⁻)²                 0            0, 0                       reward models
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.elementary import sigmoid, sigmoid_difference, softplus
from mi_align.objectives._pairs import pair
from mi_align.objectives._public import objective

__all__ = ["apo_down_loss", "apo_zero_loss", "bco_pair_loss", "centring_penalty", "nwj_pair_loss", "sppo_hard_loss"]


@objective
def bco_pair_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Two binary classifications in one: the positive above 0, the negative below it; in nats.

    ℓ = −log σ(s⁺) − log σ(−s⁻)

    When to choose: both levels matter and the reference is a fair zero. `nca_loss` (MIO) also brakes the positive, at
    log 2; `bco_loss` takes responses that are not paired.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.

    Returns:
      One loss a pair, `[...]`, in nats; half precision comes back as float32.

    Raises:
      ValueError: shapes differ.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = −σ(−s⁺), ∂ℓ/∂s⁻ = σ(s⁻).

    Equal to: 2 [`nca_loss` − log(2 cosh(s⁺/2))] with one negative; never below `bradley_terry_loss` (ledger 19).

    Source: Jung et al. 2024 (arXiv 2404.04656); TRL's `loss_type="bco_pair"`.

    >>> import jax.numpy as jnp
    >>> bco_pair_loss(jnp.array([1.0, 0.0]), jnp.array([-2.0, 0.0])).round(4)
    Array([0.4402, 1.3863], dtype=float32)
    """
    positive, negative = pair(positive, negative)
    return softplus(-positive) + softplus(negative)


@objective
def sppo_hard_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    target: float | Float[Array, "*#batch"],
) -> Float[Array, "*batch"]:
    """Both levels regressed: the positive on t, the negative on −t.

    ℓ = (s⁺ − t)² + (s⁻ + t)²

    On log-ratios log(π/π_ref) with t = 1/(2β) this is SPPO with hard labels.

    When to choose: each response should end at a level of its own; `squared_loss` regresses only their difference.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.
      target: t, in logits; scalar or `[...]`. No default: SPPO's is 1/(2β).

    Returns:
      One loss a pair, `[...]`, in squared logits; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or the target is not finite.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = 2 (s⁺ − t), ∂ℓ/∂s⁻ = 2 (s⁻ + t).

    Equal to: ½ `squared_loss` with target 2t plus ½ `centring_penalty`.

    Source: Wu et al. 2024 (arXiv 2405.00675), with hard labels; TRL's `loss_type="sppo_hard"`.

    >>> import jax.numpy as jnp
    >>> sppo_hard_loss(jnp.array([1.0]), jnp.array([-4.0]), target=5.0)
    Array([17.], dtype=float32)
    """
    positive, negative, target = pair(positive, negative, target=target)
    return jnp.square(positive - target) + jnp.square(negative + target)


@objective
def apo_zero_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The positive above the reference and the negative below it, as probabilities.

    ℓ = [1 − σ(s⁺)] + σ(s⁻)

    When to choose: chosen responses are better than what the policy writes by itself. If they are worse, take
    `apo_down_loss`.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.

    Returns:
      One loss a pair, `[...]`, between 0 and 2; half precision comes back as float32.

    Raises:
      ValueError: shapes differ.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = −σ(s⁺) σ(−s⁺), ∂ℓ/∂s⁻ = σ(s⁻) σ(−s⁻).

    Equal to: `apo_zero_unpaired_loss` of both responses, summed.

    Source: D'Oosterlinck et al. 2024 (arXiv 2408.06266); TRL's `loss_type="apo_zero"`.

    >>> import jax.numpy as jnp
    >>> apo_zero_loss(jnp.array([1.0, 0.0]), jnp.array([-2.0, 0.0])).round(4)
    Array([0.3881, 1.    ], dtype=float32)
    """
    positive, negative = pair(positive, negative)
    return sigmoid(-positive) + sigmoid(negative)


@objective
def apo_down_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """The positive below the reference, and the negative below the positive, as probabilities.

    ℓ = σ(s⁺) + [1 − σ(s⁺ − s⁻)]

    When to choose: even the chosen responses are worse than what the policy writes by itself; otherwise
    `apo_zero_loss`.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.

    Returns:
      One loss a pair, `[...]`, between 0 and 2; half precision comes back as float32.

    Raises:
      ValueError: shapes differ.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = σ′(s⁺) − σ′(s⁺ − s⁻), ∂ℓ/∂s⁻ = σ′(s⁺ − s⁻), σ′(x) = σ(x) σ(−x).

    Equal to: `apo_zero_loss` of (−s⁺, s⁻ − s⁺).

    Source: D'Oosterlinck et al. 2024 (arXiv 2408.06266); TRL's `loss_type="apo_down"`, which until 1.9 applied
    the f-divergence to one of the two terms only.

    >>> import jax.numpy as jnp
    >>> apo_down_loss(jnp.array([1.0, 0.0]), jnp.array([-2.0, 0.0])).round(2)
    Array([0.78, 1.  ], dtype=float32)
    """
    return _down(*pair(positive, negative))


@jax.custom_jvp
def _down(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    return sigmoid(positive) + sigmoid(negative - positive)


@_down.defjvp
def _down_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (positive, negative), (dp, dn) = primals, tangents
    u = negative - positive
    # σ′(s⁺) − σ′(u) = (σ(u) − σ(s⁺)) (σ(u) − σ(−s⁺)): the slopes are nearly equal wherever s⁻ is near 0 or 2 s⁺.
    bend = sigmoid_difference(u, positive, negative - 2 * positive) * sigmoid_difference(u, -positive, negative)
    return _down(positive, negative), bend * dp + sigmoid(u) * sigmoid(-u) * dn


@objective
def nwj_pair_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """A constant pull up on the positive and an exponential brake on the negative: one pair of the NWJ bound, in nats.

    ℓ = e^{s⁻} − s⁺

    When to choose: to see what the NWJ estimator does in DPO's place: the chosen response's pull never fades. Nothing
    bounds it below.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.

    Returns:
      One loss a pair, `[...]`, in nats, of either sign; half precision comes back as float32.

    Raises:
      ValueError: shapes differ.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = −1, ∂ℓ/∂s⁻ = e^{s⁻}.

    Equal to: 1 − `nwj_bound` of (1 + s⁺, 1 + s⁻) per pair: up to constants, NWJ on the log-ratio (ledger 30).

    Source: Nguyen, Wainwright & Jordan 2010; a reading of InfoPO (arXiv 2505.08507), whose exact loss may differ.

    >>> import jax.numpy as jnp
    >>> nwj_pair_loss(jnp.array([2.0, 0.5]), jnp.array([0.0, 0.0]))
    Array([-1. ,  0.5], dtype=float32)
    """
    positive, negative = pair(positive, negative)
    return jnp.exp(negative) - positive


@objective
def centring_penalty(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Squared sum of a pair's logits: fixes the level that a Bradley–Terry loss leaves free.

    ℓ = (s⁺ + s⁻)²

    When to choose: beside `bradley_terry_loss` for a reward model, with a weight near 0.01, so that rewards of
    different prompts are on one scale.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.

    Returns:
      One penalty a pair, `[...]`, in squared logits; half precision comes back as float32.

    Raises:
      ValueError: shapes differ.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = ∂ℓ/∂s⁻ = 2 (s⁺ + s⁻).

    Equal to: what `sppo_hard_loss` adds to `squared_loss`, doubled.

    Source: Eisenstein et al. 2023 (arXiv 2312.09244); TRL's `center_rewards_coefficient`.

    >>> import jax.numpy as jnp
    >>> centring_penalty(jnp.array([1.0]), jnp.array([-0.5]))
    Array([0.25], dtype=float32)
    """
    positive, negative = pair(positive, negative)
    return jnp.square(positive + negative)
