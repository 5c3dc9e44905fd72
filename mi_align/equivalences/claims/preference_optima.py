"""Ledger 15 and 16: what DPO is worth at its population optimum, which policy is there, and the chain of optima."""

from __future__ import annotations

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
from mi_align.objectives import bradley_terry_loss

__all__ = ["CLAIMS"]


def _dpo(critic: Array, x: Inputs) -> Array:
    return mean_over_pairs(bradley_terry_loss, critic, Laws.of(x))


def _minimised(x: Inputs) -> tuple[Array, Array, Array]:
    """The critic that minimises DPO's expectation, its mean removed; the minimum; the gradient left."""
    found = minimise(lambda free: _dpo(jnp.append(free, 0), x), jnp.zeros_like(x["p"][1:]))
    critic = jnp.append(found.point, 0)
    return critic - jnp.mean(critic), found.value, found.residual


def _order_divergence(laws: Laws) -> Array:
    """JSD(p⊗r ‖ r⊗p)."""
    return jensen_shannon(laws.ordered, laws.ordered.T)


def _reached_by_policy(x: Inputs) -> Array:
    """DPO's expectation for the policy π ∝ π_ref (p/r)^{1/β}."""
    reference = jax.nn.log_softmax(x["reference"])
    policy = jax.nn.log_softmax(reference + Laws.of(x).odds / x["beta"])
    return policy_loss(METHODS["dpo"], policy, reference, Laws.of(x), beta=x["beta"])


def _information(laws: Laws) -> Array:
    """I(C; Y₁, Y₂) of a fair coin C that decides which of the two places the chosen response takes, by enumeration."""
    joint = jnp.stack([laws.ordered, laws.ordered.T]) / 2
    pairs = jnp.sum(joint, axis=0, keepdims=True)
    return jnp.sum(joint * jnp.log(joint / (0.5 * pairs)))


def _above_optimum(x: Inputs, factor: float = 1.0) -> Array:
    """E KL(posterior of the order ‖ σ(T₁ − T₂)) over unordered pairs."""
    ordered, margin = Laws.of(x).ordered, x["critic"][:, None] - factor * x["critic"][None, :]
    first = ordered / (ordered + ordered.T)
    kl = first * (jnp.log(first) - jax.nn.log_sigmoid(margin))
    return jnp.sum((ordered + ordered.T) / 2 * (kl + kl.T))


def _mio_optimum(laws: Laws) -> Array:
    """log 4 less MIO's expectation at its best critic, log p/m: the Jensen–Shannon member of the chain."""
    return jnp.log(4.0) - mean_over_pairs(mio_pair_loss, laws.level, laws)


def _dv_optimum(laws: Laws) -> Array:
    """Donsker and Varadhan's bound of p against m at its best critic."""
    return donsker_varadhan(laws.level, laws.chosen, laws.mixture)


def _dpo_optimum(laws: Laws) -> Array:
    """log 2 less DPO's expectation at its best critic, log p/r."""
    return jnp.log(2.0) - mean_over_pairs(bradley_terry_loss, laws.odds, laws)


def _disjoint(x: Inputs) -> Inputs:
    """The same laws, the chosen on the first two responses only and the rejected on the others, up to e^−50."""
    away = 25.0 * jnp.asarray([1, 1, -1, -1], x["p"].dtype)
    return {**x, "p": x["p"] + away, "r": x["r"] - away}


def _members(x: Inputs) -> Array:
    laws = Laws.of(x)
    return jnp.stack([_mio_optimum(laws), _dv_optimum(laws), _dpo_optimum(laws)])


def _ends(x: Inputs, dpo: float = 2.0) -> Array:
    return jnp.log(jnp.asarray([(4 / 3) ** 1.5, 2, dpo], x["p"].dtype))


