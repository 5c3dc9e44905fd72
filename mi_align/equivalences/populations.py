"""Chosen and rejected responses to one prompt as two laws on a small alphabet, so that expectations are sums.

p is the law of the chosen responses, r that of the rejected ones, m = (p + r)/2 their mixture; a pair is one of each,
drawn independently. A critic is a vector, one logit a response.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mi_align.critics import Candidates
from mi_align.equivalences.claim import Inputs
from mi_align.equivalences.scores import uniforms
from mi_align.objectives import donsker_varadhan_bound, nca_loss

__all__ = [
    "Laws",
    "donsker_varadhan",
    "jensen_shannon",
    "kullback_leibler",
    "mean_over_pairs",
    "mio_pair_loss",
    "pairs_of_responses",
    "policy_loss",
    "problem",
]

Law = Float[Array, "responses"]


class Laws(NamedTuple):
    """The laws of chosen and of rejected responses: positive, each adding up to 1."""

    chosen: Law
    rejected: Law

    @classmethod
    def of(cls, x: Inputs) -> Laws:
        """Those of a `problem`."""
        return cls(jax.nn.softmax(x["p"]), jax.nn.softmax(x["r"]))

    @property
    def mixture(self) -> Law:
        """m, what a response's law is when it is not known whether it was chosen."""
        return (self.chosen + self.rejected) / 2

    @property
    def ordered(self) -> Float[Array, "responses responses"]:
        """p ⊗ r, the law of (chosen, rejected)."""
        return self.chosen[:, None] * self.rejected[None, :]

    @property
    def odds(self) -> Law:
        """log p/r, the log-odds that a response was chosen."""
        return jnp.log(self.chosen) - jnp.log(self.rejected)

    @property
    def level(self) -> Law:
        """log p/m = log 2p/(p + r), at most log 2."""
        return jnp.log(self.chosen) - jnp.log(self.mixture)


def problem(key: PRNGKeyArray, *, responses: int = 4) -> Inputs:
    """Logits `p`, `r` of the two laws and of a `reference`, any `critic`, β, and how much `noise` to add to something.

    The laws' logits lie up to 11 apart; one time in ten the laws are the same.
    """
    each = (responses,)
    x = uniforms(key, p=each, r=each, reference=each, critic=each, far=(), near=(), beta=(), noise=())
    far, near = jnp.exp(1.7 * x["far"]), jnp.clip(x["near"] + 0.8, 0, 1)
    return {
        "p": far * x["p"],
        "r": far * (x["p"] + near * (x["r"] - x["p"])),
        "reference": 2 * x["reference"],
        "critic": 3 * x["critic"],
        "beta": jnp.exp(1.2 * x["beta"]),
        "noise": jnp.maximum(x["noise"], 0) ** 3,
    }


def kullback_leibler(p: Float[Array, "*shape"], q: Float[Array, "*shape"]) -> Float[Array, ""]:
    """KL(p ‖ q) of positive laws, in nats."""
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)))


def jensen_shannon(p: Float[Array, "*shape"], q: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Jensen–Shannon divergence with weights ½, in nats: at most log 2."""
    middle = (p + q) / 2
    return (kullback_leibler(p, middle) + kullback_leibler(q, middle)) / 2


def mean_over_pairs(loss: Callable[[Array, Array], Array], critic: Law, laws: Laws) -> Float[Array, ""]:
    """E of a pairwise loss of the critic's logits over independent chosen and rejected responses."""
    shape = laws.ordered.shape
    chosen, rejected = jnp.broadcast_to(critic[:, None], shape), jnp.broadcast_to(critic[None, :], shape)
    return jnp.sum(laws.ordered * loss(chosen, rejected))


def mio_pair_loss(positive: Float[Array, "*batch"], negative: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """MIO of pairs: `nca_loss` with one negative."""
    return nca_loss(positive, negative[..., None])


def pairs_of_responses(log_policy: Law, log_reference: Law) -> Candidates:
    """Every (chosen, rejected) that can be drawn, `[responses, responses, 2]`, for a tabular policy."""

    def both(logps: Law) -> Float[Array, "responses responses 2"]:
        shape = (logps.size, logps.size)
        return jnp.stack([jnp.broadcast_to(logps[:, None], shape), jnp.broadcast_to(logps[None, :], shape)], axis=-1)

    return Candidates.from_sequences(both(log_policy), both(log_reference))


def policy_loss(method: Callable[..., Array], log_policy: Law, log_reference: Law, laws: Laws, **hyper: Array) -> Array:
    """E of a method's loss of a tabular policy over independent chosen and rejected responses."""
    return jnp.sum(laws.ordered * method(pairs_of_responses(log_policy, log_reference), **hyper))


def donsker_varadhan(critic: Law, joint: Law, marginal: Law) -> Float[Array, ""]:
    """E_joint T − log E_marginal e^T by the library's bound, each response once, its probability in its score."""
    size = critic.size
    return donsker_varadhan_bound(size * joint * critic, critic + jnp.log(size * marginal))
