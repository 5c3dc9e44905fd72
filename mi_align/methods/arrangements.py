"""How the logits of a prompt's candidates become an objective's arguments: from `[*batch, C]` to a loss `[*batch]`.

    arrangement                   calls                                                     candidates
    pair                          objective(positive, negative)                             C = 2
    pair_with_margin              the same, with `margin=` where annotators gave one        C = 2
    pair_and_gold                 the same; the third is for the regulariser                C = 3
    pairs_of_batch                objective(positive, negative, where=…) along the batch    C = 2
    one_against_rest              objective(positive, negatives, where=…)                   C ≥ 2
    ranking                       objective(scores, where=…), best first                    C ≥ 1
    soft_labelled                 objective(scores, weights, where=…)                       C ≥ 1
    unpaired                      objective(score, desirable), mean over candidates         C ≥ 1
    unpaired_around_divergence    the same, with `reference_point=` β z                     C ≥ 1
    against_rewards               objective(score, reward), mean over candidates            C ≥ 1
    chosen_alone                  objective(score) of the first                             C ≥ 1
    chosen_by_length              the same, weighed by length                               C ≥ 1

An arrangement takes the objective as a function of arrays alone, its hyper-parameters bound. An example whose chosen
candidate, or whose last rejected one, is not there has loss 0 and no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.critics import Candidates, lengths
from mi_align.numerics import as_float, fill, masked_mean

__all__ = [
    "against_rewards",
    "chosen_alone",
    "chosen_by_length",
    "one_against_rest",
    "pair",
    "pair_and_gold",
    "pair_with_margin",
    "pairs_of_batch",
    "per_candidate",
    "ranking",
    "soft_labelled",
    "unpaired",
    "unpaired_around_divergence",
]

Objective = Callable[..., Array]
Logits = Float[Array, "*batch C"]
Scalar = float | Float[Array, ""]
Losses = Float[Array, "*batch"]


def per_candidate(value: Any) -> Any:
    """A hyper-parameter of one number an example, so that it meets logits `[*batch, C]`; a single number as it is."""
    return jnp.asarray(value)[..., None] if jnp.ndim(value) else value


def _by_candidate(objective: Objective) -> Objective:
    """An objective that takes logits `[*batch, C]`, with its hyper-parameters to match."""
    if not isinstance(objective, functools.partial):
        return objective
    hyper = {name: per_candidate(value) for name, value in objective.keywords.items()}
    return functools.partial(objective.func, *objective.args, **hyper)


def _exactly(number: int, logits: Logits, remedy: str) -> None:
    if logits.shape[-1] != number:
        raise ValueError(f"there are {logits.shape[-1]} candidates a prompt, but {number} were wanted: {remedy}")


def _there(candidates: Candidates, *which: int) -> Bool[Array, "*batch"] | None:
    """Where all these candidates are there."""
    mask = candidates.candidate_mask
    return None if mask is None else jnp.all(jnp.stack([mask[..., i] for i in which]), axis=0)


def pair(objective: Objective, logits: Logits, candidates: Candidates) -> Losses:
    """One chosen and one rejected response."""
    remedy = (
        "one chosen, one rejected. For K rejected responses take 'infonce_dpo', which is DPO with K negatives, or "
        "'mio'; for a ranking 'plackett_luce_dpo', or 'plackett_luce_reward' for a reward model."
    )
    _exactly(2, logits, remedy)
    return fill(objective(logits[..., 0], logits[..., 1]), _there(candidates, 0, 1), 0)


def pair_with_margin(objective: Objective, logits: Logits, candidates: Candidates, *, margin: Scalar = 0.0) -> Losses:
    """A pair, and by how much the chosen response should win: `margin`, and what annotators said beyond it."""
    if candidates.margin is None:
        return pair(objective, logits, candidates)
    checks.floating(margin=candidates.margin)
    whole = margin + fill(jnp.asarray(candidates.margin), _there(candidates, 0, 1), 0)
    return pair(lambda positive, negative: objective(positive, negative, margin=whole), logits, candidates)


def pair_and_gold(objective: Objective, logits: Logits, candidates: Candidates) -> Losses:
    """A pair and a third, gold response, which only the regulariser looks at."""
    _exactly(3, logits, "chosen, rejected and a gold response.")
    return fill(objective(logits[..., 0], logits[..., 1]), _there(candidates, 0, 1), 0)


def pairs_of_batch(objective: Objective, logits: Logits, candidates: Candidates) -> Losses:
    """Batch-coupled along the batch's last axis: all pairs together."""
    _exactly(2, logits, "one chosen, one rejected.")
    if logits.ndim < 2:
        raise ValueError("this method compares the pairs of a batch, but there is one pair only. Pass [*batch, 2].")
    both = _there(candidates, 0, 1)
    positive, negative = logits[..., 0], logits[..., 1]
    return objective(positive, negative) if both is None else objective(positive, negative, where=both)


