"""Ledger 36: what standardising rewards within a group does to the policy gradient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import (
    between,
    binomial_law,
    expected_grpo_step,
    judged_policy,
    normals,
    reward_group,
    success_gradient,
    verdicts,
)
from mi_align.objectives import group_advantage, grpo_loss, reinforce_loss

__all__ = ["CLAIMS"]

_GROUP = 3
_SIZES = (16.0, 32.0, 64.0, 128.0, 256.0)
_TWO = "Wu et al. 2025 (arXiv 2510.00977)"


def _answers(key: PRNGKeyArray) -> Inputs:
    """Up to eight answers, the first right and the second wrong, on any scale of rewards."""
    x = normals(key, right=(8,), where=(8,), level=(), gap=())
    return {
        "right": (x["right"] > 0).at[:2].set(jnp.array([True, False])),
        "where": (x["where"] > -0.5).at[:2].set(True),
        "level": x["level"],
        "gap": between(0.1, 3.0, x["gap"]),
    }


def _tokens(key: PRNGKeyArray) -> Inputs:
    """Four answers of up to three tokens, as log-ratios to the policy that sampled them."""
    x = normals(key, log_ratio=(4, 3), right=(), where=(4, 3))
    return {
        "log_ratio": x["log_ratio"],
        "right": verdicts(x["right"], 4),
        "where": (x["where"] > 0).at[:, 0].set(True),
    }


def _joint_law(key: PRNGKeyArray) -> Inputs:
    """Five outcomes of a pair of slopes, with their probabilities."""
    x = normals(key, logits=(5,), right=(5,), wrong=(5,))
    return {"law": jax.nn.softmax(x["logits"]), "right": x["right"], "wrong": x["wrong"]}


def _standardised(x: Inputs) -> Array:
    reward = x["level"] + x["gap"] * x["right"]
    return group_advantage(reward, where=x["where"], correction=0.0, eps=0.0)


def _two_levels(x: Inputs, over: Callable[[Array], Array], under: Callable[[Array], Array]) -> Array:
    """`over` of the right share for right answers, minus `under` of it for wrong ones."""
    share = jnp.sum(x["where"] & x["right"]) / jnp.sum(x["where"]).astype(x["gap"].dtype)
    return x["where"] * jnp.where(x["right"], over(share), -under(share))


def _odds_root(p: Array) -> Array:
    return jnp.sqrt(p / (1 - p))


def _moments(x: Inputs, correction: float) -> Array:
    """Mean and mean square of the kept advantages."""
    advantage = group_advantage(x["reward"], where=x["where"], correction=0.0, eps=0.0)
    kept = jnp.sum(x["where"])
    return jnp.stack([jnp.sum(advantage), jnp.sum(advantage**2) * (kept - correction) / kept]) / kept


def _grpo_value(x: Inputs) -> Array:
    """GRPO's surrogate of one group, nothing clipped."""
    old = jnp.full_like(x["log_ratio"], -1.3)
    advantage = group_advantage(x["right"].astype(old.dtype), correction=0.0, eps=0.0)
    loss = grpo_loss(x["log_ratio"] + old, old, advantage, where=x["where"], clip_low=1.0, clip_high=np.inf)
    return -jnp.mean(loss)


def _contrast_of_ratios(x: Inputs, scale: Callable[[Array], Array]) -> Array:
    ratio = jnp.sum(jnp.exp(x["log_ratio"]) * x["where"], -1) / jnp.sum(x["where"], -1)
    right = x["right"].astype(ratio.dtype)
    above, below = right @ ratio / jnp.sum(right), (1 - right) @ ratio / jnp.sum(1 - right)
    return scale(jnp.mean(right)) * (above - below)


def _spread(p: Array) -> Array:
    return jnp.sqrt(p * (1 - p))


def _mean_spread(p: Array, size: int) -> Array:
    """E √(p̂(1 − p̂)), p̂ the right share of a group."""
    return binomial_law(p, size) @ _spread(jnp.arange(size + 1) / jnp.asarray(size, p.dtype))


def _rescaled(x: Inputs, spread: Callable[[Array], Array]) -> Array:
    p, gradient = success_gradient(x)
    return spread(p) / (p * (1 - p)) * gradient


def _shortfall(p: Array, size: int) -> Array:
    """√(p(1 − p)) − E[p̂ A₊], A₊ the advantage of a group's right answers."""
    rewards = jnp.tri(size + 1, size, -1, dtype=p.dtype)
    advantage = group_advantage(rewards, correction=0.0, eps=0.0)
    return _spread(p) - binomial_law(p, size) @ jnp.mean(rewards * advantage, axis=-1)


def _explained(x: Inputs) -> tuple[Array, Array, Array]:
    """Var g₊, Cov(g₊, g₋), Var g₋."""
    right, wrong = (g - x["law"] @ g for g in (x["right"], x["wrong"]))
    return x["law"] @ right**2, x["law"] @ (right * wrong), x["law"] @ wrong**2


