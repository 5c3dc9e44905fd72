"""Ledger 17: one positive against many, and whole rankings: S-DPO, Plackett–Luce, InfoNCA and NCA."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.critics import Candidates
from mi_align.equivalences import scores
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.methods import METHODS
from mi_align.objectives import (
    info_nce_loss,
    nca_loss,
    plackett_luce_loss,
    weighted_info_nce_loss,
    weighted_nca_loss,
)

__all__ = ["CLAIMS"]

_SIZE, _RANKED = 5, 4
_RANKINGS = np.asarray(list(itertools.permutations(range(_RANKED))))
_ODDS = tuple(10.0**k for k in range(2, 6))
_NCA = "Chen et al. 2024 (arXiv 2402.05369), and its authors' reward_trainer.py"

_lot = functools.partial(scores.lot, size=_SIZE)


def _rewarded(key: PRNGKeyArray) -> Inputs:
    """Implicit rewards and outside rewards of three candidates, the first rewarded most, and a temperature."""
    x = scores.uniforms(key, s=(3,), r=(3,), temperature=())
    return {"s": 4 * x["s"], "r": 2 + (2 * x["r"]).at[0].set(0.5), "temperature": jnp.exp(x["temperature"])}


def _ordered_pair(key: PRNGKeyArray) -> Inputs:
    """Two candidates, the better rewarded with the higher score, so that the distance to the limit has one sign."""
    x = scores.uniforms(key, s=(2,), gap=())
    return {"s": -jnp.sort(-3 * x["s"]), "gap": 1.5 + x["gap"]}


def _listed(method: str, s: Array, r: Array, **hyper: Array) -> Array:
    """A method's loss at β = 1 where the implicit rewards are s and the outside rewards r."""
    return METHODS[method](Candidates.from_sequences(s, jnp.zeros_like(s), reward=r), beta=1.0, **hyper)


def _softmax_dpo(x: Inputs, positive: float = 1.0) -> Array:
    """−log σ(−log Σ_l e^{s_l − s_w}), as the authors of S-DPO write it."""
    rivals = jax.nn.logsumexp(x["s"][1:] - positive * x["s"][0], where=x["where"][1:])
    return -jax.nn.log_sigmoid(-rivals)


def _against_lower(x: Inputs, strictly: bool = True) -> Array:
    """Σ over the ranks of InfoNCE against all that rank lower."""
    rank = np.arange(_RANKED)
    lower = rank[None, :] > rank[:, None] if strictly else rank[None, :] != rank[:, None]
    return jnp.sum(info_nce_loss(x["s"], jnp.broadcast_to(x["s"][None, :], lower.shape), where=jnp.asarray(lower)))


def _ranking(key: PRNGKeyArray) -> Inputs:
    return {"s": scores.lot(key, size=_RANKED)["s"]}


def _chance_of_any_ranking(x: Inputs) -> Array:
    return jnp.sum(jnp.exp(-plackett_luce_loss(x["s"][_RANKINGS])))


def _conservative(x: Inputs, sign: float = 1.0) -> Array:
    flipped = jax.nn.sigmoid(-sign * (x["r"][0] - x["r"][1]) / x["temperature"])
    return _listed("cdpo", x["s"][:2], x["r"][:2], label_smoothing=flipped)


def _soft_nca(x: Inputs, share: float = 1 / 3) -> Array:
    """−Σ softmax(R/α) log σ(s) − (1/K) Σ log σ(−s), written out."""
    weights = jnp.exp(x["r"] / x["temperature"])
    held = jnp.log1p(jnp.exp(x["s"]))
    return jnp.sum(weights * jnp.log1p(jnp.exp(-x["s"]))) / jnp.sum(weights) + share * jnp.sum(held)


