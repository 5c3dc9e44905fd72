"""Ledger 10 and 11a: the bias of Donsker and Varadhan's bound of a batch, and of its gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import finite_laws as finite
from mi_align.equivalences import two_letters
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.objectives import donsker_varadhan_bound

__all__ = ["CLAIMS"]

_SIZES = (32.0, 64.0, 128.0, 256.0)
_DELTA = "derived here (delta method); all batches enumerated"


def _three_letters(key: PRNGKeyArray) -> Inputs:
    return finite.draw(key, letters=3)


def _expected_bound(x: Inputs, size: int) -> Array:
    """E of the bound over every joint sample of one letter and every marginal one of `size`."""
    values, chance = finite.all_batches(donsker_varadhan_bound, x, joint=1, marginal=size)
    return jnp.sum(chance * values)


def _scaled_bias(x: Inputs) -> Array:
    """n (E DV_n − DV) for each n; the joint sample adds the same to both."""
    values, chance = two_letters.bounds(x, _SIZES)
    return jnp.asarray(_SIZES) * (jnp.sum(chance * values, axis=-1) + two_letters.log_partition(x))


def _remainder(x: Inputs) -> Array:
    """(¾ m₂² − ⅓ m₃)/n for each n."""
    m = two_letters.moments(x)
    return (0.75 * m.variance**2 - m.third / 3) / jnp.asarray(_SIZES)


def _limit_of_slope(x: Inputs) -> Array:
    """Cov_q(e^T∇T, e^T)/Z² − E_q(e^T∇T) Var_q(e^T)/Z³."""
    m = two_letters.moments(x)
    return m.covariance - m.slope * m.variance


def _in_score(f: Callable[[Inputs], Array], x: Inputs) -> Array:
    """∂f/∂t: of an expectation over batches that of every batch, since their law does not depend on the critic."""
    return jax.jvp(lambda t: f({**x, "t": t}), (x["t"],), (jnp.ones_like(x["t"]),))[1]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="10a",
        title="Over batches, Donsker–Varadhan's bound lies above itself",
        statement=r"\mathbb{E}\,\hat I_{\mathrm{DV}}(T) \ge I_{\mathrm{DV}}(T)",
        kind=Kind.INEQUALITY,
        draw=_three_letters,
        left=finite.dv,
        right=lambda x: _expected_bound(x, 3),
        twin=lambda x: 2 * finite.dv(x) - _expected_bound(x, 3),
        slip="the bias with the other sign",
        source="derived here (Jensen); all 81 batches of one joint and three marginal letters enumerated",
        samples=4000,
    ),
    Claim(
        id="10b",
        title="It does so by half the relative variance of a term over the size of the batch",
        statement=r"n\left(\mathbb{E}\,\hat I_{\mathrm{DV}} - I_{\mathrm{DV}}\right) = \frac{m_2}{2} +"
        r" \frac{\frac34 m_2^2 - \frac13 m_3}{n} + O(n^{-2}), \quad"
        r" m_k = \mathbb{E}_q\left(\frac{e^T}{Z} - 1\right)^k",
        kind=Kind.ASYMPTOTIC,
        draw=two_letters.draw,
        left=lambda x: _scaled_bias(x) - two_letters.moments(x).variance / 2,
        right=_remainder,
        twin=lambda x: _remainder(x) + 0.005 * two_letters.moments(x).variance / 2,
        slip="a limit that is off by half a per cent, so that the rest does not vanish",
        source=_DELTA,
        samples=256,
        grid=_SIZES,
    ),
    Claim(
        id="10c",
        title="A larger batch is less biased",
        statement=r"\mathbb{E}\,\hat I_{\mathrm{DV},\,n+1}(T) \le \mathbb{E}\,\hat I_{\mathrm{DV},\,n}(T)",
        kind=Kind.INEQUALITY,
        draw=_three_letters,
        left=lambda x: _expected_bound(x, 3),
        right=lambda x: _expected_bound(x, 2),
        twin=lambda x: _expected_bound(x, 4),
        slip="four marginal letters in the place of two",
        source="derived here: a batch of n + 1 is the mean of its n + 1 parts of n; n = 2 enumerated",
        samples=4000,
    ),
    Claim(
        id="11a",
        title="The gradient of Donsker–Varadhan's bound over a batch is biased",
        statement=r"n\left(\mathbb{E}\,\nabla\hat I_{\mathrm{DV}} - \nabla I_{\mathrm{DV}}\right) ="
        r" \frac{\mathrm{Cov}_q(e^T\nabla T,\, e^T)}{Z^2} -"
        r" \frac{\mathbb{E}_q[e^T\nabla T]\,\mathrm{Var}_q(e^T)}{Z^3} + O(n^{-1})",
        kind=Kind.ASYMPTOTIC,
        draw=two_letters.draw,
        left=lambda x: _in_score(_scaled_bias, x) - _limit_of_slope(x),
        right=lambda x: _in_score(_remainder, x),
        twin=lambda x: _in_score(_remainder, x) + 0.005 * _limit_of_slope(x),
        slip="a limit that is off by half a per cent, so that the rest does not vanish",
        source=f"{_DELTA}; Belghazi et al. 2018 (arXiv 1801.04062), section 3.2, for the remark",
        samples=256,
        grid=_SIZES,
    ),
)
