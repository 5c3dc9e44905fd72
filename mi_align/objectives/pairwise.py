"""Losses of one positive over one negative that see only their margin s⁺ − s⁻.

They are one family f(s⁺ − s⁻): adding a constant to both logits changes nothing, so they fix the *difference* of a
pair and leave its level free. The level is what `anchored` and `contrastive.nca_loss` (MIO) add.

    name                       f(u)                        −f′(0)
    bradley_terry_loss         softplus(−u)                ½        DPO, reward models, SimPO, CPO, ORPO
    hinge_loss                 max(0, margin − u)          1        SLiC
    ...
"""

from __future__ import annotations

from jaxtyping import Array, Float

from mi_align import checks
from mi_align.numerics import as_float, softplus
from mi_align.objectives._public import objective

__all__ = ["bradley_terry_loss"]


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
    checks.floating(positive=positive, negative=negative)
    checks.same_shape(positive=positive, negative=negative)
    positive, negative = as_float(positive, negative)
    u = positive - negative - margin
    return softplus(-u) + label_smoothing * u
