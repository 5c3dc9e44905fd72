"""The policy gradients by name: which objective of the library, how its tokens add up, and against which baseline.

    name        a sample's loss                      added up over                     advantage
    reinforce   −A log π of the response             responses                         batch
    rloo        −A log π of the response             responses                         rloo
    ppo         clipped ratio of each token          a response's tokens, responses    rloo
    grpo        clipped ratio of each token          a response's mean, responses      group
    dr_grpo     clipped ratio of each token          sum / max_new_tokens, responses   centred
    dapo        clipped ratio of each token          all tokens of the batch           group
    bnpo        clipped ratio of each token          tokens of each micro-batch        group
    cispo       capped ratio as weight of −A log π   all tokens of the batch           group
    gspo        clipped ratio of the response        responses                         group

All but the first two may make several steps on the same samples. Baselines are means of rewards: there is no value
head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import Mean, masked_mean, masked_sum
from mi_align.objectives import (
    bnpo_loss,
    centred_advantage,
    cispo_loss,
    dapo_loss,
    dr_grpo_loss,
    group_advantage,
    grpo_loss,
    gspo_loss,
    ppo_loss,
    reinforce_loss,
    rloo_advantage,
)

__all__ = ["ADVANTAGES", "ESTIMATORS", "Estimator", "advantage_of", "hyper_of"]

Tokens = Float[Array, "batch G T"]
Responses = Float[Array, "batch G"]
Kept = Bool[Array, "batch G T"]


class Estimator(NamedTuple):
    """One policy gradient.

    Attributes:
      objective: whose hyper-parameters are the run's.
      loss: (log π, log of the policy that sampled, advantage, which tokens count, **hyper) -> the batch's mean loss.
      add_up: (a number a token, which count, `max_new_tokens`) -> its mean, weighed as the loss weighs tokens.
      advantage: a name in `ADVANTAGES`.
      reuses: whether several steps may be made on the same samples.
      whole: whether the unit is a response, not a token.
    """

    objective: Callable[..., Any]
    loss: Callable[..., Mean]
    add_up: Callable[[Tokens, Kept, int], Mean]
    advantage: str
    reuses: bool = True
    whole: bool = False


def _over_responses(values: Tokens, where: Kept, longest: int) -> Mean:
    return Mean.of(masked_sum(values, where, axis=-1))


def _over_means(values: Tokens, where: Kept, longest: int) -> Mean:
    return Mean.of(masked_mean(values, where, axis=-1))


def _over_longest(values: Tokens, where: Kept, longest: int) -> Mean:
    return Mean.of(masked_sum(values, where, axis=-1) / longest)


def _over_tokens(values: Tokens, where: Kept, longest: int) -> Mean:
    return Mean.of(values, where)


def _over_parts(values: Tokens, where: Kept, longest: int) -> Mean:
    return _part(Mean.of(values, where))


def _part(mean: Mean) -> Mean:
    """A micro-batch's own mean, all of which weigh alike."""
    return Mean(mean.value(), jnp.ones_like(mean.weight))


def _reinforce(logp: Tokens, old_logp: Tokens, advantage: Responses, where: Kept) -> Mean:
    return Mean.of(reinforce_loss(masked_sum(logp, where, axis=-1), advantage))


def _ppo(logp: Tokens, old_logp: Tokens, advantage: Responses, where: Kept, **hyper: Any) -> Mean:
    each = ppo_loss(logp, old_logp, jnp.broadcast_to(advantage[..., None], logp.shape), **hyper)
    return Mean.of(masked_sum(each, where, axis=-1))


def _averaged(objective: Callable[..., Array]) -> Callable[..., Mean]:
    def loss(logp: Tokens, old_logp: Tokens, advantage: Responses, where: Kept, **hyper: Any) -> Mean:
        return Mean.of(objective(logp, old_logp, advantage, where=where, **hyper))

    return loss


