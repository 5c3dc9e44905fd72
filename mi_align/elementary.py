"""Elementary functions of logits whose values and derivatives keep their last digits on the whole range.

The derivatives are written out because JAX's own lose digits in the tails: `1 − sigmoid(x)` is 0 from x = 17 on in
float32, where the true derivative is 4e-8.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = [
    "bernoulli_kl",
    "exp_excess",
    "expm1",
    "log1mexp",
    "log1p",
    "log_sigmoid",
    "scaled_softplus",
    "sigmoid",
    "sigmoid_difference",
    "softplus",
]


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
    """log(1 + scale · eˣ) for scale ≥ 1, or x ≤ 0: softplus(x + log scale) without the rounding of that sum."""
    e = jnp.exp(jnp.where(x > 0, -x, x))  # `−|x|` would have the wrong slope at 0
    return jnp.where(x > 0, x, 0) + jnp.log1p(jnp.where(x > 0, (scale - 1) + e, scale * e))
