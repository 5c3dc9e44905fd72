"""Ledger 35 and 38: the policy gradient is a contrast of right with wrong, and what baselines and clipping do to it.

Responses are few, groups small: every expectation is the sum over all groups that can be sampled.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, expected_step, judged_policy, normals, reward_group
from mi_align.numerics import Mean
from mi_align.objectives import (
    bnpo_loss,
    centred_advantage,
    cispo_loss,
    dapo_loss,
    dr_grpo_loss,
    grpo_loss,
    gspo_loss,
    ppo_loss,
    reinforce_loss,
    rloo_advantage,
    rloo_loss,
)

__all__ = ["CLAIMS"]

_RESPONSES, _GROUP, _TOKENS = 3, 3, 4


def _graded(key: PRNGKeyArray) -> Inputs:
    """A policy over few responses; the grades are whole numbers, which no derivative is taken of, as in training."""
    x = normals(key, logits=(_RESPONSES,), grade=(_RESPONSES,), baseline=())
    return {**x, "grade": jnp.round(3 * x["grade"]).astype(int)}


def _two_policies(key: PRNGKeyArray) -> Inputs:
    x = normals(key, new=(5,), old=(5,), advantage=(5,), clip=(2,))
    return {**x, "clip": between(0.05, 0.5, x["clip"])}


def _sampled_tokens(key: PRNGKeyArray) -> Inputs:
    x = normals(key, logp=(2, _TOKENS), advantage=(2,))
    return {**x, "logp": -jnp.abs(x["logp"])}


def _contrast(x: Inputs) -> tuple[Array, Array]:
    """p, and E[∇log π | right] − E[∇log π | wrong]."""
    policy = jax.nn.softmax(x["logits"])
    p = jnp.sum(policy * x["right"])
    return p, policy * x["right"] / p - policy * ~x["right"] / jnp.sum(policy * ~x["right"])


def _with_baseline(x: Inputs) -> Array:
    def loss(logp: Array, reward: Array) -> Array:
        return jnp.sum(reinforce_loss(logp, reward - x["baseline"]), axis=-1)

    return expected_step(loss, x["logits"], x["grade"], size=1)


def _value_gradient(x: Inputs, baseline: Array | None = None) -> Array:
    """∂E[r]/∂logits = π (r − E r)."""
    policy = jax.nn.softmax(x["logits"])
    return policy * (x["grade"] - (policy @ x["grade"] if baseline is None else baseline))


def _leave_one_out(x: Inputs) -> tuple[Array, Array, Array]:
    """Each kept reward, the sum over the group's others, and how many they are."""
    kept = x["where"].astype(x["reward"].dtype)
    others = kept[:, None] * kept * (1 - jnp.eye(len(kept), dtype=kept.dtype))
    return kept * x["reward"], others @ x["reward"], jnp.sum(kept) - 1


def _scaled_deviation(x: Inputs) -> tuple[Array, Array]:
    """K, and r − mean r of the kept rewards."""
    kept = x["where"].astype(x["reward"].dtype)
    return jnp.sum(kept), kept * (x["reward"] - kept @ x["reward"] / jnp.sum(kept))


def _self_included(logp: Array, reward: Array) -> Array:
    return jnp.mean(reinforce_loss(logp, centred_advantage(reward)), axis=-1)


def _clipped_slope(x: Inputs) -> Array:
    logp = jax.nn.log_softmax(x["new"])

    def loss(new: Array) -> Array:
        return jnp.sum(ppo_loss(new, logp, x["advantage"], clip_low=x["clip"][0], clip_high=x["clip"][1]))

    return jax.grad(loss)(logp)


def _surrogate(x: Inputs) -> Array:
    """PPO's surrogate, averaged over the old policy."""
    new, old = jax.nn.log_softmax(x["new"]), jax.nn.log_softmax(x["old"])
    loss = ppo_loss(new, old, x["advantage"], clip_low=x["clip"][0], clip_high=x["clip"][1])
    return -jnp.exp(old) @ loss


