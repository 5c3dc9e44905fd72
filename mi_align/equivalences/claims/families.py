"""Ledger 45 and 46: gradients in closed form, and what a shift of all scores does."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.critics import Candidates
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals
from mi_align.equivalences.spectrum import spectrum
from mi_align.methods import METHODS
from mi_align.objectives import (
    bradley_terry_loss,
    donsker_varadhan_bound,
    info_nce_loss,
    nca_loss,
)

__all__ = ["CLAIMS"]

_NEGATIVES, _TOKENS = 3, 3


def _scores(key: PRNGKeyArray) -> Inputs:
    """One positive, first, and three negatives; a shift and a direction to differentiate along."""
    x = normals(key, scores=(1 + _NEGATIVES,), shift=(), direction=(1 + _NEGATIVES,))
    return {**x, "scores": 3 * x["scores"], "shift": 10 * x["shift"]}


def _tokens(key: PRNGKeyArray) -> Inputs:
    """Log-ratios to the reference of a chosen and a rejected response of up to three tokens, and β."""
    x = normals(key, log_ratio=(2, _TOKENS), where=(2, _TOKENS), beta=())
    where = (x["where"] > 0).at[:, 0].set(True)
    return {"log_ratio": 2 * x["log_ratio"], "where": where, "beta": between(0.05, 2.0, x["beta"])}


def _two_samples(key: PRNGKeyArray) -> Inputs:
    x = normals(key, joint=(3,), marginal=(4,), shift=())
    return {"joint": 3 * x["joint"], "marginal": 3 * x["marginal"], "shift": 10 * x["shift"]}


def _info_nce(scores: Array) -> Array:
    return info_nce_loss(scores[0], scores[1:])


def _mio(scores: Array) -> Array:
    return nca_loss(scores[0], scores[1:])


def _bradley_terry(scores: Array) -> Array:
    return bradley_terry_loss(scores[0], scores[1])


def _bound(scores: Array) -> Array:
    """Donsker and Varadhan's for one prompt: the positive against all candidates."""
    return donsker_varadhan_bound(scores[:1], scores)


def _softmax_less(x: Inputs, first: int) -> Array:
    """Softmax over the candidates from `first` on, 0 before it, minus onehot."""
    weight = jnp.exp(x["scores"]) * (jnp.arange(1 + _NEGATIVES) >= first)
    return weight / jnp.sum(weight) - (jnp.arange(1 + _NEGATIVES) == 0)


def _dpo_slope(x: Inputs) -> Array:
    """DPO's gradient in every token's log-probability."""
    reference = -1.0 - jnp.arange(2.0 * _TOKENS, dtype=x["beta"].dtype).reshape(2, _TOKENS) / 4

    def loss(log_ratio: Array) -> Array:
        return METHODS["dpo"](Candidates(reference + log_ratio, reference, x["where"]), beta=x["beta"])

    return jax.grad(loss)(x["log_ratio"])


def _dpo_pull(x: Inputs, sign: int) -> Array:
    """∓β σ(c − a) at every token of the chosen and the rejected response."""
    a, c = x["beta"] * jnp.sum(x["log_ratio"] * x["where"], axis=-1)
    pull = x["beta"] / (1 + jnp.exp(sign * (a - c)))
    return x["where"] * pull * jnp.array([[-1.0], [1.0]], pull.dtype)


def _bound_slopes(x: Inputs) -> Array:
    slopes = jax.grad(donsker_varadhan_bound, argnums=(0, 1))(x["joint"], x["marginal"])
    return jnp.concatenate(slopes)


def _gibbs_slopes(x: Inputs, weight: Callable[[Array], Array]) -> Array:
    """1/N for each joint score; minus its share of the weight for each marginal one."""
    share = weight(x["marginal"]) / jnp.sum(weight(x["marginal"]))
    return jnp.concatenate([jnp.full_like(x["joint"], 1 / len(x["joint"])), -share])


