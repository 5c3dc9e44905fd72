"""Critics made of log-probabilities: pure functions from `Candidates` to one logit a candidate, `[*batch, C]`.

    critic                       T(x, y), ρ = log π − log π_ref summed over the response's tokens     trains
    implicit_reward              β ρ                                                                  DPO, MIO, KTO, …
    log_ratio                    ρ                                                                    SPPO, summed IPO
    length_normalised_reward     β ρ/|y|                                                              normalised DPO
    mean_log_ratio               ρ/|y|                                                                IPO
    log_probability              β log π                                                              CPO, SLiC
    mean_log_probability         log π/|y|
    length_normalised            β log π/|y|                                                          SimPO
    log_odds                     log p/(1 − p), p = e^(log π/|y|)                                     ORPO
    length_desensitised_reward   β ρ, tokens beyond the shortest candidate's length counting less     LD-DPO
    length_regularised_reward    β ρ + λ|y|                                                           R-DPO
    displacement_penalised_reward  β (ρ − λ max(0, −ρ)) on the chosen, β ρ on the others              DPOP
    token_divergence_reward      β (ρ + Σ_t KL_t)                                                     TDPO₁
    token_regularised_reward     β (ρ + α Σ_t KL_t), a constant on the chosen                         TDPO₂
    policy_and_reference_margins β (log π⁺ − log π⁻), and the reference's                             AOT
    reward_score                 a reward head's value                                                reward models

`divergences` has the rest of the f-DPO family. All of them replace what masks drop before any arithmetic, accumulate
half precision in float32 and keep float64; the logit of a candidate that is not there is 0, with zero gradient.
Gradients through the reference are stopped in `_token_log_ratios` and nowhere else. β > 0 is in logits a nat.

A field that a critic reads and does not get, or of a wrong shape, is a `ValueError`; a wrong dtype is a `TypeError`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.critics.candidates import Candidates
from mi_align.elementary import log1mexp
from mi_align.numerics import as_float, count, fill, masked_sum

__all__ = [
    "displacement_penalised_reward",
    "implicit_reward",
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
    "on_policy_weight",
    "policy_and_reference_margins",
    "reward_score",
    "token_divergence_reward",
    "token_regularised_reward",
]

Logits = Float[Array, "*batch C"]
Scalar = float | Float[Array, ""]
Tokens = Float[Array, "*batch C T"]


# --- From fields to checked, filled arrays


def _field(candidates: Candidates, name: str, remedy: str) -> Array:
    """A floating-point field that has to be there."""
    value: Array | None = getattr(candidates, name)
    if value is None:
        raise ValueError(f"`candidates.{name}` is None, but it is needed here. {remedy}")
    checks.floating(**{name: value})
    return jnp.asarray(value)


def _policy(candidates: Candidates) -> Array:
    """The policy's token log-probabilities, against which every mask's shape is checked."""
    policy = _field(candidates, "policy", "Pass log π of each token, `[*batch, C, T]`, or use `from_sequences`.")
    if policy.ndim < 2 or 0 in policy.shape[-2:]:
        raise ValueError(
            f"`policy` has shape {list(policy.shape)}, but [*batch, C, T] was wanted: T ≥ 1 token log-probabilities of "
            "C ≥ 1 candidates. For log-probabilities of whole responses use `Candidates.from_sequences`."
        )
    checks.mask(candidates.response_mask, policy, name="response_mask", of="the policy's log-probabilities")
    checks.mask(candidates.candidate_mask, policy[..., 0], name="candidate_mask", of="the candidates")
    return policy


def _kept(candidates: Candidates, policy: Array) -> Bool[Array, "*batch C T"] | None:
    """The tokens that are in a response of a candidate that is there."""
    if candidates.candidate_mask is None:
        return candidates.response_mask
    there = jnp.asarray(candidates.candidate_mask)[..., None]
    return (
        there & jnp.ones(policy.shape, bool) if candidates.response_mask is None else there & candidates.response_mask
    )


def _token_logps(candidates: Candidates) -> Tokens:
    """log π of each token, 0 where masks drop it."""
    policy = _policy(candidates)
    return fill(as_float(policy)[0], _kept(candidates, policy), 0)


def _token_log_ratios(candidates: Candidates) -> Tokens:
    """log π − log π_ref of each token, 0 where masks drop it; the reference is a constant."""
    policy = _policy(candidates)
    remedy = "Pass log π_ref of each token, or take a critic without a reference, such as `length_normalised`."
    reference = jax.lax.stop_gradient(_field(candidates, "reference", remedy))
    checks.same_shape(policy=policy, reference=reference)
    kept = _kept(candidates, policy)
    policy, reference = as_float(policy, reference)
    return fill(policy, kept, 0) - fill(reference, kept, 0)


def _response_total(candidates: Candidates, name: str, remedy: str) -> Logits:
    """Another number a token, summed over the response."""
    value, policy = _field(candidates, name, remedy), _policy(candidates)
    checks.same_shape(policy=policy, **{name: value})
    return masked_sum(as_float(value)[0], _kept(candidates, policy), axis=-1)


def lengths(candidates: Candidates) -> Logits:
    """Tokens in each response, a float; 0 for an empty response and for a candidate that is not there."""
    policy = _policy(candidates)
    if candidates.length is None:
        number = count(as_float(policy)[0], _kept(candidates, policy), axis=-1)
        return jnp.broadcast_to(number, policy.shape[:-1])
    if jnp.shape(candidates.length) != policy.shape[:-1]:
        raise ValueError(
            f"`length` has shape {list(jnp.shape(candidates.length))}, but the responses' lengths in tokens, "
            f"{list(policy.shape[:-1])}, were wanted. Pass them: `Candidates.from_sequences(…, length=…)`."
        )
    return fill(jnp.asarray(candidates.length, as_float(policy)[0].dtype), candidates.candidate_mask, 0)


def _per_token(total: Logits, candidates: Candidates) -> Logits:
    """A sum over the response as a mean over its tokens; 0 for an empty response."""
    return total / jnp.maximum(lengths(candidates), 1)


def _is_chosen(logits: Logits) -> Bool[Array, "*batch C"]:
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == 0


# --- Against a reference


def log_ratio(candidates: Candidates) -> Logits:
    """ρ = Σ_t (log π_t − log π_ref,t), nats: exactly 0 where policy and reference agree."""
    return masked_sum(_token_log_ratios(candidates), axis=-1)


def implicit_reward(candidates: Candidates, *, beta: Scalar) -> Logits:
    """β ρ, the reward whose KL-regularised optimum the policy is (Rafailov et al. 2023, eq. 5).

    Gradient: β to the log π of each kept token, none to the reference.

    >>> import jax.numpy as jnp
    >>> pair = Candidates.from_sequences(jnp.array([[-12.0, -15.0]]), jnp.array([[-13.0, -14.5]]))
    >>> implicit_reward(pair, beta=0.2).round(4)
    Array([[ 0.2, -0.1]], dtype=float32)
    """
    return beta * log_ratio(candidates)


def mean_log_ratio(candidates: Candidates) -> Logits:
    """ρ/|y|, nats a token."""
    return _per_token(log_ratio(candidates), candidates)


def length_normalised_reward(candidates: Candidates, *, beta: Scalar) -> Logits:
    """β ρ/|y|: the implicit reward a token (Lambert et al. 2024, Tülu 3)."""
    return beta * mean_log_ratio(candidates)


def length_desensitised_reward(candidates: Candidates, *, beta: Scalar, tail_weight: Scalar) -> Logits:
    """β Σ_t w_t (log π_t − log π_ref,t), w = 1 up to the shortest candidate's length and `tail_weight` beyond it.

    `tail_weight` in [0, 1]; 1 is DPO (Liu et al. 2024, LD-DPO). Needs tokens: sums are refused.
    """
    if candidates.length is not None:
        raise ValueError("tokens are weighed by position here, but `policy` holds sums. Pass tokens, `[*batch, C, T]`.")
    ratios = _token_log_ratios(candidates)
    kept = _kept(candidates, ratios)
    position = jnp.cumsum(jnp.ones(ratios.shape, bool) if kept is None else kept, axis=-1)
    shortest = jnp.min(fill(lengths(candidates), candidates.candidate_mask, jnp.inf), axis=-1)[..., None, None]
    common, tail = (masked_sum(ratios, part, axis=-1) for part in (position <= shortest, position > shortest))
    return beta * (common + tail_weight * tail)


def length_regularised_reward(candidates: Candidates, *, beta: Scalar, length_penalty: Scalar) -> Logits:
    """β ρ + λ|y|, λ = `length_penalty` in logits a token (Park et al. 2024, R-DPO).

    The policy that is optimal under r(y) − λ|y| has this as its r: a longer response has to earn its length.
    """
    return implicit_reward(candidates, beta=beta) + length_penalty * lengths(candidates)


def displacement_penalised_reward(candidates: Candidates, *, beta: Scalar, penalty: Scalar) -> Logits:
    """β (ρ − λ max(0, −ρ)) on the chosen candidate, β ρ on the others (Pal et al. 2024, DPOP).

    λ = `penalty` ≥ 0. A chosen response that is less likely than under the reference costs 1 + λ times as much.
    """
    ratio = log_ratio(candidates)
    fall = jnp.where(_is_chosen(ratio), jax.nn.relu(-ratio), 0)
    return beta * (ratio - penalty * fall)


def _sequence_divergence(candidates: Candidates) -> Logits:
    """Σ_t KL(π_ref ‖ π) along each response."""
    remedy = "TDPO reads KL(π_ref ‖ π) at each response token, `[*batch, C, T]`: compute it where the full logits are."
    return _response_total(candidates, "reference_kl", remedy)


def token_divergence_reward(candidates: Candidates, *, beta: Scalar) -> Logits:
    """β (ρ + Σ_t KL_t), KL_t = KL(π_ref ‖ π) at token t (Zeng et al. 2024, TDPO₁)."""
    return beta * (log_ratio(candidates) + _sequence_divergence(candidates))


def token_regularised_reward(candidates: Candidates, *, beta: Scalar, kl_weight: Scalar) -> Logits:
    """β (ρ + α Σ_t KL_t), the chosen response's KL a constant (Zeng et al. 2024, TDPO₂)."""
    divergence = _sequence_divergence(candidates)
    divergence = jnp.where(_is_chosen(divergence), jax.lax.stop_gradient(divergence), divergence)
    return beta * (log_ratio(candidates) + kl_weight * divergence)


