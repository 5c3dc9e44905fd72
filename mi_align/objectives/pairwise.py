"""Losses of one positive over one negative that see only their margin s⁺ − s⁻.

They are one family f(u), u = s⁺ − s⁻: adding a constant to both logits changes nothing, so they fix the *difference* of
a pair and leave its level free. The level is what `anchored` and `contrastive.nca_loss` (MIO) add.

    name                         f(u)                               −f′(0)         trains
    bradley_terry_loss           −log σ(u)                          ½              DPO, reward models, SimPO, CPO, ORPO
    robust_bradley_terry_loss    its unbiased form for flips ε      ½ + ε/(1−2ε)   robust DPO
    exo_pair_loss                KL(Bernoulli σ(u) ‖ 1−ε)           ¼ log((1−ε)/ε) EXO
    hinge_loss                   max(0, m − u)                      1              SLiC
    squared_loss                 (u − t)²                           2t             IPO

`generalised` has the rest of the family: exponential, truncated quadratic, Savage, DiscoPOP; `order` has AOT.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align import checks
from mi_align.elementary import bernoulli_kl, log1p, softplus
from mi_align.objectives._pairs import pair
from mi_align.objectives._public import objective

__all__ = [
    "bradley_terry_loss",
    "exo_pair_loss",
    "hinge_loss",
    "robust_bradley_terry_loss",
    "squared_loss",
]


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
    `nca_loss` when the chosen response's own likelihood must not fall.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.
      margin: m, how much larger the positive should be, in logits; scalar or `[...]`. Default 0.
      label_smoothing: ε in [0, ½), the share of labels believed flipped (cDPO); scalar or `[...]`. Default 0.

    Returns:
      One loss a pair, `[...]`, in nats; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or a hyper-parameter is out of range.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = ε − σ(−u) = −∂ℓ/∂s⁻.

    Equal to: `info_nce_loss` with one negative (ledger 13, 17); per pair, log 2 − `donsker_varadhan_bound` with the
    50/50 mixture of both as the marginal sample (ledger 13).

    Source: Bradley & Terry 1952; Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; Mitchell 2023 for ε.

    >>> import jax.numpy as jnp
    >>> bradley_terry_loss(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0])).round(2)
    Array([0.31, 0.69], dtype=float32)
    """
    positive, negative, margin, label_smoothing = pair(
        positive, negative, margin=margin, label_smoothing=label_smoothing
    )
    u = positive - negative - margin
    return softplus(-u) + label_smoothing * u


@objective
def robust_bradley_terry_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    label_smoothing: float | Float[Array, "*#batch"] = 0.1,
) -> Float[Array, "*batch"]:
    """Bradley–Terry loss whose mean over randomly flipped labels is the loss on the true ones, in nats.

    ℓ = [−(1−ε) log σ(u) + ε log σ(−u)] / (1 − 2ε),  u = s⁺ − s⁻

    When to choose: a known share ε of the labels is flipped at random. The loss is unbounded below, so train with early
    stopping; smoothing in `bradley_terry_loss` is biased, but bounded.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.
      label_smoothing: ε in [0, ½), the share of flipped labels; scalar or `[...]`. Default 0.1 (the paper's
        experiments; TRL has 0).

    Returns:
      One loss a pair, `[...]`, in nats, of either sign; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or ε is out of range.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = −σ(−u) − ε/(1 − 2ε) = −∂ℓ/∂s⁻.

    Equal to: (1−ε) ℓ(u) + ε ℓ(−u) = −log σ(u), the flip's mean; `bradley_terry_loss` at ε = 0 (ledger 13).

    Source: Chowdhury, Kini & Natarajan 2024 (arXiv 2403.00409); TRL's `loss_type="robust"`.

    >>> import jax.numpy as jnp
    >>> robust_bradley_terry_loss(jnp.array([1.0, -1.0]), jnp.array([0.0, 0.0]), label_smoothing=0.1).round(4)
    Array([0.1883, 1.4383], dtype=float32)
    """
    positive, negative, label_smoothing = pair(positive, negative, label_smoothing=label_smoothing)
    u = positive - negative
    return softplus(-u) - label_smoothing / (1 - 2 * label_smoothing) * u


