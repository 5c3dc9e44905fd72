"""A decoder-only transformer as an NNX module: a definition of parameters and of one pure forward pass."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from mi_align.logprobs import Layout
from mi_align.models.attention import EVEN, attention_of, kernel_of
from mi_align.models.config import DecoderConfig
from mi_align.models.layers import Block, Context, KeysAndValues, Norm
from mi_align.models.positions import frequencies, turn, window_frequencies

__all__ = ["Cache", "Decoder", "Segments"]

#: The keys and values of all layers, `[layers, batch, slots, heads, features]` each, by position.
Cache = KeysAndValues

#: Up to so many layers the scan is unrolled: it compiles as fast, and XLA fuses across layers.
_UNROLLED = 4


class Segments(NamedTuple):
    """What stands where in rows that hold several sequences, some of which begin alike.

    Attributes:
      positions: of each token in its own sequence.
      group: which sequences see nothing of each other; padding may be a group of its own.
      branch: 0 on what all sequences of a group begin with, another number for what each of them adds.
    """

    positions: Int[Array, "B T"]
    group: Int[Array, "B T"]
    branch: Int[Array, "B T"]


class _Layer(NamedTuple):
    """What differs from layer to layer: parameters, whether it is windowed, and its part of the cache."""

    params: Any
    windowed: Bool[Array, ""]
    cache: KeysAndValues | None


class Decoder(nnx.Module):
    """tokens -> last hidden states. The head is not applied here: `logprobs` does that without storing the logits.

    The blocks' parameters are stacked, `[layers, …]` each, and the stream goes through them in a scan: a program of a
    deep model is as short as that of a shallow one.
    """

    def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs, dtype: jnp.dtype = jnp.float32) -> None:
        """Draw the parameters of a decoder of the given shape, in `dtype`."""
        init = nnx.initializers.normal(config.width**-0.5)
        shape = (config.vocab_size, config.width)
        self.config = config
        self.embedding = nnx.Param(init(rngs.params(), shape, dtype))
        learned = config.learned_positions
        self.positions = None if learned is None else nnx.Param(init(rngs.params(), (learned, config.width), dtype))
        self.blocks = nnx.vmap(
            lambda keys: Block(config, dtype=dtype, rngs=keys), transform_metadata={nnx.PARTITION_NAME: None}
        )(rngs.split(config.layers))
        self.norm = Norm(config, config.width, dtype=dtype)
        tied = config.tied_head or config.reward_head
        self.head = self.embedding if tied else nnx.Param(init(rngs.params(), shape, dtype))
        # Source: Stiennon et al. 2020 (arXiv 2009.01325), whose reward models begin with this variance.
        score = nnx.initializers.normal((config.width + 1) ** -0.5)
        self.score = nnx.Param(score(rngs.params(), (1, config.width), dtype)) if config.reward_head else None

    @property
    def vocabulary(self) -> Float[Array, "vocab features"]:
        """The head's matrix, one row a token; the embedding table itself where the two are tied.

        Raises:
          ValueError: there is a reward head in its place.
        """
        if self.config.reward_head:
            raise ValueError("this is a reward model, which scores responses and predicts no tokens. Give a policy.")
        return self.head[...]

    def __call__(
        self, tokens: Int[Array, "*batch time"], *, layout: Layout | None = None
    ) -> Float[Array, "*batch time features"]:
        """The hidden state after each token, which predicts the next one; no later token enters it.

        On a mesh, `layout` says how the stream is spread before every block; left to itself the compiler may follow the
        parameters.
        """
        rows = tokens.reshape(-1, tokens.shape[-1])
        self._check_positions(rows.shape[1])
        hidden, _ = self._through(rows, jnp.arange(rows.shape[1])[None], None, layout=layout)
        return hidden.reshape(*tokens.shape, -1)

    def packed(
        self, tokens: Int[Array, "B T"], segments: Segments, *, longest: int, layout: Layout | None = None
    ) -> Float[Array, "B T D"]:
        """The same where rows hold several sequences: each token as if its own sequence had a row to itself.

        It sees what its group's sequences begin with and what its own branch adds, up to itself. `longest` is a bound
        on the positions whose hidden states are used, which for learned positions cannot be any.
        """
        self._check_positions(longest)
        return self._through(tokens, segments.positions, None, segments=segments, layout=layout)[0]

    def continued(
        self, tokens: Int[Array, "batch time"], positions: Int[Array, "batch time"], cache: Cache
    ) -> tuple[Float[Array, "batch time features"], Cache]:
        """The same for tokens at given positions, after those whose keys and values the cache has.

        What the cache holds at later positions is not looked at, so that prompts of uneven lengths may leave anything
        there. Positions beyond its slots are dropped.
        """
        self._check_positions(cache.keys.shape[2])
        return self._through(tokens, positions, cache)

    def _check_positions(self, count: int) -> None:
        learned = self.config.learned_positions
        if learned is not None and count > learned:
            raise ValueError(
                f"there are {count} positions, but this model has learned {learned}. Shorten the text (when sampling: "
                "the prompts or `max_new`)."
            )

    def _through(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "#B T"],
        cache: Cache | None,
        *,
        segments: Segments | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        config, keep = self.config, functools.partial(_kept, layout)
        masked = cache is not None or segments is not None
        kernel = kernel_of(config, self.embedding.dtype, layout, masked=masked)
        time = tokens.shape[1]
        if kernel == "cudnn" and time % EVEN:  # here, where it costs nothing; no token looks at one that is added
            tokens = jnp.pad(tokens, ((0, 0), (0, -time % EVEN)))
            positions = jnp.arange(tokens.shape[1])[None]
        x = keep(self.embedding[tokens])
        if config.embedding_scale != 1:
            x = x * jnp.asarray(config.embedding_scale, x.dtype)
        if self.positions is not None:
            x = x + self.positions[positions]
        graphdef, params = nnx.split(self.blocks)
        attend = attention_of(config, kernel, layout)
        everywhere, near = _contexts(config, positions, cache, segments, by_mask=kernel == "xla")

        def step(x: Array, layer: _Layer) -> tuple[Array, Any]:
            context = everywhere
            if near is not None:
                context = jax.tree.map(lambda a, b: jnp.where(layer.windowed, b, a), everywhere, near)
            mix = functools.partial(attend, windowed=layer.windowed)
            return nnx.merge(graphdef, layer.params)(keep(x), context, layer.cache, mix)

        layers = _Layer(params, jnp.asarray(config.windowed_layers), cache)
        unroll = config.layers if config.layers <= _UNROLLED else 1
        x, cache = jax.lax.scan(_remembered(step, config), x, layers, unroll=unroll)
        return self.norm(x[:, :time]), cache


def _kept(layout: Layout | None, x: Float[Array, "batch time features"]) -> Float[Array, "batch time features"]:
    if layout is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, P(layout.tokens)))


def _contexts(
    config: DecoderConfig, positions: Array, cache: Cache | None, segments: Segments | None, *, by_mask: bool
) -> tuple[Context, Context | None]:
    """What a layer that sees everything before it is told, and a windowed one, if there are any.

    The first needs no mask where there are neither cache, window nor segments: attention is then causal by itself.
    Neither does where the kernel knows of windows.
    """
    rotary = config.learned_positions is None
    far = turn(positions, frequencies(config)) if rotary else None
    everywhere = Context(positions, far, None)
    if config.window is None and cache is None and segments is None:
        return everywhere, None
    before = within = None
    if by_mask:
        slots = positions if cache is None else jnp.arange(cache.keys.shape[2])[None]
        distance = positions[:, :, None] - slots[:, None, :]
        before = distance >= 0 if segments is None else (distance >= 0) & _same_path(segments)
        within = before if config.window is None else before & (distance < config.window)
    everywhere = everywhere._replace(mask=before)
    if config.window is None:
        return everywhere, None
    near = turn(positions, window_frequencies(config)) if rotary else None
    return everywhere, everywhere._replace(turn=near, mask=within)


def _same_path(segments: Segments) -> Bool[Array, "B T T"]:
    """Whether the second token is of the first one's group, and either of its branch or of what all branches share."""
    group, branch = segments.group, segments.branch
    of_branch = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    return (group[:, None, :] == group[:, :, None]) & of_branch


def _remembered(step: Any, config: DecoderConfig) -> Any:
    """`step`, of which the backward pass makes again what `config.remat` says."""
    if config.remat == "none":
        return step
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if config.remat == "layers" else policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(step, policy=policy, prevent_cse=False)