def _hard_labels(x: Inputs) -> Array:
    """InfoNCA and NCA where the first candidate has all the weight."""
    label = (jnp.arange(_SIZE) == 0).astype(x["s"].dtype)
    losses = [loss(x["s"], label, where=x["where"]) for loss in (weighted_info_nce_loss, weighted_nca_loss)]
    return jnp.stack(losses)


def _one_against_rest(x: Inputs) -> Array:
    losses = [loss(x["s"][0], x["s"][1:], where=x["where"][1:]) for loss in (info_nce_loss, nca_loss)]
    return jnp.stack(losses)


def _towards(limit: str, method: str, x: Inputs) -> Array:
    """How far a method with soft labels is from its limit, where the better reward is preferred with the odds t.

    The temperature that gives these odds is α = ΔR / log t.
    """
    r = jnp.stack([x["gap"], jnp.zeros_like(x["gap"])])
    temperatures = x["gap"] / jnp.log(jnp.asarray(_ODDS, x["s"].dtype))
    at = jax.vmap(lambda temperature: _listed(method, x["s"], r, reward_temperature=temperature))
    return at(temperatures) - _listed(limit, x["s"], r)


def _odds_to(power: float, x: Inputs) -> Array:
    return jnp.asarray(_ODDS, x["s"].dtype) ** power


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="17a",
        title="DPO's softmax form with K rejected responses (S-DPO) is InfoNCE with K negatives",
        statement=r"-\log\sigma\left(-\log\sum_l e^{s_l - s_w}\right) = -\log\frac{e^{s_w}}{e^{s_w} + \sum_l e^{s_l}}",
        kind=Kind.EXACT,
        draw=_lot,
        left=lambda x: info_nce_loss(x["s"][0], x["s"][1:], where=x["where"][1:]),
        right=_softmax_dpo,
        twin=lambda x: _softmax_dpo(x, positive=1 + 1e-6),
        slip="the chosen logit multiplied by 1 + 1e-6",
        source="Chen et al. 2024, S-DPO (arXiv 2406.09215), and its authors' softmax_dpo_trainer.py",
        derivatives=2,
    ),
    Claim(
        id="17b",
        title="The Plackett–Luce likelihood of the first place is InfoNCE",
        statement=r"-\log\Pr[s_w \text{ first}] = -s_w + \log\left(e^{s_w} + \sum_l e^{s_l}\right)",
        kind=Kind.EXACT,
        draw=_lot,
        left=lambda x: plackett_luce_loss(x["s"], where=x["where"], top_k=1),
        right=lambda x: info_nce_loss(x["s"][0], x["s"][1:], where=x["where"][1:]),
        twin=lambda x: info_nce_loss(x["s"][1], x["s"][2:], where=x["where"][2:]),
        slip="the likelihood of the second place",
        source="Rafailov et al. 2023 (arXiv 2305.18290), appendix A.3; derived here",
        derivatives=2,
    ),
    Claim(
        id="17c",
        title="The Plackett–Luce likelihood of a ranking is InfoNCE against all that rank lower, added up",
        statement=r"\ell_{\mathrm{PL}} = \sum_k\left[\log\sum_{j \ge k} e^{s_j} - s_k\right] ="
        r" \sum_k \ell_{\mathrm{InfoNCE}}\left(s_k; \{s_j\}_{j>k}\right)",
        kind=Kind.EXACT,
        draw=_ranking,
        left=lambda x: plackett_luce_loss(x["s"]),
        right=_against_lower,
        twin=lambda x: _against_lower(x, strictly=False),
        slip="against all others, higher or lower",
        source="Rafailov et al. 2023 (arXiv 2305.18290), appendix A.3; derived here",
        derivatives=2,
    ),
    Claim(
        id="17d",
        title="The likelihoods of all rankings add up to 1",
        statement=r"\sum_{\tau \in S_4} e^{-\ell_{\mathrm{PL}}(s_{\tau(1)}, \dots, s_{\tau(4)})} = 1",
        kind=Kind.EXACT,
        draw=_ranking,
        left=_chance_of_any_ranking,
        right=lambda x: jnp.ones_like(x["s"][0]),
        twin=lambda x: jnp.full_like(x["s"][0], 1 + 1e-6),
        slip="1 + 1e-6",
        source="Plackett 1975; enumerated here",
        samples=50_000,
    ),
    Claim(
        id="17e",
        title="InfoNCA with two candidates is DPO with smoothed labels",
        statement=r"\ell_{\mathrm{InfoNCA}} = -(1-\varepsilon)\log\sigma(u) - \varepsilon\log\sigma(-u),\quad"
        r" \varepsilon = \sigma\left(-\tfrac{R_w - R_l}{\alpha}\right)",
        kind=Kind.EXACT,
        draw=_rewarded,
        left=lambda x: _listed("infonca", x["s"][:2], x["r"][:2], reward_temperature=x["temperature"]),
        right=_conservative,
        twin=lambda x: _conservative(x, sign=1 + 1e-6),
        slip="the rewards' difference multiplied by 1 + 1e-6",
        source=f"{_NCA}; derived here",
    ),
    Claim(
        id="17f",
        title="NCA with rewards: every candidate pulled up by its label, all held down by 1/K",
        statement=r"\ell_{\mathrm{NCA}} = -\sum_k \mathrm{softmax}(R/\alpha)_k \log\sigma(s_k) -"
        r" \tfrac1K \sum_k \log\sigma(-s_k)",
        kind=Kind.EXACT,
        draw=_rewarded,
        left=lambda x: _listed("nca_reward", x["s"], x["r"], reward_temperature=x["temperature"]),
        right=_soft_nca,
        twin=lambda x: _soft_nca(x, share=1 / 2),
        slip="1/(K−1) for 1/K",
        source=_NCA,
    ),
    Claim(
        id="17g",
        title="With a hard label InfoNCA is InfoNCE, and NCA is MIO, with any number of candidates",
        statement=r"w = (1, 0, \dots, 0):\quad \ell_{\mathrm{InfoNCA}} = \ell_{\mathrm{InfoNCE}},\quad"
        r" \ell_{\mathrm{NCA}} = \ell_{\mathrm{MIO}}",
        kind=Kind.EXACT,
        draw=_lot,
        left=_hard_labels,
        right=_one_against_rest,
        twin=lambda x: (1 + 1e-6) * _one_against_rest(x),
        slip="a factor 1 + 1e-6",
        source=f"{_NCA}; derived here",
        derivatives=2,
    ),
    Claim(
        id="17h",
        title="As the labels harden, InfoNCA becomes DPO, at the rate of the odds",
        statement=r"\ell_{\mathrm{InfoNCA}} - \ell_{\mathrm{DPO}} = \Theta\left(e^{-\Delta R/\alpha}\right),"
        r"\quad \alpha \to 0",
        kind=Kind.ASYMPTOTIC,
        draw=_ordered_pair,
        left=lambda x: _towards("dpo", "infonca", x),
        right=functools.partial(_odds_to, -1),
        twin=functools.partial(_odds_to, -2),
        slip="the rate squared",
        source=f"{_NCA}; derived here",
        samples=4096,
        grid=_ODDS,
    ),
    Claim(
        id="17i",
        title="As the labels harden, NCA becomes MIO, at the rate of the odds",
        statement=r"\ell_{\mathrm{NCA}} - \ell_{\mathrm{MIO}} = \Theta\left(e^{-\Delta R/\alpha}\right),"
        r"\quad \alpha \to 0",
        kind=Kind.ASYMPTOTIC,
        draw=_ordered_pair,
        left=lambda x: _towards("mio", "nca_reward", x),
        right=functools.partial(_odds_to, -1),
        twin=functools.partial(_odds_to, -2),
        slip="the rate squared",
        source=f"{_NCA}; derived here",
        samples=4096,
        grid=_ODDS,
    ),
)