def _added(objective: Callable[..., Mean]) -> Callable[..., Mean]:
    def loss(logp: Tokens, old_logp: Tokens, advantage: Responses, where: Kept, **hyper: Any) -> Mean:
        return objective(logp, old_logp, advantage, where=where, **hyper)

    return loss


def _bnpo(*arguments: Any, **hyper: Any) -> Mean:
    return _part(_added(bnpo_loss)(*arguments, **hyper))


ESTIMATORS: Mapping[str, Estimator] = {
    "reinforce": Estimator(reinforce_loss, _reinforce, _over_responses, "batch", reuses=False, whole=True),
    "rloo": Estimator(reinforce_loss, _reinforce, _over_responses, "rloo", reuses=False, whole=True),
    "ppo": Estimator(ppo_loss, _ppo, _over_responses, "rloo"),
    "grpo": Estimator(grpo_loss, _averaged(grpo_loss), _over_means, "group"),
    "dr_grpo": Estimator(dr_grpo_loss, _averaged(dr_grpo_loss), _over_longest, "centred"),
    "dapo": Estimator(dapo_loss, _added(dapo_loss), _over_tokens, "group"),
    "bnpo": Estimator(bnpo_loss, _bnpo, _over_parts, "group"),
    "cispo": Estimator(cispo_loss, _added(cispo_loss), _over_tokens, "group"),
    "gspo": Estimator(gspo_loss, _averaged(gspo_loss), _over_means, "group", whole=True),
}


def _of_batch(reward: Responses) -> Responses:
    return rloo_advantage(reward.reshape(-1)).reshape(reward.shape)


#: Rewards `[batch, G]` -> advantages `[batch, G]`.
ADVANTAGES: Mapping[str, Callable[[Responses], Responses]] = {
    "none": lambda reward: reward,
    "batch": _of_batch,
    "rloo": rloo_advantage,
    "centred": centred_advantage,
    "group": group_advantage,
}

#: Hyper-parameters that a run may set; β has its place in `on_policy`, and `max_length` is `max_new_tokens`.
_SETTABLE = ("clip_low", "clip_high", "ratio_cap")


def advantage_of(method: str, wanted: str | None, *, samples: int, responses: int) -> str:
    """The name of the advantage that a run takes.

    Raises:
      ValueError: it compares responses of which there is one alone, or the method is another one with it.
    """
    name = ESTIMATORS[method].advantage if wanted is None else wanted
    if method == "rloo" and name != "rloo":
        raise ValueError(
            f"`on_policy.advantage` is {name!r}, but RLOO's is 'rloo'. Take `method: reinforce`, whose "
            "loss is the same."
        )
    if name != "none" and (responses if name == "batch" else samples) < 2:
        raise ValueError(
            f"the advantage {name!r} compares responses, of which there is one: it would always be 0. Raise "
            "`on_policy.samples`, or set `on_policy.advantage: batch` with a `batch` of several prompts, or 'none'."
        )
    return name


def hyper_of(method: str, given: Mapping[str, float], *, longest: int) -> dict[str, float]:
    """All of a policy gradient's hyper-parameters: the given ones and the objective's own defaults.

    Args:
      method: a name in `ESTIMATORS`.
      given: by the user.
      longest: the most tokens that a response has.

    Raises:
      ValueError: it has no such hyper-parameter, or the value is out of range.
    """
    objective = ESTIMATORS[method].objective
    parameters = inspect.signature(objective).parameters
    own = {name: parameters[name].default for name in _SETTABLE if name in parameters}
    for name, value in given.items():
        if name == "beta":
            raise ValueError(
                f"`hyper.beta` is given, but what a nat of KL costs {method!r} is `on_policy.kl_weight`, and where "
                "`on_policy.kl`."
            )
        if not own:
            raise ValueError(f"`hyper` holds {name!r}, but {method!r} has no hyper-parameters.")
        if name not in own:
            raise checks.unknown_name(f"hyper-parameter of {method!r}", name, own)
        checks.number(name, value, getattr(objective, "ranges", {}).get(name))
    length = {"max_length": float(longest)} if "max_length" in parameters else {}
    return own | dict(given) | length
