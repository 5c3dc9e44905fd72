"""A rollout: responses that the policy drew itself, their scores and rewards, and what a user wants to know of them."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align.data import PreferenceBatch
from mi_align.numerics import Mean, masked_sum
from mi_align.training.metrics import Metrics

__all__ = ["Rollout", "rollout_metrics"]


class Rollout(NamedTuple):
    """Responses that the policy drew, scored; a pytree.

    Attributes:
      batch: prompts with their responses as candidates, all of them there.
      logp: log π of each token under the policy that drew it, by the scorer of the training steps.
      reference_logp: log π_ref of each token; None without a reference.
      reward: what the reward function said.
    """

    batch: PreferenceBatch
    logp: Float[Array, "batch G time-1"]
    reference_logp: Float[Array, "batch G time-1"] | None
    reward: Float[Array, "batch G"]

    @property
    def where(self) -> Bool[Array, "batch G time-1"]:
        """Which tokens are of responses."""
        return jnp.asarray(self.batch.response_mask)[..., 1:]

    def log_ratio(self) -> Float[Array, "batch G"]:
        """log π − log π_ref of each response, nats: a sum of differences."""
        if self.reference_logp is None:
            raise ValueError("there is no reference to compare with. Set `reference: live`.")
        return masked_sum(self.logp - self.reference_logp, self.where, axis=-1)


def rollout_metrics(rollout: Rollout, *, eos_id: int, where: Bool[Array, "batch"] | None = None) -> Metrics:
    """Metrics of the policy that drew a rollout, as means over prompts, responses or tokens.

    Args:
      rollout: what was drawn.
      eos_id: the token that ends a response.
      where: which prompts count. Default: all.

    Returns:
      `reward/mean`; `reward/std`, within a prompt (the population's deviation), averaged over prompts;
      `reward/no_spread`, the share of prompts all of whose responses have one reward; `entropy`, −log π of a token that
      was drawn, nats; `response/length`, tokens; `response/unfinished`, the share of responses that `max_new_tokens`
      cut. With a reference `kl`, log π − log π_ref of a response, nats, whose mean is KL(π ‖ π_ref).
    """
    reward, inside = rollout.reward, rollout.where
    there = jnp.ones(reward.shape[0], bool) if where is None else where
    each = jnp.broadcast_to(there[:, None], reward.shape)
    tokens = inside & there[:, None, None]
    level = jnp.all(reward == reward[:, :1], axis=-1)
    ended = jnp.any((jnp.asarray(rollout.batch.tokens)[..., 1:] == eos_id) & inside, axis=-1)
    told = {
        "reward/mean": Mean.of(reward, each),
        "reward/std": Mean.of(jnp.where(level, 0, jnp.std(reward, axis=-1)), there),
        "reward/no_spread": Mean.of(level.astype(reward.dtype), there),
        "entropy": Mean.of(-rollout.logp, tokens),
        "response/length": Mean.of(jnp.sum(inside, axis=-1).astype(reward.dtype), each),
        "response/unfinished": Mean.of((~ended).astype(reward.dtype), each),
    }
    return told if rollout.reference_logp is None else told | {"kl": Mean.of(rollout.log_ratio(), each)}
