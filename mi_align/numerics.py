"""The one place where masks meet numbers.

Every objective is built from these few functions, so that a padded entry, an extreme logit or a half-precision input is
dealt with once. Masks are called `where`, are boolean, and True means keep; entries under the mask are *replaced before
arithmetic*, so that NaN or ±inf there changes neither a value nor a derivative.

The derivatives of `softplus` and `sigmoid` are written out because JAX's own lose digits in the tails:
`1 − sigmoid(x)` is 0 from x = 17 on in float32, where the true derivative is 4e-8.
"""

from __future__ import annotations

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
    "exp_excess",
    "fill",
    "log1mexp",
    "log_mean_exp",
    "log_sigmoid",
    "log_sum_exp",
    "masked_mean",
    "masked_sum",
    "sigmoid",
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
        kept = jnp.ones(jnp.shape(values), bool) if where is None else where
        return cls(masked_sum(values, where), jnp.sum(kept, dtype=accumulation_dtype(values)))

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
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return softplus(x), sigmoid(x) * dx


def log_sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log σ(x) = −softplus(−x)."""
    return -softplus(-x)


@jax.custom_jvp
def log1mexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """log(1 − eˣ) for x < 0, to full precision from −1e-300 to −1e300 (Mächler 2012); −inf at 0."""
    near_zero = x > -0.6931471805599453
    safe_near, safe_far = jnp.where(near_zero, x, -1.0), jnp.where(near_zero, -1.0, x)
    return jnp.where(near_zero, jnp.log(-jnp.expm1(safe_near)), jnp.log1p(-jnp.exp(safe_far)))


@log1mexp.defjvp
def _log1mexp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return log1mexp(x), -dx / jnp.expm1(-x)


@jax.custom_jvp
def exp_excess(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """eˣ − 1 − x ≥ 0, by which eˣ exceeds its tangent at 0; full relative precision near 0, where it is x²/2."""
    near_zero = jnp.abs(x) < 0.5
    small = jnp.where(near_zero, x, 0)
    # Taylor's series of (eˣ − 1 − x) / (x²/2) in Horner form: 16 terms reach float64's last digit for |x| < ½.
    series = jnp.ones_like(x)
    for n in range(16, 2, -1):
        series = 1 + series * small / n
    return jnp.where(near_zero, small * small / 2 * series, jnp.expm1(x) - x)


@exp_excess.defjvp
def _exp_excess_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return exp_excess(x), jnp.expm1(x) * dx


@jax.custom_jvp
def bernoulli_kl(p: Float[Array, "..."], q: Float[Array, "..."]) -> Float[Array, "..."]:
    """KL(Bernoulli(σ(p)) ‖ Bernoulli(σ(q))) of two logits, in nats; full relative precision where they nearly agree."""
    win, lose, d = sigmoid(p), sigmoid(-p), q - p
    near = jnp.abs(d) < 8
    # log E e^{d(X − EX)} of a coin X: only non-negative terms, so nothing cancels.
    small = jnp.where(near, d, 0)
    nearly = jnp.log1p(lose * exp_excess(-win * small) + win * exp_excess(lose * small))
    side = -jnp.sign(p)
    apart = softplus(side * q) - softplus(-jnp.abs(p)) - jnp.minimum(win, lose) * side * d
    return jnp.where(near, nearly, apart)


@bernoulli_kl.defjvp
def _bernoulli_kl_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (p, q), (dp, dq) = primals, tangents
    d = q - p
    low, high = jnp.minimum(p, q), jnp.maximum(p, q)
    rise = -jnp.expm1(low - high) * sigmoid(high) * sigmoid(-low)  # σ(high) − σ(low) without cancellation
    return bernoulli_kl(p, q), jnp.sign(d) * rise * dq - sigmoid(p) * sigmoid(-p) * d * dp


def masked_sum(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Sum over `axis`, and over the mapped axis `axis_name`, of the entries that `where` keeps."""
    total = jnp.sum(fill(x, where, 0), axis=axis)
    return total if axis_name is None else jax.lax.psum(total, axis_name)


def masked_mean(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """Mean over `axis` of the entries that `where` keeps; 0 where it keeps none."""
    count = masked_sum(jnp.ones_like(x), where, axis=axis, axis_name=axis_name)
    return masked_sum(x, where, axis=axis, axis_name=axis_name) / jnp.maximum(count, 1)


def log_sum_exp(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """log Σ eˣ of the entries that `where` keeps; −inf with zero gradient where it keeps none."""
    x = fill(x, where, -jnp.inf)
    peak = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True, initial=-jnp.inf))
    if axis_name is not None:
        peak = jax.lax.pmax(peak, axis_name)
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    total = masked_sum(jnp.exp(x - peak), axis=axis, axis_name=axis_name)
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1)) + jnp.squeeze(peak, axis), -jnp.inf)


def log_mean_exp(
    x: Float[Array, "..."],
    where: Bool[Array, "..."] | None = None,
    *,
    axis: Axis = None,
    axis_name: AxisName = None,
) -> Float[Array, "..."]:
    """log of the mean of eˣ over the entries that `where` keeps; −inf with zero gradient where it keeps none."""
    count = masked_sum(jnp.ones_like(x), where, axis=axis, axis_name=axis_name)
    return log_sum_exp(x, where, axis=axis, axis_name=axis_name) - jnp.log(jnp.maximum(count, 1))
