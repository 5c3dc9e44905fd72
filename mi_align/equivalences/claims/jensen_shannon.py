"""Ledger 4 and 5: the Jensen–Shannon bound is a discriminator's log-likelihood, and looser than Donsker–Varadhan's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mi_align.equivalences import finite_laws as finite
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.objectives import jensen_shannon_bound

__all__ = ["CLAIMS"]

_OFF = 1 + 1e-6
_GAN = "Nowozin et al. 2016 (arXiv 1606.00709); Hjelm et al. 2019 (arXiv 1808.06670)"


def _bound(x: Inputs) -> Array:
    return finite.expected(jensen_shannon_bound, x)


def _ceiling(x: Inputs, factor: float = 1.0) -> Array:
    """2 JSD(p, q) − log 4."""
    return factor * 2 * finite.jensen_shannon(x) - jnp.log(4.0)


def _posterior(x: Inputs) -> tuple[Array, Array]:
    """(p + q)/2, and p/(p + q), the chance that a letter of it came from p."""
    p, q = finite.laws(x)
    return (p + q) / 2, p / (p + q)


def _below_ceiling(x: Inputs, factor: float = 1.0) -> Array:
    """2 JSD − log 4 − 2 E KL(Bern(p/(p+q)) ‖ Bern(σ(T))); T may be off by a factor."""
    middle, chance = _posterior(x)
    critic = factor * x["T"]
    right = chance * (jnp.log(chance) + jax.nn.softplus(-critic))
    wrong = (1 - chance) * (jnp.log1p(-chance) + jax.nn.softplus(critic))
    return _ceiling(x) - 2 * middle @ (right + wrong)


def _discriminator(x: Inputs, sign: float = 1.0) -> Array:
    """E_p log D + E_q log(1 − D), D = σ(T)."""
    p, q = finite.laws(x)
    return p @ (sign * jax.nn.log_sigmoid(x["T"])) + q @ jnp.log(1 / (1 + jnp.exp(x["T"])))


def _shifted_at_most(x: Inputs, factor: float = 4.0) -> Array:
    """2 JSD − log 4 − 4 E (p/(p+q) − σ(log p/q + k))²: Pinsker's inequality in 4a."""
    middle, chance = _posterior(x)
    return _ceiling(x) - factor * middle @ (chance - jax.nn.sigmoid(finite.best_critic(x) + x["shift"])) ** 2


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="4a",
        title="The Jensen–Shannon bound is its ceiling less the error of a classifier",
        statement=r"-\mathbb{E}_p\,\mathrm{sp}(-T) - \mathbb{E}_q\,\mathrm{sp}(T) = 2\,\mathrm{JSD}(p, q) - \log 4"
        r" - 2\,\mathbb{E}_{\frac{p+q}{2}}\,\mathrm{KL}\left(\tfrac{p}{p+q}\,\middle\|\,\sigma(T)\right)",
        kind=Kind.EXACT,
        draw=finite.draw,
        left=_bound,
        right=_below_ceiling,
        twin=lambda x: _below_ceiling(x, _OFF),
        slip="the classifier's logit T multiplied by 1 + 1e-6",
        source=f"derived here; {_GAN}",
        derivatives=2,
    ),
    Claim(
        id="4b",
        title="The critic log p/q attains 2 JSD − log 4",
        statement=r"T = \log\frac{p}{q}:\quad I_{\mathrm{JS}}(T) = 2\,\mathrm{JSD}(p, q) - \log 4",
        kind=Kind.EXACT,
        draw=finite.draw,
        left=lambda x: _bound({**x, "T": finite.best_critic(x)}),
        right=_ceiling,
        twin=lambda x: _ceiling(x) + jnp.log(4.0) - 1.386294,
        slip="log 4 rounded to 1.386294",
        source=_GAN,
    ),
    Claim(
        id="4c",
        title="The Jensen–Shannon bound lies below 2 JSD − log 4, whatever the critic",
        statement=r"I_{\mathrm{JS}}(T) \le 2\,\mathrm{JSD}(p, q) - \log 4",
        kind=Kind.INEQUALITY,
        draw=finite.draw,
        left=_bound,
        right=_ceiling,
        twin=lambda x: _ceiling(x, 1 - 1e-6),
        slip="the divergence multiplied by 1 − 1e-6",
        source=_GAN,
    ),
    Claim(
        id="4d",
        title="It is not shift invariant: moving the best critic costs at least a square",
        statement=r"I_{\mathrm{JS}}\left(\log\tfrac{p}{q} + k\right) \le 2\,\mathrm{JSD}(p, q) - \log 4 -"
        r" 4\,\mathbb{E}_{\frac{p+q}{2}}\left(\tfrac{p}{p+q} - \sigma\left(\log\tfrac{p}{q} + k\right)\right)^2",
        kind=Kind.INEQUALITY,
        draw=finite.draw,
        left=lambda x: _bound(finite.with_best_critic(x)),
        right=_shifted_at_most,
        twin=lambda x: _shifted_at_most(x, 8.0),
        slip="8 in the place of 4",
        source="derived here, by Pinsker's inequality",
    ),
    Claim(
        id="4e",
        title="It is the log-likelihood of the discriminator σ(T)",
        statement=r"I_{\mathrm{JS}}(T) = \mathbb{E}_p\log D + \mathbb{E}_q\log(1 - D), \quad D = \sigma(T),"
        r"\ \log D = -\mathrm{sp}(-T)",
        kind=Kind.EXACT,
        draw=finite.draw,
        left=_bound,
        right=_discriminator,
        twin=lambda x: _discriminator(x, -1.0),
        slip="log D with the sign of a softplus, as in TensorFlow Probability's documentation",
        source=_GAN,
    ),
    Claim(
        id="5a",
        title="Jensen–Shannon is looser than Donsker–Varadhan: with the critic log 2σ(T) the latter lies above",
        statement=r"I_{\mathrm{JS}}(T) + \log 4 \le I_{\mathrm{DV}}\left(\log 2\sigma(T)\right)",
        kind=Kind.INEQUALITY,
        draw=finite.draw,
        left=lambda x: _bound(x) + jnp.log(4.0),
        right=lambda x: finite.dv({**x, "T": jnp.log(2.0) + jax.nn.log_sigmoid(x["T"])}),
        twin=finite.dv,
        slip="Donsker–Varadhan's bound at T itself",
        source="derived here (Jensen)",
    ),
    Claim(
        id="5b",
        title="Hence 2 JSD is at most KL",
        statement=r"2\,\mathrm{JSD}(p, q) \le \mathrm{KL}(p\,\|\,q)",
        kind=Kind.INEQUALITY,
        draw=finite.draw,
        left=lambda x: _bound({**x, "T": finite.best_critic(x)}) + jnp.log(4.0),
        right=lambda x: finite.dv({**x, "T": finite.best_critic(x)}),
        twin=lambda x: finite.dv({**x, "T": finite.best_critic(x)}) / 2,
        slip="half the divergence",
        source="derived here; compare arXiv 2510.20644",
        figure="chain_of_bounds",
    ),
)