def policy_and_reference_margins(candidates: Candidates, *, beta: Scalar) -> Float[Array, "*batch 2"]:
    """β (log π⁺ − log π⁻) of a pair, then the reference's: two samples over the batch (Melnyk et al. 2024, AOT)."""
    policy = log_probability(candidates)
    if policy.shape[-1] != 2:
        raise ValueError(f"margins are of pairs, but there are {policy.shape[-1]} candidates a prompt. Pass two.")
    reference = policy - log_ratio(candidates)  # a constant: both terms have the same gradient
    # β comes last: a fused multiply-add would round the two margins differently.
    return beta * jnp.stack([policy[..., 0] - policy[..., 1], reference[..., 0] - reference[..., 1]], axis=-1)


# --- Without a reference


def log_probability(candidates: Candidates, *, beta: Scalar = 1.0) -> Logits:
    """β log π of the whole response; the logit of CPO, SLiC and DPO without a reference."""
    return beta * masked_sum(_token_logps(candidates), axis=-1)


def mean_log_probability(candidates: Candidates) -> Logits:
    """log π/|y|, nats a token, at most 0."""
    return _per_token(log_probability(candidates), candidates)


def length_normalised(candidates: Candidates, *, beta: Scalar) -> Logits:
    """β log π/|y| (Meng et al. 2024, SimPO, eq. 4)."""
    return beta * mean_log_probability(candidates)


