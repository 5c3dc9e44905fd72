"""Critics made of log-probabilities: pure functions from `Candidates` to one logit a candidate, `[..., 1+K]`.

Gradients are stopped here and nowhere else: the reference is a constant.

    name                       logit of a response y                                    used by
    implicit_reward            β log(π/π_ref)                                           DPO, MIO, KTO, …
    log_ratio                  log(π/π_ref)                                             IPO, SPPO
    length_normalised          (β/|y|) log π                                            SimPO
    log_probability            β log π                                                  CPO
    log_odds                   log p̄/(1−p̄), p̄ = exp of the mean token log-probability   ORPO
    …_reward                   β f′(π/π_ref) for other divergences f                    f-DPO
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.critics.candidates import Candidates
from mi_align.numerics import as_float, fill, log1mexp, log_sigmoid, masked_sum

__all__ = [
    "alpha_reward",
    "displacement_penalised_reward",
    "forward_kl_reward",
    "implicit_reward",
    "jensen_shannon_reward",
    "length_desensitised_reward",
    "length_normalised",
    "length_normalised_reward",
    "length_regularised_reward",
    "lengths",
    "log_odds",
    "log_probability",
    "log_ratio",
    "mean_log_probability",
    "mean_log_ratio",
    "power_likelihood",
    "reward_score",
    "token_divergence_reward",
    "token_regularised_reward",
    "tsallis_reward",
]

Logits = Float[Array, "*batch C"]


def lengths(candidates: Candidates) -> Logits:
    """Tokens of each response; at least 1, so that an empty response divides nothing by 0."""
    if candidates.length is not None:
        return jnp.maximum(as_float(candidates.length)[0], 1)
    (policy,) = as_float(candidates.policy)
    return jnp.maximum(masked_sum(jnp.ones_like(policy), candidates.response_mask, axis=-1), 1)


def _token_differences(candidates: Candidates) -> Float[Array, "*batch C T"]:
    """log π − log π_ref of each response token, 0 elsewhere."""
    if candidates.reference is None:
        raise ValueError(
            "`candidates.reference` is None, but this critic compares with a reference policy. Pass its token "
            "log-probabilities, or take a method without a reference, such as 'simpo', 'cpo' or 'dpo_reference_free'."
        )
    policy, reference = as_float(candidates.policy, jax.lax.stop_gradient(candidates.reference))
    mask = candidates.response_mask
    return fill(fill(policy, mask, 0) - fill(reference, mask, 0), mask, 0)


def log_ratio(candidates: Candidates) -> Logits:
    """log π(y|x) − log π_ref(y|x), summed from per-token differences, in nats."""
    return jnp.sum(_token_differences(candidates), axis=-1)


def implicit_reward(candidates: Candidates, *, beta: float) -> Logits:
    """β log(π/π_ref): the reward whose KL-regularised optimum π is (Rafailov et al. 2023, eq. 5)."""
    return beta * log_ratio(candidates)


def mean_log_ratio(candidates: Candidates) -> Logits:
    """log(π/π_ref) a token."""
    return log_ratio(candidates) / lengths(candidates)


def length_normalised_reward(candidates: Candidates, *, beta: float) -> Logits:
    """(β/|y|) log(π/π_ref)."""
    return beta * mean_log_ratio(candidates)


def _log_likelihood(candidates: Candidates) -> Logits:
    (policy,) = as_float(candidates.policy)
    return jnp.sum(fill(policy, candidates.response_mask, 0), axis=-1)


def log_probability(candidates: Candidates, *, beta: float) -> Logits:
    """β log π(y|x) (CPO, and DPO without a reference)."""
    return beta * _log_likelihood(candidates)


def mean_log_probability(candidates: Candidates) -> Logits:
    """log π a token, in nats."""
    return _log_likelihood(candidates) / lengths(candidates)


def length_normalised(candidates: Candidates, *, beta: float) -> Logits:
    """(β/|y|) log π(y|x) (Meng et al. 2024, SimPO, eq. 4)."""
    return beta * mean_log_probability(candidates)


def log_odds(candidates: Candidates) -> Logits:
    """logit p̄ = log p̄ − log(1 − p̄), p̄ the geometric mean of the token probabilities (Hong et al. 2024, ORPO).

    To full precision down to mean log-probabilities of −1e-12, where `log(1 − exp(u))` has lost every digit; at p̄ = 1,
    which a float can reach and a softmax cannot, one ulp below is taken.
    """
    mean = mean_log_probability(candidates)
    mean = jnp.minimum(mean, -jnp.finfo(mean.dtype).tiny)
    return mean - log1mexp(mean)


def power_likelihood(candidates: Candidates, *, beta: float, alpha: float) -> Logits:
    """β (1 − p̄^−α)/α, which tends to β log p̄ as α → 0 (Gupta et al. 2025, AlphaPO).

    From the mean log-probability itself, never through p̄, which underflows.
    """
    return -beta * _expm1_over(-alpha * mean_log_probability(candidates), alpha)


def _expm1_over(x: Array, scale: float | Array) -> Array:
    return jnp.expm1(x) / scale


def forward_kl_reward(candidates: Candidates, *, beta: float) -> Logits:
    """β (1 − π_ref/π): f-DPO under the forward KL, up to a constant (Wang et al. 2023)."""
    return -beta * jnp.expm1(-log_ratio(candidates))


def jensen_shannon_reward(candidates: Candidates, *, beta: float) -> Logits:
    """β log(2u/(1+u)), u = π/π_ref: f-DPO under the Jensen–Shannon divergence."""
    ratio = log_ratio(candidates)
    return beta * (jnp.log(jnp.asarray(2, ratio.dtype)) + log_sigmoid(ratio))


def alpha_reward(candidates: Candidates, *, beta: float, alpha: float) -> Logits:
    """β (1 − u^−α)/α, u = π/π_ref: f-DPO under an α-divergence as Wang et al. 2023 write it; α → 0 is DPO."""
    return -beta * _expm1_over(-alpha * log_ratio(candidates), alpha)


def tsallis_reward(candidates: Candidates, *, beta: float, alpha: float) -> Logits:
    """β (u^(α−1) − 1)/(α−1): the same family as TRL 1.16 writes it, its exponent clipped at 80; α = ½ agrees with ½."""
    exponent = jnp.minimum((alpha - 1) * log_ratio(candidates), 80)
    return beta * _expm1_over(exponent, alpha - 1)


def length_desensitised_reward(candidates: Candidates, *, beta: float, alpha: float) -> Logits:
    """Implicit reward whose tokens beyond the shortest candidate's length count α (Liu et al. 2024, LD-DPO)."""
    differences = _token_differences(candidates)
    mask = candidates.response_mask
    kept = jnp.ones(differences.shape, bool) if mask is None else mask
    position = jnp.cumsum(kept, axis=-1)
    total = position[..., -1:]
    if candidates.candidate_mask is not None:
        total = jnp.where(candidates.candidate_mask[..., None], total, differences.shape[-1])
    shortest = jnp.min(total, axis=-2, keepdims=True)
    return beta * jnp.sum(jnp.where(position <= shortest, differences, alpha * differences), axis=-1)


