"""What a critic may look at: 1+K responses to each prompt, token by token."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks

__all__ = ["Candidates"]


class Candidates(NamedTuple):
    """1+K responses to each prompt of a batch; candidate 0 is the chosen one, or the best of a ranking.

    Log-probabilities come token by token, because a log-ratio summed from per-token differences is 10³ to 10⁶ times
    more exact than the difference of two sums. Those who have only sums use `from_sequences`. Fields that a method does
    not look at stay None.

    Attributes:
      policy: log π of each response token, in nats.
      reference: log π_ref of each response token.
      response_mask: True where a token belongs to the response; None: everywhere.
      candidate_mask: True where there is a candidate; None: everywhere.
      desirable: True where a single response is a good one (KTO, BCO).
      reward: an annotator's reward of each candidate, for soft labels.
      score: a reward head's value of each candidate.
      margin: how much better the chosen response was said to be.
      length: tokens of each response, where `policy` holds sums; None: counted from `response_mask`.
      reference_kl: KL(π_ref(·|prefix) ‖ π(·|prefix)) at each response token (TDPO).
      log_collision: log Σ_v π(v|prefix)² at each response token (WPO).
      reference_point: the KL estimate that KTO measures rewards against.
    """

    policy: Float[Array, "*batch C T"]
    reference: Float[Array, "*batch C T"] | None = None
    response_mask: Bool[Array, "*batch C T"] | None = None
    candidate_mask: Bool[Array, "*batch C"] | None = None
    desirable: Bool[Array, "*batch C"] | None = None
    reward: Float[Array, "*batch C"] | None = None
    score: Float[Array, "*batch C"] | None = None
    margin: Float[Array, "*batch"] | None = None
    length: Float[Array, "*batch C"] | None = None
    reference_kl: Float[Array, "*batch C T"] | None = None
    log_collision: Float[Array, "*batch C T"] | None = None
    reference_point: Float[Array, ""] | None = None

    @classmethod
    def from_sequences(
        cls,
        policy: Float[Array, "*batch C"],
        reference: Float[Array, "*batch C"] | None = None,
        *,
        length: Float[Array, "*batch C"] | None = None,
        **fields: Any,
    ) -> Candidates:
        """Candidates from log-probabilities of whole responses: each counts as one token, of length `length`.

        Args:
          policy: log π(y|x), chosen first.
          reference: log π_ref(y|x), for methods with a reference.
          length: tokens of each response, for methods that normalise by length; 1 where it is not given.
          **fields: any other field of `Candidates`.

        Raises:
          ValueError: shapes differ.
          TypeError: log-probabilities are not floating-point.

        >>> import jax.numpy as jnp
        >>> Candidates.from_sequences(jnp.array([[-3.0, -4.0]]), jnp.array([[-3.5, -3.0]])).policy.shape
        (1, 2, 1)
        """
        given = {
            k: jnp.asarray(v)
            for k, v in (("policy", policy), ("reference", reference), ("length", length))
            if v is not None
        }
        checks.floating(policy=given["policy"])
        checks.same_shape(**given)
        tokens = {name: given[name][..., None] for name in ("policy", "reference") if name in given}
        return cls(**tokens, length=given.get("length"), **fields)
