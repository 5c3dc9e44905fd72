"""One positive against K negatives of the same prompt.

The negatives are the last axis, K may be anything from 1 to millions: nothing larger than the scores is ever made.
`where` drops padded negatives. `ranking` has lists in order of preference, `weighted` lists with soft labels.

    name             formula                                                    shift of all logits
    info_nce_loss    −s⁺ + log(e^{s⁺} + Σ_k e^{s⁻_k})                           nothing changes
    info_nce_bound   log(K+1) − info_nce_loss                                   nothing changes
    nca_loss         sp(−s⁺) + [sp(s⁺) + Σ_k sp(s⁻_k)]/(K+1)                    changes: the level is fixed
    mio_loss         the same: the paper's name for it
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.elementary import expm1, log1p, scaled_softplus, softplus
from mi_align.numerics import as_float, count, fill, masked_sum
from mi_align.objectives._public import objective

__all__ = ["info_nce_bound", "info_nce_loss", "mio_loss", "nca_loss"]


def _one_against_many(positive: Array, negatives: Array, where: Array | None) -> tuple[Array, ...]:
    """Both kinds of logits, checked, wide enough to accumulate in."""
    checks.floating(positive=positive, negatives=negatives)
    checks.negatives_match(positive, negatives)
    checks.mask(where, negatives, of="`negatives`")
    positive, negatives = as_float(positive, negatives)
    if negatives.shape[-1] == 1:
        # Where XLA's CPU backend mixes [n, 1] and [n] in one fused sum, that is ten times as slow (jaxlib 0.10).
        negatives = jax.lax.optimization_barrier(negatives[..., 0])[..., None]
    return positive, negatives


def _rivals(positive: Array, negatives: Array, where: Array | None) -> tuple[Array, Array]:
    """The negatives as one rival: how far the best stands above the positive, and Σ_k e^{s⁻_k − best} ≥ 1.

    The best of them is a constant to derivatives: the two numbers mean the same for any other.
    """
    if where is None and negatives.shape[-1] == 1:
        lead = negatives[..., 0] - positive
        return lead, jnp.ones_like(lead)
    negatives = fill(negatives, where, -jnp.inf)
    best = jax.lax.stop_gradient(jnp.max(negatives, axis=-1))
    best = jnp.maximum(best, jnp.finfo(best.dtype).min)  # finite where nothing is kept
    return best - positive, masked_sum(jnp.exp(negatives - best[..., None]), axis=-1)


@objective
def info_nce_loss(
    positive: Float[Array, "*batch"],
    negatives: Float[Array, "*batch K"],
    *,
    where: Bool[Array, "*batch K"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy of picking the positive among itself and K negatives, in nats.

    ℓ = −s⁺ + log(e^{s⁺} + Σ_k e^{s⁻_k})

    On the implicit reward this is DPO with K rejected responses (S-DPO).

    When to choose: several negatives a prompt, and only differences matter. With one it is `bradley_terry_loss`; use
    `nca_loss` when the positive's own level must not fall.

    Args:
      positive: logits of the preferred responses, `[...]`.
      negatives: logits of K others of the same prompt, `[..., K]`, K ≥ 1.
      where: which negatives count, `[..., K]`, True = keep. Default all.

    Returns:
      One loss an example, `[...]`, in nats, ≥ 0; half precision comes back as float32. 0, with no gradient, where no
      negative is kept.

    Raises:
      ValueError: `negatives` is not the positives' shape with an axis K ≥ 1 at its end, or the mask not of its shape.
      TypeError: logits are not floating-point, or the mask is not boolean.

    Gradient: softmax minus one-hot: ∂ℓ/∂s⁻_k = p_k, ∂ℓ/∂s⁺ = −Σ_k p_k, p the softmax over all K+1 (ledger 45).

    Equal to: the first stage of `plackett_luce_loss` (ledger 17); `bradley_terry_loss` for K = 1 (ledger 13);
    `weighted_info_nce_loss` with a one-hot label (ledger 17). Shifts of all logits change nothing (ledger 46).

    Source: van den Oord et al. 2018 (arXiv 1807.03748), eq. 4; Chen et al. 2024 (arXiv 2406.09215), S-DPO.

    >>> import jax.numpy as jnp
    >>> info_nce_loss(jnp.array([1.0, 0.0]), jnp.array([[0.0, -1.0], [0.0, 0.0]])).round(4)
    Array([0.4076, 1.0986], dtype=float32)
    """
    positive, negatives = _one_against_many(positive, negatives, where)
    return scaled_softplus(*_rivals(positive, negatives, where))


