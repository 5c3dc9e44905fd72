"""Ledger 23: MIO at its population optimum, beside BCO, KTO, KL-divergence optimisation and DPO.

MIO's best critic has one level, log p/m. A log-ratio critic is normalised, Σ π_ref e^{T/β} = 1, and can reach that
level only if the reference and β agree with it: the price of losing Donsker and Varadhan's invariance to shifts.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.optimise import minimise
from mi_align.equivalences.populations import (
    Laws,
    donsker_varadhan,
    jensen_shannon,
    kullback_leibler,
    mean_over_pairs,
    mio_pair_loss,
    policy_loss,
    problem,
)
from mi_align.methods import METHODS
from mi_align.objectives import bco_pair_loss, bradley_terry_loss, kto_loss

__all__ = ["CLAIMS"]

_HALDAR = "Haldar et al. 2025 (arXiv 2502.00657), theorem 4.1, as restated in public notes; derived here"


def _mio(critic: Array, x: Inputs) -> Array:
    return mean_over_pairs(mio_pair_loss, critic, Laws.of(x))


def _least(x: Inputs, factor: float = 1.0) -> Array:
    """log 4 − 2 JSD(p, m)."""
    laws = Laws.of(x)
    return jnp.log(4.0) - 2 * factor * jensen_shannon(laws.chosen, laws.mixture)


def _minimised(x: Inputs, loss: Callable[[Array, Array], Array]) -> Array:
    """The critic that minimises a pairwise loss's expectation, the minimum, and the gradient left."""
    found = minimise(lambda critic: mean_over_pairs(loss, critic, Laws.of(x)), jnp.zeros_like(x["p"]), steps=20)
    return jnp.concatenate([found.point, jnp.stack([found.value, found.residual])])


def _expected(critic: Array, value: Array) -> Array:
    return jnp.concatenate([critic, jnp.stack([value, jnp.zeros_like(value)])])


def _mio_expected(x: Inputs, factor: float = 1.0) -> Array:
    return _expected(Laws.of(x).level, _least(x, factor))


def _bco_expected(x: Inputs, capped: bool = False) -> Array:
    laws = Laws.of(x)
    return _expected(laws.level if capped else laws.odds, jnp.log(4.0) - 2 * jensen_shannon(*laws))


def _coin_kl(p: Array, q: Array) -> Array:
    """KL(Bern(σ(p)) ‖ Bern(σ(q))) of two logits."""
    win = jax.nn.sigmoid(p)
    return win * (jax.nn.log_sigmoid(p) - jax.nn.log_sigmoid(q)) + (1 - win) * (
        jax.nn.log_sigmoid(-p) - jax.nn.log_sigmoid(-q)
    )


def _excess(critic: Array, x: Inputs) -> Array:
    """Σ (p + m) KL(Bern(p/(p+m)) ‖ Bern(σ(T)))."""
    laws = Laws.of(x)
    return jnp.sum((laws.chosen + laws.mixture) * _coin_kl(laws.level, critic))


def _mio_of_policy(log_policy: Array, log_reference: Array, x: Inputs, beta: Array) -> Array:
    return policy_loss(METHODS["mio"], log_policy, log_reference, Laws.of(x), beta=beta)


def _chosen_law_as_policy(x: Inputs) -> Array:
    """MIO of the policy p with the reference m at β = 1."""
    laws = Laws.of(x)
    return _mio_of_policy(jnp.log(laws.chosen), jnp.log(laws.mixture), x, jnp.ones_like(x["beta"]))


def _fitting_reference(x: Inputs) -> Array:
    """A reference that is not m and for which Σ π_ref (p/m)^{1/β} = 1: the drawn one, mixed with a single response.

    p/m is at least 1 somewhere and at most 1 somewhere, so that one of the two ends can be mixed in to make up for it.
    """
    tilt = jnp.exp(Laws.of(x).level / x["beta"])
    drawn = jax.nn.softmax(x["reference"])
    total = jnp.sum(drawn * tilt)
    end = jnp.where(total > 1, jnp.argmin(tilt), jnp.argmax(tilt))
    spare = total - tilt[end]
    is_flat = jnp.abs(spare) < 1e-12  # p = r but for rounding: every reference will do
    share = jnp.where(is_flat, 1, (1 - tilt[end]) / jnp.where(is_flat, 1, spare))
    return share * drawn + (1 - share) * (jnp.arange(tilt.size) == end)


def _fitting_policy(x: Inputs) -> Array:
    """MIO of π = π_ref (p/m)^{1/β} for such a reference, and what that policy adds up to."""
    x = {name: value.astype(float) for name, value in x.items()}  # for (p/m)^{1/β}, which can exceed float32's range
    reference = _fitting_reference(x)
    log_policy = jnp.log(reference) + Laws.of(x).level / x["beta"]
    loss = _mio_of_policy(log_policy, jnp.log(reference), x, x["beta"])
    return jnp.stack([loss, jnp.sum(jnp.exp(log_policy))])


