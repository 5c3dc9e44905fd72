"""What every bound on two samples needs: the samples checked, and the number for an empty one."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import AxisName, as_float, count

__all__ = ["SampleAxis", "if_sampled", "per_estimate", "samples"]

SampleAxis = int | tuple[int, ...]


def samples(
    joint: Array, marginal: Array, where_joint: Array | None, where_marginal: Array | None, axis: SampleAxis
) -> tuple[Array, Array]:
    """Both samples' scores, checked, wide enough to accumulate in."""
    checks.floating(joint=joint, marginal=marginal)
    checks.same_but_for(axis, joint=joint, marginal=marginal)
    checks.mask(where_joint, joint, name="where_joint", of="`joint`")
    checks.mask(where_marginal, marginal, name="where_marginal", of="`marginal`")
    joint, marginal = as_float(joint, marginal)
    return joint, marginal


def per_estimate(sample: Array, axis: SampleAxis, **hyper: Any) -> Float[Array, "..."]:
    """One hyper-parameter, a scalar or a number an estimate, with length 1 along `axis` to meet the sample."""
    (value,) = hyper.values()
    reduced = {a % sample.ndim for a in ((axis,) if isinstance(axis, int) else axis)}
    estimates = tuple(n for i, n in enumerate(sample.shape) if i not in reduced)
    checks.broadcastable(estimates, **hyper)
    shape = [1 if i in reduced else n for i, n in enumerate(sample.shape)]
    return jnp.broadcast_to(value, estimates).astype(sample.dtype).reshape(shape)


def if_sampled(
    bound: Float[Array, "..."],
    *sampled: tuple[Float[Array, "..."], Bool[Array, "..."] | None],
    axis: SampleAxis,
    axis_name: AxisName,
) -> Float[Array, "..."]:
    """`bound` where every (sample, mask) has a kept entry, otherwise 0 without a gradient."""
    for sample, where in sampled:
        bound = jnp.where(count(sample, where, axis=axis, axis_name=axis_name) > 0, bound, 0)
    return bound
