"""An advantage of each action turned into a loss whose gradient is the policy gradient, or PPO's stand-in for it.

These are elementwise: an action may be a token or a whole response, whose log-probability is then the sum over its
tokens. `group` adds up the tokens of responses; `advantages` makes the advantages. A loss passes no gradient to its
advantage nor to the old policy: both are numbers that came with the sample.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.elementary import log1p
from mi_align.numerics import as_float, fill
from mi_align.objectives._public import objective
from mi_align.objectives.advantages import rloo_advantage

__all__ = ["ppo_loss", "ppo_value_loss", "reinforce_loss", "rloo_loss"]


@objective
def reinforce_loss(logp: Float[Array, "*batch"], advantage: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """A loss whose gradient, averaged over samples of π, is that of −E_π[A] with A held.

    ℓ = −A log π

    When to choose: on fresh samples of the policy itself, with an advantage that has a baseline. For samples used more
    than once, `ppo_loss`.

    Args:
      logp: log π of sampled actions or responses, `[...]`, in nats.
      advantage: A of each, `[...]`; a constant. A reward, `rloo_advantage`, or either of `kl_regularised_value`.

    Returns:
      One loss an action, `[...]`; half precision comes back as float32. Its value means nothing, its gradient does.

    Raises:
      ValueError: shapes differ.
      TypeError: an input is not floating-point.

    Gradient: ∂ℓ/∂log π = −A; none in A.

    Equal to: for rewards 0 and 1, p(1 − p) times the mean score of right responses minus that of wrong ones, in the
    mean over π; a baseline changes nothing (ledger 35).

    Source: Williams 1992.

    >>> import jax.numpy as jnp
    >>> reinforce_loss(jnp.array([-1.0, -2.5]), jnp.array([0.5, -0.5]))
    Array([ 0.5 , -1.25], dtype=float32)
    """
    checks.floating(logp=logp, advantage=advantage)
    checks.same_shape(logp=logp, advantage=advantage)
    logp, advantage = as_float(logp, advantage)
    return -jax.lax.stop_gradient(advantage) * logp


@objective
def rloo_loss(
    logp: Float[Array, "*batch G"], reward: Float[Array, "*batch G"], *, where: Bool[Array, "*batch G"] | None = None
) -> Float[Array, "*batch G"]:
    """Batch-coupled along the last axis: REINFORCE with the group's other responses as the baseline (RLOO).

    ℓ_k = −(r_k − mean_{i≠k} r_i) log π_k

    When to choose: a group of responses a prompt, sampled from the policy itself. For samples used more than once, put
    `rloo_advantage` into `ppo_loss` on the responses' log-probabilities, as TRL does.

    Args:
      logp: log π of sampled responses, summed over their tokens, `[..., G]`, in nats.
      reward: r of each, `[..., G]`; a constant. To stay near a reference, `kl_regularised_value`.
      where: which responses count, `[..., G]`, True = keep. Default all.

    Returns:
      One loss a response, `[..., G]`, whose mean over the group is the loss; half precision comes back as float32. 0
      under the mask, and for a response that has no others.

    Raises:
      ValueError: shapes differ, the group is empty, or the mask is not of their shape.
      TypeError: an input is not floating-point, or the mask is not boolean.

    Gradient: ∂ℓ_k/∂log π_k = −(r_k − mean_{i≠k} r_i); none in r.

    Equal to: −∇E_π[r] in the mean over π, at any G ≥ 2 (ledger 38).

    Source: Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740), eq. 6.

    >>> import jax.numpy as jnp
    >>> rloo_loss(jnp.array([-1.0, -2.0, -4.0]), jnp.array([1.0, 0.0, 0.5]))
    Array([ 0.75, -1.5 ,  0.  ], dtype=float32)
    """
    checks.floating(logp=logp)
    checks.same_shape(logp=logp, reward=reward)
    return reinforce_loss(fill(as_float(logp)[0], where, 0), rloo_advantage(reward, where=where))


@objective
def ppo_loss(
    logp: Float[Array, "*batch"],
    old_logp: Float[Array, "*batch"],
    advantage: Float[Array, "*batch"],
    *,
    clip_low: float | Float[Array, ""] = 0.2,
    clip_high: float | Float[Array, ""] = 0.2,
    ratio_cap: float | Float[Array, ""] = math.inf,
) -> Float[Array, "*batch"]:
    """PPO's clipped surrogate: the importance-weighted advantage, with no gain for leaving the old policy's vicinity.

    ℓ = −min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high) A),  ρ = π/π_old

    When to choose: for several steps on one batch of samples. Tokens of groups with one advantage a response go to
    `grpo_loss` and its kin, which call this.

    Args:
      logp: log π of sampled actions, `[...]`, in nats.
      old_logp: log of the policy that sampled them, `[...]`; a constant.
      advantage: A of each, `[...]`; a constant.
      clip_low: ε_low in (0, 1]: where A < 0 a ratio below 1 − ε_low has no gradient. Default 0.2.
      clip_high: ε_high > 0: where A > 0 a ratio above 1 + ε_high has no gradient. Default 0.2.
      ratio_cap: a ratio above it has no gradient where A < 0 either (dual clip's c, TRL's δ); at least 1 + ε_high to
        mean that alone. Default infinity, no cap. The paper on dual clip takes 3.

    Returns:
      One loss an action, `[...]`; half precision comes back as float32. Infinite only where ρA is.

    Raises:
      ValueError: shapes differ, or a hyper-parameter is out of range.
      TypeError: an input is not floating-point.

    Gradient: ∂ℓ/∂log π = −ρA where the ratio is not clipped, otherwise 0; none in π_old and A.

    Equal to: `reinforce_loss` in gradient at π = π_old (ledger 38).

    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 7; Ye et al. 2020 (arXiv 1912.09729), eq. 5, for the cap.

    >>> import jax.numpy as jnp, numpy as np
    >>> old = jnp.full(4, -1.0)
    >>> loss = ppo_loss(old + jnp.log(jnp.array([0.5, 2.0, 0.5, 2.0])), old, jnp.array([1.0, 1.0, -1.0, -1.0]))
    >>> np.asarray(loss).round(4)
    array([-0.5, -1.2,  0.8,  2. ], dtype=float32)
    """
    checks.floating(logp=logp, old_logp=old_logp, advantage=advantage)
    checks.same_shape(logp=logp, old_logp=old_logp, advantage=advantage)
    logp, old_logp, advantage = as_float(logp, old_logp, advantage)
    log_ratio = logp - jax.lax.stop_gradient(old_logp)
    advantage = jax.lax.stop_gradient(advantage)
    # Which of the two bounds min(…) applies depends on A's sign; as logarithms, ratios beyond it never overflow.
    gain = jnp.minimum(log_ratio, log1p(jnp.asarray(clip_high)))
    loss = jnp.minimum(jnp.maximum(log_ratio, log1p(-jnp.asarray(clip_low))), jnp.log(ratio_cap))
    bounded = jnp.where(advantage < 0, loss, gain)
    return -advantage * jnp.exp(jnp.where(advantage == 0, 0, bounded))  # unclipped, the ratio may be infinite


@objective
def ppo_value_loss(
    value: Float[Array, "*batch"],
    old_value: Float[Array, "*batch"],
    returns: Float[Array, "*batch"],
    *,
    clip: float | Float[Array, ""] = 0.2,
) -> Float[Array, "*batch"]:
    """PPO's regression of the value head on the return, with no gain for moving far in one batch.

    ℓ = ½ max[(v − R)², (clip(v, v_old − ε, v_old + ε) − R)²]

    When to choose: beside `ppo_loss`, when a value head makes its advantages. Without a clip, `clip=jnp.inf`.

    Args:
      value: v, the head's present value of each state, `[...]`, in units of the reward.
      old_value: v_old when the batch was sampled, `[...]`.
      returns: R, what followed, `[...]`.
      clip: ε > 0, how far the value may move with effect, in units of the reward. Default 0.2.

    Returns:
      One loss a state, `[...]`, in squared units of the reward; half precision comes back as float32.

    Raises:
      ValueError: shapes differ, or ε is out of range.
      TypeError: an input is not floating-point.

    Gradient: ∂ℓ/∂v = v − R, but 0 where the clipped value is the further of the two from R.

    Equal to: half the squared error where v is within ε of v_old.

    Source: OpenAI baselines' PPO2; Huang et al. 2024 (arXiv 2403.17031), for language models.

    >>> import jax.numpy as jnp, numpy as np
    >>> np.asarray(ppo_value_loss(jnp.array([0.5, 0.5]), jnp.array([0.0, 0.5]), jnp.array([1.0, 1.0]))).round(4)
    array([0.32 , 0.125], dtype=float32)
    """
    checks.floating(value=value, old_value=old_value, returns=returns)
    checks.same_shape(value=value, old_value=old_value, returns=returns)
    value, old_value, returns = as_float(value, old_value, returns)
    near = jnp.clip(value, old_value - clip, old_value + clip)
    return jnp.maximum(jnp.square(value - returns), jnp.square(near - returns)) / 2