def length_regularised_reward(candidates: Candidates, *, beta: float, length_penalty: float) -> Logits:
    """β log(π/π_ref) + λ|y|: the reward whose optimum under r − λ|y| is π (Park et al. 2024, R-DPO)."""
    return implicit_reward(candidates, beta=beta) + length_penalty * lengths(candidates)


def _is_chosen(logits: Logits) -> Array:
    return jnp.arange(logits.shape[-1]) == 0


def displacement_penalised_reward(candidates: Candidates, *, beta: float, penalty: float) -> Logits:
    """β [z − λ max(0, −z) for the chosen], z = log(π/π_ref): a fall of the chosen costs (Pal et al. 2024, DPOP)."""
    ratio = log_ratio(candidates)
    fall = jnp.where(jnp.broadcast_to(_is_chosen(ratio), ratio.shape), jnp.maximum(0, -ratio), 0)
    return beta * (ratio - penalty * fall)


def _sequence_divergence(candidates: Candidates) -> Logits:
    """Σ_t KL(π_ref‖π) along each response."""
    if candidates.reference_kl is None:
        raise ValueError(
            "`candidates.reference_kl` is None, but TDPO needs KL(π_ref‖π) at each response token, "
            f"{list(candidates.policy.shape)} as the log-probabilities. Compute it where the full logits are."
        )
    (kl,) = as_float(candidates.reference_kl)
    return jnp.sum(fill(kl, candidates.response_mask, 0), axis=-1)


def token_divergence_reward(candidates: Candidates, *, beta: float) -> Logits:
    """β [log(π/π_ref) + Σ_t KL(π_ref‖π)_t] (Zeng et al. 2024, TDPO₁)."""
    return beta * (log_ratio(candidates) + _sequence_divergence(candidates))


def token_regularised_reward(candidates: Candidates, *, beta: float, kl_weight: float) -> Logits:
    """β [log(π/π_ref) + α Σ_t KL(π_ref‖π)_t], the chosen response's KL a constant (Zeng et al. 2024, TDPO₂)."""
    divergence = _sequence_divergence(candidates)
    chosen = jnp.broadcast_to(_is_chosen(divergence), divergence.shape)
    divergence = jnp.where(chosen, jax.lax.stop_gradient(divergence), divergence)
    return beta * (log_ratio(candidates) + kl_weight * divergence)


def reward_score(candidates: Candidates) -> Logits:
    """The value of a reward head, as it is."""
    if candidates.score is None:
        raise ValueError("`candidates.score` is None, but a reward model's values [..., 1+K] were wanted: `score=…`.")
    return as_float(candidates.score)[0]