_CHAIN = "chain_of_bounds"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="15a",
        title="DPO's least expected loss over all critics",
        statement=r"\min_T\ \mathbb{E}_{w \sim p,\, l \sim r}\ \ell_{\mathrm{DPO}} ="
        r" \log 2 - \mathrm{JSD}(p \otimes r \,\Vert\, r \otimes p)",
        kind=Kind.OPTIMUM,
        draw=problem,
        left=lambda x: jnp.stack(_minimised(x)[1:]),
        right=lambda x: jnp.stack([jnp.log(2.0) - _order_divergence(Laws.of(x)), jnp.zeros_like(x["beta"])]),
        twin=lambda x: jnp.stack([jnp.log(2.0) - jensen_shannon(*Laws.of(x)), jnp.zeros_like(x["beta"])]),
        slip="the divergence of p and r, not of ordered pairs",
        source="derived here",
        derivatives=0,
        samples=1024,
    ),
    Claim(
        id="15b",
        title="An actual policy attains it, whatever the reference and β",
        statement=r"\pi \propto \pi_{\mathrm{ref}}\,(p/r)^{1/\beta}:\quad \mathbb{E}\ \ell_{\mathrm{DPO}} ="
        r" \log 2 - \mathrm{JSD}(p \otimes r \,\Vert\, r \otimes p)",
        kind=Kind.EXACT,
        draw=problem,
        left=_reached_by_policy,
        right=lambda x: jnp.log(2.0) - _order_divergence(Laws.of(x)),
        twin=lambda x: jnp.log(2.0) - (1 + 1e-6) * _order_divergence(Laws.of(x)),
        slip="the divergence multiplied by 1 + 1e-6",
        source="derived here",
    ),
    Claim(
        id="15c",
        title="What DPO can learn is the information that a pair holds on which of the two was chosen",
        statement=r"\min_T\ \mathbb{E}\ \ell_{\mathrm{DPO}} = \log 2 - I(C; Y_1, Y_2)",
        kind=Kind.EXACT,
        draw=problem,
        left=lambda x: _dpo(Laws.of(x).odds, x),
        right=lambda x: jnp.log(2.0) - _information(Laws.of(x)),
        twin=lambda x: jnp.log(2.0) - (1 + 1e-6) * _information(Laws.of(x)),
        slip="the information multiplied by 1 + 1e-6",
        source="derived here, by enumeration",
    ),
    Claim(
        id="15d",
        title="The best critic is the log-odds of being chosen, up to a constant",
        statement=r"\operatorname{argmin}_T\ \mathbb{E}\ \ell_{\mathrm{DPO}} = \log\frac pr + \mathrm{const}",
        kind=Kind.OPTIMUM,
        draw=problem,
        left=lambda x: _minimised(x)[0],
        right=lambda x: Laws.of(x).odds - jnp.mean(Laws.of(x).odds),
        twin=lambda x: Laws.of(x).odds,
        slip="the constant fixed at 0",
        source="derived here",
        derivatives=0,
        samples=1024,
    ),
    Claim(
        id="15e",
        title="What any critic loses: its divergence from the posterior of the order",
        statement=r"\mathbb{E}\ \ell_{\mathrm{DPO}}(T) = \log 2 - I(C; Y_1, Y_2) +"
        r" \mathbb{E}\ \mathrm{KL}\left(P(C \mid Y_1, Y_2) \,\Vert\, \sigma(T(Y_1) - T(Y_2))\right)",
        kind=Kind.EXACT,
        draw=problem,
        left=lambda x: _dpo(x["critic"], x),
        right=lambda x: jnp.log(2.0) - _information(Laws.of(x)) + _above_optimum(x),
        twin=lambda x: jnp.log(2.0) - _information(Laws.of(x)) + _above_optimum(x, factor=1 + 1e-6),
        slip="the second critic value multiplied by 1 + 1e-6",
        source="derived here",
    ),
    Claim(
        id="16a",
        title="Chosen against mixture: MIO's optimum is at most Donsker–Varadhan's",
        statement=r"2\,\mathrm{JSD}(p, m) \le \mathrm{KL}(p \,\Vert\, m)",
        kind=Kind.INEQUALITY,
        draw=problem,
        left=lambda x: _mio_optimum(Laws.of(x)),
        right=lambda x: _dv_optimum(Laws.of(x)),
        twin=lambda x: kullback_leibler(Laws.of(x).rejected, Laws.of(x).mixture),
        slip="the rejected law in place of the chosen one",
        source="derived here",
        figure=_CHAIN,
    ),
    Claim(
        id="16b",
        title="Donsker–Varadhan's optimum is at most DPO's",
        statement=r"\mathrm{KL}(p \,\Vert\, m) \le \mathrm{JSD}(p \otimes r \,\Vert\, r \otimes p)",
        kind=Kind.INEQUALITY,
        draw=problem,
        left=lambda x: _dv_optimum(Laws.of(x)),
        right=lambda x: _dpo_optimum(Laws.of(x)),
        twin=lambda x: jensen_shannon(*Laws.of(x)),
        slip="the divergence of p and r, not of ordered pairs",
        source="derived here",
        figure=_CHAIN,
    ),
    Claim(
        id="16c",
        title="DPO's optimum is at most log 2",
        statement=r"\mathrm{JSD}(p \otimes r \,\Vert\, r \otimes p) \le \log 2",
        kind=Kind.INEQUALITY,
        draw=problem,
        left=lambda x: _dpo_optimum(Laws.of(x)),
        right=lambda x: jnp.full_like(x["beta"], jnp.log(2.0)),
        twin=lambda x: jnp.full_like(x["beta"], 0.69),
        slip="log 2 rounded to 0.69",
        source="derived here",
        figure=_CHAIN,
    ),
    Claim(
        id="16d",
        title="Where chosen and rejected never coincide, the chain ends at 3/2 log 4/3, log 2 and log 2",
        statement=r"\mathrm{supp}\,p \cap \mathrm{supp}\,r = \emptyset:\quad 2\,\mathrm{JSD}(p, m) ="
        r" \tfrac32\log\tfrac43,\quad \mathrm{KL}(p \,\Vert\, m) = \mathrm{JSD}(p \otimes r \,\Vert\, r \otimes p) ="
        r" \log 2",
        kind=Kind.EXACT,
        draw=problem,
        left=lambda x: _members(_disjoint(x)),
        right=_ends,
        twin=lambda x: _ends(x, dpo=2 * (1 + 1e-6)),
        slip="DPO's 2 multiplied by 1 + 1e-6",
        source="derived here; log 4 − 3/2 log 4/3 is MIO's infimum per pair (21)",
        derivatives=0,
        figure=_CHAIN,
    ),
)
