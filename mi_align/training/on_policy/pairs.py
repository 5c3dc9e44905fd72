"""What a pairwise method makes of a rollout: responses in the order of their rewards, the best one chosen."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.data import PreferenceBatch
from mi_align.methods import (
    Method,
    against_rewards,
    one_against_rest,
    pair,
    pair_with_margin,
    pairs_of_batch,
    ranking,
    soft_labelled,
)
from mi_align.training.on_policy.rollout import Rollout
from mi_align.training.readers import reads_vocabulary

__all__ = ["check_pairs", "paired"]

_OF_TWO = (pair, pair_with_margin, pairs_of_batch)
_OF_SCORES = (soft_labelled, against_rewards)


def check_pairs(method: Method, samples: int) -> None:
    """Whether a method of the table can learn from a rollout.

    Raises:
      ValueError: it does not compare the responses of a prompt, reads more than their log-probabilities, or there is
        but one.
    """
    if method.arrange not in (*_OF_TWO, *_OF_SCORES, one_against_rest, ranking) or reads_vocabulary(method):
        raise ValueError(
            f"{method.name!r} does not learn from the policy's own responses here: a method that compares a prompt's "
            "responses by log-probabilities was wanted, such as 'dpo', 'mio', 'infonce_dpo' or 'plackett_luce_dpo', "
            "or a policy gradient, such as 'grpo'."
        )
    if samples < 2:
        raise ValueError(f"{method.name!r} compares responses, but `on_policy.samples` is {samples}: at least 2.")


def paired(rollout: Rollout, method: Method) -> tuple[PreferenceBatch, Float[Array, "batch C time-1"] | None]:
    """What `preference_loss` takes: each prompt's responses, the best one first, and the reference's scores.

    A method of pairs gets the best and the worst response; one of rankings or scores all, with their rewards; any other
    the best, and those that are worse. A prompt all of whose responses have one reward prefers nothing: none of its
    candidates is there, so that it has neither loss nor gradient, but for methods of scores, to which they say enough.
    """
    order = jnp.argsort(-rollout.reward, axis=-1, stable=True)
    if method.arrange in _OF_TWO:
        order = order[:, jnp.asarray([0, -1])]
    reward = jnp.take_along_axis(rollout.reward, order, axis=1)
    worse = reward < reward[:, :1]
    if method.arrange in _OF_SCORES:
        there = jnp.ones_like(worse)
    elif method.arrange is ranking:
        there = jnp.broadcast_to(jnp.any(worse, axis=-1, keepdims=True), worse.shape)
    else:
        there = worse.at[:, 0].set(jnp.any(worse, axis=-1))

    def picked(x: Any) -> Any:
        return jnp.take_along_axis(jnp.asarray(x), order[..., None], axis=1)

    fields: dict[str, Any] = {
        "tokens": picked(rollout.batch.tokens),
        "response_mask": picked(rollout.batch.response_mask) & there[..., None],
        "candidate_mask": there,
        "reward": reward if method.arrange in (*_OF_SCORES, ranking) else None,
    }
    return PreferenceBatch(**fields), None if rollout.reference_logp is None else picked(rollout.reference_logp)
