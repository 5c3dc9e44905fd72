"""Ledger 44: what the gradients of the KL estimators are on average, differentiated or as a detached penalty.

REINFORCE detaches its rewards, so that claims on penalties have no derivatives of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import expected_step, normals
from mi_align.objectives import kl_k1, kl_k2, kl_k3, kl_regularised_value, reinforce_loss

__all__ = ["CLAIMS"]

_RESPONSES = 4
_OFF = 1 + 1e-6
_DISTANCES = (1 / 8, 1 / 16, 1 / 32, 1 / 64)
_PITFALLS = "Liu et al. 2025 (arXiv 2510.01555); Tang & Munos 2025 (arXiv 2506.09477)"

Estimator = Callable[[Array, Array], Array]


def _two_policies(key: PRNGKeyArray) -> Inputs:
    """Logits of a policy and of its reference."""
    return normals(key, policy=(_RESPONSES,), reference=(_RESPONSES,))


def _logs(x: Inputs) -> tuple[Array, Array]:
    """log π and log π_ref."""
    return jax.nn.log_softmax(x["policy"]), jax.nn.log_softmax(x["reference"])


def _differentiated(estimator: Estimator, x: Inputs) -> Array:
    """E_π ∂k/∂logits: the estimator as a loss, on samples of the policy."""
    logp, reference = _logs(x)

    def loss(moved: Array, log_ratio: Array) -> Array:
        return jnp.mean(estimator(moved + log_ratio, jnp.zeros_like(moved)), axis=-1)

    return -expected_step(loss, x["policy"], logp - reference, size=1)


def _penalised(penalty: Array, x: Inputs) -> Array:
    """E_π[k ∂log π/∂logits]: the estimator as a penalty in the reward of REINFORCE."""

    def loss(moved: Array, penalty: Array) -> Array:
        return jnp.mean(reinforce_loss(moved, -penalty), axis=-1)

    return -expected_step(loss, x["policy"], penalty, size=1)


def _detached(estimator: Estimator, x: Inputs) -> Array:
    return _penalised(estimator(*_logs(x)), x)


def _by_value(x: Inputs) -> Array:
    """The same for the KL-regularised value of a reward of 0, at β = 1."""
    logp, reference = _logs(x)
    return _penalised(-kl_regularised_value(logp, reference, jnp.zeros_like(logp), beta=1.0), x)


def _reverse(x: Inputs) -> Array:
    """∇KL(π ‖ π_ref) = π (log π/π_ref − KL)."""
    logp, reference = _logs(x)
    policy, log_ratio = jnp.exp(logp), logp - reference
    return policy * (log_ratio - policy @ log_ratio)


def _forward(x: Inputs) -> Array:
    """∇KL(π_ref ‖ π) = π − π_ref."""
    return jax.nn.softmax(x["policy"]) - jax.nn.softmax(x["reference"])


def _half_square(x: Inputs) -> Array:
    """∇E_π[½ log²(π/π_ref)]."""
    logp, reference = _logs(x)
    policy, log_ratio = jnp.exp(logp), logp - reference
    value = log_ratio**2 / 2 + log_ratio
    return policy * (value - policy @ value)


def _pull_near_reference(estimator: Estimator, x: Inputs) -> Array:
    """The length of the detached penalty's gradient at some distances from the reference, in a fixed direction."""

    def pull(distance: Array) -> Array:
        return _detached(estimator, {**x, "policy": x["reference"] + distance * x["policy"]})

    return jnp.linalg.norm(jax.vmap(pull)(jnp.asarray(_DISTANCES)), axis=-1)


def _per_sample(x: Inputs) -> Array:
    """∂k₂/∂log π of every sample."""
    logp, reference = _logs(x)
    return jax.grad(lambda logp: jnp.sum(kl_k2(logp, reference)))(logp)


