"""A reward model's head: hidden states in, one value a response out. Takes hidden states, not models."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import as_float

__all__ = ["reward_head"]


def reward_head(
    hidden: Float[Array, "*batch T D"],
    weight: Float[Array, "D"],
    response_mask: Bool[Array, "*batch T"],
    *,
    bias: float | Float[Array, ""] = 0.0,
) -> Float[Array, "*batch"]:
    """A linear function of the hidden state of each response's last token.

    Args:
      hidden: hidden states of prompt and response.
      weight: one coefficient a feature.
      response_mask: True on the response's tokens; the last of them is read. Without any, the first position is.
      bias: added to every value; pairwise losses do not see it.

    Returns:
      One real number a response, in float32 or wider.

    Raises:
      ValueError: the mask's shape is not that of the hidden states without their last axis.
      TypeError: hidden states or weights are not floating-point, or the mask is not boolean.

    >>> import jax.numpy as jnp
    >>> hidden = jnp.array([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    >>> reward_head(hidden, jnp.array([1.0, 0.5]), jnp.array([[True, True, False]]))
    Array([5.], dtype=float32)
    """
    checks.floating(hidden=hidden, weight=weight)
    checks.mask(response_mask, hidden[..., 0], name="response_mask", of="the hidden states")
    hidden, weight = as_float(hidden, weight)
    positions = jnp.arange(hidden.shape[-2])
    last = jnp.max(jnp.where(response_mask, positions, 0), axis=-1)
    state = jnp.take_along_axis(hidden, last[..., None, None], axis=-2)[..., 0, :]
    return state @ weight + bias
