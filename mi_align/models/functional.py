"""A decoder as pure functions of its parameters: what `jit`, `grad`, `vmap` and Optax work on."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mi_align.logprobs import Layout, token_logps
from mi_align.models.config import DecoderConfig
from mi_align.models.decoder import Decoder, Segments

__all__ = [
    "cast",
    "count_parameters",
    "hidden_states",
    "init_decoder",
    "packed_logps",
    "response_logps",
    "vocabulary_matrix",
]

Params = Any  # an `nnx.State`: a pytree of arrays


@functools.partial(jax.jit, static_argnames=("config", "dtype"))
def init_decoder(
    config: DecoderConfig, key: PRNGKeyArray, dtype: jnp.dtype = jnp.float32
) -> tuple[nnx.GraphDef[Decoder], Params]:
    """Draw a decoder and take it apart into its structure (hashable, static) and its parameters (a pytree)."""
    model = Decoder(config, rngs=nnx.Rngs(params=key), dtype=dtype)
    graphdef, params, _ = nnx.split(model, nnx.Param, ...)  # nothing else is left: a decoder has no state
    return graphdef, params


@functools.partial(jax.jit, static_argnames="graphdef")
def hidden_states(
    graphdef: nnx.GraphDef[Decoder], params: Params, tokens: Int[Array, "*batch time"]
) -> Float[Array, "*batch time features"]:
    """The last hidden state after each token; it depends on no later token, so right padding changes nothing."""
    return nnx.merge(graphdef, params)(tokens)


def vocabulary_matrix(graphdef: nnx.GraphDef[Decoder], params: Params) -> Float[Array, "vocab features"]:
    """The head's matrix, one row a token: with `hidden_states` it is all that `logprobs.token_logps` needs."""
    return nnx.merge(graphdef, params).vocabulary


def response_logps(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    tokens: Int[Array, "*batch time"],
    response_mask: Bool[Array, "*batch time"],
    *,
    implementation: str = "auto",
    memory_budget: int | None = None,
    layout: Layout | None = None,
) -> Float[Array, "*batch time-1"]:
    """log π of each response token given all before it, in nats; 0 on prompt and padding.

    Args:
      graphdef: the decoder's structure.
      params: its parameters.
      tokens: prompt, response and padding, `[..., time]`.
      response_mask: True on the response's tokens, `[..., time]`.
      implementation: the way to the log-probabilities, as in `logprobs.token_logps`.
      memory_budget: bytes of logits kept for the backward pass, as there.
      layout: how tokens and the vocabulary are spread over a mesh, as there.

    Returns:
      `[..., time − 1]`: entry t belongs to token t + 1, as nothing predicts the first token. The matching mask is
      `response_mask[..., 1:]`.
    """
    model = nnx.merge(graphdef, params)
    hidden = model(tokens[..., :-1], layout=layout)
    targets, where = tokens[..., 1:], response_mask[..., 1:]
    return token_logps(
        hidden,
        model.vocabulary,
        targets,
        where=where,
        soft_cap=model.config.logit_soft_cap,
        implementation=implementation,
        memory_budget=memory_budget,
        layout=layout,
    )


def packed_logps(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    tokens: Int[Array, "rows length"],
    segments: Segments,
    previous: Int[Array, "rows length"],
    scored: Bool[Array, "rows length"],
    *,
    longest: int,
    implementation: str = "auto",
    memory_budget: int | None = None,
    layout: Layout | None = None,
) -> Float[Array, "rows length"]:
    """`response_logps` of rows that hold several sequences each: log π of every scored token, at its own place.

    Args:
      graphdef: the decoder's structure.
      params: its parameters.
      tokens: what stands at each place.
      segments: which sequence it belongs to, and where in it.
      previous: the place, in its row, of the token that predicts it. The last token of a prompt that several responses
        share predicts the first one of each.
      scored: which tokens are wanted; 0 elsewhere.
      longest: no scored token stands at a later position than this.
      implementation: the way to the log-probabilities, as in `logprobs.token_logps`.
      memory_budget: bytes of logits kept for the backward pass, as there.
      layout: how rows and the vocabulary are spread over a mesh, as there.
    """
    model = nnx.merge(graphdef, params)
    hidden = model.packed(tokens, segments, longest=longest, layout=layout)
    predicting = jnp.take_along_axis(hidden, previous[..., None], axis=1)
    return token_logps(
        predicting,
        model.vocabulary,
        tokens,
        where=scored,
        soft_cap=model.config.logit_soft_cap,
        implementation=implementation,
        memory_budget=memory_budget,
        layout=layout,
    )


def cast(params: Params, dtype: jnp.dtype) -> Params:
    """The same parameters in another floating dtype; the forward pass follows."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def count_parameters(params: Params) -> int:
    """The number of scalars; a tied head counts once."""
    return sum(x.size for x in jax.tree.leaves(params))
