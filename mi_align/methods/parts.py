"""The small parts that rows share: objectives in terms of β, weights and regularisers.

Each is a line or two around a public objective or critic; the mathematics stays there.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align import objectives
from mi_align.critics import Candidates, log_probability, mean_log_probability
from mi_align.methods.arrangements import chosen_alone, chosen_by_length

__all__ = [
    "centring",
    "gold_token_nll",
    "ipo_loss",
    "mean_nll",
    "negated",
    "preference_weight",
    "regression_loss",
    "sequence_nll",
    "sppo_loss",
    "token_nll",
]

Batch = Float[Array, "*batch"]
Logits = Float[Array, "*batch C"]
Scalar = float | Float[Array, ""]


# --- Objectives


def ipo_loss(positive: Batch, negative: Batch, *, beta: Scalar) -> Batch:
    """(s⁺ − s⁻ − 1/(2β))², of log-ratios or log-probabilities; β is IPO's τ."""
    return objectives.squared_loss(positive, negative, target=0.5 / beta)


def sppo_loss(positive: Batch, negative: Batch, *, beta: Scalar) -> Batch:
    """(s⁺ − 1/(2β))² + (s⁻ + 1/(2β))², of log-ratios."""
    return objectives.sppo_hard_loss(positive, negative, target=0.5 / beta)


def regression_loss(score: Logits, reward: Logits) -> Logits:
    """(s − r)²."""
    return objectives.squared_loss(score, reward, target=0.0)


def negated(score: Batch) -> Batch:
    """−s: the loss of a log-probability."""
    return -score


# --- Weights


def preference_weight(candidates: Candidates, *, beta: Scalar) -> Float[Array, ""]:
    """β as the weight of the whole preference loss beside the likelihood: ORPO's λ."""
    return jnp.asarray(beta)


# --- Regularisers


def _counted(candidates: Candidates, which: int = 0) -> Candidates:
    """Candidate `which` alone, with the tokens that likelihoods count."""
    if candidates.nll_mask is not None:
        candidates = candidates._replace(response_mask=candidates.nll_mask)
    one = slice(which, which + 1)
    tokens = {name: getattr(candidates, name) for name in ("policy", "response_mask")}
    entries = {name: getattr(candidates, name) for name in ("candidate_mask", "length")}
    return Candidates(
        **{name: None if x is None else x[..., one, :] for name, x in tokens.items()},
        **{name: None if x is None else x[..., one] for name, x in entries.items()},
    )


def sequence_nll(logits: Logits, candidates: Candidates, *, nll_weight: Scalar) -> Batch:
    """−λ log π of the whole chosen response."""
    chosen = _counted(candidates)
    return nll_weight * chosen_alone(negated, log_probability(chosen), chosen)


def mean_nll(logits: Logits, candidates: Candidates, *, nll_weight: Scalar) -> Batch:
    """−λ log π/|y| of the chosen response."""
    chosen = _counted(candidates)
    return nll_weight * chosen_alone(negated, mean_log_probability(chosen), chosen)


def token_nll(logits: Logits, candidates: Candidates, *, nll_weight: Scalar) -> Batch:
    """Batch-coupled: what averages to −λ log π a token over all chosen responses of the batch, as in TRL."""
    chosen = _counted(candidates)
    return nll_weight * chosen_by_length(negated, mean_log_probability(chosen), chosen)


def gold_token_nll(logits: Logits, candidates: Candidates, *, nll_weight: Scalar) -> Batch:
    """Batch-coupled: `token_nll` of the third candidate."""
    gold = _counted(candidates, 2)
    return nll_weight * chosen_by_length(negated, mean_log_probability(gold), gold)


def centring(logits: Logits, candidates: Candidates, *, centring_weight: Scalar) -> Batch:
    """λ (s⁺ + s⁻)²: holds the level that a Bradley–Terry loss leaves free."""
    return centring_weight * objectives.centring_penalty(logits[..., 0], logits[..., 1])
