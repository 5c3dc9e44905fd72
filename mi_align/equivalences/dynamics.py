"""Preference learning in miniature: a log-linear policy over a handful of responses, trained by gradient descent.

    π_θ(y) ∝ π_ref(y) exp⟨θ, φ(y)⟩

At θ = 0 the policy is the reference. Everything can be enumerated, and yet it behaves as a language model does:
responses that share features move together, so that raising the chosen over the rejected response may lower both. With
a feature of its own for each response (φ = identity) the policy is tabular and, on one pair, cannot show it: ledger 32.

The losses are the library's own: any `Method`, or any function from `Candidates` to one loss a pair. Small steps over
long times need float64; callers enter `jax.enable_x64(True)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mi_align.critics import Candidates

__all__ = [
    "History",
    "Task",
    "candidates",
    "ches_score",
    "descend",
    "displacement_criterion",
    "iterate",
    "length_normalised_ches_score",
    "log_policy",
    "log_ratio",
    "log_spaced",
    "loss_of",
    "train",
]

PairLosses = Callable[[Candidates], Float[Array, "pairs"]]


class Task(NamedTuple):
    """One prompt, its responses, and the comparisons to learn from.

    Attributes:
      features: φ, a row a response.
      log_reference: log π_ref, natural logarithms of probabilities that sum to 1.
      comparisons: indices of responses, a row a comparison: the chosen one, then the rejected.
    """

    features: Float[Array, "responses features"]
    log_reference: Float[Array, "responses"]
    comparisons: Int[Array, "pairs candidates"]


class History(NamedTuple):
    """A trajectory, looked at after the steps in `step`.

    Attributes:
      step: how many steps had been made.
      parameters: θ.
      log_ratio: log π_θ − log π_ref of every response, in nats.
      log_policy: log π_θ of every response.
    """

    step: Int[Array, "records"]
    parameters: Float[Array, "records features"]
    log_ratio: Float[Array, "records responses"]
    log_policy: Float[Array, "records responses"]


def log_policy(task: Task, parameters: Float[Array, "features"]) -> Float[Array, "responses"]:
    """log π_θ of every response."""
    return jax.nn.log_softmax(task.log_reference + task.features @ parameters)


def log_ratio(task: Task, parameters: Float[Array, "features"]) -> Float[Array, "responses"]:
    """log π_θ − log π_ref of every response, without the cancellation: ⟨θ, φ⟩ minus its own log-partition function."""
    tilt = task.features @ parameters
    return tilt - jax.nn.logsumexp(task.log_reference + tilt)


def candidates(task: Task, parameters: Float[Array, "features"]) -> Candidates:
    """What a method takes: the compared responses as sequences of one token each, `[pairs, candidates, 1]`."""
    policy = log_policy(task, parameters)
    return Candidates.from_sequences(policy[task.comparisons], task.log_reference[task.comparisons])


def loss_of(task: Task, method: PairLosses) -> Callable[[Float[Array, "features"]], Float[Array, ""]]:
    """θ -> the mean of a method's losses over the comparisons."""
    return lambda parameters: jnp.mean(method(candidates(task, parameters)))


def log_spaced(last: int, count: int = 200) -> tuple[int, ...]:
    """Distinct step numbers 1 … last, evenly spread on a logarithmic axis, at most `count` of them."""
    return tuple(int(step) for step in np.unique(np.geomspace(1, last, count).round()))


def iterate(step: Callable[[Array], Array], start: Array, record: tuple[int, ...]) -> Array:
    """x ← step(x), looked at after each of the numbers of steps in `record`, which must increase.

    Memory grows with the number of records, not with that of the steps.
    """
    stops = np.asarray(record, np.int32)
    segments = jnp.stack([jnp.asarray(np.append(np.int32(0), stops[:-1])), jnp.asarray(stops)], axis=-1)

    def to_next_record(x: Array, segment: Array) -> tuple[Array, Array]:
        x = jax.lax.fori_loop(segment[0], segment[1], lambda _, x: step(x), x)
        return x, x

    return jax.lax.scan(to_next_record, start, segments)[1]


def descend(
    loss: Callable[[Float[Array, "n"]], Float[Array, ""]],
    start: Float[Array, "n"],
    *,
    learning_rate: float | Float[Array, ""],
    record: tuple[int, ...],
) -> Float[Array, "records n"]:
    """Plain gradient descent; the parameters after each of the numbers of steps in `record`."""
    slope = jax.grad(loss)
    return iterate(lambda x: x - learning_rate * slope(x), start, record)


def train(
    task: Task,
    method: PairLosses,
    *,
    learning_rate: float | Float[Array, ""],
    record: tuple[int, ...],
    start: Float[Array, "features"] | None = None,
) -> History:
    """Train the policy by plain gradient descent on the mean loss.

    Args:
      task: what to learn.
      method: a configured `Method`, or any function from `Candidates` to one loss a pair.
      learning_rate: step size.
      record: increasing step numbers after which to look.
      start: θ before the first step; by default 0, where the policy is the reference.

    Returns:
      The trajectory at those steps.
    """
    start = jnp.zeros_like(task.features[0]) if start is None else start
    path = descend(loss_of(task, method), start, learning_rate=learning_rate, record=record)
    seen = [jax.vmap(look, (None, 0))(task, path) for look in (log_ratio, log_policy)]
    return History(jnp.asarray(record), path, *seen)


def displacement_criterion(task: Task, parameters: Float[Array, "features"]) -> Float[Array, "pairs"]:
    """⟨φ_w − φ̄, φ_w − φ_l⟩ of each comparison's first two candidates, φ̄ the policy's mean feature (ledger 31).

    Under DPO on one pair, a small step lowers the chosen response's probability exactly if this is negative.
    """
    mean = jnp.exp(log_policy(task, parameters)) @ task.features
    chosen, rejected = task.features[task.comparisons[:, 0]], task.features[task.comparisons[:, 1]]
    return jnp.sum((chosen - mean[None, :]) * (chosen - rejected), axis=-1)


def ches_score(
    chosen: Float[Array, "time features"], rejected: Float[Array, "other_time features"]
) -> Float[Array, ""]:
    """Centred hidden-embedding similarity of a pair, ⟨Σh⁺, Σh⁻⟩ − ‖Σh⁺‖²; the higher, the more displacement.

    Args:
      chosen: hidden states from the prompt's last token to the response's last but one.
      rejected: the same of the other response; lengths may differ.

    Source: Razin et al. 2024 (arXiv 2410.08847), and its authors' ches.py.
    """
    high, low = jnp.sum(chosen, axis=0), jnp.sum(rejected, axis=0)
    return jnp.vdot(high, low) - jnp.vdot(high, high)


def length_normalised_ches_score(
    chosen: Float[Array, "time features"], rejected: Float[Array, "other_time features"]
) -> Float[Array, ""]:
    """`ches_score` with its terms divided by |y⁺||y⁻| and |y⁺|²: that of the mean hidden states."""
    return ches_score(jnp.mean(chosen, axis=0, keepdims=True), jnp.mean(rejected, axis=0, keepdims=True))
