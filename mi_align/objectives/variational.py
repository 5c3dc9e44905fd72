"""Bounds on mutual information from a critic's scores on two samples: of the joint law, and of the marginals' product.

All are maximised, and in nats. They reduce over `axis`, the sample, and over the devices of `axis_name`, so that shards
of a batch give the whole batch's number; what is left of the shape are independent estimates.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import (
    AxisName,
    as_float,
    centred_log_mean_exp,
    count,
    fill,
    masked_mean,
    mean_expm1,
    pivot,
    softplus,
)
from mi_align.objectives._public import objective

__all__ = [
    "donsker_varadhan_bound",
    "jensen_shannon_bound",
    "nwj_bound",
    "smile_bound",
    "tuba_bound",
]

SampleAxis = int | tuple[int, ...]


def samples(
    joint: Array, marginal: Array, where_joint: Array | None, where_marginal: Array | None, axis: SampleAxis
) -> tuple[Array, Array]:
    """The two samples, checked, wide enough to accumulate in."""
    checks.floating(joint=joint, marginal=marginal)
    checks.same_but_for(axis, joint=joint, marginal=marginal)
    checks.mask(where_joint, joint, name="where_joint", of="`joint`")
    checks.mask(where_marginal, marginal, name="where_marginal", of="`marginal`")
    joint, marginal = as_float(joint, marginal)
    return joint, marginal


def if_sampled(
    bound: Array,
    joint: Array,
    marginal: Array,
    where_joint: Array | None,
    where_marginal: Array | None,
    axis: SampleAxis,
    axis_name: AxisName,
) -> Float[Array, "..."]:
    """`bound` where both samples have a kept entry, otherwise 0 without a gradient."""
    for x, where in ((joint, where_joint), (marginal, where_marginal)):
        bound = jnp.where(count(x, where, axis=axis, axis_name=axis_name) > 0, bound, 0)
    return bound


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
    """Donsker and Varadhan's bound, batch-coupled: mean(a) − log mean e^b, in nats."""
    joint, marginal = samples(joint, marginal, where_joint, where_marginal, axis)
    # The bound does not change when all scores shift: it is taken relative to the largest, where nothing cancels.
    top = pivot(marginal, where_marginal, axis=axis, axis_name=axis_name)
    mean = masked_mean(joint - top, where_joint, axis=axis, axis_name=axis_name)
    bound = mean - centred_log_mean_exp(marginal, top, where_marginal, axis=axis, axis_name=axis_name)
    return if_sampled(bound, joint, marginal, where_joint, where_marginal, axis, axis_name)


@objective(static=["axis", "axis_name"])
def tuba_bound(
    joint: Float[Array, "..."],
    marginal: Float[Array, "..."],
    *,
    log_baseline: float | Float[Array, "#..."] = 0.0,
    where_joint: Bool[Array, "..."] | None = None,
    where_marginal: Bool[Array, "..."] | None = None,
    axis: SampleAxis = -1,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Barber and Agakov's bound made tractable: mean(a) − mean(e^b)/c − log c + 1, in nats; `log_baseline` is log c."""
    joint, marginal = samples(joint, marginal, where_joint, where_marginal, axis)
    mean = masked_mean(joint - log_baseline, where_joint, axis=axis, axis_name=axis_name)
    bound = mean - mean_expm1(marginal - log_baseline, where_marginal, axis=axis, axis_name=axis_name)
    return if_sampled(bound, joint, marginal, where_joint, where_marginal, axis, axis_name)


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
    """Nguyen, Wainwright and Jordan's bound (f-GAN KL), batch-coupled: mean(a) − mean e^(b − 1), in nats."""
    return tuba_bound(
        joint,
        marginal,
        log_baseline=1.0,
        where_joint=where_joint,
        where_marginal=where_marginal,
        axis=axis,
        axis_name=axis_name,
    )


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
    """Jensen–Shannon estimate, batch-coupled: −mean sp(−a) − mean sp(b), in nats."""
    joint, marginal = samples(joint, marginal, where_joint, where_marginal, axis)
    right = masked_mean(softplus(-fill(joint, where_joint, 0)), where_joint, axis=axis, axis_name=axis_name)
    wrong = masked_mean(softplus(fill(marginal, where_marginal, 0)), where_marginal, axis=axis, axis_name=axis_name)
    return if_sampled(-right - wrong, joint, marginal, where_joint, where_marginal, axis, axis_name)


@objective(static=["axis", "axis_name"])
def smile_bound(
    joint: Float[Array, "..."],
    marginal: Float[Array, "..."],
    *,
    clip: float | Float[Array, "#..."],
    where_joint: Bool[Array, "..."] | None = None,
    where_marginal: Bool[Array, "..."] | None = None,
    axis: SampleAxis = -1,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Donsker and Varadhan's value with a clipped partition term: mean(a) − log mean e^clip(b, −τ, τ), in nats."""
    _, scores = samples(joint, marginal, where_joint, where_marginal, axis)
    return donsker_varadhan_bound(
        joint,
        jnp.clip(fill(scores, where_marginal, 0), -clip, clip),
        where_joint=where_joint,
        where_marginal=where_marginal,
        axis=axis,
        axis_name=axis_name,
    )
