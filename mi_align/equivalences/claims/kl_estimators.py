"""Ledger 43: the estimators k₁, k₂ and k₃ of a KL divergence: their means, their variances and their last digits."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import finite_laws as finite
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals, verdicts
from mi_align.equivalences.populations import kullback_leibler
from mi_align.equivalences.scores import pair
from mi_align.objectives import kl_k1, kl_k2, kl_k3

__all__ = ["CLAIMS"]

_OFF = 1 + 1e-6
_SCHULMAN = 'Schulman 2020, "Approximating KL divergence"'
_CROSSING = 1.25643120862617  # the positive solution of e^x = 1 + 2x: −½ − W₋₁(−e^{−½}/2)


def _two_policies(key: PRNGKeyArray) -> Inputs:
    """Logits of a policy and of its reference, and which responses the policy produces in a claim that asks."""
    x = normals(key, policy=(4,), reference=(4,), produced=())
    return {**x, "produced": verdicts(x["produced"], 4)}


def _mean(estimator: Callable[[Array, Array], Array], x: Inputs) -> Array:
    logp = jax.nn.log_softmax(x["policy"])
    return jnp.exp(logp) @ estimator(logp, jax.nn.log_softmax(x["reference"]))


def _divergence(x: Inputs) -> Array:
    return kullback_leibler(jax.nn.softmax(x["policy"]), jax.nn.softmax(x["reference"]))


def _means_on_support(x: Inputs) -> Array:
    """E k₁ and E k₃ of a policy that does not produce every response."""
    logp = jax.nn.log_softmax(jnp.where(x["produced"], x["policy"], -jnp.inf))
    chance, logp = jnp.exp(logp), jnp.where(x["produced"], logp, 0)
    reference = jax.nn.log_softmax(x["reference"])
    return jnp.stack([chance @ estimate(logp, reference) for estimate in (kl_k1, kl_k3)])


def _divergence_on_support(x: Inputs, factor: float = 1.0) -> Array:
    """KL, and KL less the reference's chance of a response that the policy does not produce."""
    weight = jnp.where(x["produced"], jnp.exp(x["policy"]), 0)
    policy, reference = weight / jnp.sum(weight), jax.nn.softmax(x["reference"])
    divergence = jnp.sum(
        jnp.where(x["produced"], policy * (jnp.log(jnp.where(x["produced"], policy, 1)) - jnp.log(reference)), 0)
    )
    missed = jnp.sum(jnp.where(x["produced"], 0, reference))
    return jnp.stack([divergence, divergence - factor * missed])


def _gaussian_moments(x: Inputs) -> Array:
    """Means of k₁, k₂, k₃, then their variances, for π = N(0, 1) and π_ref = N(μ, 1), by quadrature."""
    points, weights = (jnp.asarray(part, x["mu"].dtype) for part in finite.gauss_hermite())
    logp, reference = -(points**2) / 2, -((points - x["mu"]) ** 2) / 2
    values = jnp.stack([estimate(logp, reference) for estimate in (kl_k1, kl_k2, kl_k3)])
    means = values @ weights
    return jnp.concatenate([means, (values - means[:, None]) ** 2 @ weights])


def _closed_moments(x: Inputs, factor: float = 1.0) -> Array:
    """The same in closed form; the exponent of the last may be off by a factor."""
    square = x["mu"] ** 2
    means = [square / 2, square / 2 + square**2 / 8, square / 2]
    return jnp.stack([*means, square, square**2 / 2 + square**3 / 4, jnp.expm1(factor * square) - square])


def _near_crossing(key: PRNGKeyArray) -> Inputs:
    """μ with μ² on either side of the crossing, from 40 % off to 10⁻⁵."""
    x = normals(key, side=(), distance=())
    off = jnp.sign(x["side"]) * 10 ** between(-5, -0.4, x["distance"])
    return {"mu": jnp.sqrt(_CROSSING * (1 + off))}


def _advantage(x: Inputs, crossing: float) -> Array:
    """(Var k₁ − Var k₃)(crossing − μ²)."""
    moments = _gaussian_moments(x)
    return (moments[3] - moments[5]) * (crossing - x["mu"] ** 2)


def _small(key: PRNGKeyArray) -> Inputs:
    """d from 10⁻¹² to 0.1, of either sign."""
    x = normals(key, sign=(), size=())
    return {"d": jnp.sign(x["sign"]) * 10 ** between(-12, -1, x["size"])}


def _relative(k3: Callable[[Array], Array], x: Inputs) -> Array:
    """k₃ over d²/2, and its derivative over d."""
    value, slope = jax.value_and_grad(k3)(x["d"])
    return jnp.stack([value / x["d"] / x["d"] * 2, slope / x["d"]])