@objective(label_smoothing=checks.Range(above=0, below=0.5, remedy="At ε = 0 the loss is infinite."))
def exo_pair_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    label_smoothing: float | Float[Array, "*#batch"] = 1e-3,
) -> Float[Array, "*batch"]:
    """Reverse KL from the pair's own choice probability to its smoothed label, in nats.

    ℓ = σ(u) [log σ(u) − log(1−ε)] + σ(−u) [log σ(−u) − log ε],  u = s⁺ − s⁻

    When to choose: to stop at the label's odds, log((1−ε)/ε), instead of separating for ever. It is bounded, so a pair
    that is badly wrong pulls little: start it from a policy that is not far off.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.
      label_smoothing: ε in (0, ½), the label's probability of the other order; scalar or `[...]`. Default 1e-3 (TRL's).

    Returns:
      One loss a pair, `[...]`, in nats, ≥ 0; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or ε is out of range.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = σ(u) σ(−u) [u − log((1−ε)/ε)] = −∂ℓ/∂s⁻.

    Equal to: `exo_loss` on the two scores with weights (1−ε, ε) (ledger 28).

    Source: Ji et al. 2024 (arXiv 2402.00856); TRL's `loss_type="exo_pair"`, which builds ε in float32.

    >>> import jax.numpy as jnp
    >>> exo_pair_loss(jnp.array([1.0, 0.0]), jnp.array([0.0, 0.0]), label_smoothing=0.1).round(2)
    Array([0.11, 0.51], dtype=float32)
    """
    positive, negative, label_smoothing = pair(positive, negative, label_smoothing=label_smoothing)
    return bernoulli_kl(positive - negative, log1p((1 - 2 * label_smoothing) / label_smoothing))


@objective
def hinge_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    margin: float | Float[Array, "*#batch"] = 1.0,
) -> Float[Array, "*batch"]:
    """How far the positive's lead falls short of the margin, in logits.

    ℓ = max(0, m − u),  u = s⁺ − s⁻

    When to choose: pairs that are separated by the margin should stop pulling (SLiC), which keeps the policy near its
    reference. `truncated_quadratic_loss` stops smoothly.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.
      margin: m, the lead that is enough, in logits; scalar or `[...]`. Default 1 (SLiC, TRL).

    Returns:
      One loss a pair, `[...]`, in logits, ≥ 0; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or the margin is not finite.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = −1 where u < m, else 0 (at the kink too) = −∂ℓ/∂s⁻.

    Equal to: the family of ledger 47.

    Source: Zhao et al. 2023 (arXiv 2305.10425), SLiC-HF; TRL's `loss_type="hinge"`.

    >>> import jax.numpy as jnp
    >>> hinge_loss(jnp.array([0.25, 3.0]), jnp.array([0.0, 0.0]))
    Array([0.75, 0.  ], dtype=float32)
    """
    positive, negative, margin = pair(positive, negative, margin=margin)
    return jax.nn.relu(margin - (positive - negative))


@objective
def squared_loss(
    positive: Float[Array, "*batch"],
    negative: Float[Array, "*batch"],
    *,
    target: float | Float[Array, "*#batch"],
) -> Float[Array, "*batch"]:
    """Squared distance of the positive's lead from a target.

    ℓ = (u − t)²,  u = s⁺ − s⁻

    On the log-ratio log(π/π_ref) with t = 1/(2β) this is IPO.

    When to choose: preferences are nearly deterministic, where a logistic loss would separate without bound; the
    regression has a finite goal for every pair.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negative: logits of the others, `[...]`.
      target: t, the lead to reach, in logits; scalar or `[...]`. No default: IPO's is 1/(2β).

    Returns:
      One loss a pair, `[...]`, in squared logits; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or the target is not finite.
      TypeError: logits are not floating-point.

    Gradient: ∂ℓ/∂s⁺ = 2 (u − t) = −∂ℓ/∂s⁻.

    Equal to: the family of ledger 47.

    Source: Azar et al. 2023 (arXiv 2310.12036), eq. 17. Libraries differ in whether log-ratios are summed over tokens
    (as the paper does) or averaged (TRL): that is the critic's business.

    >>> import jax.numpy as jnp
    >>> squared_loss(jnp.array([1.0, 6.0]), jnp.array([0.0, 0.5]), target=5.0)
    Array([16.  ,  0.25], dtype=float32)
    """
    positive, negative, target = pair(positive, negative, target=target)
    return jnp.square(positive - negative - target)
