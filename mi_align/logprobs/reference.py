"""The plain way: all logits at once. It is what every faster way is measured against.

Shape suffixes: T time, D features, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mi_align import checks
from mi_align.numerics import as_float, fill, log_sum_exp

__all__ = ["token_logps"]


@jax.jit
def _token_logps(hidden: Array, vocabulary: Array, targets: Array, where: Array | None) -> Array:
    hidden_TD, vocabulary_VD = as_float(hidden, vocabulary)
    hidden_TD = fill(hidden_TD, None if where is None else where[..., None], 0)
    logits_TV = jnp.einsum("...d,vd->...v", hidden_TD, vocabulary_VD, precision=jax.lax.Precision.HIGHEST)
    inside = (targets >= 0) & (targets < vocabulary.shape[0])
    chosen_T = jnp.take_along_axis(logits_TV, jnp.where(inside, targets, 0)[..., None], axis=-1)[..., 0]
    logps_T = jnp.where(inside, chosen_T - log_sum_exp(logits_TV, axis=-1), jnp.nan)
    return fill(logps_T, where, 0)


def token_logps(
    hidden: Float[Array, "*batch time features"],
    vocabulary: Float[Array, "vocab features"],
    targets: Int[Array, "*batch time"],
    *,
    where: Bool[Array, "*batch time"] | None = None,
) -> Float[Array, "*batch time"]:
    """log π(target | everything before it) of each position, in nats, from a decoder's last hidden states.

    ℓ_t = h_t·v_{y_t} − log Σ_j exp(h_t·v_j)

    The caller aligns: `hidden[t]` is the state that *predicts* `targets[t]`, so a sequence is scored by
    `token_logps(hidden[..., :-1, :], vocabulary, tokens[..., 1:])`.

    Args:
      hidden: last hidden states, `[..., time, features]`.
      vocabulary: one row a token, `[vocab, features]`: the embedding table where the head is tied to it.
      targets: token ids in [0, vocab), `[..., time]`.
      where: which positions to score, `[..., time]`, True = keep. Default: all.

    Returns:
      `[..., time]`, ≤ 0; exactly 0 with zero gradient under the mask, whatever `hidden` and `targets` hold there.
      Half precision is computed in, and comes back as, float32; float64 is kept.

    Raises:
      ValueError: shapes disagree, or a kept target is outside the vocabulary. Under `jit` a target has no value to
        look at: a kept one outside the vocabulary gives NaN.
      TypeError: a floating-point array, integer targets or a boolean mask was wanted.

    Gradient: ∂ℓ_t/∂logits = onehot(y_t) − softmax.

    >>> import jax.numpy as jnp
    >>> hidden, vocabulary = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.eye(3, 2)
    >>> token_logps(hidden, vocabulary, jnp.array([0, 2])).round(4)
    Array([-0.5514, -2.2395], dtype=float32)
    """
    _check(hidden, vocabulary, targets, where)
    return _token_logps(hidden, vocabulary, targets, where)


def _check(hidden: Array, vocabulary: Array, targets: Array, where: Array | None) -> None:
    checks.floating(hidden=hidden, vocabulary=vocabulary)
    if not jnp.issubdtype(jnp.result_type(targets), jnp.integer):
        raise TypeError(f"`targets` has dtype {jnp.result_type(targets)}, but integer token ids were wanted.")
    if jnp.ndim(vocabulary) != 2 or jnp.shape(hidden)[-1:] != jnp.shape(vocabulary)[1:]:
        raise ValueError(
            f"`hidden` has shape {list(jnp.shape(hidden))} and `vocabulary` {list(jnp.shape(vocabulary))}, but "
            "[..., time, features] and [vocab, features] were wanted: one row a token (a linear layer's kernel, "
            "transposed)."
        )
    if jnp.shape(targets) != jnp.shape(hidden)[:-1]:
        raise ValueError(
            f"`targets` has shape {list(jnp.shape(targets))}, but `hidden` {list(jnp.shape(hidden))}: one id a "
            f"position was wanted, {list(jnp.shape(hidden)[:-1])}."
        )
    checks.mask(where, targets, of="`targets`")
    _check_ids(targets, where, jnp.shape(vocabulary)[0])


def _check_ids(targets: Array, where: Array | None, vocab: int) -> None:
    """An id has a value to look at only outside `jit`."""
    if isinstance(targets, jax.core.Tracer) or isinstance(where, jax.core.Tracer):
        return
    outside = (jnp.asarray(targets) < 0) | (jnp.asarray(targets) >= vocab)
    outside = outside if where is None else outside & where
    if outside.any():
        first = int(jnp.asarray(targets)[outside][0])
        raise ValueError(
            f"`targets` holds {first}, but the vocabulary has {vocab} rows: ids from 0 to {vocab - 1} were wanted. "
            "Mask positions without a target with `where`."
        )
