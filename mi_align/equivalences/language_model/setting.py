"""What a claim on a language model needs to be given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align.critics.candidates import Candidates

__all__ = ["Params", "Setting", "TokenLogps", "quickly_compiled"]

Params = Any  # a pytree of arrays
P = ParamSpec("P")
R = TypeVar("R")
TokenLogps = Callable[[Params], Float[Array, "batch candidates time"]]


def quickly_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """`jax.jit` for a large program that runs a few times: on CPU, optimising it takes longer than it saves."""
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=quick)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """A language model and a batch, as far as a claim looks at them.

    Attributes:
      logps: parameters -> log π of each response token of the batch, `[batch, candidates, time]`, in the parameters'
        dtype; differentiable.
      policy: parameters that are not the reference's.
      reference: those of the frozen reference.
      response_mask: which tokens belong to a response, `[batch, candidates, time]`.
      candidate_mask: which candidates are there, `[batch, candidates]`; the chosen one first.
      routes: the same log-probabilities made in other ways (more padding, one candidate at a time, …), by name.
    """

    logps: TokenLogps
    policy: Params
    reference: Params
    response_mask: Bool[Array, "batch candidates time"]
    candidate_mask: Bool[Array, "batch candidates"]
    routes: Mapping[str, TokenLogps] = dataclasses.field(default_factory=dict)

    def candidates(self, policy: Array, reference: Array) -> Candidates:
        """Token log-probabilities under both, as what methods take."""
        return Candidates(
            policy=policy,
            reference=reference,
            response_mask=jnp.asarray(self.response_mask),
            candidate_mask=jnp.asarray(self.candidate_mask),
        )

    def cast(self, dtype: jnp.dtype) -> Setting:
        """The same setting with parameters in another precision."""
        policy, reference = (jax.tree.map(lambda x: x.astype(dtype), p) for p in (self.policy, self.reference))
        return dataclasses.replace(self, policy=policy, reference=reference)
