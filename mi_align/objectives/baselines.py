"""Bounds on mutual information that replace the unknown partition by a baseline: given, learnt, or the batch's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.elementary import exp_excess, expm1, log1p
from mi_align.numerics import AxisName, as_float, centred_log_mean_exp, fill, masked_mean, masked_sum, mean_expm1, pivot
from mi_align.objectives._public import objective
from mi_align.objectives._samples import SampleAxis, if_sampled, per_estimate, samples

__all__ = ["interpolated_bound", "nwj_bound", "tuba_bound"]

#: No score this far above the baseline is in a sample whose mean(e^b)/c is below ½; and its exponential is finite.
_NEVER_FAR = 80.0


@objective(static=["axis", "axis_name"])
def tuba_bound(
    joint: Float[Array, "..."],
    marginal: Float[Array, "..."],
    *,
    log_baseline: float | Float[Array, "..."] = 0.0,
    where_joint: Bool[Array, "..."] | None = None,
    where_marginal: Bool[Array, "..."] | None = None,
    axis: SampleAxis = -1,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Batch-coupled: the Barber–Agakov bound made tractable by a baseline for the unknown partition, in nats.

    I = mean(a) − mean(e^b) / c − log c + 1,  c > 0 the baseline, given as log c

    When to choose: for an unbiased estimate whose gradient is unbiased too, with a learnt baseline. With the best one,
    c = mean(e^b), it is `donsker_varadhan_bound`; with c = e it is `nwj_bound`.

    Args:
      joint: scores of pairs that belong together, `[..., N]`; logits, in nats.
      marginal: scores of pairs that do not, `[..., M]`; other axes as `joint`'s.
      log_baseline: log c, in nats; a scalar or `[...]`, one an estimate. It may be learnt: the bound is concave in it.
        A baseline that depends on y is subtracted from both samples' scores before, each from its own. Default 0, for
        which the best score is log p/q.
      where_joint: which entries of `joint` count, `[..., N]`, True = keep. Default all.
      where_marginal: the same for `marginal`, `[..., M]`.
      axis: the sample's axis or axes. Default the last.
      axis_name: mapped axes over which the sample is spread.

    Returns:
      One bound an estimate, `[...]` without `axis`, in nats; half precision comes back as float32. −inf only where the
      bound itself is below the smallest float. 0, with no gradient, where a sample has no kept entry.

    Raises:
      ValueError: other axes than `axis` differ, a sample is empty, a mask or the baseline is not of its shape, or the
        baseline is not finite.
      TypeError: scores are not floating-point, or a mask is not boolean.

    Gradient: ∂I/∂a_i = 1/N, ∂I/∂b_j = −e^{b_j}/(M c), ∂I/∂log c = mean(e^b)/c − 1.

    Equal to: `donsker_varadhan_bound` − (Z − 1 − log Z), Z = mean(e^b)/c (ledger 3).

    Source: Barber & Agakov 2003; Poole et al. 2019 (arXiv 1905.06922), I_TUBA.

    >>> import jax.numpy as jnp
    >>> print(f"{tuba_bound(jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0, -1.0]), log_baseline=0.5):.4f}")
    1.1739
    """
    joint, marginal = samples(joint, marginal, where_joint, where_marginal, axis)
    level = per_estimate(joint, axis, log_baseline=log_baseline)
    fixed = jax.lax.stop_gradient(level)
    over: dict[str, Any] = {"axis": axis, "axis_name": axis_name}
    above = fill(marginal - fixed, where_marginal, 0)
    excess = mean_expm1(above, where_marginal, **over)
    # A small mean(e^b)/c is taken as it is, and the 1 put to the joint mean: together they would only be rounded.
    far = excess < -0.5
    one = jnp.expand_dims(far.astype(excess.dtype), axis)
    mean = masked_mean(joint - (fixed - one), where_joint, **over)
    partition = jnp.where(far, masked_mean(jnp.exp(jnp.minimum(above, _NEVER_FAR)), where_marginal, **over), excess)
    # How the bound moves with the baseline: 0 in value, `excess` in derivative, where −1 + mean(e^b)/c would cancel.
    down = jnp.squeeze(fixed - level, axis)
    moved = exp_excess(down) + expm1(down) * jnp.minimum(excess, jnp.finfo(excess.dtype).max)
    return if_sampled(mean - partition - moved, (joint, where_joint), (marginal, where_marginal), **over)


