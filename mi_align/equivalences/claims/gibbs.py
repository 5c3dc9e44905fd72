"""Ledger 1 and 2: the Gibbs variational principle, by which RLHF's objective is the Donsker–Varadhan bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import finite_laws as finite
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals
from mi_align.equivalences.populations import donsker_varadhan, kullback_leibler
from mi_align.objectives import donsker_varadhan_bound, kl_regularised_value

__all__ = ["CLAIMS"]

_RESPONSES, _STEPS = 4, 60
_OFF = 1 + 1e-6
_RLHF = "Rafailov et al. 2023 (arXiv 2305.18290), appendix A.1"
_DV = "Donsker & Varadhan 1983; Belghazi et al. 2018 (arXiv 1801.04062), theorem 1"


def _rlhf(key: PRNGKeyArray) -> Inputs:
    """Logits of a policy and of its reference, rewards, and β from 0.2 to 2."""
    x = normals(key, policy=(_RESPONSES,), reference=(_RESPONSES,), reward=(_RESPONSES,), beta=())
    return {**x, "policy": 2 * x["policy"], "beta": 10 ** between(-0.7, 0.3, x["beta"])}


def _logs(x: Inputs) -> tuple[Array, Array]:
    """log π and log π_ref."""
    return jax.nn.log_softmax(x["policy"]), jax.nn.log_softmax(x["reference"])


def _value(x: Inputs, policy: Array) -> Array:
    """E_π[R] − β KL(π ‖ π_ref) of the policy with these logits."""
    logp = jax.nn.log_softmax(policy)
    return jnp.exp(logp) @ kl_regularised_value(logp, _logs(x)[1], x["reward"], beta=x["beta"])


def _log_normaliser(x: Inputs, factor: float = 1.0) -> Array:
    """log Z, Z = E_ref e^{R/β}; the reward may be off by a factor."""
    return jax.nn.logsumexp(_logs(x)[1] + factor * x["reward"] / x["beta"])


def _log_optimum(x: Inputs) -> Array:
    """log π* = log π_ref + R/β − log Z."""
    return _logs(x)[1] + x["reward"] / x["beta"] - _log_normaliser(x)


def _below_ceiling(x: Inputs, factor: float = 1.0) -> Array:
    """β log Z − β KL(π ‖ π*)."""
    log_policy = _logs(x)[0]
    divergence = jnp.exp(log_policy) @ (log_policy - _log_optimum(x))
    return x["beta"] * (_log_normaliser(x, factor) - divergence)


def _shortfall(x: Inputs, factor: float = 1.0) -> Array:
    """β times what Donsker–Varadhan's bound with the critic R/β leaves of KL(π ‖ π_ref)."""
    policy, reference = map(jnp.exp, _logs(x))
    bound = donsker_varadhan(factor * x["reward"] / x["beta"], policy, reference)
    return x["beta"] * (bound - kullback_leibler(policy, reference))


def _best_found(x: Inputs) -> Array:
    """Where natural gradient ascent from the policy ends: its value, and the gradient that it leaves."""
    slope = jax.grad(lambda policy: _value(x, policy))

    def one_step(_: int, policy: Array) -> Array:
        return policy + slope(policy) / (2 * x["beta"] * jax.nn.softmax(policy))

    policy = jax.lax.fori_loop(0, _STEPS, one_step, x["policy"])
    return jnp.stack([_value(x, policy), jnp.max(jnp.abs(slope(policy)))])


def _at_best(x: Inputs, factor: float = 1.0) -> Array:
    return jnp.stack([x["beta"] * _log_normaliser(x, factor), jnp.zeros_like(x["beta"])])


def _tilted_divergence(x: Inputs, factor: float = 1.0) -> Array:
    """KL(p ‖ q_T), q_T ∝ q e^T."""
    tilted = jax.nn.softmax(x["q"] + factor * x["T"])
    return kullback_leibler(finite.laws(x)[0], tilted)


def _samples(key: PRNGKeyArray) -> Inputs:
    """Scores of a joint and of a marginal sample, some of them masked, and a shift."""
    x = normals(key, joint=(5,), marginal=(7,), masks=(12,), shift=())
    keep = (x["masks"] > -0.5).at[jnp.asarray([0, 5])].set(True)
    return {
        "joint": 3 * x["joint"],
        "marginal": 3 * x["marginal"],
        "where_joint": keep[:5],
        "where_marginal": keep[5:],
        "shift": 5 * x["shift"],
    }