def _average(loss: Array | Mean) -> Array:
    return loss.value() if isinstance(loss, Mean) else jnp.mean(loss)


def _kin(x: Inputs) -> Array:
    """The token gradients of GRPO and its kin, where the policy is the one that sampled."""
    logp, advantage = x["logp"], x["advantage"]

    def losses(new: Array) -> Array:
        dr_grpo = dr_grpo_loss(new, logp, advantage, max_length=float(_TOKENS))
        others = [f(new, logp, advantage) for f in (grpo_loss, dapo_loss, bnpo_loss, gspo_loss, cispo_loss)]
        return jnp.stack([_average(loss) for loss in (dr_grpo, *others)])

    return jax.jacrev(losses)(logp)


def _token_share(x: Inputs, count: int) -> Array:
    """−A/count at every token, for each of the six losses."""
    return jnp.broadcast_to(-x["advantage"][:, None] / count, (6, 2, _TOKENS))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="35a",
        title="With right and wrong answers the policy gradient is a contrast of the two",
        statement=r"\nabla p = \mathbb{E}_\pi[r\,\nabla\log\pi] ="
        r" p(1-p)\,\bigl(\mathbb{E}[\nabla\log\pi \mid r=1] - \mathbb{E}[\nabla\log\pi \mid r=0]\bigr)",
        kind=Kind.EXACT,
        draw=judged_policy(5),
        left=lambda x: expected_step(
            lambda logp, reward: jnp.sum(reinforce_loss(logp, reward), -1), x["logits"], x["right"], size=1
        ),
        right=lambda x: _contrast(x)[0] * (1 - _contrast(x)[0]) * _contrast(x)[1],
        twin=lambda x: _contrast(x)[0] * _contrast(x)[1],
        slip="p instead of p(1 − p)",
        source="derived here; the same reading in Mroueh 2025 (arXiv 2503.06639)",
    ),
    Claim(
        id="35b",
        title="A baseline leaves the expected gradient unchanged",
        statement=r"\mathbb{E}_\pi[(r - b)\,\nabla\log\pi] = \nabla\,\mathbb{E}_\pi[r]"
        r" \quad\text{for every } b",
        kind=Kind.EXACT,
        draw=_graded,
        left=_with_baseline,
        right=_value_gradient,
        twin=lambda x: _value_gradient(x, x["baseline"]),
        slip="b in the place of the policy's own mean reward",
        source="Williams 1992; enumerated here",
    ),
    Claim(
        id="38a",
        title="RLOO's advantage is the reward above the mean of the group's others",
        statement=r"A_k = r_k - \frac{1}{K-1}\sum_{i \ne k} r_i",
        kind=Kind.EXACT,
        draw=reward_group,
        left=lambda x: rloo_advantage(x["reward"], where=x["where"]),
        right=lambda x: _leave_one_out(x)[0] - x["where"] * _leave_one_out(x)[1] / _leave_one_out(x)[2],
        twin=lambda x: _leave_one_out(x)[0] - x["where"] * _leave_one_out(x)[1] / (_leave_one_out(x)[2] + 1),
        slip="the others' sum divided by K instead of K − 1",
        source="Kool et al. 2019; Ahmadian et al. 2024 (arXiv 2402.14740)",
    ),
    Claim(
        id="38b",
        title="RLOO's advantage is K/(K−1) times the deviation from the group's own mean",
        statement=r"A_k = \frac{K}{K-1}\,(r_k - \bar r)",
        kind=Kind.EXACT,
        draw=reward_group,
        left=lambda x: rloo_advantage(x["reward"], where=x["where"]),
        right=lambda x: _scaled_deviation(x)[0] / (_scaled_deviation(x)[0] - 1) * _scaled_deviation(x)[1],
        twin=lambda x: _scaled_deviation(x)[1],
        slip="the factor K/(K − 1) left out",
        source="Ahmadian et al. 2024 (arXiv 2402.14740)",
    ),
    Claim(
        id="38c",
        title="RLOO's gradient is unbiased at any group size",
        statement=r"\mathbb{E}\Bigl[\frac1K\sum_k A_k\,\nabla\log\pi(y_k)\Bigr] = \nabla\,\mathbb{E}_\pi[r]",
        kind=Kind.EXACT,
        draw=_graded,
        left=lambda x: expected_step(
            lambda logp, reward: jnp.mean(rloo_loss(logp, reward), -1), x["logits"], x["grade"], size=_GROUP
        ),
        right=_value_gradient,
        twin=lambda x: (_GROUP - 1) / _GROUP * _value_gradient(x),
        slip="shrunk by (K − 1)/K, as a baseline that includes the response itself would",
        source="Kool et al. 2019; enumerated here",
        samples=250_000,
    ),
    Claim(
        id="38d",
        title="A mean baseline that includes the response itself shrinks the gradient by (K−1)/K",
        statement=r"\mathbb{E}\Bigl[\frac1K\sum_k (r_k - \bar r)\,\nabla\log\pi(y_k)\Bigr] ="
        r" \frac{K-1}{K}\,\nabla\,\mathbb{E}_\pi[r]",
        kind=Kind.EXACT,
        draw=_graded,
        left=lambda x: expected_step(_self_included, x["logits"], x["grade"], size=_GROUP),
        right=lambda x: (_GROUP - 1) / _GROUP * _value_gradient(x),
        twin=_value_gradient,
        slip="the baseline taken to leave the gradient unbiased",
        source="derived here, by enumeration of all groups of three",
        samples=250_000,
    ),
    Claim(
        id="38e",
        title="Where the policy is the one that sampled, PPO's gradient is the policy gradient's",
        statement=r"\frac{\partial\,\ell_{\mathrm{PPO}}}{\partial\log\pi}\Big|_{\pi=\pi_{\mathrm{old}}} = -A"
        r" \quad\text{for every clip range}",
        kind=Kind.EXACT,
        draw=_two_policies,
        left=_clipped_slope,
        right=lambda x: -x["advantage"],
        twin=lambda x: -x["advantage"] * (1 + 1e-6),
        slip="one part in a million",
        source="Schulman et al. 2017 (arXiv 1707.06347), eq. 7; no gradient reaches the old policy or A",
        derivatives=0,
    ),
    Claim(
        id="38f",
        title="PPO's clipped surrogate is pessimistic",
        statement=r"\mathbb{E}_{\pi_{\mathrm{old}}}\bigl[\min(\rho A, \mathrm{clip}(\rho)\,A)\bigr]"
        r" \le \mathbb{E}_\pi[A]",
        kind=Kind.INEQUALITY,
        draw=_two_policies,
        left=_surrogate,
        right=lambda x: jax.nn.softmax(x["new"]) @ x["advantage"],
        twin=lambda x: jax.nn.softmax(x["old"]) @ x["advantage"],
        slip="the old policy's expectation",
        source="Schulman et al. 2017 (arXiv 1707.06347), section 3",
    ),
    Claim(
        id="38g",
        title="GRPO, Dr. GRPO, DAPO, BNPO, GSPO and CISPO agree on the first step, at equal lengths",
        statement=r"\frac{\partial\,\ell}{\partial\log\pi(y_{i,t})}\Big|_{\pi=\pi_{\mathrm{old}}} ="
        r" -\frac{A_i}{G\,T} \quad\text{for all six}",
        kind=Kind.EXACT,
        draw=_sampled_tokens,
        left=_kin,
        right=lambda x: _token_share(x, 2 * _TOKENS),
        twin=lambda x: _token_share(x, _TOKENS),
        slip="not divided by the group's size",
        source="derived here; Shao et al. 2024 (arXiv 2402.03300) and its kin",
        derivatives=0,
        samples=200_000,
    ),
)
