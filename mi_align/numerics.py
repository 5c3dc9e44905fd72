"""The one place where masks meet numbers.

Every objective is built from these few functions, so that a padded entry, an extreme logit or a half-precision input is
dealt with once. Masks are called `where`, are boolean, and True means keep; entries under the mask are *replaced before
arithmetic*, so that NaN or ±inf there changes neither a value nor a derivative.

The derivatives of `softplus` and `sigmoid` are written out because JAX's own lose digits in the tails:
`1 − sigmoid(x)` is 0 from x = 17 on in float32, where the true derivative is 4e-8.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

__all__ = [
    "Mean",
    "accumulation_dtype",
    "as_float",
    "bernoulli_kl",
    "centred_log_mean_exp",
    "count",
    "exp_excess",
    "expm1",
    "fill",
    "log1mexp",
    "log1p",
    "log_sigmoid",
    "log_sum_exp",
    "masked_mean",
    "masked_sum",
    "mean_expm1",
    "pivot",
    "scaled_softplus",
    "sigmoid",
    "sigmoid_difference",
    "softplus",
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


@jax.custom_jvp
def sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 / (1 + e⁻ˣ), with derivative σ(x) σ(−x), exact in both tails and to every order."""
    return jax.lax.logistic(x)


@sigmoid.defjvp
def _sigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * dx


@jax.custom_jvp
def softplus(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 + eˣ), with derivative σ(x), exact in both tails and to every order."""
    if x.dtype != jnp.float32:
        return _softplus_by_log1p(x)
    e = jnp.exp(-jnp.abs(x))
    excess = e * jnp.polyval(jnp.asarray(_LOG1P_OVER_ARGUMENT, x.dtype), e)
    # `maximum(x, 0) + excess` is the same, but XLA's CPU backend would then fuse a following sum with the polynomial
    # into a loop that is four times as slow (jaxlib 0.10; benchmarks/results).
    return jnp.where(x > 0, x + excess, excess)


@jax.custom_jvp
def _softplus_by_log1p(x: Array) -> Array:
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
@_softplus_by_log1p.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    # Beside a derivative the value is mostly summed to one number, and with log1p that sum is the faster one.
    return _softplus_by_log1p(x), sigmoid(x) * dx


#: log(1 + e)/e on [0, 1], interpolated in the Chebyshev nodes; within 2 float32 ulp, XLA's log1p within 3. It makes a
#: loss twice as fast on a CPU, where it then runs at the speed of memory.
_LOG1P_OVER_ARGUMENT = (
    *(-0.003176057013, 0.01954252722, -0.05637361283, 0.1054362379, -0.1526966707),
    *(0.1966327426, -0.2495161626, 0.3332971050, -0.4999989265, 0.9999999947),
)


def log_sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log σ(x) = −softplus(−x)."""
    return -softplus(-x)


