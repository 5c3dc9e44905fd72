"""Bounds on mutual information from a critic's scores on two samples: of the joint law, and of the marginals' product.

All are maximised, and in nats. They reduce over `axis`, the sample, and over the devices of `axis_name`, so that shards
of a batch give the whole batch's number; what is left of the shape are independent estimates.

    name                     best score T*     ceiling        of a sample of n                     shift of all scores
    donsker_varadhan_bound   log p/q + any c   KL             biased up, variance ≥ (e^KL − 1)/n   nothing changes
    nwj_bound                1 + log p/q       KL             unbiased, variance ≥ (e^KL − 1)/n    must be learnt
    tuba_bound               log c + log p/q   KL             unbiased for a fixed c               the baseline takes it
    jensen_shannon_bound     log p/q           2 JSD − log 4  unbiased, variance bounded           must be learnt
    smile_bound              log p/q + any c   none           biased, variance ≤ e^2τ/n            up to the clip

p is the joint law and q the product of the marginals, so that KL(p ‖ q) is the mutual information.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align.elementary import softplus
from mi_align.numerics import AxisName, centred_log_mean_exp, fill, masked_mean, pivot
from mi_align.objectives._public import objective
from mi_align.objectives._samples import SampleAxis, if_sampled, per_estimate, samples

__all__ = [
    "donsker_varadhan_bound",
    "jensen_shannon_bound",
    "smile_bound",
]


@objective(static=["axis", "axis_name"])
def donsker_varadhan_bound(
    joint: Float[Array, "..."],
    marginal: Float[Array, "..."],
    *,
    where_joint: Bool[Array, "..."] | None = None,
    where_marginal: Bool[Array, "..."] | None = None,
    axis: SampleAxis = -1,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Batch-coupled: Donsker and Varadhan's lower bound on a KL divergence, hence on mutual information, in nats.

    I = mean(a) − log mean(e^b),  a the joint scores, b the marginal ones

    When to choose: to read off an estimate when the batch is large against e^KL. To train with it, prefer `mine_step`:
    the gradient of log mean e^b over a batch is biased. To train stably at high information, `jensen_shannon_bound`.

    Args:
      joint: scores of pairs that belong together, `[..., N]`; logits, in nats.
      marginal: scores of pairs that do not, `[..., M]`; other axes as `joint`'s, M may differ from N.
      where_joint: which entries of `joint` count, `[..., N]`, True = keep. Default all.
      where_marginal: the same for `marginal`, `[..., M]`.
      axis: the sample's axis or axes. Default the last.
      axis_name: mapped axes (of `shard_map`, `vmap`) over which the sample is spread; the result is then the same on
        all of them, as if one device held the sample.

    Returns:
      One bound an estimate, `[...]` without `axis`, in nats; half precision comes back as float32. 0, with no gradient,
      where a sample has no kept entry.

    Raises:
      ValueError: other axes than `axis` differ, a sample is empty, or a mask is not of its sample's shape.
      TypeError: scores are not floating-point, or a mask is not boolean.

    Gradient: ∂I/∂a_i = 1/N, ∂I/∂b_j = −e^{b_j} / Σ_k e^{b_k}, the Gibbs weights.

    Equal to: log 2 − `bradley_terry_loss` for one pair, `joint` the positive and `marginal` both of them (ledger 13);
    the RLHF optimum's β log Z at T = r/β (1, 2). A shift of all scores changes nothing (2, 46). Over a batch of n its
    expectation lies above the bound by Var(e^b) / (2 n E[e^b]²) (10).

    Source: Donsker & Varadhan 1983; Belghazi et al. 2018 (arXiv 1801.04062), theorem 1.

    >>> import jax.numpy as jnp
    >>> print(f"{donsker_varadhan_bound(jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0, -1.0])):.4f}")
    1.1910
    """
    joint, marginal = samples(joint, marginal, where_joint, where_marginal, axis)
    # A shift of all scores changes nothing: taken relative to the largest marginal one, large scores do not cancel.
    top = pivot(marginal, where_marginal, axis=axis, axis_name=axis_name)
    mean = masked_mean(joint - top, where_joint, axis=axis, axis_name=axis_name)
    log_mean = centred_log_mean_exp(marginal, top, where_marginal, axis=axis, axis_name=axis_name)
    return if_sampled(mean - log_mean, (joint, where_joint), (marginal, where_marginal), axis=axis, axis_name=axis_name)


