"""Ledger 48: SimPO, CPO and ORPO are Bradley–Terry on critics of their own."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.critics import Candidates, log_odds
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals
from mi_align.methods import METHODS

__all__ = ["CLAIMS"]


def _responses(key: PRNGKeyArray) -> Inputs:
    """Token log-probabilities of a chosen and a rejected response of up to four tokens, β and a target margin γ."""
    x = normals(key, policy=(2, 4), where=(2, 4), beta=(), margin=())
    return {
        "policy": -jnp.exp(x["policy"]),
        "where": (x["where"] > 0).at[:, 0].set(True),
        "beta": between(0.1, 3.0, x["beta"]),
        "margin": between(0.0, 2.0, x["margin"]),
    }


def _nearly_certain(key: PRNGKeyArray) -> Inputs:
    """The power of ten of a mean log-probability, from −1 down to −1e-12, and how two tokens share it."""
    x = normals(key, digits=(), share=())
    return {"digits": between(0.0, 12.0, x["digits"]), "share": between(0.1, 0.9, x["share"])}


def _loss(method: str, *names: str, **hyper: float) -> Callable[[Inputs], Array]:
    """A row of the table on the drawn responses, with the drawn hyper-parameters `names`."""

    def loss(x: Inputs) -> Array:
        candidates = Candidates(x["policy"], response_mask=x["where"])
        return METHODS[method](candidates, **{name: x[name] for name in names}, **hyper)

    return loss


def _total(x: Inputs) -> Array:
    return jnp.sum(x["policy"] * x["where"], axis=-1)


def _mean(x: Inputs) -> Array:
    return _total(x) / jnp.sum(x["where"], axis=-1)


def _beaten(score: Array, margin: Array | float = 0.0) -> Array:
    """−log σ of the chosen score over the rejected one."""
    return jnp.logaddexp(0, score[1] - score[0] + margin)


def _odds(mean: Array) -> Array:
    """log p̄/(1 − p̄) = −log(1/p̄ − 1)."""
    return -jnp.log(jnp.expm1(-mean))


def _mean_of_two(x: Inputs) -> Array:
    return -(10.0 ** -x["digits"])


def _critic(x: Inputs) -> Array:
    tokens = 2 * _mean_of_two(x) * jnp.stack([x["share"], 1 - x["share"]])
    return log_odds(Candidates(tokens[None]))[0]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="48a",
        title="SimPO is Bradley–Terry, with a margin, on the length-normalised log-probability",
        statement=r"\ell_{\mathrm{SimPO}} = -\log\sigma\Bigl(\frac{\beta}{|y_w|}\log\pi(y_w) -"
        r" \frac{\beta}{|y_l|}\log\pi(y_l) - \gamma\Bigr)",
        kind=Kind.EXACT,
        draw=_responses,
        left=_loss("simpo", "beta", "margin"),
        right=lambda x: _beaten(x["beta"] * _mean(x), x["margin"]),
        twin=lambda x: _beaten(x["beta"] * _total(x), x["margin"]),
        slip="not normalised by length",
        source="Meng et al. 2024 (arXiv 2405.14734), eq. 6",
    ),
    Claim(
        id="48b",
        title="CPO's preference term is Bradley–Terry on the log-probability",
        statement=r"\ell_{\mathrm{CPO}} = -\log\sigma\bigl(\beta\log\pi(y_w) - \beta\log\pi(y_l)\bigr)",
        kind=Kind.EXACT,
        draw=_responses,
        left=_loss("cpo", "beta", nll_weight=0.0),
        right=lambda x: _beaten(x["beta"] * _total(x)),
        twin=lambda x: _beaten(x["beta"] * _mean(x)),
        slip="normalised by length",
        source="Xu et al. 2024 (arXiv 2401.08417), eq. 6",
    ),
    Claim(
        id="48c",
        title="ORPO's ratio term is Bradley–Terry on the log-odds",
        statement=r"\ell_{\mathrm{OR}} = -\log\sigma\Bigl(\log\frac{\bar p_w}{1-\bar p_w} -"
        r" \log\frac{\bar p_l}{1-\bar p_l}\Bigr), \qquad \bar p = \pi(y)^{1/|y|}",
        kind=Kind.EXACT,
        draw=_responses,
        left=_loss("orpo", "beta", nll_weight=0.0),
        right=lambda x: x["beta"] * _beaten(_odds(_mean(x))),
        twin=lambda x: x["beta"] * _beaten(_mean(x)),
        slip="log p̄ in the place of its log-odds",
        source="Hong et al. 2024 (arXiv 2403.07691), eq. 7; β is its λ",
    ),
    Claim(
        id="48d",
        title="The log-odds keep their digits down to mean log-probabilities of −1e-12",
        statement=r"\log\frac{\bar p}{1-\bar p} = -\log\bigl(e^{-u} - 1\bigr), \qquad"
        r" u = \log\bar p \in [-1, -10^{-12}]",
        kind=Kind.EXACT,
        draw=_nearly_certain,
        left=_critic,
        right=lambda x: _odds(_mean_of_two(x)),
        twin=lambda x: _mean_of_two(x) - jnp.log(1 - jnp.exp(_mean_of_two(x))),
        slip="1 − p̄ by subtraction, as in TRL: up to all digits are lost",
        source="Mächler 2012 for log(1 − eᵘ)",
        derivatives=2,
    ),
)
