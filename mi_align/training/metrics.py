"""What a step reports. Metrics travel as `Mean(total, weight)`, so that merging them is exact; floats are made last."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.critics.candidates import Candidates
from mi_align.critics.policy import log_probability, log_ratio
from mi_align.numerics import Mean

__all__ = ["Metrics", "merge", "preference_metrics", "summarise"]

Metrics = dict[str, Mean]


def preference_metrics(candidates: Candidates) -> Metrics:
    """Where the candidates stand, in nats and free of β; the rejected ones averaged over all that are there.

    Returns:
      `logp/chosen`, `logp/rejected`: log π of the whole response. With a reference also `log_ratio/chosen`,
      `log_ratio/rejected`, log π − log π_ref, and `accuracy`, the share of rejected responses whose log-ratio is below
      their chosen one's (ties count one half, so that it is ½ before the first step).
    """
    where = None if candidates.candidate_mask is None else candidates.candidate_mask[..., 1:]
    metrics = _levels("logp", log_probability(candidates, beta=1.0), where)
    if candidates.reference is None:
        return metrics
    ratio = log_ratio(candidates)
    margin = ratio[..., :1] - ratio[..., 1:]
    return metrics | _levels("log_ratio", ratio, where) | {"accuracy": Mean.of((jnp.sign(margin) + 1) / 2, where)}


def _levels(name: str, values: Float[Array, "*batch C"], where: Array | None) -> Metrics:
    return {
        f"{name}/chosen": Mean.of(values[..., 0]),
        f"{name}/rejected": Mean.of(values[..., 1:], where),
    }


def merge(first: Metrics, second: Metrics) -> Metrics:
    """The metrics of both batches together; the same names have to be in both."""
    if first.keys() != second.keys():
        raise ValueError(f"metrics {sorted(first)} and {sorted(second)} cannot be merged: the same names were wanted.")
    return {name: mean.merge(second[name]) for name, mean in first.items()}


def summarise(metrics: Metrics) -> dict[str, float]:
    """The metrics as numbers, fetched from the device at once."""
    return {name: float(value) for name, value in jax.device_get({k: m.value() for k, m in metrics.items()}).items()}
