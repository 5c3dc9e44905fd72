"""Losses of one positive over one negative that see only their margin s⁺ − s⁻.

They are one family f(u), u = s⁺ − s⁻: adding a constant to both logits changes nothing, so they fix the *difference* of
a pair and leave its level free. The level is what `anchored` and `contrastive.nca_loss` (MIO) add.

    name                         f(u)                           −f′(0)    trains
    bradley_terry_loss           −log σ(u)                      ½         DPO, reward models, SimPO, CPO, ORPO
    robust_bradley_terry_loss    unbiased under flipped labels  ½ + ε…    robust DPO
    exo_pair_loss                KL(σ(u) ‖ 1 − ε)               ¼ logit   EXO
    hinge_loss                   max(0, m − u)                  1         SLiC
    squared_loss                 (u − t)²                       2t        IPO
    exponential_loss             e⁻ᵘ                            1         GPO
    truncated_quadratic_loss     max(0, m − u)²                 2m        GPO
    savage_loss                  σ(−u)²                         ¼         GPO
    discopop_loss                logistic and e⁻ᵘ, blended      varies    DiscoPOP
    aot_loss                     −log σ of sorted differences             AOT
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import as_float, bernoulli_kl, exp_excess, fill, log1p, sigmoid, softplus
from mi_align.objectives._public import objective

__all__ = [
    "aot_loss",
    "bradley_terry_loss",
    "discopop_loss",
    "exo_pair_loss",
    "exponential_loss",
    "hinge_loss",
    "robust_bradley_terry_loss",
    "savage_loss",
    "squared_loss",
    "truncated_quadratic_loss",
]


def _difference(positive: Array, negative: Array, **hyper: Any) -> Float[Array, "*batch"]:
    """s⁺ − s⁻ of checked inputs, wide enough to accumulate in."""
    checks.floating(positive=positive, negative=negative)
    checks.same_shape(positive=positive, negative=negative)
    checks.broadcastable(jnp.shape(positive), **hyper)
    positive, negative = as_float(positive, negative)
    return positive - negative


@objective
def bradley_terry_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    margin: float | Float[Array, "*#batch"] = 0.0,
    label_smoothing: float | Float[Array, "*#batch"] = 0.0,
) -> Float[Array, "*batch"]:
    """Negative log-likelihood that the positive wins under the Bradley–Terry model, in nats.

    ℓ = −(1−ε) log σ(u) − ε log σ(−u),  u = s⁺ − s⁻ − m

    On the implicit reward β log(π/π_ref) this is DPO; on a scalar head it is the reward model's loss.

    When to choose: the default. Use `hinge_loss` when pairs that are already separated should stop pulling, and
    `contrastive.nca_loss` when the chosen response's own likelihood must not fall.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.
      margin: m, how much larger the positive should be, in logits; scalar or `[...]`. Default 0.
      label_smoothing: ε in [0, ½), the share of labels believed flipped (cDPO). Default 0.

    Returns:
      One loss a pair, `[...]`, in nats; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or a hyper-parameter is out of range.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = ε − σ(−u) = −∂ℓ/∂s⁻.

    Equal to: `info_nce_loss` with one negative; log 2 − `donsker_varadhan_bound` per pair (ledger 13).

    Source: Bradley & Terry 1952; Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; Mitchell 2023 for ε.

    >>> import jax.numpy as jnp
    >>> bradley_terry_loss(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0])).round(4)
    Array([0.3133, 0.6931], dtype=float32)
    """
    u = _difference(positive, negative, margin=margin, label_smoothing=label_smoothing) - margin
    return softplus(-u) + label_smoothing * u


@objective
def robust_bradley_terry_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    label_smoothing: float | Float[Array, "*#batch"] = 0.1,
) -> Float[Array, "*batch"]:
    """Bradley–Terry loss whose mean over randomly flipped labels is the loss on the true ones (robust DPO).

    ℓ = [−(1−ε) log σ(u) + ε log σ(−u)] / (1 − 2ε),  u = s⁺ − s⁻
    """
    u = _difference(positive, negative, label_smoothing=label_smoothing)
    return softplus(-u) - label_smoothing / (1 - 2 * label_smoothing) * u


@objective(label_smoothing=checks.Range(above=0, below=0.5, remedy="ε = 0 makes the loss infinite."))
def exo_pair_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    label_smoothing: float | Float[Array, "*#batch"] = 1e-3,
) -> Float[Array, "*batch"]:
    """Reverse KL from the pair's own choice probability to a smoothed label, in nats (EXO).

    ℓ = σ(u) [log σ(u) − log(1−ε)] + σ(−u) [log σ(−u) − log ε],  u = s⁺ − s⁻
    """
    u = _difference(positive, negative, label_smoothing=label_smoothing)
    return bernoulli_kl(u, log1p((1 - 2 * label_smoothing) / label_smoothing))


@objective
def hinge_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    margin: float | Float[Array, "*#batch"] = 1.0,
) -> Float[Array, "*batch"]:
    """How far the margin falls short of what is wanted (SLiC): max(0, m − u), u = s⁺ − s⁻."""
    return jax.nn.relu(margin - _difference(positive, negative, margin=margin))


@objective
def squared_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    target: float | Float[Array, "*#batch"],
) -> Float[Array, "*batch"]:
    """Squared distance of the margin from a target: (u − t)², u = s⁺ − s⁻; IPO with t = 1/(2β) on log-ratios."""
    return jnp.square(_difference(positive, negative, target=target) - target)


@objective
def exponential_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """e⁻ᵘ, u = s⁺ − s⁻: boosting's loss."""
    return jnp.exp(-_difference(positive, negative))


