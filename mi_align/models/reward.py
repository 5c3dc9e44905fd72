"""Reward models: a decoder whose head gives one number a token, read at the end of a response."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray

from mi_align.models.abstract import abstract_decoder
from mi_align.models.families import reward_json
from mi_align.models.hugging_face import Pretrained

__all__ = ["fresh_reward_head", "with_padding"]


def fresh_reward_head(model: Pretrained, key: PRNGKeyArray) -> Pretrained:
    """The model with a freshly drawn reward head in the place of its vocabulary's; the rest is as it was.

    Weights are normal with variance 1/(features + 1).

    Raises:
      ValueError: it has an adapter, beside which a head would be frozen, or a reward head already.

    Source: Stiennon et al. 2020 (arXiv 2009.01325).
    """
    if model.lora is not None or model.config.reward_head:
        has = "an adapter: merge it first (`merge_adapter`)" if model.lora is not None else "a reward head"
        raise ValueError(f"this model has {has}.")
    config = dataclasses.replace(model.config, reward_head=True)
    values = {key: leaf.get_value() for key, leaf in nnx.to_flat_state(model.params)}
    dtype = values["embedding",].dtype
    score = jax.random.normal(key, (1, config.width), jnp.float32) * (config.width + 1) ** -0.5
    values["score",] = score.astype(dtype)
    graphdef, shapes = abstract_decoder(config, dtype)
    params = nnx.from_flat_state([(path, leaf.replace(values[path])) for path, leaf in nnx.to_flat_state(shapes)])
    return model._replace(graphdef=graphdef, params=params, config=config, source=reward_json(model.source))


def with_padding(model: Pretrained, pad_id: int) -> Pretrained:
    """The reward model that takes this token for padding, by which `transformers` finds where a response ends.

    The embedding gets a row of zeros for a token that is beyond its last one.
    """
    source = {**model.source, "pad_token_id": pad_id}
    grown = pad_id + 1 - model.config.vocab_size
    if grown <= 0:
        return model._replace(source=source)
    decoder = nnx.merge(model.graphdef, model.params)
    decoder.config = dataclasses.replace(model.config, vocab_size=pad_id + 1)
    decoder.embedding = decoder.embedding.replace(np.pad(decoder.embedding.get_value(), ((0, grown), (0, 0))))
    decoder.head = decoder.embedding
    graphdef, params, _ = nnx.split(decoder, nnx.Param, ...)
    source["vocab_size"] = pad_id + 1
    return model._replace(graphdef=graphdef, params=params, config=decoder.config, source=source)
