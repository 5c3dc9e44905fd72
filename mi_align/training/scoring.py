"""Batches to candidates: the one way from parameters to the log-probabilities that methods take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mi_align.critics.candidates import Candidates
from mi_align.critics.reward_head import reward_head
from mi_align.data import PackedBatch, PreferenceBatch, chosen_only
from mi_align.logprobs import Layout, token_statistics
from mi_align.models import Decoder, Segments, cast, packed_logps, response_logps
from mi_align.numerics import Mean, fill
from mi_align.training.state import Params

__all__ = [
    "ROUNDED",
    "Batch",
    "ResponseScores",
    "TokenLogps",
    "candidates",
    "response_entropy",
    "reward_scorer",
    "scorer",
]

#: Preferences, a row for each candidate, or several candidates in a row.
Batch = PreferenceBatch | PackedBatch
#: (parameters, batch) -> log π of each response token, `[batch, candidates, time − 1]`, however the batch is laid out.
TokenLogps = Callable[[Params, Batch], Float[Array, "batch candidates time-1"]]
#: (parameters, batch) -> a reward model's score of each response, `[batch, candidates]`.
ResponseScores = Callable[[Params, Batch], Float[Array, "batch candidates"]]
#: Compiler options of programs that compare a policy with a reference. XLA may leave out roundings to half precision
#: between operations that it fuses. A forward pass that stores what its backward pass will need is fused differently
#: from one that does not, and a policy's first log-ratios were then 0.02 where they are 0.
ROUNDED: dict[str, Any] = {"xla_allow_excess_precision": False}


def scorer(
    graphdef: nnx.GraphDef[Decoder],
    *,
    implementation: str = "auto",
    memory_budget: int | None = None,
    layout: Layout | None = None,
    compute_dtype: str | None = None,
) -> TokenLogps:
    """The function that scores a batch, for the policy and for its reference alike.

    Where both are one model their scores are equal to the last bit: in half precision if what scores is compiled with
    `compiler_options=ROUNDED`. To rounding only they are with a `memory_budget`, as kept logits are products of another
    size, and with a soft cap on logits (Gemma 2): one ulp of one token in some hundred, on a CPU in float32.

    Args:
      graphdef: the decoder's structure.
      implementation: the way to the log-probabilities, as in `logprobs.token_logps`.
      memory_budget: bytes of logits that are kept for the backward pass instead of being made again, as there.
      layout: how tokens and the vocabulary are spread over a mesh, as there.
      compute_dtype: to which parameters are cast first. Default: as they are.
    """
    way: dict[str, Any] = {"implementation": implementation, "memory_budget": memory_budget, "layout": layout}

    def logps(params: Params, batch: Batch) -> Float[Array, "batch candidates time-1"]:
        params = params if compute_dtype is None else cast(params, jnp.dtype(compute_dtype))
        if isinstance(batch, PackedBatch):
            return _packed(graphdef, params, batch, **way)
        tokens, mask = jnp.asarray(batch.tokens), jnp.asarray(batch.response_mask)
        return response_logps(graphdef, params, tokens, mask, **way)

    return logps


def _packed(
    graphdef: nnx.GraphDef[Decoder], params: Params, batch: PackedBatch, **way: Any
) -> Float[Array, "batch candidates time-1"]:
    """Scores of rows, brought to where those of a batch without packing are."""
    places = jnp.asarray(batch.places)
    packs, _, length = batch.tokens.shape
    tokens, positions, group, branch, previous, scored = (jnp.reshape(x, (-1, length)) for x in batch[:6])
    at_places = packed_logps(
        graphdef,
        params,
        tokens,
        Segments(positions, group, branch),
        previous,
        scored,
        longest=places.shape[-1],
        **way,
    )
    logps = jnp.take_along_axis(at_places.reshape(packs, -1), places.reshape(packs, -1), axis=1)
    return fill(logps.reshape(places.shape), jnp.asarray(batch.response_mask)[..., 1:], 0)


def response_entropy(
    graphdef: nnx.GraphDef[Decoder], *, layout: Layout | None = None, compute_dtype: str | None = None
) -> Callable[[Params, Batch], Mean]:
    """(parameters, batch) -> the entropy of the policy at each token of the chosen responses, nats, their mean.

    Args:
      graphdef: the policy's structure.
      layout: how tokens and the vocabulary are spread over a mesh.
      compute_dtype: to which parameters are cast first. Default: as they are.
    """

    def entropy(params: Params, batch: Batch) -> Mean:
        params = params if compute_dtype is None else cast(params, jnp.dtype(compute_dtype))
        model, batch = nnx.merge(graphdef, params), chosen_only(batch)
        if isinstance(batch, PackedBatch):
            tokens, positions, group, branch, previous, where = (
                jnp.reshape(x, (-1, batch.tokens.shape[-1])) for x in batch[:6]
            )
            segments, longest = Segments(positions, group, branch), batch.places.shape[-1]
            hidden = model.packed(tokens, segments, longest=longest, layout=layout)
            hidden, targets = jnp.take_along_axis(hidden, previous[..., None], axis=1), tokens
        else:
            tokens, where = jnp.asarray(batch.tokens), jnp.asarray(batch.response_mask)[..., 1:]
            hidden, targets = model(tokens[..., :-1], layout=layout), tokens[..., 1:]
        way: dict[str, Any] = {"soft_cap": model.config.logit_soft_cap, "layout": layout}
        return Mean.of(token_statistics(hidden, model.vocabulary, targets, where=where, **way).entropy, where)

    return entropy


def reward_scorer(
    graphdef: nnx.GraphDef[Decoder], *, layout: Layout | None = None, compute_dtype: str | None = None
) -> ResponseScores:
    """The function by which a reward model scores a batch, each response at its last token.

    Args:
      graphdef: the structure of a decoder with a reward head.
      layout: how tokens are spread over a mesh.
      compute_dtype: to which parameters are cast first. Default: as they are.
    """

    def scores(params: Params, batch: Batch) -> Float[Array, "batch candidates"]:
        params = params if compute_dtype is None else cast(params, jnp.dtype(compute_dtype))
        model = nnx.merge(graphdef, params)
        weight = model.score[0]
        if isinstance(batch, PreferenceBatch):
            hidden = model(jnp.asarray(batch.tokens), layout=layout)
            return reward_head(hidden, weight, jnp.asarray(batch.response_mask))
        ends, there = _packed_ends(model, batch, layout)
        return reward_head(ends[..., None, :], weight, there[..., None])

    return scores


def _packed_ends(
    model: Decoder, batch: PackedBatch, layout: Layout | None
) -> tuple[Float[Array, "batch candidates features"], Bool[Array, "batch candidates"]]:
    """The hidden state of each response's last token, and which candidates have one."""
    packs, _, length = batch.tokens.shape
    tokens, positions, group, branch = (jnp.reshape(x, (-1, length)) for x in batch[:4])
    segments = Segments(positions, group, branch)
    hidden = model.packed(tokens, segments, longest=batch.places.shape[-1] + 1, layout=layout)
    mask = jnp.asarray(batch.response_mask)[..., 1:]
    last = jnp.max(jnp.where(mask, jnp.arange(mask.shape[-1]), 0), axis=-1, keepdims=True)
    place = jnp.take_along_axis(jnp.asarray(batch.places), last, axis=-1).reshape(packs, -1, 1)
    ends = jnp.take_along_axis(hidden.reshape(packs, -1, hidden.shape[-1]), place, axis=1)
    return ends.reshape(*mask.shape[:-1], -1), jnp.any(mask, axis=-1)


def candidates(
    batch: Batch,
    policy: Float[Array, "batch candidates time-1"] | None,
    reference: Float[Array, "batch candidates time-1"] | None,
) -> Candidates:
    """What methods take, from a batch and its scores under the policy and, where there is one, the reference."""
    return Candidates(
        policy=policy,
        reference=reference,
        response_mask=jnp.asarray(batch.response_mask)[..., 1:],
        candidate_mask=jnp.asarray(batch.candidate_mask),
        desirable=None if batch.desirable is None else jnp.asarray(batch.desirable),
        reward=None if batch.reward is None else jnp.asarray(batch.reward),
        margin=None if batch.margin is None else jnp.asarray(batch.margin),
    )