@objective
def info_nce_bound(
    positive: Float[Array, "*batch"],
    negatives: Float[Array, "*batch K"],
    *,
    where: Bool[Array, "*batch K"] | None = None,
) -> Float[Array, "*batch"]:
    """InfoNCE's lower bound on mutual information, one term of its mean, in nats.

    I = log(K+1) − `info_nce_loss` = s⁺ − log[(e^{s⁺} + Σ_k e^{s⁻_k})/(K+1)]

    When to choose: to read off an estimate with little variance. It cannot exceed log(K+1): with fewer negatives than
    e^I it says log(K+1), whatever the information. `donsker_varadhan_bound` has no such ceiling, and more variance.

    Args:
      positive: the critic's scores of pairs that belong together, `[...]`.
      negatives: scores of the same x with K other y, `[..., K]`, K ≥ 1.
      where: which negatives count, `[..., K]`, True = keep. K in the formula is their number. Default all.

    Returns:
      One term an example, `[...]`, in nats, ≤ log(K+1); half precision comes back as float32. 0, with no gradient,
      where no negative is kept.

    Raises:
      ValueError: `negatives` is not the positives' shape with an axis K ≥ 1 at its end, or the mask not of its shape.
      TypeError: scores are not floating-point, or the mask is not boolean.

    Gradient: one-hot minus softmax: ∂I/∂s⁻_k = −p_k, ∂I/∂s⁺ = Σ_k p_k (ledger 45).

    Equal to: log(K+1) − `info_nce_loss`; per example `donsker_varadhan_bound` with all K+1 as the marginal sample
    (ledger 6, 13).

    Source: van den Oord et al. 2018 (arXiv 1807.03748); Poole et al. 2019 (arXiv 1905.06922), eq. 10.

    >>> import jax.numpy as jnp
    >>> info_nce_bound(jnp.array([1.0, 0.0]), jnp.array([[0.0, -1.0], [1.0, 1.0]])).round(2)
    Array([ 0.69, -0.76], dtype=float32)
    """
    positive, negatives = _one_against_many(positive, negatives, where)
    size = 1 + count(negatives, where, axis=-1)
    lead, total = _rivals(positive, negatives, where)
    peak = jax.lax.stop_gradient(jnp.maximum(lead, 0))
    far = jnp.log(size / (jnp.exp(-peak) + total * jnp.exp(lead - peak))) - peak
    # Near 0, where the two logarithms would cancel, it is minus the log of a mean that is nearly 1.
    gap = jnp.minimum(fill(negatives - positive[..., None], where, 0), 1)
    excess = masked_sum(expm1(gap), where, axis=-1) / size
    return jnp.where((lead < 1) & (excess > -0.5), -log1p(excess), far)


@objective
def nca_loss(
    positive: Float[Array, "*batch"],
    negatives: Float[Array, "*batch K"],
    *,
    where: Bool[Array, "*batch K"] | None = None,
) -> Float[Array, "*batch"]:
    """Jensen–Shannon contrast of the positive with the mixture of all candidates: MIO, and NCA with a hard label.

    ℓ = sp(−s⁺) + [sp(s⁺) + Σ_k sp(s⁻_k)]/(K+1),  sp(x) = log(1 + eˣ)

    When to choose: the chosen response's likelihood must not fall, as it may under `info_nce_loss` or
    `bradley_terry_loss`. Its gain is capped: s⁺ tends to log(K+1), so π(y⁺) to (K+1)^{1/β} π_ref(y⁺).

    Args:
      positive: logits of the preferred responses, `[...]`: β log(π/π_ref), whose zero is the reference.
      negatives: logits of K others of the same prompt, `[..., K]`, K ≥ 1.
      where: which negatives count, `[..., K]`, True = keep. K in the formula is their number. Default all.

    Returns:
      One loss an example, `[...]`, in nats; half precision comes back as float32. sp(−s⁺) + sp(s⁺), the positive
      against itself, where no negative is kept.

    Raises:
      ValueError: `negatives` is not the positives' shape with an axis K ≥ 1 at its end, or the mask not of its shape.
      TypeError: logits are not floating-point, or the mask is not boolean.

    Gradient: ∂ℓ/∂s⁺ = σ(s⁺)/(K+1) − σ(−s⁺), ∂ℓ/∂s⁻_k = σ(s⁻_k)/(K+1).

    Equal to: TRL's `nca_pair` for K = 1, at the same β (ledger 18); ½ `bco_pair_loss` + log(2 cosh(s⁺/2)) for K = 1
    (ledger 19); `weighted_nca_loss` with a one-hot label (ledger 17). Ledger 20 and 21 give its dynamics.

    Source: Chen et al. 2024 (arXiv 2402.05369), NCA; Lv et al. 2025 (arXiv 2506.22578), MIO, with β = 1.

    >>> import jax.numpy as jnp
    >>> nca_loss(jnp.array([1.0, 0.0]), jnp.array([[0.0, -1.0], [0.0, 0.0]])).round(2)
    Array([1.09, 1.39], dtype=float32)
    """
    positive, negatives = _one_against_many(positive, negatives, where)
    negatives = fill(negatives, where, 0)
    mixture = softplus(positive) + masked_sum(softplus(negatives), where, axis=-1)
    return softplus(-positive) + mixture / (1 + count(negatives, where, axis=-1))


#: The paper's name of `nca_loss`: one function, two names.
mio_loss = nca_loss