@objective
def truncated_quadratic_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    margin: float | Float[Array, "*#batch"] = 1.0,
) -> Float[Array, "*batch"]:
    """The square of the hinge: max(0, m − u)², u = s⁺ − s⁻."""
    return jnp.square(jax.nn.relu(margin - _difference(positive, negative, margin=margin)))


@objective
def savage_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Squared probability of the wrong order: σ(−u)², u = s⁺ − s⁻; bounded, hence robust to outliers."""
    return jnp.square(sigmoid(-_difference(positive, negative)))


@objective
def discopop_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    temperature: float | Float[Array, "*#batch"] = 0.05,
) -> Float[Array, "*batch"]:
    """The loss a language model found by search: logistic for negative margins, exponential for positive ones.

    ℓ = (1 − m) log(1 + e⁻ᵘ) + m e⁻ᵘ,  m = σ(u/τ),  u = s⁺ − s⁻
    """
    u = _difference(positive, negative, temperature=temperature)
    return _discovered(u, jnp.asarray(temperature, u.dtype))


@jax.custom_jvp
def _discovered(u: Float[Array, "*batch"], temperature: Float[Array, "*#batch"]) -> Float[Array, "*batch"]:
    """DiscoPOP's curve; its derivatives are written out because e⁻ᵘ overflows where the loss and its slope do not."""
    v = u / temperature
    return sigmoid(-v) * softplus(-u) + _sigmoid_times_exp(v, -u)


@_discovered.defjvp
def _discovered_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (u, temperature), (du, dt) = primals, tangents
    v = u / temperature
    logistic, exponential = softplus(-u), _sigmoid_times_exp(v, -u)
    # σ(v) (e⁻ᵘ − log(1 + e⁻ᵘ)), which cancels for u > 0 and overflows for u < 0.
    excess = sigmoid(v) * exp_excess(jnp.where(u > 0, logistic, 0))
    blend = sigmoid(-v) * jnp.where(u > 0, excess, exponential - sigmoid(v) * logistic)
    pull = sigmoid(-v) * sigmoid(-u) + exponential
    steeper = exponential * (sigmoid(-v) / temperature - 1) - sigmoid(-v) * (
        sigmoid(v) * logistic / temperature + sigmoid(-u)
    )
    slope = jnp.where(u > 0, blend / temperature - pull, steeper)
    return _discovered(u, temperature), slope * du - blend * v / temperature * dt


@jax.custom_jvp
def _sigmoid_times_exp(x: Float[Array, "*batch"], y: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """σ(x) eʸ where either factor alone may overflow or vanish."""
    return sigmoid(jnp.abs(x)) * jnp.exp(jnp.minimum(x, 0) + y)


@_sigmoid_times_exp.defjvp
def _sigmoid_times_exp_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    value = _sigmoid_times_exp(x, y)
    return value, value * (sigmoid(-x) * dx + dy)


@objective
def aot_loss(
    positive: Float[Array, "*batch N"],
    negative: Float[Array, "*batch N"],
    *,
    where: Bool[Array, "*batch N"] | None = None,
    label_smoothing: float = 0.0,
) -> Float[Array, "*batch N"]:
    """Batch-coupled along the last axis: Bradley–Terry between the order statistics of two samples (AOT).

    ℓᵢ = −(1−ε) log σ(qᵢ) − ε log σ(−qᵢ),  q = sort(s⁺) − sort(s⁻)
    """
    checks.floating(positive=positive, negative=negative)
    checks.same_shape(positive=positive, negative=negative)
    checks.mask(where, positive, of="`positive`")
    positive, negative = as_float(positive, negative)
    kept = None if where is None else jnp.sort(where, axis=-1, descending=True)
    # Padding sorts to the end of both samples, where `kept` drops it.
    sorted_positive, sorted_negative = (fill(jnp.sort(fill(s, where, jnp.inf)), kept, 0) for s in (positive, negative))
    return fill(bradley_terry_loss(sorted_positive, sorted_negative, label_smoothing=label_smoothing), kept, 0)
