"""Ledger 49: DPO's population minimiser is the optimum of the KL-regularised reward."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.critics import Candidates
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals, regularised_optimum
from mi_align.methods import METHODS

__all__ = ["CLAIMS"]

_RESPONSES, _NEWTON_STEPS = 4, 40
_PAIRS = np.asarray(list(itertools.combinations(range(_RESPONSES), 2)))
_RAFAILOV = "Rafailov et al. 2023 (arXiv 2305.18290), theorem 1 and appendix A.6"


def _preferences(key: PRNGKeyArray) -> Inputs:
    """A reference, rewards, β, and the probability with which each pair of responses is compared; none is 0."""
    x = normals(key, reference=(_RESPONSES,), reward=(_RESPONSES,), pairs=(len(_PAIRS),), beta=())
    return {
        "reference": jax.nn.log_softmax(x["reference"]),
        "reward": x["reward"],
        "pairs": jax.nn.softmax(x["pairs"]),
        "beta": between(0.2, 2.0, x["beta"]),
    }


def _population_loss(logits: Array, x: Inputs) -> Array:
    """DPO's loss over all pairs, labelled by Bradley and Terry's model of the rewards."""
    policy = jax.nn.log_softmax(logits)
    both = np.concatenate([_PAIRS, _PAIRS[:, ::-1]])
    wins = jax.nn.sigmoid(x["reward"][both[:, 0]] - x["reward"][both[:, 1]])
    losses = METHODS["dpo"](Candidates.from_sequences(policy[both], x["reference"][both]), beta=x["beta"])
    return jnp.concatenate([x["pairs"], x["pairs"]]) @ (wins * losses)


def _minimiser(x: Inputs) -> Array:
    """Its minimiser by Newton's method from the reference.

    The loss is convex in the logits and flat along a shift of all, which a rank-one term makes round. Steps are damped
    as the logistic loss asks (Bach 2010): by log(1+m)/m where one would change a margin by m.
    """

    def newton(_: int, logits: Array) -> Array:
        slope = jax.grad(_population_loss)(logits, x)
        curvature = jax.hessian(_population_loss)(logits, x) + x["beta"] ** 2
        step = jnp.linalg.solve(curvature, slope)
        change = x["beta"] * jnp.ptp(step)
        damping = jnp.where(change > 0, jnp.log1p(change) / jnp.where(change > 0, change, 1), 1)
        return logits - damping * step

    return jax.lax.fori_loop(0, _NEWTON_STEPS, newton, x["reference"])


def _found(x: Inputs) -> Array:
    """The minimiser's probabilities, and the largest slope that is left."""
    logits = _minimiser(x)
    return jnp.append(jax.nn.softmax(logits), jnp.max(jnp.abs(jax.grad(_population_loss)(logits, x))))


def _optimum(x: Inputs) -> Array:
    """π_ref e^{r/β} / Z."""
    weight = jnp.exp(x["reference"] + x["reward"] / x["beta"])
    return weight / jnp.sum(weight)


def _slope_at_optimum(x: Inputs) -> Array:
    best = regularised_optimum(x["reward"], x["reference"], x["reward"], beta=x["beta"])
    return jax.grad(_population_loss)(best, x)


def _slope_at_reference(x: Inputs) -> Array:
    """β Σ over pairs of [½ − σ(r_i − r_j)] on i, and minus that on j."""
    i, j = _PAIRS.T
    push = x["beta"] * x["pairs"] * (0.5 - jax.nn.sigmoid(x["reward"][i] - x["reward"][j]))
    return jnp.zeros_like(x["reward"]).at[i].add(push).at[j].add(-push)


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
        samples=20_000,
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
