"""A decoder-only transformer as an NNX module: a definition of parameters and of one pure forward pass."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from mi_align.models.config import DecoderConfig
from mi_align.models.layers import Block, RMSNorm

__all__ = ["Decoder"]


class Decoder(nnx.Module):
    """tokens -> last hidden states. The head is not applied here: `logprobs` does that without storing the logits."""

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        """Draw the parameters of a decoder of the given shape, in `dtype`."""
        init = nnx.initializers.normal(config.width**-0.5)
        shape = (config.vocab_size, config.width)
        self.embedding = nnx.Param(init(rngs.params(), shape, dtype))
        self.blocks = nnx.List([Block(config, dtype=dtype, rngs=rngs) for _ in range(config.layers)])
        self.norm = RMSNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype)
        self.head = self.embedding if config.tied_head else nnx.Param(init(rngs.params(), shape, dtype))

    @property
    def vocabulary(self) -> Float[Array, "vocab features"]:
        """The head's matrix, one row a token; the embedding table itself where the two are tied."""
        return self.head[...]

    def __call__(self, tokens: Int[Array, "*batch time"]) -> Float[Array, "*batch time features"]:
        """The hidden state after each token, which predicts the next one; no later token enters it."""
        positions = jnp.arange(tokens.shape[-1])
        x = self.embedding[tokens.reshape(-1, tokens.shape[-1])]
        for block in self.blocks:
            x = block(x, positions)
        return self.norm(x).reshape(*tokens.shape, -1)