def _reinforced(x: Inputs, factor: float = 1.0) -> Array:
    """∂/∂log π of REINFORCE's loss with the reward −k₁."""
    logp, reference = _logs(x)
    reward = -factor * kl_k1(logp, reference)
    return jax.grad(lambda logp: jnp.sum(reinforce_loss(logp, reward)))(logp)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="44a",
        title="Differentiating k₁ does nothing, on average",
        statement=r"\mathbb{E}_\pi\left[\nabla k_1\right] = 0",
        kind=Kind.EXACT,
        draw=_two_policies,
        left=lambda x: _differentiated(kl_k1, x),
        right=lambda x: jnp.zeros_like(x["policy"]),
        twin=lambda x: 1e-6 * _reverse(x),
        slip="a millionth of ∇KL(π ‖ π_ref)",
        source=_PITFALLS,
    ),
    Claim(
        id="44b",
        title="Differentiating k₂ gives the gradient of KL(π ‖ π_ref)",
        statement=r"\mathbb{E}_\pi\left[\nabla k_2\right] = \nabla\mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}})",
        kind=Kind.EXACT,
        draw=_two_policies,
        left=lambda x: _differentiated(kl_k2, x),
        right=_reverse,
        twin=lambda x: _OFF * _reverse(x),
        slip="the gradient multiplied by 1 + 1e-6",
        source=_PITFALLS,
    ),
    Claim(
        id="44c",
        title="Differentiating k₃ gives the gradient of the other divergence",
        statement=r"\mathbb{E}_\pi\left[\nabla k_3\right] = \nabla\mathrm{KL}(\pi_{\mathrm{ref}}\,\|\,\pi)",
        kind=Kind.EXACT,
        draw=_two_policies,
        left=lambda x: _differentiated(kl_k3, x),
        right=_forward,
        twin=_reverse,
        slip="the gradient of KL(π ‖ π_ref), which k₃ estimates",
        source=_PITFALLS,
    ),
    Claim(
        id="44d",
        title="As a penalty in the reward, k₁ gives the gradient of KL(π ‖ π_ref)",
        statement=r"\mathbb{E}_\pi\left[k_1\,\nabla\log\pi\right] = \nabla\mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}})",
        kind=Kind.EXACT,
        draw=_two_policies,
        left=_by_value,
        right=_reverse,
        twin=lambda x: _OFF * _reverse(x),
        slip="the gradient multiplied by 1 + 1e-6",
        source=_PITFALLS,
        derivatives=0,
    ),
    Claim(
        id="44e",
        title="As a penalty in the reward, k₂ gives another gradient: that of its mean, less that of KL",
        statement=r"\mathbb{E}_\pi\left[k_2\,\nabla\log\pi\right] = \nabla\left(\mathbb{E}_\pi\left[\tfrac12\log^2"
        r"\tfrac{\pi}{\pi_{\mathrm{ref}}}\right] - \mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}})\right)",
        kind=Kind.EXACT,
        draw=_two_policies,
        left=lambda x: _detached(kl_k2, x),
        right=lambda x: _half_square(x) - _reverse(x),
        twin=_reverse,
        slip="the gradient of KL(π ‖ π_ref)",
        source="derived here",
        derivatives=0,
    ),
    Claim(
        id="44f",
        title="As a penalty in the reward, k₃ gives the gradient of the difference of the two divergences",
        statement=r"\mathbb{E}_\pi\left[k_3\,\nabla\log\pi\right] = \nabla\left(\mathrm{KL}(\pi\,\|\,"
        r"\pi_{\mathrm{ref}}) - \mathrm{KL}(\pi_{\mathrm{ref}}\,\|\,\pi)\right)",
        kind=Kind.EXACT,
        draw=_two_policies,
        left=lambda x: _detached(kl_k3, x),
        right=lambda x: _reverse(x) - _forward(x),
        twin=_reverse,
        slip="the gradient of KL(π ‖ π_ref) alone",
        source="derived here",
        derivatives=0,
    ),
    Claim(
        id="44g",
        title="Negative control: near the reference, k₂ and k₃ in the reward pull with the square of the distance only",
        statement=r"\pi \propto \pi_{\mathrm{ref}}\,e^{\varepsilon v}:\quad"
        r" \left\|\mathbb{E}_\pi\left[k_{2,3}\,\nabla\log\pi\right]\right\| = O(\varepsilon^2)",
        kind=Kind.ASYMPTOTIC,
        draw=_two_policies,
        left=lambda x: _pull_near_reference(kl_k2, x) + _pull_near_reference(kl_k3, x),
        right=lambda x: jnp.asarray(_DISTANCES) ** 2,
        twin=lambda x: _pull_near_reference(kl_k1, x),
        slip="k₁, whose pull is linear",
        source="derived here",
        samples=1000,
        grid=_DISTANCES,
    ),
    Claim(
        id="44h",
        title="k₂ as a loss is k₁ in the reward, sample by sample",
        statement=r"\nabla k_2 = k_1\,\nabla\log\pi",
        kind=Kind.EXACT,
        draw=_two_policies,
        left=_per_sample,
        right=_reinforced,
        twin=lambda x: _reinforced(x, _OFF),
        slip="k₁ multiplied by 1 + 1e-6",
        source="Liu et al. 2025 (arXiv 2510.01555)",
        derivatives=0,
    ),
)
