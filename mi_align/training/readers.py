"""What methods read beyond log-probabilities of tokens: sums over the vocabulary, without holding it for all tokens.

WPO weighs pairs by Σ_v π(v)², which comes out of the same pass as log π. TDPO adds KL(π_ref ‖ π) at each token, which
needs both models' logits of a token at once, so that its reference has to be live: a cache of the reference would hold
the vocabulary's size in numbers a token. A reward model has no vocabulary: its score of a response is all that is read.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from mi_align.critics import (
    Candidates,
    on_policy_weight,
    reward_score,
    token_divergence_reward,
    token_regularised_reward,
)
from mi_align.data import PreferenceBatch
from mi_align.logprobs import Layout, token_logps, token_statistics
from mi_align.methods import Method
from mi_align.models import Decoder, cast
from mi_align.numerics import as_float, fill
from mi_align.training.scoring import Batch, ResponseScores, TokenLogps, candidates, reward_scorer
from mi_align.training.state import Params

__all__ = ["Reader", "reader", "reads_divergence", "reads_score", "reads_vocabulary", "token_divergence"]

#: (parameters, the reference's parameters, batch, its scores if known) -> what the method takes.
Reader = Callable[[Params, Params, Batch, Array | None], Candidates]

#: Most bytes of one model's logits that `token_divergence` holds at a time.
_LOGIT_BYTES = 64 * 2**20


def reads_divergence(method: Method | None) -> bool:
    """Whether it reads KL(π_ref ‖ π) at each token, and so needs a live reference."""
    return method is not None and method.critic in (token_divergence_reward, token_regularised_reward)


def reads_score(method: Method | None) -> bool:
    """Whether it reads a reward head's value of each response, and no log-probabilities."""
    return method is not None and method.critic is reward_score


def reads_vocabulary(method: Method | None) -> bool:
    """Whether log-probabilities of the tokens are not all that it reads."""
    return method is not None and (reads_divergence(method) or method.weight is on_policy_weight)


def reader(
    graphdef: nnx.GraphDef[Decoder],
    method: Method,
    *,
    live: TokenLogps | None,
    layout: Layout | None = None,
    compute_dtype: str | None = None,
) -> Reader | None:
    """How candidates are made for `method`; None where log-probabilities of tokens are all that it reads.

    Args:
      graphdef: the decoder's structure.
      method: a row of the table.
      live: scores the reference in the step; None: its scores are given.
      layout: how tokens and the vocabulary are spread over a mesh.
      compute_dtype: to which parameters are cast first, as in `scorer`.
    """
    if reads_score(method):
        return _score_reader(reward_scorer(graphdef, layout=layout, compute_dtype=compute_dtype))
    if not reads_vocabulary(method):
        return None
    see = functools.partial(_seen, graphdef, layout, compute_dtype)
    if reads_divergence(method):
        return _divergence_reader(see, layout)
    return _collision_reader(see, live, layout)


def _score_reader(scores: ResponseScores) -> Reader:
    def read(params: Params, anchor: Params, batch: Batch, reference: Array | None) -> Candidates:
        return candidates(batch, None, None)._replace(score=scores(params, batch))

    return read


class _Seen(NamedTuple):
    """A model's view of a batch: what `token_logps` takes."""

    hidden: Float[Array, "batch candidates time-1 features"]
    vocabulary: Float[Array, "vocab features"]


#: (parameters, batch) -> what the model makes of it, and the soft cap of its logits.
_See = Callable[[Params, Batch], tuple[_Seen, float | None]]


def _seen(
    graphdef: nnx.GraphDef[Decoder],
    layout: Layout | None,
    compute_dtype: str | None,
    params: Params,
    batch: Batch,
) -> tuple[_Seen, float | None]:
    if not isinstance(batch, PreferenceBatch):
        raise TypeError("the batch is packed, but this method reads candidates that have rows of their own.")
    params = params if compute_dtype is None else cast(params, jnp.dtype(compute_dtype))
    model = nnx.merge(graphdef, params)
    hidden = model(jnp.asarray(batch.tokens)[..., :-1], layout=layout)
    return _Seen(hidden, model.vocabulary), model.config.logit_soft_cap