def _defect(x: Inputs) -> tuple[Array, Array, Array]:
    """log π_ref, the best critic's tilt of it without a normaliser, and the normaliser's logarithm."""
    reference = jax.nn.log_softmax(x["reference"])
    tilted = reference + Laws.of(x).level / x["beta"]
    return reference, tilted, jax.nn.logsumexp(tilted)


def _loss_of_tilted(x: Inputs, normalised: bool = True) -> Array:
    """What a policy at or near the best critic's tilt loses above the optimum."""
    reference, tilted, _ = _defect(x)
    tilted = tilted + x["noise"] * x["critic"]
    log_policy = jax.nn.log_softmax(tilted) if normalised else tilted
    return _mio_of_policy(log_policy, reference, x, x["beta"]) - _least(x)


def _price(x: Inputs) -> Array:
    """min_y (p + m)(y) min_± KL(σ(T*) ‖ σ(T* ± β D)), D = log Σ π_ref e^{T*/β}.

    T ↦ log Σ π_ref e^{T/β} is 1/β-Lipschitz in the largest difference and 0 at any policy, so that some response's T
    is off by at least β |D|.
    """
    laws, shift = Laws.of(x), x["beta"] * _defect(x)[2]
    off = jnp.minimum(_coin_kl(laws.level, laws.level + shift), _coin_kl(laws.level, laws.level - shift))
    return jnp.min((laws.chosen + laws.mixture) * off)


def _kto(critic: Array, x: Inputs) -> Array:
    """KTO's expectation with reference point 0 and unit weights, chosen desirable and rejected not."""
    laws, everywhere = Laws.of(x), jnp.ones(critic.shape, bool)
    losses = [kto_loss(critic, desirable, reference_point=0.0) for desirable in (everywhere, ~everywhere)]
    return jnp.sum(laws.chosen * losses[0] + laws.rejected * losses[1])


