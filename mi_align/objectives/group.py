"""GRPO and its kin: a surrogate for each token, and how the tokens of a group's responses are added up."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.numerics import Mean, as_float, fill, masked_mean, masked_sum
from mi_align.objectives._public import objective
from mi_align.objectives.kl import kl_k3
from mi_align.objectives.policy_gradient import ppo_loss, reinforce_loss

__all__ = ["bnpo_loss", "cispo_loss", "dapo_loss", "dr_grpo_loss", "grpo_loss", "gspo_loss"]

Tokens = Float[Array, "*batch G T"]
Responses = Float[Array, "*batch G"]
Kept = Bool[Array, "*batch G T"]


def _tokens(logp: Array, old_logp: Array, advantage: Array, where: Array | None) -> tuple[Array, Array, Array]:
    """Log-probabilities (0 under the mask) and each token's advantage, checked, wide enough to accumulate in."""
    checks.floating(logp=logp, old_logp=old_logp, advantage=advantage)
    checks.same_shape(logp=logp, old_logp=old_logp)
    checks.whole_groups(logp, advantage=advantage)
    checks.mask(where, logp, of="`logp`")
    logp, old_logp, advantage = as_float(logp, old_logp, advantage)
    return fill(logp, where, 0), fill(old_logp, where, 0), jnp.broadcast_to(advantage[..., None], logp.shape)


def _penalty(logp: Array, reference_logp: Array | None, where: Array | None, beta: Array | float) -> Array | float:
    """β k₃ of each token; 0 without a reference. `logp` is already filled."""
    if reference_logp is None:
        return 0.0
    checks.floating(reference_logp=reference_logp)
    return beta * kl_k3(logp, fill(as_float(reference_logp)[0], where, 0))


def _clipped(
    logp: Array,
    old_logp: Array,
    advantage: Array,
    where: Array | None,
    reference_logp: Array | None,
    beta: Array | float,
    **clips: Array | float,
) -> Tokens:
    """PPO's surrogate of each token plus its KL penalty."""
    logp, old_logp, advantage = _tokens(logp, old_logp, advantage, where)
    return ppo_loss(logp, old_logp, advantage, **clips) + _penalty(logp, reference_logp, where, beta)


@objective
def grpo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: float | Float[Array, ""] = 0.04,
    clip_low: float | Float[Array, ""] = 0.2,
    clip_high: float | Float[Array, ""] = 0.2,
    ratio_cap: float | Float[Array, ""] = math.inf,
) -> Responses:
    """GRPO: the mean of PPO's surrogate over each response's own tokens."""
    clips = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    tokens = _clipped(logp, old_logp, advantage, where, reference_logp, beta, **clips)
    return masked_mean(tokens, where, axis=-1)


@objective
def dr_grpo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    max_length: float | Float[Array, ""],
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: float | Float[Array, ""] = 0.04,
    clip_low: float | Float[Array, ""] = 0.2,
    clip_high: float | Float[Array, ""] = 0.2,
    ratio_cap: float | Float[Array, ""] = math.inf,
) -> Responses:
    """Dr. GRPO: the sum of PPO's surrogate over each response's tokens, over a length that is the same for all."""
    clips = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    tokens = _clipped(logp, old_logp, advantage, where, reference_logp, beta, **clips)
    return masked_sum(tokens, where, axis=-1) / max_length


@objective
def dapo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: float | Float[Array, ""] = 0.04,
    clip_low: float | Float[Array, ""] = 0.2,
    clip_high: float | Float[Array, ""] = 0.28,
    ratio_cap: float | Float[Array, ""] = math.inf,
) -> Mean:
    """DAPO, batch-coupled: the mean of PPO's surrogate over all tokens, as a `Mean` still to be merged."""
    clips = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    return Mean.of(_clipped(logp, old_logp, advantage, where, reference_logp, beta, **clips), where)


@objective
def bnpo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: float | Float[Array, ""] = 0.04,
    clip_low: float | Float[Array, ""] = 0.2,
    clip_high: float | Float[Array, ""] = 0.2,
    ratio_cap: float | Float[Array, ""] = math.inf,
) -> Mean:
    """BNPO, batch-coupled: the mean of PPO's surrogate over the tokens of this micro-batch, with a symmetric clip."""
    clips = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    return dapo_loss(logp, old_logp, advantage, where=where, reference_logp=reference_logp, beta=beta, **clips)


@objective
def gspo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: float | Float[Array, ""] = 0.04,
    clip_low: float | Float[Array, ""] = 3e-4,
    clip_high: float | Float[Array, ""] = 4e-4,
    ratio_cap: float | Float[Array, ""] = math.inf,
) -> Responses:
    """GSPO: PPO's surrogate on one ratio a response, the geometric mean of its tokens' ratios."""
    logp, old_logp, _ = _tokens(logp, old_logp, advantage, where)
    log_ratio = masked_mean(logp - jax.lax.stop_gradient(old_logp), where, axis=-1)
    clips = {"clip_low": clip_low, "clip_high": clip_high, "ratio_cap": ratio_cap}
    loss = ppo_loss(log_ratio, jnp.zeros_like(log_ratio), advantage, **clips)
    penalty = jnp.broadcast_to(_penalty(logp, reference_logp, where, beta), logp.shape)
    return loss + masked_mean(penalty, where, axis=-1)


@objective
def cispo_loss(
    logp: Tokens,
    old_logp: Tokens,
    advantage: Responses,
    *,
    where: Kept | None = None,
    reference_logp: Tokens | None = None,
    beta: float | Float[Array, ""] = 0.04,
    ratio_cap: float | Float[Array, ""] = 5.0,
) -> Mean:
    """CISPO, batch-coupled: REINFORCE of every token, weighed by its capped ratio, which gets no gradient."""
    logp, old_logp, advantage = _tokens(logp, old_logp, advantage, where)
    weight = jnp.exp(jnp.minimum(logp - old_logp, jnp.log(ratio_cap)))
    tokens = reinforce_loss(logp, weight * advantage) + _penalty(logp, reference_logp, where, beta)
    return Mean.of(tokens, where)
