"""Lists of candidates with soft labels: weights that say how good each one is.

    name                      formula                                          optimum
    weighted_info_nce_loss    −Σ_k w_k log softmax(s)_k                        softmax(s) = w, level free
    weighted_nca_loss         Σ_k w_k sp(−s_k) + (1/n) Σ_k sp(s_k)             s_k = log(n w_k), level fixed
    exo_loss                  KL(softmax(s) ‖ w)                               softmax(s) = w, level free

Soft labels of rewards r are softmax(r/α) over the list; α → 0 is the hard label of the best.
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align.elementary import log1p, softplus
from mi_align.numerics import count, fill, masked_sum
from mi_align.objectives._lists import candidates, gaps_to_peak
from mi_align.objectives._public import objective

__all__ = ["exo_loss", "weighted_info_nce_loss", "weighted_nca_loss"]

_sum = functools.partial(masked_sum, axis=-1, careful=True)


@objective
def weighted_info_nce_loss(
    scores: Float[Array, "*batch n"],
    weights: Float[Array, "*batch n"],
    *,
    where: Bool[Array, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy of the candidates' softmax with soft labels, in nats: InfoNCA.

    ℓ = −Σ_k w_k log p_k,  p = softmax(s)

    When to choose: each prompt has several responses with explicit rewards, and only differences matter. Use
    `weighted_nca_loss` to keep the good ones' likelihood up.

    Args:
      scores: logits of n candidates, `[..., n]`, n ≥ 1.
      weights: w, their soft labels, `[..., n]`: non-negative, summing to 1 over the kept ones (not renormalised here).
      where: which candidates count, `[..., n]`, True = keep. Default all.

    Returns:
      One loss a list, `[...]`, in nats; half precision comes back as float32. 0 where nothing is kept.

    Raises:
      ValueError: shapes differ, or a list is empty.
      TypeError: scores or weights are not floating-point, or the mask is not boolean.

    Gradient: ∂ℓ/∂s_k = p_k Σ_j w_j − w_k, ∂ℓ/∂w_k = −log p_k.

    Equal to: `info_nce_loss` with a one-hot label (ledger 17); up to the labels' entropy, KL(w ‖ softmax(s)), the
    forward twin of `exo_loss` (ledger 28).

    Source: Chen et al. 2024 (arXiv 2402.05369), InfoNCA.

    >>> import jax.numpy as jnp
    >>> weighted_info_nce_loss(jnp.array([[1.0, 0.0, -1.0]]), jnp.array([[0.7, 0.2, 0.1]])).round(3)
    Array([0.808], dtype=float32)
    """
    scores, weights = candidates(scores, where, weights)
    gap, rest = gaps_to_peak(scores, where)
    weights = fill(weights, where, 0)
    return _sum(weights) * log1p(rest) - _sum(weights * gap)


@objective
def weighted_nca_loss(
    scores: Float[Array, "*batch n"],
    weights: Float[Array, "*batch n"],
    *,
    where: Bool[Array, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    """Jensen–Shannon contrast of a soft-labelled list with its own even mixture, in nats: NCA.

    ℓ = Σ_k w_k sp(−s_k) + (1/n) Σ_k sp(s_k),  sp(x) = log(1 + eˣ)

    When to choose: explicit rewards, and the good responses' own likelihood must not fall. Candidates are coupled by
    their weights alone: no softmax is taken.

    Args:
      scores: logits of n candidates, `[..., n]`, n ≥ 1: β log(π/π_ref), whose zero is the reference.
      weights: w, their soft labels, `[..., n]`: non-negative, summing to 1 over the kept ones (not renormalised here).
      where: which candidates count, `[..., n]`, True = keep. n in the formula is their number. Default all.

    Returns:
      One loss a list, `[...]`, in nats; half precision comes back as float32. 0 where nothing is kept.

    Raises:
      ValueError: shapes differ, or a list is empty.
      TypeError: scores or weights are not floating-point, or the mask is not boolean.

    Gradient: ∂ℓ/∂s_k = σ(s_k)/n − w_k σ(−s_k), ∂ℓ/∂w_k = sp(−s_k).

    Equal to: `nca_loss` with a one-hot label (ledger 17).

    Source: Chen et al. 2024 (arXiv 2402.05369), NCA.

    >>> import jax.numpy as jnp
    >>> weighted_nca_loss(jnp.array([[1.0, 0.0, -1.0]]), jnp.array([[0.7, 0.2, 0.1]])).round(2)
    Array([1.26], dtype=float32)
    """
    scores, weights = candidates(scores, where, weights)
    scores, weights = fill(scores, where, 0), fill(weights, where, 0)
    mixture = _sum(softplus(scores), where) / jnp.maximum(count(scores, where, axis=-1), 1)
    return _sum(weights * softplus(-scores)) + mixture


@objective
def exo_loss(
    scores: Float[Array, "*batch n"],
    weights: Float[Array, "*batch n"],
    *,
    where: Bool[Array, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    """Reverse KL from the candidates' softmax to soft labels, in nats: EXO.

    ℓ = Σ_k p_k log(p_k/w_k),  p = softmax(s)

    When to choose: the policy should seek the labels' modes, as KL-regularised RL does, where
    `weighted_info_nce_loss`, the forward KL, covers them all. Candidates far from the softmax's mass pull little.

    Args:
      scores: logits of n candidates, `[..., n]`, n ≥ 1.
      weights: w, their soft labels, `[..., n]`: positive, summing to 1 over the kept ones (not renormalised here).
        A kept candidate of weight 0 makes the loss infinite: smooth the labels, or mask it.
      where: which candidates count, `[..., n]`, True = keep. Default all.

    Returns:
      One loss a list, `[...]`, in nats, ≥ 0 up to the rounding of weights that sum to 1; half precision comes back as
      float32. 0 where nothing is kept.

    Raises:
      ValueError: shapes differ, or a list is empty.
      TypeError: scores or weights are not floating-point, or the mask is not boolean.

    Gradient: ∂ℓ/∂s_k = p_k [log(p_k/w_k) − ℓ], ∂ℓ/∂w_k = −p_k/w_k.

    Equal to: `exo_pair_loss` for two candidates with weights (1−ε, ε) (ledger 28).

    Source: Ji et al. 2024 (arXiv 2402.00856).

    >>> import jax.numpy as jnp
    >>> exo_loss(jnp.array([[1.0, 0.0, -1.0]]), jnp.array([[0.7, 0.2, 0.1]])).round(4)
    Array([0.0061], dtype=float32)
    """
    scores, weights = candidates(scores, where, weights)
    gap, rest = gaps_to_peak(scores, where)
    rest = jnp.expand_dims(rest, -1)
    labels = fill(weights, where, 1)
    term = jnp.exp(gap) / (1 + rest) * (gap - log1p(rest) - jnp.log(labels))
    return _sum(jnp.where(labels > 0, term, jnp.inf), where)
