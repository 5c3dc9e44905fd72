"""The loss of a policy gradient over responses that the policy, or one of a few steps before, drew itself.

Axes: batch B (prompts), G responses a prompt, T − 1 tokens, those of the prompt masked, as `scorer` gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.data import PreferenceBatch
from mi_align.numerics import Mean, masked_mean, masked_sum
from mi_align.objectives import kl_k2, kl_k3
from mi_align.training.metrics import Metrics
from mi_align.training.on_policy.estimators import ESTIMATORS, Estimator
from mi_align.training.scoring import TokenLogps
from mi_align.training.state import Params

__all__ = ["Learned", "clip_fraction", "policy_gradient_loss"]

TokenScores = Float[Array, "batch G time-1"]


class Learned(NamedTuple):
    """What a step of a policy gradient takes; a pytree whose leaves have prompts on their first axis.

    Attributes:
      batch: prompts with their responses.
      old_logp: log of the policy that drew them.
      reference_logp: log π_ref; None where no penalty is in the loss.
      advantage: one number a response.
    """

    batch: PreferenceBatch
    old_logp: TokenScores
    reference_logp: TokenScores | None
    advantage: Float[Array, "batch G"]


def policy_gradient_loss(
    logps: TokenLogps,
    method: str,
    *,
    hyper: Mapping[str, float],
    longest: int,
    kl_weight: float = 0.0,
    kl: str = "k3_in_loss",
) -> Callable[..., tuple[Mean, Metrics]]:
    """The loss of a policy gradient: (parameters, `Learned`) -> its mean and metrics.

    A penalty in the loss is k₂ or k₃ of what the method's ratio is of: of whole responses for `reinforce` and `rloo`,
    where its gradient is that of KL(π ‖ π_ref) or KL(π_ref ‖ π); of single tokens, which add up as the loss does, for
    the others, where it is the sum of the tokens' own divergences, what comes before them held (GRPO's).

    Args:
      logps: from `scorer`, of the policy.
      method: a name in `ESTIMATORS`.
      hyper: from `hyper_of`.
      longest: the most tokens that a response has.
      kl_weight: β of the penalty in the loss.
      kl: which penalty; one "in_reward" is none here.
    """
    estimator = ESTIMATORS[method]
    penalised = kl_weight > 0 and kl.endswith("in_loss")

    def loss(params: Params, learned: Learned, anchor: Params | None = None) -> tuple[Mean, Metrics]:
        logp, where = logps(params, learned.batch), jnp.asarray(learned.batch.response_mask)[..., 1:]
        mean = estimator.loss(logp, learned.old_logp, learned.advantage, where, **hyper)
        if penalised:
            extra = _penalty(estimator, kl, logp, learned.reference_logp, where, longest)
            mean = Mean(mean.total + kl_weight * extra.total, mean.weight)
        log_ratio = jax.lax.stop_gradient(logp) - learned.old_logp
        return mean, clip_fraction(estimator, log_ratio, learned.advantage, where, hyper)

    return loss


def _penalty(
    estimator: Estimator, kl: str, logp: Array, reference_logp: Array | None, where: Array, longest: int
) -> Mean:
    if reference_logp is None:
        raise ValueError("a penalty in the loss was asked for, but the reference's log-probabilities are None.")
    measure = kl_k2 if kl.startswith("k2") else kl_k3
    if not estimator.reuses:  # whole responses: the log-ratio is a sum of differences
        log_ratio = masked_sum(logp - reference_logp, where, axis=-1)
        return Mean.of(measure(log_ratio, jnp.zeros_like(log_ratio)))
    return estimator.add_up(measure(logp, reference_logp), where, longest)


def clip_fraction(
    estimator: Estimator, log_ratio: Array, advantage: Array, where: Array, hyper: Mapping[str, float]
) -> Metrics:
    """`clip_fraction`, the share of tokens (GSPO: responses) whose ratio is clipped or capped, and so has no gradient.

    CISPO's capped tokens keep theirs, with the cap as their weight. A method without ratios has no such number.
    """
    if not estimator.reuses:
        return {}
    if estimator.whole:
        log_ratio, where = masked_mean(log_ratio, where, axis=-1), jnp.any(where, axis=-1)
    else:
        advantage = jnp.broadcast_to(advantage[..., None], log_ratio.shape)
    ratio = jnp.exp(log_ratio)
    up, down = advantage > 0, advantage < 0
    if "clip_low" not in hyper:
        return {"clip_fraction": Mean.of((ratio > hyper["ratio_cap"]).astype(ratio.dtype), where)}
    out = (up & (ratio > 1 + hyper["clip_high"])) | (
        down & ((ratio < 1 - hyper["clip_low"]) | (ratio > hyper["ratio_cap"]))
    )
    return {"clip_fraction": Mean.of(out.astype(ratio.dtype), where)}
