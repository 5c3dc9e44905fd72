"""The one place where masks meet numbers.

Every objective is built from these few functions, so that a padded entry, an extreme logit or a half-precision input is
dealt with once. Masks are called `where`, are boolean, and True means keep; entries under the mask are *replaced before
arithmetic*, so that NaN or ±inf there changes neither a value nor a derivative.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align.elementary import expm1, log1p

__all__ = [
    "Mean",
    "accumulation_dtype",
    "as_float",
    "centred_log_mean_exp",
    "count",
    "fill",
    "log_sum_exp",
    "masked_mean",
    "masked_sum",
    "mean_expm1",
    "pivot",
]

Axis = int | tuple[int, ...] | None
AxisName = str | Sequence[str] | None


class Mean(NamedTuple):
    """A weighted mean in transit: what micro-batches and devices exchange, so that accumulation is exact.

    Attributes:
      total: weighted sum of the values.
      weight: sum of the weights; the mean is `total / weight`.
    """

    total: Float[Array, "..."]
    weight: Float[Array, "..."]

    @classmethod
    def of(cls, values: Float[Array, "..."], where: Bool[Array, "..."] | None = None) -> Mean:
        """The mean of `values` over the entries that `where` keeps."""
        (values,) = as_float(values)
        return cls(masked_sum(values, where), count(values, where))

    def merge(self, other: Mean) -> Mean:
        """The mean over both samples together."""
        return Mean(self.total + other.total, self.weight + other.weight)

    def value(self) -> Float[Array, "..."]:
        """The mean; 0 where nothing was kept."""
        return self.total / jnp.maximum(self.weight, jnp.finfo(self.weight.dtype).tiny)


def accumulation_dtype(*arrays: Float[Array, "..."]) -> jnp.dtype:
    """The dtype to compute in: float32 for half precision, otherwise that of the widest input."""
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def as_float(*arrays: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    """All inputs in one dtype, wide enough to accumulate in."""
    dtype = accumulation_dtype(*arrays)
    return tuple(jnp.asarray(a, dtype) for a in arrays)


def fill(x: Float[Array, "..."], where: Bool[Array, "..."] | None, value: float) -> Float[Array, "..."]:
    """`x` with `value` under the mask; zero derivative there, whatever `x` holds."""
    return x if where is None else jnp.where(where, x, jnp.asarray(value, x.dtype))


def count(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """How many entries of `x` along `axis` and `axis_name` the mask keeps, in the dtype of `x`."""
    if where is None:
        number = jnp.asarray(math.prod(x.shape[a] for a in _axes(x, axis)), x.dtype)
    else:
        number = jnp.sum(jnp.broadcast_to(where, x.shape), axis=axis, dtype=x.dtype)
    return number if axis_name is None else jax.lax.psum(number, axis_name)


def masked_sum(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
    careful: bool = False,
) -> Float[Array, "..."]:
    """Sum over `axis`, and over the mapped axis `axis_name`, of the entries that `where` keeps.

    `careful`: to the last digits however many entries there are, at a quarter of the speed or less. Several sums of the
    same entries in one program become one loop of XLA's, which adds them up one by one.
    """
    x, axes = fill(x, where, 0), _axes(x, axis)
    if all(x.shape[a] == 1 for a in axes):
        total = jnp.squeeze(x, axes)  # K = 1: XLA's CPU backend makes a slow loop of a sum over a single entry
    elif (careful or x.size < _ADDED_ONE_BY_ONE) and jnp.issubdtype(x.dtype, jnp.floating):
        total = _compensated_sum(x, axes)
    else:
        total = jnp.sum(x, axis=axes)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


#: XLA's CPU backend adds up arrays of fewer entries one by one, which loses up to half an ulp an entry (measured: 6 ulp
#: for 1,000 equal entries); larger ones it adds in a tree (below 1 ulp at a million).
_ADDED_ONE_BY_ONE = 2**14


def _axes(x: Array, axis: Axis) -> tuple[int, ...]:
    """`axis` as a tuple of non-negative numbers."""
    axes = range(x.ndim) if axis is None else (axis,) if isinstance(axis, int) else axis
    return tuple(a % x.ndim for a in axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _compensated_sum(x: Array, axes: tuple[int, ...]) -> Array:
    """Sum that carries the rounding error of every addition along (Ogita, Rump & Oishi 2005)."""
    zero = jnp.zeros((), x.dtype)
    total, error = jax.lax.reduce((x, jnp.zeros_like(x)), (zero, zero), _add_with_error, axes)
    return jnp.where(jnp.isfinite(total), total + error, total)


@_compensated_sum.defjvp
def _compensated_sum_jvp(axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _compensated_sum(*primals, axes), jnp.sum(*tangents, axis=axes)


def _add_with_error(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    total = a[0] + b[0]
    virtual = total - a[0]
    return total, (a[1] + b[1]) + ((a[0] - (total - virtual)) + (b[0] - virtual))


def masked_mean(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Mean over `axis` of the entries that `where` keeps; 0 where it keeps none."""
    number = count(x, where, axis=axis, axis_name=axis_name)
    return masked_sum(x, where, axis=axis, axis_name=axis_name) / jnp.maximum(number, 1)


def log_sum_exp(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """log Σ eˣ of the entries that `where` keeps; −inf with zero gradient where it keeps none."""
    x = fill(x, where, -jnp.inf)
    top = pivot(x, axis=axis, axis_name=axis_name)
    total = masked_sum(jnp.exp(x - top), axis=axis, axis_name=axis_name)
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + jnp.squeeze(top, axis), -jnp.inf)


def pivot(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """The largest entry that `where` keeps, `axis` kept with length 1; a constant to shift by, hence no derivative.

    0 where nothing is kept or the largest entry is not finite.
    """
    top = jax.lax.stop_gradient(jnp.max(fill(x, where, -jnp.inf), axis=axis, keepdims=True, initial=-jnp.inf))
    if axis_name is not None:
        top = jax.lax.pmax(top, axis_name)
    return jnp.where(jnp.isfinite(top), top, 0)


def centred_log_mean_exp(
    x: Float[Array, "..."],
    centre: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """log of the mean of e^(x − centre) over the kept entries, for a centre such as `pivot`; full precision near 0.

    0 with zero gradient where nothing is kept.
    """
    x = fill(x - centre, where, 0)
    near_one = masked_mean(expm1(x), where, axis=axis, axis_name=axis_name)
    mean = masked_mean(jnp.exp(x), where, axis=axis, axis_name=axis_name)
    near, far = near_one > -0.5, mean > 0
    return jnp.where(near, log1p(jnp.where(near, near_one, 0)), jnp.log(jnp.where(far, mean, 1)))


def mean_expm1(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Mean of eˣ − 1 over the kept entries, 0 for none: full precision near 0, and infinite only if the mean is."""
    number = jnp.maximum(count(x, where, axis=axis, axis_name=axis_name), 1)
    number = jnp.expand_dims(number, _axes(x, axis)) if number.ndim else number
    x = fill(x, where, 0)
    small = x < 1
    # eˣ / n in two factors: eˣ alone may overflow where the mean and its derivative do not.
    large = jnp.where(small, 0, x)
    half = jax.lax.stop_gradient(large / 2)
    terms = jnp.where(
        small,
        expm1(jnp.where(small, x, 0)) / number,
        jnp.exp(half) / number * jnp.exp(large - half) - 1 / number,
    )
    return masked_sum(terms, axis=axis, axis_name=axis_name)
