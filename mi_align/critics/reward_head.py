"""A reward model's head: hidden states in, one value a response out. Takes hidden states, not models."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import as_float, fill

__all__ = ["reward_head"]


@jax.jit
def reward_head(
    hidden: Float[Array, "*batch T D"],
    weight: Float[Array, "D"],
    response_mask: Bool[Array, "*batch T"],
    *,
    bias: float | Float[Array, ""] = 0.0,
) -> Float[Array, "*batch"]:
    """A linear function of the hidden state of each response's last token: r = w·h_last + b.

    `[*batch]` may end in the candidates' axis: the result is then `Candidates.score`.

    Args:
      hidden: hidden states of prompt and response, `[*batch, T, D]`.
      weight: one coefficient a feature, `[D]`.
      response_mask: the response's tokens, `[*batch, T]`, True = keep; the last of them is read, padding is not.
      bias: added to every value; losses of pairs do not see it.

    Returns:
      One logit a response, `[*batch]`, float32 or wider; 0 with zero gradient for a response without tokens.

    Raises:
      ValueError: the mask has not the shape of the hidden states without their last axis, or there is not one
        coefficient a feature.
      TypeError: hidden states or weights are not floating-point, or the mask is not boolean.

    Gradient: ∂r/∂w = h_last, ∂r/∂h_last = w, none to other positions.

    Source: Ouyang et al. 2022 (arXiv 2203.02155), section 3.5.

    >>> import jax.numpy as jnp
    >>> hidden = jnp.array([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    >>> reward_head(hidden, jnp.array([1.0, 0.5]), jnp.array([[True, True, False]]))
    Array([5.], dtype=float32)
    """
    checks.floating(hidden=hidden, weight=weight)
    checks.mask(response_mask, hidden[..., 0], name="response_mask", of="the hidden states' positions")
    if weight.shape != hidden.shape[-1:]:
        raise ValueError(f"`weight` has shape {list(weight.shape)}, but {list(hidden.shape[-1:])} was wanted.")
    hidden, weight = as_float(hidden, weight)
    position = jax.lax.broadcasted_iota(jnp.int32, response_mask.shape, response_mask.ndim - 1)
    last = jnp.max(jnp.where(response_mask, position, 0), axis=-1)
    some = jnp.any(response_mask, axis=-1)
    state = jnp.take_along_axis(hidden, last[..., None, None], axis=-2)[..., 0, :]
    state = fill(state, some[..., None], 0)
    return fill(jnp.einsum("...d,d->...", state, weight, precision=jax.lax.Precision.HIGHEST) + bias, some, 0)