def _curvature(loss: Callable[[Array], Array], x: Inputs, direction: Array) -> Array:
    """The Hessian times a direction."""
    return jax.jvp(jax.grad(loss), (x["scores"],), (direction,))[1]


def _along_ones(x: Inputs, *losses: Callable[[Array], Array]) -> Array:
    return jnp.stack([_curvature(loss, x, jnp.ones_like(x["scores"])) for loss in losses])


def _variance(s: Array) -> Array:
    """σ′ = σ (1 − σ)."""
    return jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)


def _mio_diagonal(x: Inputs, positives: float) -> Array:
    """MIO's Hessian, which is diagonal, times the direction; `positives` is (K+2)/(K+1)."""
    weight = jnp.full_like(x["scores"], 1 / (1 + _NEGATIVES)).at[0].set(positives)
    return weight * _variance(x["scores"]) * x["direction"]


def _least_curvature(loss: Callable[[Array], Array], x: Inputs) -> Array:
    return jnp.min(spectrum(jax.hessian(loss)(x["scores"])).values)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="45a",
        title="InfoNCE's gradient is softmax − onehot",
        statement=r"\nabla_s\,\ell_{\mathrm{InfoNCE}} = \operatorname{softmax}(s) - e_+",
        kind=Kind.EXACT,
        draw=_scores,
        left=lambda x: jax.grad(_info_nce)(x["scores"]),
        right=lambda x: _softmax_less(x, 0),
        twin=lambda x: _softmax_less(x, 1),
        slip="the positive left out of the softmax",
        source="Oord et al. 2018 (arXiv 1807.03748), eq. 4",
    ),
    Claim(
        id="45b",
        title="DPO pulls every token of the pair equally, by β σ(c − a)",
        statement=r"\frac{\partial\,\ell_{\mathrm{DPO}}}{\partial \log\pi(y_{w,t})} = -\beta\,\sigma(c - a) ="
        r" -\frac{\partial\,\ell_{\mathrm{DPO}}}{\partial \log\pi(y_{l,t})}",
        kind=Kind.EXACT,
        draw=_tokens,
        left=_dpo_slope,
        right=lambda x: _dpo_pull(x, 1),
        twin=lambda x: _dpo_pull(x, -1),
        slip="σ(a − c): pairs that are already right pull hardest",
        source="Rafailov et al. 2023 (arXiv 2305.18290), section 4",
    ),
    Claim(
        id="45c",
        title="Donsker and Varadhan's gradient in the marginal scores is the Gibbs weight",
        statement=r"\frac{\partial I}{\partial a_i} = \frac1N, \qquad"
        r" \frac{\partial I}{\partial b_j} = -\frac{e^{b_j}}{\sum_k e^{b_k}}",
        kind=Kind.EXACT,
        draw=_two_samples,
        left=_bound_slopes,
        right=lambda x: _gibbs_slopes(x, jnp.exp),
        twin=lambda x: _gibbs_slopes(x, jnp.ones_like),
        slip="equal weights",
        source="Belghazi et al. 2018 (arXiv 1801.04062), eq. 12",
    ),
    Claim(
        id="46a",
        title="Bradley–Terry does not see a shift of both scores",
        statement=r"\ell_{\mathrm{BT}}(s^+ + k, s^- + k) = \log\bigl(1 + e^{s^- - s^+}\bigr)",
        kind=Kind.EXACT,
        draw=_scores,
        left=lambda x: _bradley_terry(x["scores"] + x["shift"]),
        right=lambda x: jnp.logaddexp(0, x["scores"][1] - x["scores"][0]),
        twin=lambda x: jnp.logaddexp(0, x["scores"][1] - x["scores"][0] - x["shift"]),
        slip="only the positive shifted",
        source="derived here",
        derivatives=2,
    ),
    Claim(
        id="46b",
        title="InfoNCE does not see a shift of all scores",
        statement=r"\ell_{\mathrm{InfoNCE}}(s + k\mathbf 1) = \log\textstyle\sum_j e^{s_j} - s^+",
        kind=Kind.EXACT,
        draw=_scores,
        left=lambda x: _info_nce(x["scores"] + x["shift"]),
        right=lambda x: jax.nn.logsumexp(x["scores"]) - x["scores"][0],
        twin=lambda x: jax.nn.logsumexp(x["scores"].at[0].add(x["shift"])) - x["scores"][0] - x["shift"],
        slip="only the positive shifted",
        source="derived here",
        derivatives=2,
    ),
    Claim(
        id="46c",
        title="A prompt's Donsker–Varadhan bound does not see a shift of all its scores",
        statement=r"I_{\mathrm{DV}}(a + k, b + k) = \operatorname{mean} a - \log\operatorname{mean} e^{b}",
        kind=Kind.EXACT,
        draw=_two_samples,
        left=lambda x: donsker_varadhan_bound(x["joint"] + x["shift"], x["marginal"] + x["shift"]),
        right=lambda x: jnp.mean(x["joint"]) - jnp.log(jnp.mean(jnp.exp(x["marginal"]))),
        twin=lambda x: jnp.mean(x["joint"] + x["shift"]) - jnp.mean(jnp.exp(x["marginal"] + x["shift"] - 1)),
        slip="the bound of Nguyen, Wainwright and Jordan, which a shift changes",
        source="derived here",
        derivatives=2,
    ),
    Claim(
        id="46d",
        title="The level of the scores is a null direction of Bradley–Terry's, InfoNCE's and DV's Hessians",
        statement=r"\nabla^2 \ell_{\mathrm{BT}}\,\mathbf 1 = \nabla^2 \ell_{\mathrm{InfoNCE}}\,\mathbf 1 ="
        r" \nabla^2 I_{\mathrm{DV}}\,\mathbf 1 = 0",
        kind=Kind.EXACT,
        draw=_scores,
        left=lambda x: _along_ones(x, _bradley_terry, _info_nce, _bound),
        right=lambda x: jnp.zeros((3, 1 + _NEGATIVES), x["scores"].dtype),
        twin=lambda x: _along_ones(x, _mio, _mio, _mio),
        slip="MIO's Hessian, which has no null direction",
        source="derived here",
        derivatives=0,
    ),
    Claim(
        id="46e",
        title="MIO's Hessian is diagonal with positive entries: it fixes every level",
        statement=r"\nabla^2 \ell_{\mathrm{MIO}} = \operatorname{diag}\Bigl(\tfrac{K+2}{K+1}\,\sigma'(s^+),"
        r" \tfrac{\sigma'(s^-_1)}{K+1}, \dots, \tfrac{\sigma'(s^-_K)}{K+1}\Bigr)",
        kind=Kind.EXACT,
        draw=_scores,
        left=lambda x: _curvature(_mio, x, x["direction"]),
        right=lambda x: _mio_diagonal(x, (_NEGATIVES + 2) / (_NEGATIVES + 1)),
        twin=lambda x: _mio_diagonal(x, 1.5),
        slip="the factor 3/2 of one negative kept for three",
        source="derived here (MIO = pairwise NCA, Chen et al. 2024, arXiv 2402.05369)",
    ),
    Claim(
        id="46f",
        title="MIO's Hessian is positive definite everywhere",
        statement=r"0 < \min_j \frac{\sigma'(s_j)}{K+1} \le \lambda_{\min}\bigl(\nabla^2 \ell_{\mathrm{MIO}}\bigr)",
        kind=Kind.INEQUALITY,
        draw=_scores,
        left=lambda x: jnp.min(_variance(x["scores"])) / (1 + _NEGATIVES),
        right=lambda x: _least_curvature(_mio, x),
        twin=lambda x: _least_curvature(_info_nce, x),
        slip="InfoNCE's Hessian",
        source="derived here",
        samples=100_000,
    ),
)
