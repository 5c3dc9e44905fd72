"""From prompts to a rollout: drawn by the policy, laid out as the scorer reads them, rewarded, scored."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from mi_align.data import PreferenceBatch, Prompt, Tokenizer
from mi_align.models import Decoder, cast, generate
from mi_align.training.on_policy.config import OnPolicyConfig
from mi_align.training.scoring import Batch, TokenLogps
from mi_align.training.state import Params

__all__ = ["Draw", "laid_out", "sampler", "score_in_parts", "texts_of"]

#: (parameters, prompts `[batch, time]`, their lengths, key) -> prompts and responses as candidates.
Draw = Callable[[Params, Any, Any, PRNGKeyArray], PreferenceBatch]


def sampler(
    graphdef: nnx.GraphDef[Decoder], config: OnPolicyConfig, *, eos_id: int, compute_dtype: str | None = None
) -> Draw:
    """The function that draws responses, at temperature 1 and from the whole vocabulary.

    Args:
      graphdef: the decoder's structure.
      config: how many responses, and how long.
      eos_id: ends a response, and stands after its end.
      compute_dtype: to which parameters are cast first, as in `scorer`.
    """

    def draw(params: Params, prompts: Array, lengths: Array, key: PRNGKeyArray) -> PreferenceBatch:
        params = params if compute_dtype is None else cast(params, jnp.dtype(compute_dtype))
        came = generate(
            graphdef,
            params,
            prompts,
            lengths,
            key,
            max_new=config.max_new_tokens,
            samples=config.samples,
            stop=(eos_id,),
            pad_id=eos_id,
        )
        return laid_out(prompts, lengths, came.tokens, came.mask, pad_id=eos_id)

    return draw


def laid_out(
    prompts: Int[Array, "batch time"],
    lengths: Int[Array, "batch"],
    responses: Int[Array, "batch samples new"],
    mask: Bool[Array, "batch samples new"],
    *,
    pad_id: int,
) -> PreferenceBatch:
    """Prompts of uneven lengths, each followed by its responses without a gap: `[batch, samples, time + new]`."""
    new = responses.shape[-1]
    whole = jnp.pad(prompts, ((0, 0), (0, new)), constant_values=pad_id)
    time = whole.shape[1]
    shape = (*responses.shape[:2], time)
    place = jnp.broadcast_to(jnp.arange(time), shape) - jnp.broadcast_to(lengths[:, None, None], shape)
    inside = (place >= 0) & (place < new)
    there = jnp.clip(place, 0, new - 1)
    kept = inside & jnp.take_along_axis(mask, there, axis=-1)
    answer = jnp.where(kept, jnp.take_along_axis(responses, there, axis=-1), pad_id)
    before = jnp.broadcast_to(whole[:, None, :], shape)
    fields: dict[str, Any] = {
        "tokens": jnp.where(place < 0, before, answer.astype(before.dtype)),
        "response_mask": kept,
        "candidate_mask": jnp.ones(shape[:2], bool),
    }
    return PreferenceBatch(**fields)


def score_in_parts(logps: TokenLogps, parts: int) -> TokenLogps:
    """The scorer over a batch's parts, one after the other, as the step's micro-batches are."""
    if parts == 1:
        return logps

    def scored(params: Params, batch: Batch) -> Array:
        cut = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)
        came = jax.lax.map(functools.partial(logps, params), cut)
        return came.reshape(-1, *came.shape[2:])

    return scored


def texts_of(batch: PreferenceBatch, prompts: list[Prompt], tokenizer: Tokenizer) -> tuple[list[Prompt], list[str]]:
    """Each response's prompt, and its text without its end, a prompt's responses side by side."""
    tokens, masks = np.asarray(batch.tokens), np.asarray(batch.response_mask)
    repeated, texts = [], []
    for prompt, rows, kept in zip(prompts, tokens, masks, strict=True):
        for row, mask in zip(rows, kept, strict=True):
            ids = row[mask]
            ids = ids[:-1] if ids.size and ids[-1] == tokenizer.eos_id else ids
            repeated.append(prompt)
            texts.append(tokenizer.decode(ids))
    return repeated, texts
