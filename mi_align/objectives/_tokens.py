"""What every loss on groups of sampled responses needs: the tokens checked, their surrogate, their penalty."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import as_float, fill
from mi_align.objectives.kl import kl_k3
from mi_align.objectives.policy_gradient import ppo_loss

__all__ = ["Kept", "Responses", "Scalar", "Tokens", "clipped_surrogate", "penalty", "tokens"]

Tokens = Float[Array, "*batch G T"]
Responses = Float[Array, "*batch G"]
Kept = Bool[Array, "*batch G T"]
Scalar = float | Float[Array, ""]


def tokens(logp: Tokens, old_logp: Tokens, advantage: Responses, where: Kept | None) -> tuple[Array, Array, Array]:
    """Both log-probabilities, 0 under the mask, and the advantage; checked, wide enough to accumulate in."""
    checks.floating(logp=logp, old_logp=old_logp, advantage=advantage)
    checks.same_shape(logp=logp, old_logp=old_logp)
    checks.whole_groups(logp, advantage=advantage)
    checks.mask(where, logp, of="`logp`")
    logp, old_logp, advantage = as_float(logp, old_logp, advantage)
    return fill(logp, where, 0), fill(old_logp, where, 0), advantage


def penalty(logp: Tokens, reference_logp: Tokens | None, where: Kept | None, beta: Scalar) -> Tokens:
    """β k₃ of each token, for a `logp` that is filled already; 0 without a reference."""
    if reference_logp is None:
        return jnp.zeros_like(logp)
    checks.floating(reference_logp=reference_logp)
    checks.same_shape(logp=logp, reference_logp=reference_logp)
    return beta * kl_k3(logp, fill(as_float(reference_logp, logp)[0], where, 0))


def clipped_surrogate(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    where: Kept | None,
    reference_logp: Tokens | None,
    beta: Scalar,
    **clips: Scalar,
) -> Tokens:
    """PPO's surrogate of each token with its response's advantage, plus its penalty."""
    logp, old_logp, advantage = tokens(logp, old_logp, advantage, where)
    spread = jnp.broadcast_to(advantage[..., None], logp.shape)
    return ppo_loss(logp, old_logp, spread, **clips) + penalty(logp, reference_logp, where, beta)