@jax.custom_jvp
def log1mexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 − eˣ) for x < 0, to full precision from −1e-300 to −1e300 (Mächler 2012); −inf at 0."""
    near_zero = x > -0.6931471805599453
    safe_near, safe_far = jnp.where(near_zero, x, -1.0), jnp.where(near_zero, -1.0, x)
    return jnp.where(near_zero, jnp.log(-expm1(safe_near)), log1p(-jnp.exp(safe_far)))


@log1mexp.defjvp
def _log1mexp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return log1mexp(x), -dx / expm1(-x)


@jax.custom_jvp
def expm1(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """eˣ − 1 within 2 ulp (XLA's own: 5), with derivative eˣ, where JAX's own is 1 + (eˣ − 1) = 0 in the lower tail."""
    near_zero = (x > -0.6931471805599453) & (x < 1)  # below −log 2 nothing cancels
    small = jnp.where(near_zero, x, 0)
    return jnp.where(near_zero, small + _exp_excess_series(small), jnp.exp(x) - 1)


@expm1.defjvp
def _expm1_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return expm1(x), jnp.exp(x) * dx


@jax.custom_jvp
def exp_excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """eˣ − 1 − x ≥ 0, by which eˣ exceeds its tangent at 0; full relative precision near 0, where it is x²/2."""
    near_zero = jnp.abs(x) < 1
    return jnp.where(near_zero, _exp_excess_series(jnp.where(near_zero, x, 0)), jnp.exp(x) - (1 + x))


@exp_excess.defjvp
def _exp_excess_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return exp_excess(x), expm1(x) * dx


def _exp_excess_series(x: Array) -> Array:
    """Taylor's series of eˣ − 1 − x in Horner form, for |x| < 1; what is left out is below a tenth of an ulp."""
    terms = 19 if x.dtype == jnp.float64 else 12
    ratio = jnp.ones_like(x)
    for n in range(terms, 2, -1):
        ratio = 1 + ratio * (x / n)
    return x * x / 2 * ratio


@jax.custom_jvp
def log1p(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 + x) within 2 ulp; XLA's own is 128 float64 ulp off near −0.41 (JAX 0.10; mended in 0.12)."""
    total = 1 + x
    one = total - x
    lost = jnp.where(jnp.abs(x) < 1, (x - (total - one)) + (1 - one), 0)  # to rounding; XLA folds plain (1 + x) − 1
    return jnp.where(jnp.abs(x) < 0.3, jnp.log1p(x), jnp.log(total) + lost / jnp.maximum(total, 0.5))


@log1p.defjvp
def _log1p_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return log1p(x), dx / (1 + x)


def sigmoid_difference(
    x: Float[Array, "..."], y: Float[Array, "..."], gap: Float[Array, "..."] | None = None
) -> Float[Array, "..."]:
    """σ(x) − σ(y) to full relative precision, however close the two are; `gap` is x − y, if that is known exactly."""
    return _sigmoid_difference(x, y, x - y if gap is None else gap)


@jax.custom_jvp
def _sigmoid_difference(x: Array, y: Array, gap: Array) -> Array:
    return -jnp.sign(gap) * expm1(-jnp.abs(gap)) * sigmoid(jnp.maximum(x, y)) * sigmoid(-jnp.minimum(x, y))


@_sigmoid_difference.defjvp
def _sigmoid_difference_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    (x, y, _), (dx, dy, _) = primals, tangents
    return _sigmoid_difference(*primals), sigmoid(x) * sigmoid(-x) * dx - sigmoid(y) * sigmoid(-y) * dy


@jax.custom_jvp
def bernoulli_kl(p: Float[Array, "..."], q: Float[Array, "..."]) -> Float[Array, "..."]:
    """KL(Bernoulli(σ(p)) ‖ Bernoulli(σ(q))) of two logits, in nats; full relative precision where they nearly agree."""
    win, lose, d = sigmoid(p), sigmoid(-p), q - p
    near = jnp.abs(d) < 3
    # log E e^{d(X − EX)} of a coin X: only non-negative terms, so nothing cancels.
    small = jnp.where(near, d, 0)
    nearly = log1p(lose * exp_excess(-win * small) + win * exp_excess(lose * small))
    # softplus(q) − softplus(p) − σ(p) d, seen from the side on which p ≤ 0.
    side = jnp.where(p > 0, -1, 1)
    linear = jnp.maximum(side * q, 0) - jnp.minimum(win, lose) * (side * d)
    apart = linear + softplus(-jnp.abs(q)) - softplus(-jnp.abs(p))
    return jnp.where(near, nearly, apart)


@bernoulli_kl.defjvp
def _bernoulli_kl_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (p, q), (dp, dq) = primals, tangents
    slope = sigmoid(p) * ((p - q) * sigmoid(-p))
    return bernoulli_kl(p, q), slope * dp + sigmoid_difference(q, p) * dq


def scaled_softplus(x: Float[Array, "..."], scale: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 + scale · eˣ) for scale ≥ 0: softplus(x + log scale) without the rounding of that sum."""
    peak = jax.lax.stop_gradient(jnp.maximum(x, 0))
    return peak + jnp.log1p(jnp.expm1(-peak) + scale * jnp.exp(x - peak))


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
        number = jnp.sum(where, axis=axis, dtype=x.dtype)
    return number if axis_name is None else jax.lax.psum(number, axis_name)


def masked_sum(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Sum over `axis`, and over the mapped axis `axis_name`, of the entries that `where` keeps."""
    x = fill(x, where, 0)
    if all(x.shape[a] == 1 for a in _axes(x, axis)):  # K = 1: XLA's CPU backend makes slow loops of a sum over one
        total = jnp.squeeze(x, axis)
        return total if axis_name is None else jax.lax.psum(total, axis_name)
    small = x.size < _ADDED_ONE_BY_ONE and jnp.issubdtype(x.dtype, jnp.floating)
    total = _compensated_sum(x, _axes(x, axis)) if small else jnp.sum(x, axis=axis)
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
