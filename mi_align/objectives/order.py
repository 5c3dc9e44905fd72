"""Two samples of logits compared in order: optimal transport on the line."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import fill
from mi_align.objectives._pairs import pair
from mi_align.objectives._public import objective
from mi_align.objectives.pairwise import bradley_terry_loss

__all__ = ["aot_loss"]


@objective
def aot_loss(
    positive: Float[Array, "*batch N"],
    negative: Float[Array, "*batch N"],
    *,
    where: Bool[Array, "*batch N"] | None = None,
    label_smoothing: float | Float[Array, ""] = 0.0,
) -> Float[Array, "*batch N"]:
    """Batch-coupled along the last axis: Bradley–Terry loss between the order statistics of two samples, in nats.

    ℓᵢ = −(1−ε) log σ(qᵢ) − ε log σ(−qᵢ),  q = sort(s⁺) − sort(s⁻)

    Asks that the positives' distribution dominate the negatives', quantile by quantile, not pair by pair.

    When to choose: preferences hold on average over prompts, not for every pair. The batch should be large: a quantile
    of few samples says little, and splitting a batch changes the loss.

    Args:
      positive: N logits of one sample, `[..., N]`: β log(π/π_ref) of chosen responses (AOT unpaired), or the policy's
        β log(π⁺/π⁻) (AOT paired).
      negative: N logits of the other, `[..., N]`: those of rejected responses, or the reference's β log(π⁺/π⁻).
      where: which pairs count, `[..., N]`, True = keep; the same for both samples. Default all.
      label_smoothing: ε in [0, ½), the share of labels believed flipped. Default 0.

    Returns:
      One loss a rank from the lowest, `[..., N]`, in nats; ranks beyond the kept pairs hold 0, without gradient. Half
      precision comes back as float32.

    Raises:
      ValueError: shapes differ, the mask is not of the samples' shape, or ε is out of range.
      TypeError: logits are not floating-point, or the mask is not boolean.

    Gradient: that of `bradley_terry_loss` at each rank, carried back to the entries that hold it.

    Equal to: `bradley_terry_loss` for N = 1, and for samples that are sorted alike (ledger 13).

    Source: Melnyk et al. 2024 (arXiv 2406.05882); TRL's `loss_type="aot"` and `"aot_unpaired"`.

    >>> import jax.numpy as jnp
    >>> aot_loss(jnp.array([1.0, 3.0]), jnp.array([2.0, 0.0])).round(2)
    Array([0.31, 0.31], dtype=float32)
    """
    checks.mask(where, positive, of="`positive`")
    checks.candidates(positive, name="positive")
    positive, negative = pair(positive, negative)
    kept = None if where is None else jnp.sort(where, axis=-1, descending=True)
    # Padding sorts to the end of both samples, where `kept` drops it.
    positive, negative = (fill(jnp.sort(fill(s, where, jnp.inf), axis=-1), kept, 0) for s in (positive, negative))
    return fill(bradley_terry_loss(positive, negative, label_smoothing=label_smoothing), kept, 0)
