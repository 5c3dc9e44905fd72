"""Critics of the f-DPO family: β f′(π/π_ref) for a divergence f, and power-shaped likelihoods.

    critic                  T(x, y), u = π/π_ref of the response           trains
    implicit_reward         β log u, reverse KL (in `policy`)              DPO
    forward_kl_reward       β (1 − 1/u)                                    f-DPO
    jensen_shannon_reward   β log 2u/(1 + u)                               f-DPO
    alpha_reward            β (1 − u^−α)/α                                 f-DPO as its paper writes α
    tsallis_reward          β (u^(α−1) − 1)/(α − 1)                        f-DPO as TRL 1.16 writes α
    power_likelihood        β (1 − p^−α)/α, p = e^(log π/|y|)              AlphaPO

Scores are 0 at u = 1, where constants that a margin does not see are chosen so, and keep their digits there. All but
Jensen–Shannon are one function, `box_cox`, at different powers; α is any real number.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.critics.candidates import Candidates
from mi_align.critics.policy import Logits, Scalar, log_ratio, mean_log_probability
from mi_align.elementary import expm1, log1p, log_sigmoid

__all__ = [
    "alpha_reward",
    "box_cox",
    "forward_kl_reward",
    "jensen_shannon_reward",
    "power_likelihood",
    "tsallis_reward",
]


def box_cox(log_x: Float[Array, "..."], power: Scalar) -> Float[Array, "..."]:
    """(x^λ − 1)/λ given log x, λ = `power`; log x at λ = 0. Full precision near x = 1.

    Where x^λ comes near the dtype's largest number (above e^64 in float32, e^685 in float64) it goes on as a straight
    line: finite, with a gradient, and still in order, where two infinities would make a margin NaN.
    """
    power = jnp.asarray(power, log_x.dtype)
    exponent = power * log_x
    limit = math.log(float(jnp.finfo(log_x.dtype).max)) - 24
    grown = expm1(jnp.minimum(exponent, limit)) + math.exp(limit) * jax.nn.relu(exponent - limit)
    return jnp.where(power == 0, log_x, grown / jnp.where(power == 0, 1, power))


def forward_kl_reward(candidates: Candidates, *, beta: Scalar) -> Logits:
    """β (1 − π_ref/π): f-DPO under the forward KL (Wang et al. 2023)."""
    return beta * box_cox(log_ratio(candidates), -1)


def jensen_shannon_reward(candidates: Candidates, *, beta: Scalar) -> Logits:
    """β log 2u/(1 + u), u = π/π_ref, below β log 2: f-DPO under the Jensen–Shannon divergence (ibid.).

    The score is that of MIO's optimum, but f-DPO takes differences of it: the two are not one.
    """
    ratio = log_ratio(candidates)
    near = jnp.abs(ratio) < 1
    # log 2 and log σ cancel near u = 1.
    close = -log1p(expm1(jnp.where(near, -ratio, 0)) / 2)
    return beta * jnp.where(near, close, math.log(2) + log_sigmoid(ratio))


def alpha_reward(candidates: Candidates, *, beta: Scalar, alpha: Scalar) -> Logits:
    """β (1 − u^−α)/α, u = π/π_ref: f-DPO under an α-divergence as its paper writes it; DPO at 0, forward KL at 1."""
    return beta * box_cox(log_ratio(candidates), -alpha)


def tsallis_reward(candidates: Candidates, *, beta: Scalar, alpha: Scalar) -> Logits:
    """β (u^(α−1) − 1)/(α − 1): the same family as TRL 1.16 writes it; DPO at 1, forward KL at 0.

    TRL clips the exponent at 80, which float32 needs there; here it is exact until `box_cox`'s limit.
    """
    return beta * box_cox(log_ratio(candidates), alpha - 1)


def power_likelihood(candidates: Candidates, *, beta: Scalar, alpha: Scalar) -> Logits:
    """β (1 − p^−α)/α, p = e^(log π/|y|); SimPO's β log p at α = 0 (Gupta et al. 2025, AlphaPO).

    Made of the mean log-probability itself, never of p, which underflows.
    """
    return beta * box_cox(mean_log_probability(candidates), -alpha)
