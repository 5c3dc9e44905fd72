"""One positive against K negatives of the same prompt, and lists of candidates with ranks or soft labels.

The candidates are the last axis. `where` drops padded candidates; K may be anything from 1 to millions, since nothing
larger than the scores is ever made.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mi_align import checks
from mi_align.numerics import as_float, count, expm1, fill, log1p, masked_sum, scaled_softplus, softplus
from mi_align.objectives._public import objective

__all__ = [
    "exo_loss",
    "info_nce_bound",
    "info_nce_loss",
    "mio_loss",
    "nca_loss",
    "plackett_luce_loss",
    "weighted_info_nce_loss",
    "weighted_nca_loss",
]


def _one_against_many(positive: Array, negatives: Array, where: Array | None) -> tuple[Array, Array]:
    """Both kinds of logits, checked, wide enough to accumulate in."""
    checks.floating(positive=positive, negatives=negatives)
    checks.negatives_match(positive, negatives)
    checks.mask(where, negatives, of="`negatives`")
    positive, negatives = as_float(positive, negatives)
    return positive, negatives


def _rivals(positive: Array, negatives: Array, where: Array | None) -> tuple[Array, Array]:
    """The negatives as one rival: how far the best stands above the positive, and Σ_k e^{s⁻_k − best} ≥ 1.

    The best of them is a constant to derivatives: the pair's meaning does not depend on it.
    """
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
    """InfoNCE's estimate of mutual information, log(K+1) − `info_nce_loss`, in nats; K counts the kept negatives."""
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

    ℓ = sp(−s⁺) + [sp(s⁺) + Σ_k sp(s⁻_k)] / (K+1)
    """
    positive, negatives = _one_against_many(positive, negatives, where)
    negatives = fill(negatives, where, 0)
    mixture = softplus(positive) + masked_sum(softplus(negatives), where, axis=-1)
    return softplus(-positive) + mixture / (1 + count(negatives, where, axis=-1))


#: The paper's name for NCA with a hard label.
mio_loss = nca_loss


def _scores(scores: Array, where: Array | None, weights: Array | None = None) -> tuple[Array, ...]:
    """A list of logits (and its soft labels), checked, wide enough to accumulate in."""
    checks.floating(scores=scores)
    checks.candidates(scores)
    checks.mask(where, scores)
    if weights is None:
        return as_float(scores)
    checks.floating(weights=weights)
    checks.same_shape(scores=scores, weights=weights)
    return as_float(scores, weights)


def _below_peak(scores: Array, where: Array | None) -> tuple[Array, Array]:
    """Every score minus the row's largest kept one (0 under the mask), and Σ eᵍᵃᵖ of the others.

    Where the largest has more than half of the softmax's mass, derivatives pass through it as the pivot of all gaps:
    that keeps the digits of 1 − p for p near 1. Elsewhere it is a constant, which keeps those of a small p.
    """
    scores = fill(scores, where, -jnp.inf)
    is_peak = _positions(scores) == jnp.argmax(scores, axis=-1, keepdims=True)
    others = ~is_peak if where is None else ~is_peak & where
    peak = jnp.expand_dims(masked_sum(scores, is_peak, axis=-1), -1)
    peak = fill(peak, jnp.isfinite(peak), 0)
    rest = masked_sum(jnp.exp(fill(scores - peak, others, -jnp.inf)), axis=-1)
    dominant = jnp.expand_dims(rest < 1, -1)
    pivot = jnp.where(dominant, peak, jax.lax.stop_gradient(peak))
    gap = fill(scores - pivot, others, 0)
    own = peak - pivot  # 0, with a derivative unless the peak is the pivot
    rest = masked_sum(jnp.exp(gap), others, axis=-1) + expm1(jnp.squeeze(own, -1))
    return jnp.where(is_peak, own, gap), rest


@objective
def weighted_info_nce_loss(
    scores: Float[Array, "*batch n"],
    weights: Float[Array, "*batch n"],
    *,
    where: Bool[Array, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    """Cross-entropy of the candidates' softmax with soft labels, in nats (InfoNCA).

    ℓ = −Σ_k w_k log softmax(s)_k
    """
    scores, weights = _scores(scores, where, weights)
    gap, rest = _below_peak(scores, where)
    weights = fill(weights, where, 0)
    return masked_sum(weights, axis=-1) * jnp.log1p(rest) - masked_sum(weights * gap, axis=-1)


@objective
def weighted_nca_loss(
    scores: Float[Array, "*batch n"],
    weights: Float[Array, "*batch n"],
    *,
    where: Bool[Array, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    """Jensen–Shannon contrast of a soft-labelled list with its own mixture (NCA).

    ℓ = Σ_k w_k sp(−s_k) + (1/n) Σ_k sp(s_k)
    """
    scores, weights = _scores(scores, where, weights)
    scores, weights = fill(scores, where, 0), fill(weights, where, 0)
    mixture = masked_sum(softplus(scores), where, axis=-1) / jnp.maximum(count(scores, where, axis=-1), 1)
    return masked_sum(weights * softplus(-scores), axis=-1) + mixture


@objective
def exo_loss(
    scores: Float[Array, "*batch n"],
    weights: Float[Array, "*batch n"],
    *,
    where: Bool[Array, "*batch n"] | None = None,
) -> Float[Array, "*batch"]:
    """Reverse KL from the candidates' softmax to soft labels, in nats (EXO).

    ℓ = Σ_k p_k log(p_k / w_k),  p = softmax(s)
    """
    scores, weights = _scores(scores, where, weights)
    gap, rest = _below_peak(scores, where)
    probability = jnp.exp(gap) / (1 + rest[..., None])
    ratio = gap - jnp.log1p(rest)[..., None] - jnp.log(fill(weights, where, 1))
    return masked_sum(probability * ratio, where, axis=-1)


@objective(top_k=checks.Range(at_least=1))
def plackett_luce_loss(
    scores: Float[Array, "*batch n"],
    *,
    where: Bool[Array, "*batch n"] | None = None,
    ties: Bool[Array, "*batch n"] | None = None,
    top_k: int | Int[Array, ""] | None = None,
) -> Float[Array, "*batch"]:
    """Negative log-likelihood of a ranking under the Plackett–Luce model, in nats; best first on the last axis.

    ℓ = Σ_i [log Σ_{j≥i} e^{s_j} − s_i]
    """
    (scores,) = _scores(scores, where)
    checks.mask(ties, scores, name="ties")
    counted = jnp.ones(scores.shape, bool) if where is None else where
    lowest = jnp.finfo(scores.dtype).min
    best, total = _tails(fill(scores, where, lowest), counted)
    scores = fill(scores, where, 0)
    against = scaled_softplus(_next(best, lowest) - scores, _next(total, 0))
    if ties is not None:
        start = _starts_of_ties(ties, counted)
        best, total = (jnp.take_along_axis(x, start, axis=-1) for x in (best, total))
        against = jnp.where(start == _positions(scores), against, best - scores + jnp.log(total))
    if top_k is not None:
        counted = counted & (jnp.cumsum(counted, axis=-1) <= top_k)
    return masked_sum(against, counted, axis=-1)


def _positions(x: Array) -> Array:
    return jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)


def _next(x: Array, end: float) -> Array:
    """Every entry's successor on the last axis."""
    return jnp.concatenate([x[..., 1:], jnp.full_like(x[..., :1], end)], axis=-1)


def _tails(scores: Array, counted: Array) -> tuple[Array, Array]:
    """For every i the largest of s_i … s_n, and Σ_{j≥i} e^{s_j − largest}; the largest is a constant to derivatives."""
    best = jax.lax.stop_gradient(scores)
    total = fill(jnp.exp(scores - best), counted, 0)
    return jax.lax.associative_scan(_join, (best, total), reverse=True, axis=scores.ndim - 1)


def _join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    best = jnp.maximum(a[0], b[0])
    return best, a[1] * jnp.exp(a[0] - best) + b[1] * jnp.exp(b[0] - best)


def _starts_of_ties(ties: Array, counted: Array) -> Array:
    """For every candidate the position of the first counted one on its level."""
    axis = ties.ndim - 1
    opens_level = counted & (~ties | (jnp.cumsum(counted, axis=axis) == 1))
    return jax.lax.cummax(jnp.where(opens_level, _positions(ties), 0), axis=axis)
