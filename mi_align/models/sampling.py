"""Responses from a decoder: prompts of uneven lengths, a cache of keys and values, one compiled loop."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from mi_align import checks
from mi_align.models.config import DecoderConfig
from mi_align.models.decoder import Cache, Decoder
from mi_align.models.functional import Params
from mi_align.numerics import accumulation_dtype, as_float

__all__ = ["Generated", "empty_cache", "filter_logits", "generate"]


class Generated(NamedTuple):
    """What was sampled, `[batch, samples, new]` each.

    Attributes:
      tokens: ids; `pad_id` after the end.
      mask: which of them belong to the response: up to and with the token that stopped it.
      logps: log π of each, in nats, at temperature 1 and over the whole vocabulary, whatever it was drawn from; 0 after
        the end.
    """

    tokens: Int[Array, "batch samples new"]
    mask: Bool[Array, "batch samples new"]
    logps: Float[Array, "batch samples new"]


class _State(NamedTuple):
    step: Int[Array, ""]
    logits: Float[Array, "B V"]
    cache: Cache
    done: Bool[Array, "B"]
    tokens: Int[Array, "B N"]
    mask: Bool[Array, "B N"]
    logps: Float[Array, "B N"]


def empty_cache(config: DecoderConfig, batch: int, slots: int, dtype: jnp.dtype = jnp.float32) -> Cache:
    """Keys and values of no token yet, with room for `slots` positions."""
    shape = (config.layers, batch, slots, config.key_value_heads, config.head_width)
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def filter_logits(
    logits: Float[Array, "*batch vocab"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
) -> Float[Array, "*batch vocab"]:
    """Logits to draw from: divided by the temperature, −inf outside the k likeliest and outside the nucleus.

    Args:
      logits: `[..., vocab]`.
      temperature: > 0.
      top_k: how many tokens stay, ties with the last of them included; None: all.
      top_p: the nucleus is the likeliest tokens, as few as have this probability together, after `temperature` and
        `top_k`; in (0, 1], None: all.

    Source: Holtzman et al. 2020 (arXiv 1904.09751).
    """
    checks.number("temperature", temperature)
    (logits,) = as_float(logits)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        least = jax.lax.top_k(logits, top_k)[0][..., -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p is not None:
        ranked = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        p = jax.nn.softmax(ranked)
        least = jnp.min(jnp.where(jnp.cumsum(p, axis=-1) - p < top_p, ranked, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def generate(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    prompts: Int[Array, "batch time"],
    lengths: Int[Array, "batch"],
    key: PRNGKeyArray,
    *,
    max_new: int,
    samples: int = 1,
    temperature: float | Float[Array, ""] = 1.0,
    top_k: int | None = None,
    top_p: float | Float[Array, ""] | None = None,
    stop: tuple[int, ...] = (),
    pad_id: int = 0,
) -> Generated:
    """Sample responses, or take the likeliest token at every step.

    Compiled once for a shape: pad prompts to a few common lengths. The loop ends when every response has.

    Args:
      graphdef: the decoder's structure.
      params: its parameters.
      prompts: ids, padded on the right with anything, `[batch, time]`.
      lengths: how many tokens of each prompt count, in [1, time].
      key: a random key.
      max_new: the most tokens that a response has.
      samples: responses for each prompt.
      temperature: ≥ 0; 0 takes the likeliest token.
      top_k: see `filter_logits`; `top_p` as well.
      stop: ids that end a response.
      pad_id: what stands after the end.

    Raises:
      ValueError: shapes disagree, a number or a length is out of range, or positions beyond those that were learned
        are wanted.
    """
    if jnp.ndim(prompts) != 2 or 0 in jnp.shape(prompts) or jnp.shape(lengths) != jnp.shape(prompts)[:1]:
        raise ValueError(
            f"`prompts` has shape {list(jnp.shape(prompts))} and `lengths` {list(jnp.shape(lengths))}, but "
            "[batch, time] and [batch] were wanted, with at least one token."
        )
    checks.integers(prompts=prompts, lengths=lengths)
    checks.number("temperature", temperature, checks.Range(at_least=0, remedy="0 takes the likeliest token."))
    if top_p is not None:
        checks.number("top_p", top_p, checks.Range(above=0, at_most=1, remedy="Pass None for no nucleus."))
    for name, value in {"max_new": max_new, "samples": samples, "top_k": 1 if top_k is None else top_k}.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}, but at least 1 was wanted.")
    _check_lengths(lengths, jnp.shape(prompts)[1])
    return _generate(
        graphdef, params, prompts, lengths, key, temperature, top_p, max_new, samples, top_k, tuple(stop), pad_id
    )


def _check_lengths(lengths: Array, time: int) -> None:
    """Under `jit` a length has no value to look at."""
    if isinstance(lengths, jax.core.Tracer):
        return
    known = np.asarray(lengths)
    wrong = known[(known < 1) | (known > time)]
    if wrong.size:
        raise ValueError(f"`lengths` holds {wrong[0]}, but prompts of 1 to {time} tokens were wanted.")


@functools.partial(jax.jit, static_argnums=(0, 7, 8, 9, 10, 11))
def _generate(
    graphdef: nnx.GraphDef[Decoder],
    params: Params,
    prompts: Array,
    lengths: Array,
    key: Array,
    temperature: Array,
    top_p: Array | None,
    max_new: int,
    samples: int,
    top_k: int | None,
    stop: tuple[int, ...],
    pad_id: int,
) -> Generated:
    model = nnx.merge(graphdef, params)
    batch, time = prompts.shape
    cache = empty_cache(model.config, batch, time + max_new, model.vocabulary.dtype)
    hidden, cache = model.continued(prompts, jnp.broadcast_to(jnp.arange(time), prompts.shape), cache)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    logits = jnp.repeat(_logits(model, last), samples, axis=0)
    cache, lengths = jax.tree.map(lambda x: jnp.repeat(x, samples, axis=1), cache), jnp.repeat(lengths, samples)
    rows = batch * samples
    state = _State(
        step=jnp.asarray(0),
        logits=logits,
        cache=cache,
        done=jnp.zeros(rows, bool),
        tokens=jnp.full((rows, max_new), pad_id, prompts.dtype),
        mask=jnp.zeros((rows, max_new), bool),
        logps=jnp.zeros((rows, max_new), logits.dtype),
    )

    def one(state: _State) -> _State:
        drawn = _draw(jax.random.fold_in(key, state.step), state.logits, temperature, top_k, top_p)
        token = jnp.where(state.done, pad_id, drawn).astype(state.tokens.dtype)
        logp = jnp.take_along_axis(jax.nn.log_softmax(state.logits), token[:, None], axis=1)[:, 0]
        ends = jnp.isin(token, jnp.asarray(stop, token.dtype)) if stop else jnp.zeros(rows, bool)
        hidden, cache = model.continued(token[:, None], (lengths + state.step)[:, None], state.cache)
        return _State(
            step=state.step + 1,
            logits=_logits(model, hidden),
            cache=cache,
            done=state.done | ends,
            tokens=state.tokens.at[:, state.step].set(token),
            mask=state.mask.at[:, state.step].set(~state.done),
            logps=state.logps.at[:, state.step].set(jnp.where(state.done, 0, logp)),
        )

    state = jax.lax.while_loop(lambda s: (s.step < max_new) & ~jnp.all(s.done), one, state)
    return Generated(*(x.reshape(batch, samples, max_new) for x in (state.tokens, state.mask, state.logps)))


def _logits(model: Decoder, hidden: Float[Array, "B 1 D"]) -> Float[Array, "B V"]:
    """The head on one position of each row, in float32 or wider."""
    wide = accumulation_dtype(hidden)
    highest = jax.lax.Precision.HIGHEST
    z = jnp.einsum("bd,vd->bv", hidden[:, 0], model.vocabulary, precision=highest, preferred_element_type=wide)
    cap = model.config.logit_soft_cap
    return z if cap is None else cap * jnp.tanh(z / cap)


def _draw(key: Array, logits: Array, temperature: Array, top_k: int | None, top_p: Array | None) -> Array:
    """A token a row; the likeliest at temperature 0."""
    warm = jnp.where(jnp.asarray(temperature) > 0, temperature, 1)
    sampled = jax.random.categorical(key, filter_logits(logits, temperature=warm, top_k=top_k, top_p=top_p))
    return jnp.where(jnp.asarray(temperature) > 0, sampled, jnp.argmax(logits, axis=-1))
