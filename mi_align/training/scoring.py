"""Batches to candidates: the one way from parameters to the log-probabilities that methods take."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from mi_align.critics.candidates import Candidates
from mi_align.data import PreferenceBatch
from mi_align.logprobs import Layout
from mi_align.models import Decoder, cast, response_logps
from mi_align.training.state import Params

__all__ = ["TokenLogps", "candidates", "scorer"]

#: (parameters, batch) -> log π of each response token, `[batch, candidates, time − 1]`.
TokenLogps = Callable[[Params, PreferenceBatch], Float[Array, "batch candidates time-1"]]


def scorer(
    graphdef: nnx.GraphDef[Decoder],
    *,
    implementation: str = "auto",
    memory_budget: int | None = None,
    layout: Layout | None = None,
    compute_dtype: str | None = None,
    exact_start: bool = True,
) -> TokenLogps:
    """The function that scores a batch, for the policy and for its reference alike.

    Args:
      graphdef: the decoder's structure.
      implementation: the way to the log-probabilities, as in `logprobs.token_logps`.
      memory_budget: bytes of logits that are kept for the backward pass instead of being made again, as there.
      layout: how tokens and the vocabulary are spread over a mesh, as there.
      compute_dtype: to which parameters are cast first. Default: as they are.
      exact_start: whether the backward pass scores everything again. A forward pass that also stores what its backward
        pass will need is fused, and so rounded, differently from one that does not: without this, the first step's
        margins were 5e-7 in float32 and 0.03 in bfloat16 where they should be exactly 0. Without it a step makes one
        forward pass fewer.
    """

    def logps(params: Params, batch: PreferenceBatch) -> Float[Array, "batch candidates time-1"]:
        tokens, mask = jnp.asarray(batch.tokens), jnp.asarray(batch.response_mask)
        params = params if compute_dtype is None else cast(params, jnp.dtype(compute_dtype))
        return response_logps(
            graphdef,
            params,
            tokens,
            mask,
            implementation=implementation,
            memory_budget=memory_budget,
            layout=layout,
        )

    return jax.checkpoint(logps) if exact_start else logps


def candidates(
    batch: PreferenceBatch,
    policy: Float[Array, "batch candidates time-1"],
    reference: Float[Array, "batch candidates time-1"] | None,
) -> Candidates:
    """What methods take, from a batch and its scores under the policy and, where there is one, the reference."""
    return Candidates(
        policy=policy,
        reference=reference,
        response_mask=jnp.asarray(batch.response_mask)[..., 1:],
        candidate_mask=jnp.asarray(batch.candidate_mask),
    )