def _series(x: Inputs) -> Array:
    """Σ dʲ 2/(j + 2)! and Σ dʲ/(j + 1)!, as far as they count below 0.1."""
    powers = x["d"] ** jnp.arange(12)
    shifted = jnp.asarray([[2 / math.factorial(j + 2), 1 / math.factorial(j + 1)] for j in range(12)], powers.dtype)
    return powers @ shifted


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="43a",
        title="k₁ and k₃ are unbiased",
        statement=r"\mathbb{E}_\pi\,k_1 = \mathbb{E}_\pi\,k_3 = \mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}}), \quad"
        r" k_1 = -\log\frac{\pi_{\mathrm{ref}}}{\pi},\ k_3 = \frac{\pi_{\mathrm{ref}}}{\pi} - 1 + k_1",
        kind=Kind.EXACT,
        draw=_two_policies,
        left=lambda x: jnp.stack([_mean(kl_k1, x), _mean(kl_k3, x)]),
        right=lambda x: jnp.stack([_divergence(x), _divergence(x)]),
        twin=lambda x: jnp.stack([_divergence(x), _OFF * _divergence(x)]),
        slip="the divergence multiplied by 1 + 1e-6",
        source=_SCHULMAN,
    ),
    Claim(
        id="43b",
        title="k₃ misses what the reference says and the policy never does; k₁ does not",
        statement=r"\mathbb{E}_\pi\,k_1 = \mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}}), \quad"
        r" \mathbb{E}_\pi\,k_3 = \mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}}) - \pi_{\mathrm{ref}}(\{y : \pi(y) = 0\})",
        kind=Kind.EXACT,
        draw=_two_policies,
        left=_means_on_support,
        right=_divergence_on_support,
        twin=lambda x: _divergence_on_support(x, _OFF),
        slip="what is missed multiplied by 1 + 1e-6",
        source="derived here",
    ),
    Claim(
        id="43c",
        title="Means and variances for Gaussians μ apart",
        statement=r"\mathbb{E}\,k_{1,2,3} = \tfrac{\mu^2}{2},\; \tfrac{\mu^2}{2} + \tfrac{\mu^4}{8},\;"
        r" \tfrac{\mu^2}{2}; \qquad \mathrm{Var}\,k_{1,2,3} = \mu^2,\; \tfrac{\mu^4}{2} + \tfrac{\mu^6}{4},\;"
        r" e^{\mu^2} - 1 - \mu^2",
        kind=Kind.EXACT,
        draw=lambda key: {"mu": between(-1.25, 1.25, jax.random.normal(key))},
        left=_gaussian_moments,
        right=_closed_moments,
        twin=lambda x: _closed_moments(x, _OFF),
        slip="the exponent in k₃'s variance multiplied by 1 + 1e-6",
        source=f"{_SCHULMAN}; the closed forms derived here, by Gauss–Hermite quadrature with 32 points",
        samples=100_000,
    ),
    Claim(
        id="43d",
        title="k₃ is never negative, on any sample",
        statement=r"k_3 = e^d - 1 - d \ge 0, \quad d = \log\pi_{\mathrm{ref}} - \log\pi",
        kind=Kind.INEQUALITY,
        draw=pair,
        left=lambda x: jnp.zeros_like(x["a"]),
        right=lambda x: kl_k3(x["a"], x["c"]),
        twin=lambda x: kl_k1(x["a"], x["c"]),
        slip="k₁ in the place of k₃",
        source=_SCHULMAN,
    ),
    Claim(
        id="43e",
        title="k₃ varies less than k₁ only while the policies are close",
        statement=r"\mathrm{Var}\,k_3 < \mathrm{Var}\,k_1 \iff \mu^2 < 1.25643\dots, \quad e^x = 1 + 2x"
        r" \text{ at } x = 1.25643\dots",
        kind=Kind.INEQUALITY,
        draw=_near_crossing,
        left=lambda x: jnp.zeros_like(x["mu"]),
        right=lambda x: _advantage(x, _CROSSING),
        twin=lambda x: _advantage(x, 1.2564),
        slip="the crossing rounded to 1.2564",
        source="derived here, by Gauss–Hermite quadrature with 32 points",
        samples=100_000,
    ),
    Claim(
        id="43f",
        title="k₃ keeps its digits where the policies nearly agree, and so does its gradient",
        statement=r"\frac{k_3}{d^2/2} = \sum_{j \ge 0} \frac{2\,d^j}{(j+2)!}, \qquad"
        r" \frac1d\,\frac{\partial k_3}{\partial d} = \sum_{j \ge 0} \frac{d^j}{(j+1)!}",
        kind=Kind.EXACT,
        draw=_small,
        left=lambda x: _relative(lambda d: kl_k3(jnp.zeros_like(d), d), x),
        right=_series,
        twin=lambda x: _relative(lambda d: jnp.expm1(d) - d, x),
        slip="expm1(d) − d, whose relative error is that of expm1 times 2/d",
        source="derived here",
        derivatives=0,
    ),
)
