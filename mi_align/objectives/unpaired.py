"""Losses of single responses that are labelled desirable or not: no pairs are needed.

name                      desirable                   undesirable
kto_loss                  λ_D [1 − σ(s − z)]          λ_U [1 − σ(z − s)]
apo_zero_unpaired_loss    1 − σ(s)                    σ(s)
bco_loss                  −log σ(s − δ)               −log σ(δ − s)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.elementary import sigmoid, softplus
from mi_align.numerics import AxisName, accumulation_dtype, as_float, masked_mean
from mi_align.objectives._public import objective

__all__ = ["apo_zero_unpaired_loss", "bco_loss", "kto_loss", "kto_reference_point"]


def _gain(score: Array, desirable: Array, level: Array | float, *, name: str) -> Array:
    """The score above `level` if the response is desirable, below it if not: what ought to grow."""
    checks.floating(score=score)
    checks.labels(desirable, score, name="desirable", of="`score`")
    checks.broadcastable(jnp.shape(score), **{name: level})
    score, level = (jnp.asarray(x, accumulation_dtype(score)) for x in (score, level))
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
    """Kahneman–Tversky value of one response, as a loss.

    ℓ = λ_D [1 − σ(s − z)] if desirable, λ_U [1 − σ(z − s)] if not

    When to choose: thumbs up and down, without pairs. The loss is bounded, so that hopeless or long-won responses let
    go; `bco_loss` keeps pulling.

    Args:
      score: logits of responses, `[...]`: β log(π/π_ref).
      desirable: whether each is desirable, `[...]`.
      reference_point: z, what a response has to beat, in the units of `score`, i.e. with β in it; scalar or `[...]`,
        usually a constant from `kto_reference_point`.
      desirable_weight: λ_D ≥ 0; scalar or `[...]`. Default 1.
      undesirable_weight: λ_U ≥ 0; scalar or `[...]`. Default 1. The paper wants λ_D n_D / (λ_U n_U) within [1, 4/3].

    Returns:
      One loss a response, `[...]`, between 0 and its weight; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or a hyper-parameter is out of range.
      TypeError: scores are not floating-point, or labels not boolean.

    Gradient: ∂ℓ/∂s = ∓λ σ(s − z) σ(z − s): − if desirable, + if not.

    Equal to: `apo_zero_unpaired_loss` for z = 0 and weights 1; its population optimum is 1 − total variation
    (ledger 23).

    Source: Ethayarajh et al. 2024 (arXiv 2402.01306); TRL's `KTOTrainer`.

    >>> import jax.numpy as jnp
    >>> kto_loss(jnp.array([1.0, 1.0]), jnp.array([True, False]), reference_point=0.5).round(4)
    Array([0.3775, 0.6225], dtype=float32)
    """
    loss = sigmoid(-_gain(score, desirable, reference_point, name="reference_point"))
    checks.broadcastable(jnp.shape(score), desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    weight = jnp.where(desirable, desirable_weight, undesirable_weight)
    return loss * weight.astype(loss.dtype)


@objective(static=["axis_name"])
def kto_reference_point(
    score: Float[Array, "*batch"],
    *,
    where: Bool[Array, "*batch"] | None = None,
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Batch-coupled: KTO's reference point, the batch's estimate of β KL(π ‖ π_ref), without a gradient.

    z = max(0, mean s) over responses that are matched with other prompts than their own

    When to choose: with `kto_loss`. What it estimates is the KL of responses drawn from the policy; mismatched ones of
    the data, as here, are KTO's cheap stand-in, and a biased one.

    Args:
      score: logits of mismatched pairs of prompt and response, `[...]`: β log(π/π_ref).
      where: which of them count, `[...]`, True = keep. Default all.
      axis_name: mapped axes over which the batch is spread; the result is then that of the whole batch.

    Returns:
      One number, ≥ 0, in the units of `score`, a constant to derivatives; half precision comes back as float32. 0 where
      nothing is kept.

    Raises:
      ValueError: the mask is not of the scores' shape.
      TypeError: scores are not floating-point, or the mask is not boolean.

    Gradient: none: z is a constant.

    Equal to: β `masked_mean` of `kl_k1`, cut off at 0.

    Source: Ethayarajh et al. 2024 (arXiv 2402.01306). TRL averages it over ranks after cutting each off
    at 0, which is no longer the whole batch's.

    >>> import jax.numpy as jnp
    >>> kto_reference_point(jnp.array([0.5, -0.25, 9.0]), where=jnp.array([True, True, False]))
    Array(0.125, dtype=float32)
    """
    checks.floating(score=score)
    checks.mask(where, score, of="`score`")
    (score,) = as_float(score)
    return jax.lax.stop_gradient(jnp.maximum(masked_mean(score, where, axis_name=axis_name), 0))


@objective
def apo_zero_unpaired_loss(score: Float[Array, "*batch"], desirable: Bool[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Desirable responses above the reference and undesirable ones below it, as probabilities.

    ℓ = 1 − σ(s) if desirable, σ(s) if not

    When to choose: like `kto_loss`, when no reference point is to be estimated.

    Args:
      score: logits of responses, `[...]`: β log(π/π_ref).
      desirable: whether each is desirable, `[...]`.

    Returns:
      One loss a response, `[...]`, between 0 and 1; half precision comes back as float32.

    Raises:
      ValueError: shapes differ.
      TypeError: scores are not floating-point, or labels not boolean.

    Gradient: ∂ℓ/∂s = ∓σ(s) σ(−s): − if desirable, + if not.

    Equal to: `kto_loss` with reference point 0; two of them make `apo_zero_loss`.

    Source: D'Oosterlinck et al. 2024 (arXiv 2408.06266); TRL's `loss_type="apo_zero_unpaired"`.

    >>> import jax.numpy as jnp
    >>> apo_zero_unpaired_loss(jnp.array([0.0, 2.0]), jnp.array([True, False])).round(2)
    Array([0.5 , 0.88], dtype=float32)
    """
    return kto_loss(score, desirable, reference_point=0.0)


@objective
def bco_loss(
    score: Float[Array, "*batch"],
    desirable: Bool[Array, "*batch"],
    *,
    shift: float | Float[Array, "*#batch"] = 0.0,
) -> Float[Array, "*batch"]:
    """Binary cross-entropy of the label given the score, in nats.

    ℓ = −log σ(s − δ) if desirable, −log σ(δ − s) if not

    When to choose: thumbs up and down, without pairs. With desirable responses of law p and undesirable ones of law r
    in equal number, the best score is log(p/r) + δ.

    Args:
      score: logits of responses, `[...]`: β log(π/π_ref).
      desirable: whether each is desirable, `[...]`.
      shift: δ, in logits; scalar or `[...]`; BCO keeps a running mean of all rewards. Default 0.

    Returns:
      One loss a response, `[...]`, in nats; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or the shift is not finite.
      TypeError: scores are not floating-point, or labels not boolean.

    Gradient: ∂ℓ/∂s = −σ(δ − s) if desirable, σ(s − δ) if not.

    Equal to: two of them, one of each label, at δ = 0 make `bco_pair_loss`; its population optimum is
    log 4 − 2 JSD (ledger 23).

    Source: Jung et al. 2024 (arXiv 2404.04656), where δ is the mean reward; TRL's `BCOTrainer`.

    >>> import jax.numpy as jnp
    >>> bco_loss(jnp.array([1.0, 1.0]), jnp.array([True, False])).round(2)
    Array([0.31, 1.31], dtype=float32)
    """
    return softplus(-_gain(score, desirable, shift, name="shift"))
