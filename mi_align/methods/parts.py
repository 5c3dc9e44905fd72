"""The small parts that rows share: objectives on a method's own scale, regularisers and weights.

Each is a line or two around a public objective or critic; the mathematics stays there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import objectives
from mi_align.critics import Candidates, log_probability, log_ratio, mean_log_probability, reward_score
from mi_align.numerics import as_float, fill, masked_mean

__all__ = [
    "centring",
    "chosen_likelihood",
    "collision_weight",
    "gold_likelihood",
    "ipo",
    "kto",
    "margins",
    "odds_ratio",
    "regression",
    "rewarded_exo",
    "rewarded_info_nce",
    "rewarded_nca",
    "simpo",
    "sppo",
]

Batch = Float[Array, "*batch"]
List = Float[Array, "*batch C"]
Kept = Bool[Array, "*batch C"] | None


def margins(candidates: Candidates, *, beta: float) -> List:
    """A critic of pairs: the policy's margin β (log π⁺ − log π⁻), then the reference's. For AOT, which sorts both."""
    policy = log_probability(candidates, beta=beta)
    reference = policy - beta * log_ratio(candidates)
    return jnp.stack([policy[..., 0] - policy[..., 1], reference[..., 0] - reference[..., 1]], axis=-1)


def ipo(positive: Batch, negative: Batch, *, beta: float) -> Batch:
    """(z⁺ − z⁻ − 1/(2β))²."""
    return objectives.squared_loss(positive, negative, target=0.5 / beta)


def sppo(positive: Batch, negative: Batch, *, beta: float) -> Batch:
    """(z⁺ − 1/(2β))² + (z⁻ + 1/(2β))²."""
    return objectives.sppo_hard_loss(positive, negative, target=0.5 / beta)


def simpo(positive: Batch, negative: Batch, *, gamma: float, label_smoothing: float = 0.0) -> Batch:
    """Bradley–Terry with the target margin γ, in logits."""
    return objectives.bradley_terry_loss(positive, negative, margin=gamma, label_smoothing=label_smoothing)


def odds_ratio(positive: Batch, negative: Batch, *, beta: float) -> Batch:
    """β times Bradley–Terry on log-odds."""
    return beta * objectives.bradley_terry_loss(positive, negative)


def kto(
    score: List,
    desirable: Bool[Array, "*batch C"],
    reference_point: Float[Array, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> List:
    """KTO around β z₀, the reference point z₀ in nats."""
    return objectives.kto_loss(
        score,
        desirable,
        reference_point=beta * jax.lax.stop_gradient(reference_point),
        desirable_weight=desirable_weight,
        undesirable_weight=undesirable_weight,
    )


def regression(score: List, reward: List) -> List:
    """(s − r)²."""
    return objectives.squared_loss(score, reward, target=0.0)


def _soft_labels(reward: List, temperature: float, where: Kept) -> List:
    return jax.nn.softmax(fill(as_float(reward)[0] / temperature, where, -jnp.inf), axis=-1)


def rewarded_info_nce(scores: List, reward: List, *, temperature: float, where: Kept = None) -> Batch:
    """InfoNCA: cross-entropy with softmax(r/α)."""
    return objectives.weighted_info_nce_loss(scores, _soft_labels(reward, temperature, where), where=where)


def rewarded_nca(scores: List, reward: List, *, temperature: float, where: Kept = None) -> Batch:
    """NCA with softmax(r/α)."""
    return objectives.weighted_nca_loss(scores, _soft_labels(reward, temperature, where), where=where)


def rewarded_exo(scores: List, reward: List, *, temperature: float, where: Kept = None) -> Batch:
    """EXO: reverse KL to softmax(r/α)."""
    return objectives.exo_loss(scores, _soft_labels(reward, temperature, where), where=where)


def chosen_likelihood(candidates: Candidates, *, nll_weight: float) -> Batch:
    """λ times the chosen response's negative log-likelihood a token."""
    return -nll_weight * mean_log_probability(candidates)[..., 0]


def gold_likelihood(candidates: Candidates, *, nll_weight: float) -> Batch:
    """λ times the gold response's negative log-likelihood a token; the gold response is candidate 2."""
    return -nll_weight * mean_log_probability(candidates)[..., 2]


def centring(candidates: Candidates, *, centring_weight: float) -> Batch:
    """λ (r⁺ + r⁻)²: holds the level that Bradley–Terry leaves free."""
    score = reward_score(candidates)
    return centring_weight * objectives.centring_penalty(score[..., 0], score[..., 1])


def collision_weight(candidates: Candidates) -> Batch:
    """WPO's weight Π_y exp(mean_t [log π_t − log Σ_v π_v²]) of a pair, a constant (Zhou et al. 2024)."""
    if candidates.log_collision is None:
        raise ValueError(
            "`candidates.log_collision` is None, but WPO needs log Σ_v π(v)² at each response token, "
            f"{list(candidates.policy.shape)} as the log-probabilities. Compute it where the full logits are."
        )
    policy, collision = as_float(candidates.policy, candidates.log_collision)
    mask = candidates.response_mask
    surprise = masked_mean(fill(policy, mask, 0) - fill(collision, mask, 0), mask, axis=-1)
    return jax.lax.stop_gradient(jnp.exp(jnp.sum(surprise, axis=-1)))
