"""Ledger 13, 14, 18: DPO, Bradley–Terry, InfoNCE and Donsker–Varadhan are one loss of a pair; MIO is pairwise NCA."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import scores
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.methods import METHODS
from mi_align.objectives import (
    bradley_terry_loss,
    donsker_varadhan_bound,
    info_nce_loss,
    jensen_shannon_bound,
    mio_loss,
    nca_loss,
)

__all__ = ["CLAIMS"]

_PAIRS, _NEGATIVES = 6, 4
_DPO = "Rafailov et al. 2023 (arXiv 2305.18290), eq. 7"
_NCA = "Chen et al. 2024 (arXiv 2402.05369); TRL's nca_pair"


def _batch(key: PRNGKeyArray) -> Inputs:
    """A few pairs, of which the mask keeps at least one."""
    x = scores.uniforms(key, x=(2, _PAIRS), where=(_PAIRS,), level=(), scale=(), apart=())
    where = (x.pop("where") > 0).at[0].set(True)
    a, c = scores.spread(**x)
    return {"a": a, "c": c, "where": where}


def _against_mixture(x: Inputs) -> Array:
    """The Donsker–Varadhan bound of a batch of pairs, its marginal all the chosen and all the rejected."""
    marginal, where = jnp.concatenate([x["a"], x["c"]]), jnp.concatenate([x["where"], x["where"]])
    return donsker_varadhan_bound(x["a"], marginal, where_joint=x["where"], where_marginal=where)


def _mean_dpo(x: Inputs) -> Array:
    return jnp.sum(jnp.where(x["where"], bradley_terry_loss(x["a"], x["c"]), 0)) / jnp.sum(x["where"])


def _one_of(x: Inputs) -> Inputs:
    """The same batch with all but its first pair dropped."""
    return {**x, "where": jnp.arange(_PAIRS) == 0}


def _levelled(x: Inputs) -> Inputs:
    """The same batch, each pair's scores shifted so that e^T has mean 1 over the pair."""
    shift = jnp.logaddexp(x["a"], x["c"]) - jnp.log(2.0)
    return {**x, "a": x["a"] - shift, "c": x["c"] - shift}


def _rewards(x: Inputs) -> Array:
    return x["beta"] * scores.log_ratios(x)


def _mio(a: Array, c: Array, weight: float = 0.5) -> Array:
    """sp(−a) + ½ sp(a) + ½ sp(c), written out."""
    return jax.nn.softplus(-a) + 0.5 * jax.nn.softplus(a) + weight * jax.nn.softplus(c)