def one_against_rest(objective: Objective, logits: Logits, candidates: Candidates) -> Losses:
    """One chosen and K = C − 1 ≥ 1 rejected responses."""
    mask = candidates.candidate_mask
    positive, negatives = logits[..., 0], logits[..., 1:]
    if mask is None:
        return objective(positive, negatives)
    some = jnp.any(mask[..., 1:], axis=-1)
    return fill(objective(positive, negatives, where=mask[..., 1:]), mask[..., 0] & some, 0)


def ranking(objective: Objective, logits: Logits, candidates: Candidates) -> Losses:
    """All candidates, best first; where rewards are given, equal ones are ties, whose order means nothing."""
    mask = candidates.candidate_mask
    given = {} if mask is None else {"where": mask}
    if candidates.reward is not None:
        given["ties"] = _level_with_the_one_before(_rewards(logits, candidates), mask)
    return objective(logits, **given)


def _level_with_the_one_before(rewards: Logits, mask: Bool[Array, "*batch C"] | None) -> Bool[Array, "*batch C"]:
    """Whether each candidate's reward is that of the last one before it that is there."""
    place = jax.lax.broadcasted_iota(jnp.int32, rewards.shape, rewards.ndim - 1)
    last = jax.lax.cummax(fill(place, mask, -1), axis=rewards.ndim - 1)
    before = jnp.concatenate([jnp.full_like(last[..., :1], -1), last[..., :-1]], axis=-1)
    return (before >= 0) & (rewards == jnp.take_along_axis(rewards, jnp.maximum(before, 0), axis=-1))


def _rewards(logits: Logits, candidates: Candidates) -> Logits:
    if candidates.reward is None:
        raise ValueError("`candidates.reward` is None, but this method reads it: pass one number a candidate.")
    checks.floating(reward=candidates.reward)
    checks.same_shape(logits=logits, reward=candidates.reward)
    return fill(as_float(candidates.reward)[0], candidates.candidate_mask, 0)


def soft_labelled(
    objective: Objective, logits: Logits, candidates: Candidates, *, reward_temperature: Scalar
) -> Losses:
    """All candidates, with softmax(reward / temperature) as their soft labels."""
    mask = candidates.candidate_mask
    rewards = _rewards(logits, candidates)
    weights = jax.nn.softmax(
        fill(rewards / per_candidate(reward_temperature), mask, float(jnp.finfo(rewards.dtype).min)), axis=-1
    )
    return objective(logits, weights) if mask is None else objective(logits, weights, where=mask)


def _labels(logits: Logits, candidates: Candidates) -> Bool[Array, "*batch C"]:
    """Which responses are desirable; the first alone where nothing is said, as in a pair taken apart."""
    if candidates.desirable is None:
        return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == 0
    checks.labels(candidates.desirable, logits, name="desirable", of="the logits")
    return jnp.asarray(candidates.desirable)


def unpaired(objective: Objective, logits: Logits, candidates: Candidates) -> Losses:
    """Every candidate by itself, desirable or not."""
    losses = _by_candidate(objective)(logits, _labels(logits, candidates))
    return masked_mean(losses, candidates.candidate_mask, axis=-1)


def unpaired_around_divergence(objective: Objective, logits: Logits, candidates: Candidates, *, beta: Scalar) -> Losses:
    """Every candidate by itself, measured against β z: z is an estimate of KL(π ‖ π_ref), a constant to gradients."""
    if candidates.reference_point is None:
        raise ValueError(
            "`candidates.reference_point` is None, but rewards are measured against an estimate of KL(π ‖ π_ref), in "
            "nats. Get it from mismatched prompts and responses, `objectives.kto_reference_point(log_ratio(…))`, or "
            "take 'apo_zero_unpaired', which does without."
        )
    divergence = jax.lax.stop_gradient(jnp.asarray(candidates.reference_point))
    level = per_candidate(beta * divergence)
    objective = functools.partial(_by_candidate(objective), reference_point=level)
    losses = objective(logits, _labels(logits, candidates))
    return masked_mean(losses, candidates.candidate_mask, axis=-1)


def against_rewards(objective: Objective, logits: Logits, candidates: Candidates) -> Losses:
    """Every candidate by itself, against its reward."""
    losses = _by_candidate(objective)(logits, _rewards(logits, candidates))
    return masked_mean(losses, candidates.candidate_mask, axis=-1)


def chosen_alone(objective: Objective, logits: Logits, candidates: Candidates) -> Losses:
    """The chosen response; the others are not looked at."""
    return fill(objective(logits[..., 0]), _there(candidates, 0), 0)


def chosen_by_length(objective: Objective, logits: Logits, candidates: Candidates) -> Losses:
    """Batch-coupled: the chosen response, weighed by its length over the batch's mean length."""
    number = lengths(candidates)[..., 0]
    mean = jnp.mean(number)
    return chosen_alone(objective, logits, candidates) * number / jnp.where(mean > 0, mean, 1)