def _shifted(x: Inputs, joint: float, marginal: float) -> Array:
    """Donsker–Varadhan's bound of a sample after shifting both sides by multiples of the shift."""
    masks = {"where_joint": x["where_joint"], "where_marginal": x["where_marginal"]}
    return donsker_varadhan_bound(x["joint"] + joint * x["shift"], x["marginal"] + marginal * x["shift"], **masks)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="1a",
        title="RLHF's objective is its ceiling less a divergence from the optimum",
        statement=r"\mathbb{E}_\pi[R] - \beta\,\mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}}) ="
        r" \beta\log Z - \beta\,\mathrm{KL}(\pi\,\|\,\pi^*), \quad \pi^* = \pi_{\mathrm{ref}}\,e^{R/\beta}/Z",
        kind=Kind.EXACT,
        draw=_rlhf,
        left=lambda x: _value(x, x["policy"]),
        right=_below_ceiling,
        twin=lambda x: _below_ceiling(x, _OFF),
        slip="in log Z, the reward multiplied by 1 + 1e-6",
        source=_RLHF,
        derivatives=2,
        tolerance={"float32": 5e-5, "bfloat16": 5e-5},
        why="second derivatives, of size 1/β² = 25, of sums of terms of both signs",
    ),
    Claim(
        id="1b",
        title="No policy is worth more than β log Z",
        statement=r"\mathbb{E}_\pi[R] - \beta\,\mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}}) \le \beta\log Z",
        kind=Kind.INEQUALITY,
        draw=_rlhf,
        left=lambda x: _value(x, x["policy"]),
        right=lambda x: x["beta"] * _log_normaliser(x),
        twin=lambda x: jnp.exp(_logs(x)[1]) @ x["reward"],
        slip="the limit of β log Z as β → ∞, the reference's mean reward",
        source=_RLHF,
    ),
    Claim(
        id="1c",
        title="At the optimum every response is worth the same",
        statement=r"R(y) - \beta\log\frac{\pi^*(y)}{\pi_{\mathrm{ref}}(y)} = \beta\log Z \quad\text{for every } y",
        kind=Kind.EXACT,
        draw=_rlhf,
        left=lambda x: kl_regularised_value(_log_optimum(x), _logs(x)[1], x["reward"], beta=x["beta"]),
        right=lambda x: jnp.broadcast_to(x["beta"] * _log_normaliser(x), x["reward"].shape),
        twin=lambda x: jnp.broadcast_to(x["beta"] * _log_normaliser(x, _OFF), x["reward"].shape),
        slip="in log Z, the reward multiplied by 1 + 1e-6",
        source=_RLHF,
    ),
    Claim(
        id="1d",
        title="RLHF falls short of its ceiling by what Donsker–Varadhan's bound with T = R/β leaves of the divergence",
        statement=r"J(\pi) - \beta\log Z = \beta\left(\mathbb{E}_\pi[T] - \log\mathbb{E}_{\pi_{\mathrm{ref}}}[e^T]"
        r" - \mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}})\right), \quad T = R/\beta",
        kind=Kind.EXACT,
        draw=_rlhf,
        left=lambda x: _value(x, x["policy"]) - x["beta"] * _log_normaliser(x),
        right=_shortfall,
        twin=lambda x: _shortfall(x, _OFF),
        slip="the critic R/β multiplied by 1 + 1e-6",
        source="derived here: RLHF's optimum is the Donsker–Varadhan inequality",
    ),
    Claim(
        id="1e",
        title="Optimising the policy reaches β log Z",
        statement=r"\max_\pi\,\mathbb{E}_\pi[R] - \beta\,\mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}}) = \beta\log Z",
        kind=Kind.OPTIMUM,
        draw=_rlhf,
        left=_best_found,
        right=_at_best,
        twin=lambda x: _at_best(x, _OFF),
        slip="in log Z, the reward multiplied by 1 + 1e-6",
        source=_RLHF,
        samples=20_000,
        figure="rlhf_optimum_by_dpo",
    ),
    Claim(
        id="2a",
        title="What Donsker–Varadhan's bound leaves is a divergence too",
        statement=r"\mathrm{KL}(p\,\|\,q) - \left(\mathbb{E}_p T - \log\mathbb{E}_q e^T\right) ="
        r" \mathrm{KL}(p\,\|\,q_T), \quad q_T \propto q\,e^T",
        kind=Kind.EXACT,
        draw=finite.draw,
        left=lambda x: finite.kl(x) - finite.dv(x),
        right=_tilted_divergence,
        twin=lambda x: _tilted_divergence(x, _OFF),
        slip="q tilted by a critic that is multiplied by 1 + 1e-6",
        source=_DV,
        derivatives=2,
    ),
    Claim(
        id="2b",
        title="Shifting all scores leaves Donsker–Varadhan's bound alone, over any batch",
        statement=r"I_{\mathrm{DV}}(T + k) = I_{\mathrm{DV}}(T)",
        kind=Kind.EXACT,
        draw=_samples,
        left=lambda x: _shifted(x, 1, 1),
        right=lambda x: _shifted(x, 0, 0),
        twin=lambda x: _shifted(x, 0, 1e-6),
        slip="the marginal scores shifted by one part in a million more",
        source=_DV,
        derivatives=2,
    ),
    Claim(
        id="2c",
        title="Donsker–Varadhan's bound lies below the divergence, whatever the critic",
        statement=r"\mathbb{E}_p T - \log\mathbb{E}_q e^T \le \mathrm{KL}(p\,\|\,q)",
        kind=Kind.INEQUALITY,
        draw=finite.draw,
        left=finite.dv,
        right=finite.kl,
        twin=lambda x: (1 - 1e-6) * finite.kl(x),
        slip="the divergence multiplied by 1 − 1e-6",
        source=_DV,
    ),
    Claim(
        id="2d",
        title="The critic log p/q attains the divergence, and so does any shift of it",
        statement=r"T = \log\frac{p}{q} + k:\quad \mathbb{E}_p T - \log\mathbb{E}_q e^T = \mathrm{KL}(p\,\|\,q)",
        kind=Kind.EXACT,
        draw=finite.draw,
        left=lambda x: finite.dv(finite.with_best_critic(x)),
        right=finite.kl,
        twin=lambda x: _OFF * finite.kl(x),
        slip="the divergence multiplied by 1 + 1e-6",
        source=_DV,
        derivatives=2,
    ),
)