def _nca_pair(x: Inputs, factor: float = 1.0) -> Array:
    """TRL's lines: −log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l)."""
    chosen, rejected = factor * _rewards(x)
    log_sigmoid = jax.nn.log_sigmoid
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def _at_reference(x: Inputs) -> Array:
    """MIO of one pair, MIO with all the negatives, and DPO of a policy that is still its reference."""
    same = {**x, "reference": x["policy"]}
    pair = {name: same[name][-2:] for name in ("policy", "reference", "kept")}
    hyper = {"beta": x["beta"]}
    two = scores.candidates({**pair, **hyper})
    losses = [
        METHODS["mio"](two, **hyper),
        METHODS["mio"](scores.candidates(same), **hyper),
        METHODS["dpo"](two, **hyper),
    ]
    return jnp.stack(losses)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="13a",
        title="DPO is the Bradley–Terry likelihood of the implicit reward",
        statement=r"\ell_{\mathrm{DPO}} = -\log\sigma\left(\beta\log\frac{\pi_\theta(y_w)}{\pi_{\mathrm{ref}}(y_w)}"
        r" - \beta\log\frac{\pi_\theta(y_l)}{\pi_{\mathrm{ref}}(y_l)}\right)",
        kind=Kind.EXACT,
        draw=scores.tokens,
        left=lambda x: METHODS["dpo"](scores.candidates(x), beta=x["beta"]),
        right=lambda x: jnp.logaddexp(0, -_rewards(x) @ jnp.asarray([1.0, -1.0], x["policy"].dtype)),
        twin=lambda x: jnp.logaddexp(0, -_rewards(x) @ jnp.asarray([1.0, -1 - 1e-6], x["policy"].dtype)),
        slip="the rejected implicit reward multiplied by 1 + 1e-6",
        source=_DPO,
    ),
    Claim(
        id="13b",
        title="Bradley–Terry is InfoNCE with one negative: a two-way cross-entropy",
        statement=r"-\log\sigma(a - c) = -\log\frac{e^{a}}{e^{a} + e^{c}}",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=lambda x: info_nce_loss(x["a"], x["c"][None]),
        right=lambda x: bradley_terry_loss(x["a"], x["c"]),
        twin=lambda x: bradley_terry_loss((1 + 1e-6) * x["a"], x["c"]),
        slip="the chosen logit multiplied by 1 + 1e-6",
        source=f"{_DPO}; van den Oord et al. 2018 (arXiv 1807.03748), eq. 4",
        derivatives=2,
    ),
    Claim(
        id="13c",
        title="DPO is log 2 minus Donsker–Varadhan, the marginal of a pair being half chosen, half rejected",
        statement=r"\ell_{\mathrm{DPO}} = \log 2 - \left[T_w - \log\left(\tfrac12 e^{T_w} +"
        r" \tfrac12 e^{T_l}\right)\right]",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=lambda x: jnp.log(2.0) - donsker_varadhan_bound(x["a"][None], jnp.stack([x["a"], x["c"]])),
        right=lambda x: bradley_terry_loss(x["a"], x["c"]),
        twin=lambda x: bradley_terry_loss(x["a"], x["c"]) + 0.69 - jnp.log(2.0),
        slip="log 2 rounded to 0.69",
        source="the paper's central identity (arXiv 2506.22578), stated per pair; derived here",
        derivatives=2,
    ),
    Claim(
        id="13d",
        title="Caveat: with the rejected response alone as the marginal, Donsker–Varadhan is linear, and not DPO",
        statement=r"T_w - \log e^{T_l} = T_w - T_l",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=lambda x: donsker_varadhan_bound(x["a"][None], x["c"][None]),
        right=lambda x: x["a"] - x["c"],
        twin=lambda x: jnp.log(2.0) - bradley_terry_loss(x["a"], x["c"]),
        slip="taken for log 2 − DPO",
        source="derived here",
        derivatives=2,
    ),
    Claim(
        id="13e",
        title="Against the mixture, a pair gives at most log 2",
        statement=r"T_w - \log\left(\tfrac12 e^{T_w} + \tfrac12 e^{T_l}\right) \le \log 2",
        kind=Kind.INEQUALITY,
        draw=scores.pair,
        left=lambda x: donsker_varadhan_bound(x["a"][None], jnp.stack([x["a"], x["c"]])),
        right=lambda x: jnp.full_like(x["a"], jnp.log(2.0)),
        twin=lambda x: jnp.full_like(x["a"], 0.69),
        slip="log 2 rounded to 0.69",
        source="derived here",
    ),
    Claim(
        id="14a",
        title="Over a batch, log 2 − DPO lies above Donsker–Varadhan at the same scores",
        statement=r"\tfrac1n\sum_i T_{w,i} - \log\tfrac1{2n}\sum_i\left(e^{T_{w,i}} + e^{T_{l,i}}\right) \le"
        r" \log 2 - \tfrac1n\sum_i \ell_{\mathrm{DPO},i}",
        kind=Kind.INEQUALITY,
        draw=_batch,
        left=_against_mixture,
        right=lambda x: jnp.log(2.0) - _mean_dpo(x),
        twin=lambda x: 0.69 - _mean_dpo(x),
        slip="log 2 rounded to 0.69",
        source="derived here (Jensen)",
    ),
    Claim(
        id="14b",
        title="In a batch of one pair they are equal",
        statement=r"n = 1:\quad T_w - \log\left(\tfrac12 e^{T_w} + \tfrac12 e^{T_l}\right) ="
        r" \log 2 - \ell_{\mathrm{DPO}}",
        kind=Kind.EXACT,
        draw=_batch,
        left=lambda x: _against_mixture(_one_of(x)),
        right=lambda x: jnp.log(2.0) - _mean_dpo(_one_of(x)),
        twin=lambda x: jnp.log(2.0) - _mean_dpo(x),
        slip="the mean over the batch",
        source="derived here",
    ),
    Claim(
        id="14c",
        title="They are equal too where every pair's scores are shifted to one level, which DPO cannot see",
        statement=r"e^{T_{w,i}} + e^{T_{l,i}} = 2\ \forall i:\quad \tfrac1n\sum_i T_{w,i} -"
        r" \log\tfrac1{2n}\sum_i\left(e^{T_{w,i}} + e^{T_{l,i}}\right) = \log 2 - \tfrac1n\sum_i \ell_{\mathrm{DPO},i}",
        kind=Kind.EXACT,
        draw=_batch,
        left=lambda x: _against_mixture(_levelled(x)),
        right=lambda x: jnp.log(2.0) - _mean_dpo(x),
        twin=_against_mixture,
        slip="scores that keep their own levels",
        source="derived here",
    ),
    Claim(
        id="18a",
        title="The MIO of the paper is noise-contrastive alignment with one negative",
        statement=r"\ell_{\mathrm{MIO}}(a, c) = \mathrm{sp}(-a) + \tfrac12\,\mathrm{sp}(a) + \tfrac12\,\mathrm{sp}(c)",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=lambda x: nca_loss(x["a"], x["c"][None]),
        right=lambda x: _mio(x["a"], x["c"]),
        twin=lambda x: _mio(x["a"], x["c"], weight=0.5 * (1 + 1e-6)),
        slip="the rejected response's weight multiplied by 1 + 1e-6",
        source=f"arXiv 2506.22578; {_NCA}",
        derivatives=2,
    ),
    Claim(
        id="18b",
        title="The method mio is TRL's nca_pair at the same β",
        statement=r"\ell_{\mathrm{MIO}} = -\log\sigma(r_w) - \tfrac12\log\sigma(-r_w) - \tfrac12\log\sigma(-r_l),"
        r"\quad r = \beta\log\frac{\pi_\theta}{\pi_{\mathrm{ref}}}",
        kind=Kind.EXACT,
        draw=scores.tokens,
        left=lambda x: METHODS["mio"](scores.candidates(x), beta=x["beta"]),
        right=_nca_pair,
        twin=lambda x: _nca_pair(x, factor=1 + 1e-6),
        slip="β multiplied by 1 + 1e-6",
        source=_NCA,
    ),
    Claim(
        id="18c",
        title="MIO is the negative Jensen–Shannon bound, the marginal of a pair being half chosen, half rejected",
        statement=r"\ell_{\mathrm{MIO}} = -I_{\mathrm{JS}}\left(\{a\}; \{a, c\}\right)",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=lambda x: mio_loss(x["a"], x["c"][None]),
        right=lambda x: -jensen_shannon_bound(x["a"][None], jnp.stack([x["a"], x["c"]])),
        twin=lambda x: -jensen_shannon_bound(x["a"][None], x["c"][None]),
        slip="the rejected response alone as the marginal, which is BCO",
        source="arXiv 2506.22578; derived here",
        derivatives=2,
    ),
    Claim(
        id="18d",
        title="Where the policy is its reference, MIO is log 4 with any number of negatives, DPO log 2",
        statement=r"\pi_\theta = \pi_{\mathrm{ref}}:\quad \ell_{\mathrm{MIO}} = \log 4,\ \ell_{\mathrm{DPO}} = \log 2",
        kind=Kind.EXACT,
        draw=lambda key: scores.tokens(key, responses=1 + _NEGATIVES),
        left=_at_reference,
        right=lambda x: jnp.log(jnp.asarray([4, 4, 2], x["beta"].dtype)),
        twin=lambda x: jnp.log(jnp.asarray([4, 4, 2 * (1 + 1e-6)], x["beta"].dtype)),
        slip="DPO's 2 multiplied by 1 + 1e-6",
        source="derived here",
        derivatives=0,
    ),
)
