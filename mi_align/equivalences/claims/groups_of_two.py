"""Ledger 37: groups of two, where GRPO, RLOO and DPO meet."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.critics import Candidates
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import (
    between,
    expected_grpo_step,
    expected_step,
    judged_policy,
    normals,
    reward_group,
    success_gradient,
)
from mi_align.methods import METHODS
from mi_align.objectives import group_advantage, rloo_advantage

__all__ = ["CLAIMS"]

_TWO = "Wu et al. 2025 (arXiv 2510.00977)"


def _pair_of_rewards(key: PRNGKeyArray) -> Inputs:
    """Two rewards on a coarse scale, so that they are often equal."""
    x = normals(key, reward=(2,), unit=())
    return {"grade": jnp.round(x["reward"]).astype(int), "unit": between(0.1, 3.0, x["unit"])}


def _dpo_step(x: Inputs) -> Array:
    """DPO's expected step where the policy is the reference and samples; a mixed pair's right answer is chosen."""

    def loss(log_ratio: Array, reward: Array) -> Array:
        def dpo(policy: Array) -> Array:
            return METHODS["dpo"](Candidates.from_sequences(policy, jnp.zeros_like(policy)), beta=x["beta"])

        first, second = reward[:, 0] > reward[:, 1], reward[:, 1] > reward[:, 0]
        return jnp.where(first, dpo(log_ratio), 0) + jnp.where(second, dpo(log_ratio[:, ::-1]), 0)

    return expected_step(loss, x["logits"], x["right"], size=2)


def _scaled(x: Inputs) -> Array:
    return x["unit"] * x["grade"]


def _order(x: Inputs) -> Array:
    """sign(r₁ − r₂) and sign(r₂ − r₁), from the grades: a fused multiply-subtract of equal rewards is not always 0."""
    return jnp.sign(x["grade"] - x["grade"][::-1]).astype(x["unit"].dtype)


def _own_deviation(x: Inputs) -> tuple[Array, Array, Array]:
    """K, r − mean r, and the sum of its squares."""
    kept = x["where"].astype(x["reward"].dtype)
    deviation = kept * (x["reward"] - kept @ x["reward"] / jnp.sum(kept))
    return jnp.sum(kept), deviation, jnp.sum(deviation**2)


def _over_deviation(x: Inputs) -> Array:
    p, gradient = success_gradient(x)
    return gradient / jnp.sqrt(p * (1 - p))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="37a",
        title="In a group of two GRPO's advantage is ±1, or 0 for equal rewards",
        statement=r"G = 2:\quad A_1 = \operatorname{sign}(r_1 - r_2) = -A_2",
        kind=Kind.EXACT,
        draw=_pair_of_rewards,
        left=lambda x: group_advantage(_scaled(x), correction=0.0, eps=0.0),
        right=_order,
        twin=lambda x: _order(x) / jnp.sqrt(2.0),
        slip="the sample's deviation",
        source=f"{_TWO}; population deviation, ε = 0",
    ),
    Claim(
        id="37b",
        title="The expected gradient of GRPO in groups of two is exactly that of the success rate",
        statement=r"G = 2:\quad \mathbb{E}\,\nabla J = \nabla p",
        kind=Kind.EXACT,
        draw=judged_policy(4),
        left=lambda x: expected_grpo_step(x, size=2),
        right=lambda x: success_gradient(x)[1],
        twin=_over_deviation,
        slip="divided by √(p(1 − p)), as in the limit of large groups",
        source=f"{_TWO}; enumerated here",
        samples=250_000,
    ),
    Claim(
        id="37c",
        title="RLOO in a group of two: each reward minus the other",
        statement=r"K = 2:\quad A_1 = r_1 - r_2 = -A_2",
        kind=Kind.EXACT,
        draw=_pair_of_rewards,
        left=lambda x: rloo_advantage(_scaled(x)),
        right=lambda x: _scaled(x) - _scaled(x)[::-1],
        twin=lambda x: (_scaled(x) - _scaled(x)[::-1]) / 2,
        slip="the deviation from the pair's own mean",
        source="Ahmadian et al. 2024 (arXiv 2402.14740)",
    ),
    Claim(
        id="37d",
        title="Right and wrong in a group of two: RLOO and GRPO have the same advantages",
        statement=r"K = G = 2,\; r \in \{0, 1\}:\quad A^{\mathrm{RLOO}} = A^{\mathrm{GRPO}}",
        kind=Kind.EXACT,
        draw=_pair_of_rewards,
        left=lambda x: rloo_advantage((x["grade"] > 0).astype(x["unit"].dtype)),
        right=lambda x: group_advantage((x["grade"] > 0).astype(x["unit"].dtype), correction=0.0, eps=0.0),
        twin=lambda x: group_advantage((x["grade"] > 0).astype(x["unit"].dtype), correction=1.0, eps=0.0),
        slip="the sample's deviation",
        source=_TWO,
    ),
    Claim(
        id="37e",
        title="The sample's deviation changes the size of GRPO's advantages, not their direction",
        statement=r"A^{\mathrm{sample}} = \sqrt{\tfrac{G-1}{G}}\,A^{\mathrm{population}},"
        r" \quad\text{for a pair}\; \pm\tfrac{1}{\sqrt2}",
        kind=Kind.EXACT,
        draw=reward_group,
        left=lambda x: group_advantage(x["reward"], where=x["where"], correction=1.0, eps=0.0),
        right=lambda x: _own_deviation(x)[1] * jnp.sqrt((_own_deviation(x)[0] - 1) / _own_deviation(x)[2]),
        twin=lambda x: _own_deviation(x)[1] * jnp.sqrt(_own_deviation(x)[0] / _own_deviation(x)[2]),
        slip="the population's deviation",
        source="derived here; `torch.std` is the sample's",
    ),
    Claim(
        id="37f",
        title="On-policy and at the reference, DPO's expected gradient is β times that of the success rate",
        statement=r"\pi = \pi_{\mathrm{ref}}:\quad -\mathbb{E}\,\nabla \ell_{\mathrm{DPO}} ="
        r" \mathbb{E}\bigl[\tfrac{\beta}{2}\,(g_w - g_l)\,;\, r_w \ne r_l\bigr] = \beta\,\nabla p",
        kind=Kind.EXACT,
        draw=judged_policy(4),
        left=_dpo_step,
        right=lambda x: x["beta"] * success_gradient(x)[1],
        twin=lambda x: x["beta"] / 2 * success_gradient(x)[1],
        slip="the factor ½ of a single pair kept, though a mixed pair comes in two orders",
        source="derived here, by enumeration of all pairs",
        derivatives=0,
    ),
)