def _collision_reader(see: _See, live: TokenLogps | None, layout: Layout | None) -> Reader:
    @jax.checkpoint
    def statistics(params: Params, batch: Batch) -> tuple[Array, Array]:
        seen, soft_cap = see(params, batch)
        targets, where = jnp.asarray(batch.tokens)[..., 1:], jnp.asarray(batch.response_mask)[..., 1:]
        came = token_statistics(*seen, targets, where=where, soft_cap=soft_cap, layout=layout)
        return came.logp, fill(jnp.log(fill(came.sum_squares, where, 1)), where, 0)

    def read(params: Params, anchor: Params, batch: Batch, reference: Array | None) -> Candidates:
        if live is not None:
            reference = jax.lax.stop_gradient(live(anchor, batch))
        policy, collision = statistics(params, batch)
        return candidates(batch, policy, reference)._replace(log_collision=jax.lax.stop_gradient(collision))

    return read


def _divergence_reader(see: _See, layout: Layout | None) -> Reader:
    @jax.checkpoint
    def scored(params: Params, anchor: Params, batch: Batch) -> tuple[Array, Array, Array]:
        policy, soft_cap = see(params, batch)
        reference, _ = see(jax.lax.stop_gradient(anchor), batch)
        targets, where = jnp.asarray(batch.tokens)[..., 1:], jnp.asarray(batch.response_mask)[..., 1:]
        logps = [
            token_logps(*seen, targets, where=where, soft_cap=soft_cap, layout=layout) for seen in (policy, reference)
        ]
        return logps[0], logps[1], token_divergence(policy, reference, where, soft_cap=soft_cap)

    def read(params: Params, anchor: Params, batch: Batch, reference: Array | None) -> Candidates:
        policy, reference, divergence = scored(params, anchor, batch)
        return candidates(batch, policy, jax.lax.stop_gradient(reference))._replace(reference_kl=divergence)

    return read


def token_divergence(
    policy: tuple[Float[Array, "*batch time features"], Float[Array, "vocab features"]],
    reference: tuple[Float[Array, "*batch time features"], Float[Array, "vocab features"]],
    where: Bool[Array, "*batch time"],
    *,
    soft_cap: float | None = None,
    most_bytes: int = _LOGIT_BYTES,
) -> Float[Array, "*batch time"]:
    """KL(π_ref ‖ π) of the next token at each position, nats, 0 under the mask; gradients flow to both.

    Args:
      policy: hidden states and the vocabulary matrix of π.
      reference: those of π_ref.
      where: which positions count.
      soft_cap: of both models' logits.
      most_bytes: of one model's logits at a time; they are made again in the backward pass. Positions are cut along
        time, so that examples stay spread over their devices; one position of all examples is the least.
    """
    time, vocab = where.shape[-1], policy[1].shape[0]
    step = max(1, min(time, most_bytes // max(4 * vocab * (where.size // max(time, 1)), 1)))
    pieces = -(-time // step)

    def cut(x: Array) -> Array:
        """Time as pieces, on the first axis."""
        axis = where.ndim - 1
        wide = jnp.pad(x, [(0, pieces * step - time if i == axis else 0) for i in range(x.ndim)])
        return jnp.moveaxis(wide.reshape(*x.shape[:axis], pieces, step, *x.shape[axis + 1 :]), axis, 0)

    @jax.checkpoint
    def piece(carry: None, part: tuple[Array, Array, Array]) -> tuple[None, Array]:
        own, other, kept = part
        log_p, log_r = _log_softmax(own, policy[1], soft_cap), _log_softmax(other, reference[1], soft_cap)
        return None, fill(jnp.sum(jnp.exp(log_r) * (log_r - log_p), axis=-1), kept, 0)

    _, came = jax.lax.scan(piece, None, (cut(policy[0]), cut(reference[0]), cut(where)))
    whole = jnp.moveaxis(came, 0, -2)
    return whole.reshape(*whole.shape[:-2], pieces * step)[..., :time]


def _log_softmax(hidden: Array, vocabulary: Array, soft_cap: float | None) -> Float[Array, "*batch vocab"]:
    logits = jnp.einsum("...d,vd->...v", hidden, vocabulary, preferred_element_type=as_float(hidden)[0].dtype)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    return jax.nn.log_softmax(logits, axis=-1)
