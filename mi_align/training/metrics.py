"""What a step reports. Metrics travel as `Mean(total, weight)`, so that merging them is exact; floats are made last."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.critics.candidates import Candidates
from mi_align.critics.policy import log_probability, log_ratio
from mi_align.methods import Method
from mi_align.numerics import Mean, masked_mean
from mi_align.objectives import info_nce_bound, nca_loss

__all__ = ["Clipped", "Metrics", "merge", "method_metrics", "preference_metrics", "summarise"]


class Clipped(NamedTuple):
    """Donsker and Varadhan's bound of all examples together, in transit: two means, of which one passes a logarithm.

    Attributes:
      joint: mean score of the chosen responses.
      partition: mean of e^score over all candidates, their scores clipped at ±60, beyond which float32 would overflow.
    """

    joint: Mean
    partition: Mean

    def merge(self, other: Clipped) -> Clipped:
        """The bound over both samples together."""
        return Clipped(self.joint.merge(other.joint), self.partition.merge(other.partition))

    def value(self) -> Float[Array, ""]:
        """Nats; 0 where nothing was kept."""
        mean = self.partition.value()
        return self.joint.value() - jnp.log(jnp.where(mean > 0, mean, 1))


#: By name, what has `merge` and `value`.
Metrics = dict[str, Any]


def preference_metrics(candidates: Candidates) -> Metrics:
    """Where the candidates stand, in nats and free of β; the rejected ones averaged over all that are there.

    Returns:
      `logp/chosen`, `logp/rejected`: log π of the whole response. With a reference also `log_ratio/chosen`,
      `log_ratio/rejected`, log π − log π_ref, and `accuracy`, the share of rejected responses whose log-ratio is below
      their chosen one's (ties count one half, so that it is ½ before the first step).
    """
    chosen, rejected = _there(candidates)
    metrics = _levels("logp", log_probability(candidates, beta=1.0), chosen, rejected)
    if candidates.reference is None:
        return metrics
    ratio = log_ratio(candidates)
    return metrics | _levels("log_ratio", ratio, chosen, rejected) | {"accuracy": _accuracy(ratio, rejected)}


def method_metrics(method: Method, candidates: Candidates) -> Metrics:
    """Where the candidates stand in the method's own logits, which for DPO and MIO are the implicit rewards.

    Returns:
      `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies` under the names that TRL has, and
      what three bounds say, in nats and on these logits as they are, of how much a response tells whether it was
      chosen: `mi/info_nce`, `mi/donsker_varadhan` and `mi/jensen_shannon`, the joint being the chosen responses and
      the marginal all candidates of a prompt. They are lower bounds on KL(chosen ‖ all candidates) ≤ log(1 + K), not on
      anything larger; the second is clipped at ±60 (`Clipped`), the third is −MIO + log 4 (ledger 5, 13, 16, 18).
    """
    chosen, rejected = _there(candidates)
    logits = method.logits(candidates)
    positive, negatives = logits[..., 0], logits[..., 1:]
    if not negatives.shape[-1]:  # single responses with a score
        return {"rewards/chosen": Mean.of(positive, chosen)}
    margins = positive[..., None] - negatives
    everyone = jnp.concatenate([chosen[..., None], rejected], axis=-1)
    partition = masked_mean(jnp.exp(jnp.clip(logits, -60, 60)), everyone, axis=-1)
    return _levels("rewards", logits, chosen, rejected) | {
        "rewards/margins": Mean.of(margins, rejected),
        "rewards/accuracies": _accuracy(logits, rejected),
        "mi/info_nce": Mean.of(info_nce_bound(positive, negatives, where=rejected), chosen),
        "mi/donsker_varadhan": Clipped(Mean.of(positive, chosen), Mean.of(partition, chosen)),
        "mi/jensen_shannon": Mean.of(math.log(4) - nca_loss(positive, negatives, where=rejected), chosen),
    }


def _there(candidates: Candidates) -> tuple[Array, Array]:
    """Which chosen and which rejected responses count: a rejected one does with its chosen one."""
    known = candidates.score if candidates.policy is None else candidates.policy[..., 0]
    if known is None:
        raise ValueError("`candidates.policy` is None, but token log-probabilities were wanted, or a reward's scores.")
    mask = candidates.candidate_mask
    mask = jnp.ones(known.shape, bool) if mask is None else jnp.asarray(mask)
    return mask[..., 0], mask[..., 1:] & mask[..., :1]


def _accuracy(values: Float[Array, "*batch C"], where: Array) -> Mean:
    return Mean.of((jnp.sign(values[..., :1] - values[..., 1:]) + 1) / 2, where)


def _levels(name: str, values: Float[Array, "*batch C"], chosen: Array, rejected: Array) -> Metrics:
    return {
        f"{name}/chosen": Mean.of(values[..., 0], chosen),
        f"{name}/rejected": Mean.of(values[..., 1:], rejected),
    }


def merge(first: Metrics, second: Metrics) -> Metrics:
    """The metrics of both batches together; the same names have to be in both."""
    if first.keys() != second.keys():
        raise ValueError(f"metrics {sorted(first)} and {sorted(second)} cannot be merged: the same names were wanted.")
    return {name: mean.merge(second[name]) for name, mean in first.items()}


def summarise(metrics: Metrics) -> dict[str, float]:
    """The metrics as numbers, fetched from the device at once."""
    return {name: float(value) for name, value in jax.device_get({k: m.value() for k, m in metrics.items()}).items()}