def _total_variation(x: Inputs) -> Array:
    laws = Laws.of(x)
    return jnp.sum(jnp.abs(laws.chosen - laws.rejected)) / 2


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="23a",
        title="MIO's least expected loss over all critics, and where it is",
        statement=r"\min_T\ \mathbb{E}_{w \sim p,\, l \sim r}\ \ell_{\mathrm{MIO}} = \log 4 - 2\,\mathrm{JSD}(p, m),"
        r"\qquad T^\ast = \log\frac{p}{m} = \log\frac{2p}{p + r}",
        kind=Kind.OPTIMUM,
        draw=problem,
        left=lambda x: _minimised(x, mio_pair_loss),
        right=_mio_expected,
        twin=lambda x: _mio_expected(x, factor=1 + 1e-6),
        slip="the divergence multiplied by 1 + 1e-6",
        source="derived here",
        derivatives=0,
        samples=1024,
    ),
    Claim(
        id="23b",
        title="MIO's best critic nowhere exceeds log 2",
        statement=r"\operatorname{argmin}_T\ \mathbb{E}\ \ell_{\mathrm{MIO}} \le \log 2",
        kind=Kind.INEQUALITY,
        draw=problem,
        left=lambda x: _minimised(x, mio_pair_loss)[: x["p"].size],
        right=lambda x: jnp.full_like(x["p"], jnp.log(2.0)),
        twin=lambda x: jnp.full_like(x["p"], 0.69),
        slip="log 2 rounded to 0.69",
        source="derived here",
        samples=1024,
    ),
    Claim(
        id="23c",
        title="What any critic loses: its divergence from the posterior of being chosen",
        statement=r"\mathbb{E}\ \ell_{\mathrm{MIO}}(T) = \log 4 - 2\,\mathrm{JSD}(p, m) +"
        r" \sum_y (p + m)(y)\ \mathrm{KL}\left(\tfrac{p}{p + m} \,\Vert\, \sigma(T)\right)",
        kind=Kind.EXACT,
        draw=problem,
        left=lambda x: _mio(x["critic"], x),
        right=lambda x: _least(x) + _excess(x["critic"], x),
        twin=lambda x: _least(x) + _excess((1 + 1e-6) * x["critic"], x),
        slip="the critic multiplied by 1 + 1e-6",
        source="derived here",
    ),
    Claim(
        id="23d",
        title="BCO's least expected loss, and where it is: its critic has no ceiling",
        statement=r"\min_T\ \mathbb{E}\ \ell_{\mathrm{BCO}} = \log 4 - 2\,\mathrm{JSD}(p, r),\qquad"
        r" T^\ast = \log\frac pr",
        kind=Kind.OPTIMUM,
        draw=problem,
        left=lambda x: _minimised(x, bco_pair_loss),
        right=_bco_expected,
        twin=lambda x: _bco_expected(x, capped=True),
        slip="MIO's best critic",
        source=_HALDAR,
        derivatives=0,
        samples=1024,
    ),
    Claim(
        id="23e",
        title="With the mixture as reference and β = 1, MIO's optimal policy is the chosen law",
        statement=r"\pi_{\mathrm{ref}} = m,\ \beta = 1,\ \pi = p:\quad \mathbb{E}\ \ell_{\mathrm{MIO}} ="
        r" \log 4 - 2\,\mathrm{JSD}(p, m)",
        kind=Kind.EXACT,
        draw=problem,
        left=_chosen_law_as_policy,
        right=_least,
        twin=lambda x: _least(x, factor=1 + 1e-6),
        slip="the divergence multiplied by 1 + 1e-6",
        source="derived here",
        derivatives=0,
    ),
    Claim(
        id="23f",
        title="Another reference attains it exactly if its tilt by the best critic is normalised already",
        statement=r"\sum_y \pi_{\mathrm{ref}}(y)\left(\tfrac pm\right)^{1/\beta} = 1,\ \pi = \pi_{\mathrm{ref}}"
        r"\left(\tfrac pm\right)^{1/\beta}:\quad \mathbb{E}\ \ell_{\mathrm{MIO}} = \log 4 - 2\,\mathrm{JSD}(p, m)",
        kind=Kind.EXACT,
        draw=problem,
        left=_fitting_policy,
        right=lambda x: jnp.stack([_least(x), jnp.ones_like(x["beta"])]),
        twin=lambda x: jnp.stack([_least(x, factor=1 + 1e-6), jnp.ones_like(x["beta"])]),
        slip="the divergence multiplied by 1 + 1e-6",
        source="derived here",
        derivatives=0,
    ),
    Claim(
        id="23g",
        title="Any other reference costs every policy something: the log-ratio cannot reach the best critic's level",
        statement=r"\min_y (p + m)(y)\,\min_{\pm} \mathrm{KL}\left(\sigma(T^\ast) \,\Vert\, \sigma(T^\ast \pm \beta D)"
        r"\right) \le \mathbb{E}\ \ell_{\mathrm{MIO}}(\pi) - \left[\log 4 - 2\,\mathrm{JSD}(p, m)\right],\quad"
        r" D = \log\sum_y \pi_{\mathrm{ref}}\,e^{T^\ast/\beta}",
        kind=Kind.INEQUALITY,
        draw=problem,
        left=_price,
        right=_loss_of_tilted,
        twin=lambda x: _loss_of_tilted({**x, "noise": jnp.zeros_like(x["noise"])}, normalised=False),
        slip="a policy that does not add up to 1",
        source="derived here",
    ),
    Claim(
        id="23h",
        title="KTO's expectation is at least 1 − TV",
        statement=r"1 - \mathrm{TV}(p, r) \le \mathbb{E}\ \ell_{\mathrm{KTO}}(T)",
        kind=Kind.INEQUALITY,
        draw=problem,
        left=lambda x: 1 - _total_variation(x),
        right=lambda x: _kto(10 * x["critic"], x),
        twin=lambda x: 0.9 * _kto(10 * x["critic"], x),
        slip="0.9 of KTO's loss",
        source=_HALDAR,
    ),
    Claim(
        id="23i",
        title="KTO's infimum is approached by a critic that only tells which law is larger, without bound",
        statement=r"T = \pm\infty \text{ as } p \gtrless r:\quad \mathbb{E}\ \ell_{\mathrm{KTO}} ="
        r" 1 - \mathrm{TV}(p, r)",
        kind=Kind.EXACT,
        draw=problem,
        left=lambda x: _kto(jnp.where(Laws.of(x).odds > 0, 60.0, -60.0), x),
        right=lambda x: 1 - _total_variation(x),
        twin=lambda x: 1 - (1 + 1e-6) * _total_variation(x),
        slip="the total variation multiplied by 1 + 1e-6",
        source=_HALDAR,
        derivatives=0,
    ),
    Claim(
        id="23j",
        title="KL-divergence optimisation is minus Donsker–Varadhan: at best −KL(p‖r)",
        statement=r"-\mathbb{E}_p T + \log\mathbb{E}_r e^{T} = -\mathrm{KL}(p \,\Vert\, r)\quad\text{at }"
        r" T = \log\frac pr",
        kind=Kind.EXACT,
        draw=problem,
        left=lambda x: -donsker_varadhan(Laws.of(x).odds, *Laws.of(x)),
        right=lambda x: -kullback_leibler(*Laws.of(x)),
        twin=lambda x: -kullback_leibler(*Laws.of(x)[::-1]),
        slip="the reverse divergence",
        source=_HALDAR,
    ),
    Claim(
        id="23k",
        title="DPO's expectation falls below log 2 by at most a multiple of the total variation",
        statement=r"\log 2 - \mathbb{E}\ \ell_{\mathrm{DPO}}(T) \le 2 \log 2\cdot\mathrm{TV}(p, r)",
        kind=Kind.INEQUALITY,
        draw=problem,
        left=lambda x: jnp.log(2.0) - mean_over_pairs(bradley_terry_loss, Laws.of(x).odds, Laws.of(x)),
        right=lambda x: 2 * jnp.log(2.0) * _total_variation(x),
        twin=lambda x: jnp.log(2.0) * _total_variation(x),
        slip="the factor 2 left out",
        source=_HALDAR,
    ),
)