def _contrast_variance(x: Inputs) -> Array:
    """The variance of the slope of REINFORCE on a right answer with weight 1 and a wrong one with weight −c*."""
    _, covariance, variance = _explained(x)
    weight = jnp.broadcast_to(covariance / variance, x["law"].shape)

    def losses(parameter: Array) -> Array:
        pull = reinforce_loss(parameter * x["right"], jnp.ones_like(weight))
        return pull + reinforce_loss(parameter * x["wrong"], -weight)

    slope = -jax.jacfwd(losses)(jnp.zeros((), weight.dtype))
    return x["law"] @ (slope - x["law"] @ slope) ** 2


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="36a",
        title="GRPO's advantages of right and wrong answers",
        statement=r"A_+ = \sqrt{\tfrac{1-\hat p}{\hat p}}, \qquad A_- = -\sqrt{\tfrac{\hat p}{1-\hat p}}"
        r" \quad\text{whatever the rewards of right and wrong}",
        kind=Kind.EXACT,
        draw=_answers,
        left=_standardised,
        right=lambda x: _two_levels(x, lambda p: 1 / _odds_root(p), _odds_root),
        twin=lambda x: _two_levels(x, _odds_root, lambda p: 1 / _odds_root(p)),
        slip="the two levels exchanged",
        source=f"{_TWO}, eq. 7; population deviation, ε = 0",
    ),
    Claim(
        id="36b",
        title="GRPO's advantages balance, and have unit size",
        statement=r"\hat p\,A_+ + (1-\hat p)\,A_- = 0 \quad\text{and}\quad \frac1G\sum_i A_i^2 = 1"
        r" \quad\text{for all rewards}",
        kind=Kind.EXACT,
        draw=reward_group,
        left=lambda x: _moments(x, 0.0),
        right=lambda x: jnp.array([0.0, 1.0], x["reward"].dtype),
        twin=lambda x: jnp.array([0.0, 1.0], x["reward"].dtype) * (1 + 1e-6),
        slip="one part in a million",
        source=f"{_TWO}; population deviation, ε = 0",
    ),
    Claim(
        id="36c",
        title="GRPO's surrogate is a contrast of right with wrong",
        statement=r"J = \frac1G\sum_i A_i\,\rho_i = \sqrt{\hat p(1-\hat p)}"
        r"\,\bigl(\operatorname{mean}_+ \rho - \operatorname{mean}_- \rho\bigr)",
        kind=Kind.EXACT,
        draw=_tokens,
        left=_grpo_value,
        right=lambda x: _contrast_of_ratios(x, _spread),
        twin=lambda x: _contrast_of_ratios(x, lambda p: p * (1 - p)),
        slip="p̂(1 − p̂) without the root, as without standardisation",
        source=f"{_TWO}, eq. 10",
        derivatives=2,
    ),
    Claim(
        id="36d",
        title="GRPO's expected gradient is that of the success rate, rescaled",
        statement=r"\mathbb{E}\,\nabla J ="
        r" \frac{\mathbb{E}\sqrt{\hat p(1-\hat p)}}{p(1-p)}\,\nabla p, \qquad G\hat p \sim \mathrm{Bin}(G, p)",
        kind=Kind.EXACT,
        draw=judged_policy(3),
        left=lambda x: expected_grpo_step(x, size=_GROUP),
        right=lambda x: _rescaled(x, lambda p: _mean_spread(p, _GROUP)),
        twin=lambda x: _rescaled(x, _spread),
        slip="the limit of large groups taken for a group of three",
        source="derived here, by enumeration of all groups of three",
        samples=50_000,
    ),
    Claim(
        id="36e",
        title="As the group grows, GRPO's gradient tends to that of the success rate over its deviation, at rate 1/G",
        statement=r"\mathbb{E}\,\nabla J \to \frac{\nabla p}{\sqrt{p(1-p)}}, \qquad"
        r" \sqrt{p(1-p)} - \mathbb{E}\sqrt{\hat p(1-\hat p)} \sim \frac{1}{8G\sqrt{p(1-p)}}",
        kind=Kind.ASYMPTOTIC,
        draw=lambda key: {"p": between(0.3, 0.7, jax.random.normal(key))},
        left=lambda x: jnp.stack([_shortfall(x["p"], int(size)) for size in _SIZES]),
        right=lambda x: 1 / (8 * jnp.asarray(_SIZES, x["p"].dtype) * _spread(x["p"])),
        twin=lambda x: 1 / (8 * jnp.sqrt(jnp.asarray(_SIZES, x["p"].dtype)) * _spread(x["p"])),
        slip="the rate of a mean's error, 1/√G",
        source=f"{_TWO}, eq. 12–17, for the limit; the rate derived here",
        samples=1000,
        grid=_SIZES,
    ),
    Claim(
        id="36f",
        title="The weight of wrong answers that makes the contrast's variance smallest",
        statement=r"\operatorname{Var}(g_+ - c\,g_-) = (1-\rho^2)\operatorname{Var} g_+"
        r" \quad\text{at}\quad c = \frac{\operatorname{Cov}(g_+, g_-)}{\operatorname{Var} g_-}",
        kind=Kind.EXACT,
        draw=_joint_law,
        left=_contrast_variance,
        right=lambda x: _explained(x)[0] - _explained(x)[1] ** 2 / _explained(x)[2],
        twin=lambda x: _explained(x)[0] - jnp.abs(_explained(x)[1]) * jnp.sqrt(_explained(x)[0] / _explained(x)[2]),
        slip="|ρ| in the place of ρ²",
        source=f"{_TWO}, proposition 4.1",
    ),
)
