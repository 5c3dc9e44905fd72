"""What a critic looks at: the candidates of each prompt and what is known about their tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mi_align import checks

__all__ = ["Candidates"]


class Candidates(NamedTuple):
    """C responses to each prompt, of up to T tokens; the first is the chosen one. A pytree.

    Log-probabilities come a token at a time, because log-ratios are sums of per-token differences: with 1,024 tokens
    that is 10³ to 10⁶ times more exact in float32 than the difference of two sums. `from_sequences` is for those who
    have only the sums. Nothing but the fields that a critic reads has to be given.

    Attributes:
      policy: log π of each token, nats, `[*batch, C, T]`; gradients flow through it.
      reference: log π_ref of each token, nats, `[*batch, C, T]`; a constant to gradients.
      response_mask: which tokens belong to the response, `[*batch, C, T]`, True = keep. Default: all.
      candidate_mask: which candidates are there, `[*batch, C]`, True = keep. Default: all.
      length: tokens in each response, `[*batch, C]`, where the token axis holds sums over them (`from_sequences`).
        Default: counted from the masks.
      score: a reward head's value of each candidate, a logit, `[*batch, C]`.
      reward: how good each candidate is on an outside scale, `[*batch, C]`; soft labels are made of it.
      margin: how much better the chosen response was said to be, in logits, `[*batch]`.
      desirable: labels of single responses, `[*batch, C]`. Default: the first candidate is, the others are not.
      reference_point: KTO's z, an estimate of KL(π ‖ π_ref) in nats, `[]` or `[*batch]`.
      reference_kl: Σ_v π_ref(v) log π_ref(v)/π(v) at each position, nats, `[*batch, C, T]` (TDPO).
      log_collision: log Σ_v π(v)² at each position, nats, `[*batch, C, T]` (WPO).
      nll_mask: which tokens likelihood regularisers count, `[*batch, C, T]`. Default: those of the response.
      extras: anything that critics of your own read, arrays by name.
    """

    policy: Float[Array, "*batch C T"] | None = None
    reference: Float[Array, "*batch C T"] | None = None
    response_mask: Bool[Array, "*batch C T"] | None = None
    candidate_mask: Bool[Array, "*batch C"] | None = None
    length: Int[Array, "*batch C"] | Float[Array, "*batch C"] | None = None
    score: Float[Array, "*batch C"] | None = None
    reward: Float[Array, "*batch C"] | None = None
    margin: Float[Array, "*batch"] | None = None
    desirable: Bool[Array, "*batch C"] | None = None
    reference_point: Float[Array, "*#batch"] | None = None
    reference_kl: Float[Array, "*batch C T"] | None = None
    log_collision: Float[Array, "*batch C T"] | None = None
    nll_mask: Bool[Array, "*batch C T"] | None = None
    extras: Mapping[str, Array] | None = None

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The axes before that of the candidates, by the first field that is there."""
        by_token, by_candidate = (self.policy, self.reference), (self.score, self.reward)
        shapes = [jnp.shape(x)[:-2] for x in by_token if x is not None]
        shapes += [jnp.shape(x)[:-1] for x in by_candidate if x is not None]
        return shapes[0] if shapes else ()

    @classmethod
    def from_sequences(
        cls,
        policy: Float[Array, "*batch C"],
        reference: Float[Array, "*batch C"] | None = None,
        *,
        length: Int[Array, "*batch C"] | Float[Array, "*batch C"] | None = None,
        **fields: Any,
    ) -> Candidates:
        """Candidates of whom only the log-probabilities of whole responses are known.

        Args:
          policy: log π of each response, nats, `[*batch, C]`.
          reference: log π_ref of each response, nats, `[*batch, C]`.
          length: tokens in each response, `[*batch, C]`. Critics that normalise by length refuse to guess it.
          **fields: any other field of `Candidates`.

        Raises:
          ValueError: shapes differ, or there is no candidate.
          TypeError: log-probabilities are not floating-point.

        >>> import jax.numpy as jnp
        >>> Candidates.from_sequences(jnp.array([[-12.0, -15.0]]), jnp.array([[-13.0, -14.5]])).policy.shape
        (1, 2, 1)
        """
        checks.floating(policy=policy)
        checks.candidates(policy, name="policy")
        given = {"policy": policy, "reference": reference, "length": length}
        checks.same_shape(**{name: x for name, x in given.items() if x is not None})
        # An unknown length is an axis of length 0, by which critics that need it tell sums from tokens.
        unknown = jnp.zeros((*jnp.shape(policy)[:-1], 0))
        return cls(
            policy=jnp.asarray(policy)[..., None],
            reference=None if reference is None else jnp.asarray(reference)[..., None],
            length=unknown if length is None else length,
            **fields,
        )
