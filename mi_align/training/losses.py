"""From a batch to the loss of a step: what the table's methods and supervised learning look like to `train_step`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.critics.candidates import Candidates
from mi_align.data import chosen_only
from mi_align.methods import Method
from mi_align.numerics import Mean
from mi_align.training.metrics import Metrics, method_metrics, preference_metrics
from mi_align.training.readers import Reader
from mi_align.training.scoring import Batch, TokenLogps, candidates
from mi_align.training.state import Params
from mi_align.training.unpaired import around_mismatched, unpaired_metrics

__all__ = ["comparison", "metrics_of", "preference_loss", "supervised_loss"]

Scored = tuple[Batch, Float[Array, "batch candidates time-1"] | None]


def comparison(
    logps: TokenLogps, *, live: TokenLogps | None = None, read: Reader | None = None, mismatched: bool = False
) -> Callable[..., Candidates]:
    """(parameters, (batch, the reference's scores)[, the reference's parameters]) -> what a method compares.

    The arguments are those of `preference_loss`.
    """

    def compare(params: Params, scored: Scored, anchor: Params | None = None) -> Candidates:
        batch, reference = scored
        if read is not None:
            compared = read(params, params if anchor is None else anchor, batch, reference)
        else:
            if live is not None:
                reference = jax.lax.stop_gradient(live(params if anchor is None else anchor, batch))
            compared = candidates(batch, logps(params, batch), reference)
        return around_mismatched(compared) if mismatched else compared

    return compare


def preference_loss(
    logps: TokenLogps,
    method: Method | Callable[[Candidates], Float[Array, "batch"]],
    *,
    live: TokenLogps | None = None,
    read: Reader | None = None,
    mismatched: bool = False,
) -> Callable[..., tuple[Mean, Metrics]]:
    """The loss of a preference method, e.g. `METHODS["dpo"].configure(beta=0.2)`, averaged over the batch.

    What it takes besides the parameters is a pair: the batch, and the reference's log-probabilities of it a token,
    computed before: `logps(reference, batch)`. They are None for a method without a reference, and with `live`, which
    scores the reference in the same step. Either way the first step's margins are exactly 0. A prompt without any
    candidate (padding of a batch) has no weight.

    Args:
      logps: from `scorer`, of the policy.
      method: a row of the table, configured.
      live: scores the reference: from the state's reference parameters, or, where it has none, from the policy's own,
        of which an adapter's base is a part.
      read: makes the candidates of a method that reads more than log-probabilities (`readers.reader`), in the place of
        `logps` and `live`.
      mismatched: the last candidate of each example is a response to another prompt (`data.mismatched`), of which KTO's
        reference point is made. It couples the examples of a batch.
    """
    compare = comparison(logps, live=live, read=read, mismatched=mismatched)

    def loss(params: Params, scored: Scored, anchor: Params | None = None) -> tuple[Mean, Metrics]:
        compared = compare(params, scored, anchor)
        there = jnp.any(jnp.asarray(scored[0].candidate_mask), axis=-1)
        return Mean.of(method(compared), there), metrics_of(method, compared)

    coupled = mismatched or getattr(method, "couples_batch", False)
    loss.couples_batch = coupled  # type: ignore[attr-defined]  # for `train_step`
    return loss


def metrics_of(method: Method | Callable[[Candidates], Array], compared: Candidates) -> Metrics:
    """Where the candidates stand, as a run reports it of a batch."""
    if not isinstance(method, Method):
        return preference_metrics(compared)
    if compared.policy is None:  # a reward model says how good responses are, not how likely
        return method_metrics(method, compared)
    if compared.desirable is not None:
        return unpaired_metrics(method, compared)
    return preference_metrics(compared) | method_metrics(method, compared)


def supervised_loss(logps: TokenLogps) -> Callable[[Params, Batch], tuple[Mean, Metrics]]:
    """Mean negative log-likelihood of a token of the chosen responses; the rejected ones are not looked at."""

    def loss(params: Params, batch: Batch) -> tuple[Mean, Metrics]:
        chosen = chosen_only(batch)
        return Mean.of(-logps(params, chosen), jnp.asarray(chosen.response_mask)[..., 1:]), {}

    return loss