@objective(static=["axis", "axis_name"])
def nwj_bound(
    joint: Float[Array, "..."],
    marginal: Float[Array, "..."],
    *,
    where_joint: Bool[Array, "..."] | None = None,
    where_marginal: Bool[Array, "..."] | None = None,
    axis: SampleAxis = -1,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Batch-coupled: Nguyen, Wainwright and Jordan's bound, also known as f-GAN KL and MINE-f, in nats.

    I = mean(a) − mean(e^{b − 1})

    When to choose: for an estimate and a gradient that are unbiased at any batch size, when the information is small:
    the variance grows as e^KL, and one large marginal score rules the batch.

    Args:
      joint: scores of pairs that belong together, `[..., N]`; logits, in nats.
      marginal: scores of pairs that do not, `[..., M]`; other axes as `joint`'s.
      where_joint: which entries of `joint` count, `[..., N]`, True = keep. Default all.
      where_marginal: the same for `marginal`, `[..., M]`.
      axis: the sample's axis or axes. Default the last.
      axis_name: mapped axes over which the sample is spread.

    Returns:
      One bound an estimate, `[...]` without `axis`, in nats; half precision comes back as float32. −inf only where the
      bound itself is below the smallest float. 0, with no gradient, where a sample has no kept entry.

    Raises:
      ValueError: other axes than `axis` differ, a sample is empty, or a mask is not of its sample's shape.
      TypeError: scores are not floating-point, or a mask is not boolean.

    Gradient: ∂I/∂a_i = 1/N, ∂I/∂b_j = −e^{b_j − 1}/M.

    Equal to: `tuba_bound` with log c = 1; at most `donsker_varadhan_bound` of the same scores (ledger 3).

    Source: Nguyen, Wainwright & Jordan 2010 (arXiv 0809.0853); Nowozin et al. 2016 (arXiv 1606.00709), f-GAN KL.

    >>> import jax.numpy as jnp
    >>> print(f"{nwj_bound(jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0, -1.0])):.4f}")
    0.9989
    """
    # A baseline of 1 nat is subtracted exactly from any score that matters, unlike a factor of e⁻¹ afterwards.
    masks: dict[str, Any] = {"where_joint": where_joint, "where_marginal": where_marginal}
    return tuba_bound(joint, marginal, log_baseline=1.0, **masks, axis=axis, axis_name=axis_name)


def _log_of_near(mean_minus_one: Array, mean: Array) -> Float[Array, "..."]:
    """log of a mean that comes in two forms: from the first where it is near 1, from the second where it is small."""
    near = mean_minus_one > -0.5
    return jnp.where(near, log1p(jnp.where(near, mean_minus_one, 0)), jnp.log(jnp.where(near, 1, mean)))


def _log_mixtures(
    x: Array, given: Array, alpha: Array, among: Array, others: Array, left_out: float, wanted: Array
) -> Float[Array, "*batch N N"]:
    """log of α (1 + Σ_k e^x_k − `left_out` · e^x_j) / `others` + (1 − α) e^given for `wanted` j, k `among` the row."""
    top = jnp.maximum(jnp.max(fill(x, among, -jnp.inf), axis=-1, keepdims=True), 0)
    top = jnp.maximum(jnp.where(alpha > 0, top, -jnp.inf), jnp.where(alpha < 1, given, -jnp.inf))
    top = jax.lax.stop_gradient(top)
    # Only a part without weight may lie above the top, and so far that 0 · ∞ would come of it.
    room = 0.3 * jnp.finfo(x.dtype).maxexp
    own, below, given_below = (jnp.minimum(value - top, room) for value in (jnp.zeros_like(top), x, given))

    def mean(f: Callable[[Array], Array]) -> Float[Array, "*batch N N"]:
        values = fill(f(fill(below, among, 0)), among, 0)
        total = f(own) + masked_sum(values, axis=-1)[..., None] - left_out * values
        return alpha * total / others + (1 - alpha) * f(given_below)

    # Where nothing is wanted there may be no mean at all, and log 0 has no derivative.
    return top + _log_of_near(fill(mean(expm1), wanted, 0), fill(mean(jnp.exp), wanted, 1))


def _log_baselines(x: Array, given: Array, alpha: Array, pairs: Array) -> Float[Array, "*batch N N"]:
    """log of α mean_{k≠j} e^x_k + (1 − α) e^given for every j, relative to the row's own score, for which x = 0.

    Leaving out an entry that is not the row's largest cancels nothing, since the largest stays in; leaving out the
    largest is a sum of its own. So the cost is that of the scores, N².
    """
    largest = jax.nn.one_hot(jnp.argmax(fill(x, pairs, -jnp.inf), axis=-1), x.shape[-1], dtype=bool)
    others = jnp.maximum(masked_sum(jnp.ones_like(x), pairs, axis=-1)[..., None], 1)
    rest = pairs & ~largest
    without_largest = _log_mixtures(x, given, alpha, rest, others, 0.0, pairs & largest)
    return jnp.where(largest, without_largest, _log_mixtures(x, given, alpha, pairs, others, 1.0, rest))


def _halves(excess: Array, alpha: Array) -> tuple[Array, Array, Array, Array]:
    """Whether q > m, and relative to the larger of the two the smaller, the difference, and α m + (1 − α) q."""
    above = excess > 0
    downward = jnp.where(above, -excess, excess)
    small = jnp.exp(downward)
    return above, small, -expm1(downward), jnp.where(above, alpha * small + (1 - alpha), alpha + (1 - alpha) * small)


@jax.custom_jvp
def _marginal_term(excess: Array, alpha: Array) -> Float[Array, "*batch N"]:
    """1 − m / (α m + (1 − α) q) from log q − log m."""
    above, _, gap, mixture = _halves(excess, alpha)
    share = gap * (1 - alpha)
    beyond = jnp.where(share > 0, jnp.inf, 0)
    return jnp.where(above, 1, -1) * jnp.where(mixture > 0, share / jnp.where(mixture > 0, mixture, 1), beyond)


@_marginal_term.defjvp
def _marginal_term_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """∂/∂(log q) = (1 − α) m q / a², ∂/∂α = m (m − q) / a²; term by term these would cancel where q ≫ m."""
    excess, alpha = primals
    above, small, gap, mixture = _halves(excess, alpha)
    some = mixture > 0
    mixture = jnp.where(some, mixture, 1)
    less, other = small / mixture, gap / mixture
    by_excess = less * ((1 - alpha) / mixture)
    by_alpha = jnp.where(above, -less * other, other / mixture)
    slope = by_excess * tangents[0] + by_alpha * tangents[1]
    return _marginal_term(excess, alpha), jnp.where(some, slope, 0)


def _matrix(scores: Array, log_baseline: Array | float, where: Array | None) -> tuple[Array, Array, Array]:
    """Scores, one log baseline a row `[..., N, 1]`, and which entries are pairs of different kept rows; all checked."""
    checks.floating(scores=scores)
    checks.square(scores)
    checks.broadcastable(scores.shape[:-1], log_baseline=log_baseline)
    checks.mask(where, scores[..., 0], of="the rows of `scores`")
    (scores,) = as_float(scores)
    where = jnp.ones(scores.shape[:-1], bool) if where is None else where
    given = fill(jnp.broadcast_to(log_baseline, where.shape).astype(scores.dtype), where, 0)
    pairs = where[..., None] & where[..., None, :] & ~jnp.eye(scores.shape[-1], dtype=bool)
    return scores, given[..., None], pairs


@objective(
    alpha=checks.Range(at_least=0, at_most=1, remedy="It weighs the batch's own baseline against the given one.")
)
def interpolated_bound(
    scores: Float[Array, "*batch N N"],
    *,
    alpha: float | Float[Array, ""],
    log_baseline: float | Float[Array, "*#batch N"],
    where: Bool[Array, "*batch N"] | None = None,
) -> Float[Array, "*batch"]:
    """Batch-coupled: from every x against every y, a bound between InfoNCE's (α = 1) and TUBA's (α = 0), in nats.

    I = 1 + mean_{i, j≠i} [s_ii − log a_ij] − mean_{i, j≠i} e^{s_ij} / a_ii,
    a_ij = α mean_{k≠j} e^{s_ik} + (1 − α) c_i

    The baseline a mixes the mean over the N − 1 others (in the first term, with the pair that belongs together among
    them) with a given c_i. α trades TUBA's variance for InfoNCE's ceiling, log((N − 1)/α).

    When to choose: when the information lies above log N, so that InfoNCE saturates, and is too large for
    `nwj_bound`'s variance. Sweep α; a sweep compiles once.

    Args:
      scores: s_ij, of y_i with x_j, `[..., N, N]`, N ≥ 2; logits, in nats. Pairs that belong together on the diagonal.
      alpha: α in [0, 1], the weight of the batch's own mean.
      log_baseline: log c_i, in nats; a scalar or `[..., N]`, one a row, e.g. a learnt function of y_i.
      where: which of the N pairs count, `[..., N]`, True = keep; one that is dropped leaves its row and column. Default
        all.

    Returns:
      One bound a matrix, `[...]`, in nats; half precision comes back as float32. 0, with no gradient, where fewer than
      two pairs are kept.

    Raises:
      ValueError: scores are not square with N ≥ 2, the baseline or the mask is not of its shape, or α is out of range.
      TypeError: scores are not floating-point, or the mask is not boolean.

    Gradient: ∂I/∂s_ii = 1/N − Σ_{j≠i} α e^{s_ii} / (N (N − 1)² a_ij). Those in α and log c are differences that vanish
    at the best α and c; they are exact to ulps of their terms, which are at most 1/α, 1/(1 − α) and (1 − α)/N.

    Equal to: at α = 1, the mean over leave-one-out batches of `info_nce_bound`; at α = 0, `tuba_bound` with baseline c.
    Ceiling log((N − 1)/α) (ledger 7).

    Source: Poole et al. 2019 (arXiv 1905.06922), eq. 14 (I_α); leaving one out as in the authors' notebook.

    >>> import jax.numpy as jnp
    >>> scores = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0], [0.0, -1.0, 3.0]])
    >>> print(f"{interpolated_bound(scores, alpha=0.5, log_baseline=0.3):.4f}")
    1.1279
    """
    scores, given, pairs = _matrix(scores, log_baseline, where)
    alpha, rows = jnp.asarray(alpha, scores.dtype), jnp.any(pairs, axis=-1)
    own = fill(jnp.diagonal(scores, axis1=-2, axis2=-1), rows, 0)[..., None]
    joint = -_log_baselines(fill(scores - own, pairs, 0), given - own, alpha, pairs)
    top = pivot(scores, pairs, axis=-1)
    excess = jnp.squeeze(given - top, -1) - centred_log_mean_exp(scores, top, pairs, axis=-1)
    bound = masked_mean(joint, pairs, axis=(-2, -1)) + masked_mean(_marginal_term(excess, alpha), rows, axis=-1)
    return jnp.where(jnp.any(rows, axis=-1), bound, 0)