def log_odds(candidates: Candidates) -> Logits:
    """logit p = log p − log(1 − p), p the geometric mean of the token probabilities (Hong et al. 2024, ORPO).

    To full precision from p = e^(−10⁴) to p = 1 − 1e-12 and beyond, where log(1 − exp(·)) has lost every digit. At
    p = 1, which a float can reach and a softmax cannot, the largest finite odds, without gradient.

    Gradient: 1/(1 − p) to the mean log-probability.
    """
    mean = mean_log_probability(candidates)
    mean = jnp.minimum(mean, -jnp.finfo(mean.dtype).tiny)
    return fill(mean - log1mexp(mean), candidates.candidate_mask, 0)


# --- Neither


def reward_score(candidates: Candidates) -> Logits:
    """The value of a reward head, as it is."""
    score = _field(candidates, "score", "Pass a reward head's values, `[*batch, C]`: `Candidates(score=…)`.")
    checks.candidates(score, name="score")
    checks.mask(candidates.candidate_mask, score, name="candidate_mask")
    return fill(as_float(score)[0], candidates.candidate_mask, 0)


def on_policy_weight(candidates: Candidates) -> Float[Array, "*batch"]:
    """Π_y exp(mean_t [log π_t − log Σ_v π(v)²]) over a prompt's candidates, a constant (Zhou et al. 2024, WPO, eq. 2).

    Not a critic but a weight of the example: how likely the policy is to say these responses itself.
    """
    remedy = "WPO reads log Σ_v π(v)² at each response token, `[*batch, C, T]`: compute it where the full logits are."
    relative = log_probability(candidates) - _response_total(candidates, "log_collision", remedy)
    return jax.lax.stop_gradient(jnp.exp(masked_sum(_per_token(relative, candidates), axis=-1)))