@objective(static=["axis", "axis_name"])
def jensen_shannon_bound(
    joint: Float[Array, "..."],
    marginal: Float[Array, "..."],
    *,
    where_joint: Bool[Array, "..."] | None = None,
    where_marginal: Bool[Array, "..."] | None = None,
    axis: SampleAxis = -1,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Batch-coupled: the Jensen–Shannon estimate of how far the joint law is from the marginals' product, in nats.

    I = −mean sp(−a) − mean sp(b),  sp(x) = log(1 + eˣ)

    When to choose: to train a critic stably, for its gradients are bounded and unbiased at any batch size. It is no
    bound on mutual information but on 2 JSD(p, q) − log 4, which is at most 0; its best score, log p/q, then gives the
    information to `donsker_varadhan_bound` or `smile_bound`.

    Args:
      joint: scores of pairs that belong together, `[..., N]`; logits.
      marginal: scores of pairs that do not, `[..., M]`; other axes as `joint`'s.
      where_joint: which entries of `joint` count, `[..., N]`, True = keep. Default all.
      where_marginal: the same for `marginal`, `[..., M]`.
      axis: the sample's axis or axes. Default the last.
      axis_name: mapped axes over which the sample is spread.

    Returns:
      One estimate `[...]` without `axis`, in nats, at most 0; half precision comes back as float32. 0, with no
      gradient, where a sample has no kept entry.

    Raises:
      ValueError: other axes than `axis` differ, a sample is empty, or a mask is not of its sample's shape.
      TypeError: scores are not floating-point, or a mask is not boolean.

    Gradient: ∂I/∂a_i = σ(−a_i)/N, ∂I/∂b_j = −σ(b_j)/M.

    Equal to: −`bco_pair_loss` for one pair; −`nca_loss` for one positive with all candidates, itself among them, as the
    marginal (ledger 4, 18). Unlike Donsker and Varadhan's bound it changes when all scores shift (46).

    Source: Nowozin et al. 2016 (arXiv 1606.00709); Hjelm et al. 2019 (arXiv 1808.06670). The code of the latter
    adds log 2 to each side for its "JSD" and nothing for its "GAN", which is this one.

    >>> import jax.numpy as jnp
    >>> print(f"{jensen_shannon_bound(jnp.array([2.0, 1.0]), jnp.array([0.0, 1.0, -1.0])):.4f}")
    -0.9933
    """
    joint, marginal = samples(joint, marginal, where_joint, where_marginal, axis)
    over: dict[str, Any] = {"axis": axis, "axis_name": axis_name}
    right = masked_mean(softplus(-fill(joint, where_joint, 0)), where_joint, **over)
    wrong = masked_mean(softplus(fill(marginal, where_marginal, 0)), where_marginal, **over)
    return if_sampled(-right - wrong, (joint, where_joint), (marginal, where_marginal), **over)


@objective(static=["axis", "axis_name"])
def smile_bound(
    joint: Float[Array, "..."],
    marginal: Float[Array, "..."],
    *,
    clip: float | Float[Array, "..."],
    where_joint: Bool[Array, "..."] | None = None,
    where_marginal: Bool[Array, "..."] | None = None,
    axis: SampleAxis = -1,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Batch-coupled: Donsker and Varadhan's value with a clipped partition term, of little variance, in nats (SMILE).

    I = mean(a) − log mean(e^clip(b, −τ, τ))

    When to choose: to read off large information from a critic that was trained otherwise. It is no lower bound: what
    the clip takes from the partition it adds to the estimate. A small τ buys less variance for more bias. As a
    training objective its scores beyond ±τ have no gradient; the authors' code trains with the Jensen–Shannon gradient
    and reports this value: `js + jax.lax.stop_gradient(smile − js)`.

    Args:
      joint: scores of pairs that belong together, `[..., N]`; logits, in nats. They are not clipped.
      marginal: scores of pairs that do not, `[..., M]`; other axes as `joint`'s.
      clip: τ > 0, in nats; a scalar or `[...]`, one an estimate. The paper tries 1, 5 and infinity (`jnp.inf`).
      where_joint: which entries of `joint` count, `[..., N]`, True = keep. Default all.
      where_marginal: the same for `marginal`, `[..., M]`.
      axis: the sample's axis or axes. Default the last.
      axis_name: mapped axes over which the sample is spread.

    Returns:
      One estimate `[...]` without `axis`, in nats; half precision comes back as float32. 0, with no gradient, where a
      sample has no kept entry.

    Raises:
      ValueError: other axes than `axis` differ, a sample is empty, a mask or τ is not of its shape, or τ ≤ 0.
      TypeError: scores are not floating-point, or a mask is not boolean.

    Gradient: ∂I/∂a_i = 1/N; ∂I/∂b_j = −e^{b_j} / Σ_k e^{clip(b_k)} where |b_j| < τ, otherwise 0.

    Equal to: `donsker_varadhan_bound` once τ exceeds every |b_j|. One clipped term e^clip(b) has a variance of at most
    (e^τ − e^−τ)²/4 (ledger 8).

    Source: Song & Ermon 2020 (arXiv 1910.06222), SMILE.

    >>> import jax.numpy as jnp
    >>> print(f"{smile_bound(jnp.array([2.0, 1.0]), jnp.array([0.0, 5.0, -1.0]), clip=1.0):.4f}")
    1.1910
    """
    wide, scores = samples(joint, marginal, where_joint, where_marginal, axis)
    bound = per_estimate(wide, axis, clip=clip)
    clipped = jnp.clip(fill(scores, where_marginal, 0), -bound, bound)
    masks: dict[str, Any] = {"where_joint": where_joint, "where_marginal": where_marginal}
    return donsker_varadhan_bound(wide, clipped, **masks, axis=axis, axis_name=axis_name)
