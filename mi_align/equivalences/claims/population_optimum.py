"""Ledger 49: DPO's population minimiser is the optimum of the KL-regularised reward."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals, regularised_optimum
from mi_align.equivalences.optimise import minimise
from mi_align.equivalences.populations import pairs_of_responses
from mi_align.methods import METHODS

__all__ = ["CLAIMS"]

_RESPONSES = 4
_RAFAILOV = "Rafailov et al. 2023 (arXiv 2305.18290), theorem 1 and appendix A.6"


def _preferences(key: PRNGKeyArray) -> Inputs:
    """A reference, rewards, β, and the probability with which each pair of responses is compared; none is 0."""
    x = normals(key, reference=(_RESPONSES,), reward=(_RESPONSES,), pairs=(_RESPONSES, _RESPONSES), beta=())
    pairs = jax.nn.softmax(x["pairs"], axis=(0, 1))
    return {
        "reference": jax.nn.log_softmax(x["reference"]),
        "reward": x["reward"],
        "pairs": (pairs + pairs.T) / 2,
        "beta": between(0.2, 2.0, x["beta"]),
    }


def _wins(x: Inputs) -> Array:
    """The chance that Bradley and Terry's model of the rewards prefers the row's response to the column's."""
    return jax.nn.sigmoid(x["reward"][:, None] - x["reward"])


def _population_loss(logits: Array, x: Inputs) -> Array:
    """DPO's loss over all pairs, labelled by that model."""
    losses = METHODS["dpo"](pairs_of_responses(jax.nn.log_softmax(logits), x["reference"]), beta=x["beta"])
    return jnp.sum(x["pairs"] * _wins(x) * losses)


def _found(x: Inputs) -> Array:
    """The minimiser's probabilities, by Newton's method from the reference, and the largest slope that is left."""

    def policy(free: Array) -> Array:
        return jnp.append(free, 0.0)  # a shift of all logits changes nothing: the last one stays

    start = (x["reference"] - x["reference"][-1])[:-1]
    minimum = minimise(lambda free: _population_loss(policy(free), x), start, steps=15)
    return jnp.append(jax.nn.softmax(policy(minimum.point)), minimum.residual)


def _optimum(x: Inputs) -> Array:
    """π_ref e^{r/β} / Z."""
    weight = jnp.exp(x["reference"] + x["reward"] / x["beta"])
    return weight / jnp.sum(weight)


def _slope_at_optimum(x: Inputs) -> Array:
    best = regularised_optimum(x["reward"], x["reference"], x["reward"], beta=x["beta"])
    return jax.grad(_population_loss)(best, x)


def _slope_at_reference(x: Inputs) -> Array:
    """β Σ_j μ_ij [½ − σ(r_i − r_j)] on every response i, twice, for i may come first or second."""
    return 2 * x["beta"] * jnp.sum(x["pairs"] * (0.5 - _wins(x)), axis=1)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="49a",
        title="DPO's population minimiser is π*, whichever pairs are compared how often",
        statement=r"\arg\min_\pi\, \mathbb{E}_{(i,j)\sim\mu}\,\mathbb{E}_{\mathrm{BT}(r)}\,\ell_{\mathrm{DPO}} ="
        r" \pi^* \propto \pi_{\mathrm{ref}}\,e^{r/\beta} \quad\text{for every } \mu > 0",
        kind=Kind.OPTIMUM,
        draw=_preferences,
        left=_found,
        right=lambda x: jnp.append(_optimum(x), 0.0),
        twin=lambda x: jnp.append(_optimum({**x, "reward": x["reward"] * (1 + 1e-6)}), 0.0),
        slip="rewards one part in a million larger",
        source=f"{_RAFAILOV}; enumerated here",
        samples=1000,
    ),
    Claim(
        id="49b",
        title="π* is stationary for DPO's population loss under every law of pairs",
        statement=r"\nabla_\theta\, \mathbb{E}_{(i,j)\sim\mu}\,\mathbb{E}_{\mathrm{BT}(r)}"
        r"\,\ell_{\mathrm{DPO}}\big|_{\pi = \pi^*} = 0",
        kind=Kind.EXACT,
        draw=_preferences,
        left=_slope_at_optimum,
        right=lambda x: jnp.zeros_like(x["reward"]),
        twin=_slope_at_reference,
        slip="the slope at the reference",
        source=f"{_RAFAILOV}; enumerated here",
        derivatives=0,
    ),
)
