"""Ledger 51: best-of-n, its pass@k and its divergence from the policy that it samples."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.claims.pass_at_k import TRIES, chance_of_any, expected_pass_at_k
from mi_align.equivalences.groups import all_groups, between, group_chances, normals, success_gradient, verdicts
from mi_align.objectives import kl_k1

__all__ = ["CLAIMS"]

_RESPONSES, _GROUP = 4, 3
_ATOMS = (8.0, 16.0, 32.0, 64.0)


def _judged(key: PRNGKeyArray) -> Inputs:
    """A policy, a ranking of its responses, which of them are right, and how many to take the best of."""
    x = normals(key, logits=(_RESPONSES,), rank=(_RESPONSES,), right=(), n=())
    return {
        "logits": x["logits"],
        "rank": jnp.argsort(x["rank"]),
        "right": verdicts(x["right"], _RESPONSES),
        "n": between(2, 9, x["n"]).astype(int),
    }


def _any_of_group(x: Inputs) -> Array:
    """The chance that a verifier finds a right answer in a group, by enumerating the groups; in float64, as it can be
    nearer to 1 than float32 is able to say."""
    found = jnp.max(all_groups(_RESPONSES, _GROUP) @ x["right"].astype(float), axis=-1)
    return group_chances(jax.nn.log_softmax(x["logits"].astype(float)), _GROUP) @ found


def _best_by_enumeration(x: Inputs) -> Array:
    """The law of a group's best response."""
    groups = all_groups(_RESPONSES, _GROUP)
    rank = groups @ x["rank"]
    best = rank == jnp.max(rank, axis=-1, keepdims=True)
    law = group_chances(jax.nn.log_softmax(x["logits"]), _GROUP)
    return jnp.einsum("m,mg,mgn->n", law, best / jnp.sum(best, axis=-1, keepdims=True), groups).astype(law.dtype)


def _best_of(x: Inputs, n: Array | int) -> Array:
    """F(y)ⁿ − F(y⁻)ⁿ, F the chance of a response that is no better, F⁻ of a worse one."""
    policy = jax.nn.softmax(x["logits"])
    up_to = (x["rank"][:, None] >= x["rank"]) @ policy
    below = (x["rank"][:, None] > x["rank"]) @ policy
    return up_to**n - below**n


def _best_of_divergence(x: Inputs) -> Array:
    law = _best_of(x, x["n"])
    return law @ kl_k1(jnp.log(law), jax.nn.log_softmax(x["logits"]))


def _continuous_divergence(n: Array | float) -> Array:
    """log n − (n − 1)/n."""
    return jnp.log(n) - (n - 1) / n


def _discretisation(n: Array, atoms: int) -> Array:
    """By how much the bound exceeds the divergence where `atoms` responses are equally likely."""
    up_to = jnp.arange(1, atoms + 1, dtype=n.dtype) / atoms
    law = up_to**n - (up_to - 1 / atoms) ** n
    return _continuous_divergence(n) - law @ kl_k1(jnp.log(law), jnp.full_like(law, -math.log(atoms)))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="51a",
        title="pass@k of best-of-n is pass@nk",
        statement=r"1 - (1 - p_{\text{best of }n})^k = 1 - (1-p)^{nk}",
        kind=Kind.EXACT,
        draw=_judged,
        left=lambda x: expected_pass_at_k(_any_of_group(x)),
        right=lambda x: chance_of_any(success_gradient(x)[0], _GROUP * TRIES),
        twin=lambda x: chance_of_any(success_gradient(x)[0], _GROUP + TRIES - 1),
        slip="n + k − 1 tries instead of nk",
        source="derived here, by enumeration of all groups of three",
        samples=250_000,
    ),
    Claim(
        id="51b",
        title="The law of the best of n responses",
        statement=r"\pi_n(y) = F(y)^n - F(y^-)^n, \qquad F(y) = \Pr_\pi[r \le r(y)],\; F(y^-) = \Pr_\pi[r < r(y)]",
        kind=Kind.EXACT,
        draw=_judged,
        left=_best_by_enumeration,
        right=lambda x: _best_of(x, _GROUP),
        twin=lambda x: _best_of(x, _GROUP + 1),
        slip="one response more",
        source="Beirami et al. 2024 (arXiv 2401.01879), lemma 1; enumerated here",
        samples=50_000,
    ),
    Claim(
        id="51c",
        title="The divergence of best-of-n from its policy is bounded",
        statement=r"\mathrm{KL}(\pi_n \,\Vert\, \pi) \le \log n - \frac{n-1}{n}",
        kind=Kind.INEQUALITY,
        draw=_judged,
        left=_best_of_divergence,
        right=lambda x: _continuous_divergence(x["n"].astype(x["logits"].dtype)),
        twin=lambda x: _continuous_divergence(x["n"].astype(x["logits"].dtype)) / 2,
        slip="half the bound",
        source="Beirami et al. 2024 (arXiv 2401.01879), theorem 1",
    ),
    Claim(
        id="51d",
        title="With ever more responses the bound on best-of-n becomes an equality, at rate 1/N²",
        statement=r"\log n - \tfrac{n-1}{n} - \mathrm{KL}(\pi_n \,\Vert\, \pi)"
        r" \sim \frac{n(n-1)^2}{24\,(n-2)\,N^2}",
        kind=Kind.ASYMPTOTIC,
        draw=lambda key: {"n": between(3.0, 6.0, jax.random.normal(key))},
        left=lambda x: jnp.stack([_discretisation(x["n"], int(atoms)) for atoms in _ATOMS]),
        right=lambda x: x["n"] * (x["n"] - 1) ** 2 / (24 * (x["n"] - 2) * jnp.asarray(_ATOMS, x["n"].dtype) ** 2),
        twin=lambda x: x["n"] / jnp.asarray(_ATOMS, x["n"].dtype),
        slip="a rate of 1/N",
        source="derived here",
        samples=1000,
        grid=_ATOMS,
    ),
    Claim(
        id="51e",
        title="For a continuous reward the bound on best-of-n is its divergence",
        statement=r"\mathbb{E}\bigl[\log n + (n-1)\log \max_i u_i\bigr] = \log n - \frac{n-1}{n},"
        r" \qquad u_1, \dots, u_n \sim U(0, 1)",
        kind=Kind.MONTE_CARLO,
        draw=lambda key: {"u": jax.random.uniform(key, (5,))},
        left=lambda x: kl_k1(math.log(5) + 4 * jnp.log(jnp.max(x["u"])), jnp.zeros_like(x["u"][0])),
        right=lambda x: _continuous_divergence(jnp.asarray(5.0, x["u"].dtype)),
        twin=lambda x: jnp.asarray(math.log(5) - 1, x["u"].dtype),
        slip="log n − 1",
        source="Beirami et al. 2024 (arXiv 2401.01879), theorem 1",
    ),
)
