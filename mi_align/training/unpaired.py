"""Labelled responses in a run: KTO's reference point from mismatched ones, and metrics of good and bad ones apart."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.critics import Candidates, log_probability, log_ratio
from mi_align.methods import Method
from mi_align.numerics import Mean
from mi_align.objectives import kto_reference_point

__all__ = ["Count", "Gap", "around_mismatched", "unpaired_metrics"]


class Count(NamedTuple):
    """A number of examples, in transit: parts of a batch add up."""

    total: Float[Array, ""]

    def merge(self, other: Count) -> Count:
        """Those of both samples together."""
        return Count(self.total + other.total)

    def value(self) -> Float[Array, ""]:
        """How many."""
        return self.total


class Gap(NamedTuple):
    """The difference of two means, in transit."""

    upper: Mean
    lower: Mean

    def merge(self, other: Gap) -> Gap:
        """That of both samples together."""
        return Gap(self.upper.merge(other.upper), self.lower.merge(other.lower))

    def value(self) -> Float[Array, ""]:
        """The upper mean minus the lower; 0 stands in for a mean of nothing."""
        return self.upper.value() - self.lower.value()


def around_mismatched(candidates: Candidates) -> Candidates:
    """Without their last candidate, a response to another prompt, of which the reference point is made.

    z = max(0, mean log π/π_ref of the mismatched responses), nats, over the whole batch and without a gradient: one
    number, on a mesh of devices too (TRL cuts each device's mean off at 0, and averages those).
    """
    cut = {name: value[:, :-1] for name, value in candidates._asdict().items() if value is not None}
    other = Candidates(**{name: value[:, -1:] for name, value in candidates._asdict().items() if value is not None})
    divergence = kto_reference_point(log_ratio(other), where=other.candidate_mask)
    return Candidates(**cut)._replace(reference_point=divergence)


def unpaired_metrics(method: Method, candidates: Candidates) -> dict[str, Mean | Count | Gap]:
    """Means over the desirable and over the undesirable responses apart.

    Returns:
      `logp/…` and, with a reference, `log_ratio/…` in nats, `rewards/…` in the method's own logits, each for `chosen`
      (desirable) and `rejected` (undesirable); `rewards/margins`, the difference of the two means; `count/…`, how many
      there were; with a reference point `kl`, KTO's z in nats.
    """
    assert candidates.desirable is not None and candidates.candidate_mask is not None
    labels = {
        "chosen": candidates.candidate_mask & candidates.desirable,
        "rejected": candidates.candidate_mask & ~candidates.desirable,
    }
    values = {"logp": log_probability(candidates, beta=1.0), "rewards": method.logits(candidates)}
    if candidates.reference is not None:
        values["log_ratio"] = log_ratio(candidates)
    metrics: dict[str, Mean | Count | Gap] = {}
    for label, where in labels.items():
        metrics |= {f"{name}/{label}": Mean.of(value, where) for name, value in values.items()}
        metrics[f"count/{label}"] = Count(jnp.sum(where, dtype=jnp.float32))
    good, bad = (metrics[f"rewards/{label}"] for label in labels)
    assert isinstance(good, Mean) and isinstance(bad, Mean)
    metrics["rewards/margins"] = Gap(good, bad)
    if candidates.reference_point is not None:
        point = jnp.asarray(candidates.reference_point)
        metrics["kl"] = Mean(point, jnp.ones_like(point))
    return metrics
