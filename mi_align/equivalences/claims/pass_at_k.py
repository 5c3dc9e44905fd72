"""Ledger 41 and 42: pass@k, and where the curves of two models cross."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import (
    between,
    binomial_law,
    judged_policy,
    normals,
    regularised_optimum,
    success_gradient,
    verdicts,
)
from mi_align.estimation.pass_at_k import pass_at_k

__all__ = ["CLAIMS", "TRIES", "chance_of_any", "expected_pass_at_k"]

_SAMPLES, _FORGETFUL, _MOST = 8, 12, 40
#: k = 1 … n.
TRIES = np.arange(1, _SAMPLES + 1)
_CHEN = "Chen et al. 2021 (arXiv 2107.03374)"
_YUE = "the empirical crossover: Yue et al. 2025 (arXiv 2504.13837)"


def _success(key: PRNGKeyArray) -> Inputs:
    return {"p": between(0.05, 0.95, jax.random.normal(key))}


def _counts(key: PRNGKeyArray) -> Inputs:
    """Up to forty samples, some of them right, and how many one may try."""
    x = normals(key, total=(), correct=(), k=())
    total = between(1, _MOST + 1, x["total"]).astype(int)
    return {
        "total": total,
        "correct": between(0, total + 1, x["correct"]).astype(int),
        "k": between(1, total + 1, x["k"]).astype(int),
    }


def _two_models(key: PRNGKeyArray) -> Inputs:
    """Success rates of two models on three prompts; each has prompts that it never solves."""
    x = normals(key, first=(3,), second=(3,), weight=(3,), solved=())
    solvable = verdicts(x["solved"], 6).reshape(2, 3).at[:, 0].set(True)
    return {
        "first": between(0.05, 0.95, x["first"]),
        "second": between(0.05, 0.95, x["second"]),
        "weight": jax.nn.softmax(x["weight"]),
        "solvable": solvable,
    }


def _forgetful(key: PRNGKeyArray) -> Inputs:
    """A base model that solves each of three prompts at times, and one trained to solve two of them nearly always."""
    x = normals(key, base=(3,), trained=(2,), forgotten=(), split=())
    forgotten, split = between(0.04, 0.2, x["forgotten"]), between(0.1, 0.9, x["split"])
    return {
        "base": between(0.25, 0.5, x["base"]),
        "trained": jnp.concatenate([jnp.zeros(1), between(0.8, 0.99, x["trained"])]),
        "weight": jnp.stack([forgotten, (1 - forgotten) * split, (1 - forgotten) * (1 - split)]),
    }


def expected_pass_at_k(p: Array, samples: int = _SAMPLES) -> Array:
    """The mean over c ~ Binomial(n, p) of the estimate of pass@k, for k = 1 … n."""
    curves = pass_at_k(np.arange(samples + 1)[:, None], samples, np.arange(1, samples + 1))
    return binomial_law(p, samples) @ curves.astype(p.dtype)


def chance_of_any(p: Array, k: Array | np.ndarray) -> Array:
    """1 − (1 − p)ᵏ."""
    return -jnp.expm1(k * jnp.log1p(-p))


def _plug_in(p: Array) -> Array:
    """The mean of 1 − (1 − c/n)ᵏ, for k = 2 … n."""
    share = np.arange(_SAMPLES + 1) / _SAMPLES
    return binomial_law(p, _SAMPLES) @ jnp.asarray(1 - (1 - share[:, None]) ** TRIES[1:], p.dtype)


def _subsets(x: Inputs) -> Array:
    """1 − C(n−c, k)/C(n, k); these binomial coefficients are exact in float64."""
    ways = jnp.asarray([[math.comb(n, k) for k in range(_MOST + 1)] for n in range(_MOST + 1)], float)
    return 1 - ways[x["total"] - x["correct"], x["k"]] / ways[x["total"], x["k"]]


def _failures(x: Inputs, k: np.ndarray) -> Array:
    """E[(1 − p_B)ᵏ − (1 − p_A)ᵏ]."""
    first, second = x["first"][:, None], x["second"][:, None]
    return x["weight"] @ ((1 - second) ** k - (1 - first) ** k)


def _with_hopeless_prompts(x: Inputs) -> tuple[Array, Array]:
    """Both models' success rates, 0 on the prompts that a model never solves."""
    return jnp.where(x["solvable"][0], x["first"], 0), jnp.where(x["solvable"][1], x["second"], 0)


def _distance_to_limit(x: Inputs) -> Array:
    """How far the difference of two pass@k curves is from the difference of the shares of prompts ever solved."""
    first, second = _with_hopeless_prompts(x)
    limit = x["weight"] @ (1.0 * (first > 0) - (second > 0))
    return jnp.abs(x["weight"] @ (expected_pass_at_k(first) - expected_pass_at_k(second)) - limit)


def _lowest_rate(x: Inputs) -> Array:
    rates = jnp.stack(_with_hopeless_prompts(x))
    return jnp.min(jnp.where(rates > 0, rates, 1))


def _at_one_and_at_last(x: Inputs, rates: str) -> tuple[Array, Array]:
    """pass@1 and pass@12, averaged over the prompts."""
    curve = x["weight"] @ expected_pass_at_k(x[rates], _FORGETFUL)
    return curve[0], curve[-1]


def _crossed(x: Inputs) -> tuple[Array, Array]:
    """What is smaller, and what is larger: the base leads at k = 12, the trained model at k = 1."""
    base, trained = (_at_one_and_at_last(x, rates) for rates in ("base", "trained"))
    return jnp.stack([base[0], trained[1]]), jnp.stack([trained[0], base[1]])


def _optimal_success(x: Inputs, sign: int = 1) -> Array:
    """The success rate of π* for the reward that is 1 for right answers."""
    reference = jax.nn.log_softmax(x["logits"])
    best = regularised_optimum(x["logits"][::-1], reference, sign * x["right"], beta=x["beta"])
    return jnp.sum(jnp.exp(best) * x["right"])


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="41a",
        title="The estimate of pass@k is unbiased for every k",
        statement=r"\mathbb{E}\Bigl[1 - \tbinom{n-c}{k}\big/\tbinom{n}{k}\Bigr] = 1 - (1-p)^k,"
        r" \qquad c \sim \mathrm{Bin}(n, p),\; k \le n",
        kind=Kind.EXACT,
        draw=_success,
        left=lambda x: expected_pass_at_k(x["p"]),
        right=lambda x: chance_of_any(x["p"], TRIES),
        twin=lambda x: chance_of_any(x["p"], TRIES - 1),
        slip="k − 1 tries instead of k",
        source=f"{_CHEN}, eq. 1; enumerated here",
        derivatives=2,
        tolerance={"float32": 2e-4, "bfloat16": 2e-4},
        why="second derivatives of a polynomial of degree k: k(k − 1) times the rounding of p",
    ),
    Claim(
        id="41b",
        title="The product that does not overflow is the share of subsets that hold a right answer",
        statement=r"1 - \prod_{i=n-c+1}^{n}\Bigl(1 - \frac{k}{i}\Bigr) = 1 - \binom{n-c}{k}\Big/\binom{n}{k}",
        kind=Kind.EXACT,
        draw=_counts,
        left=lambda x: pass_at_k(x["correct"], x["total"], x["k"]),
        right=_subsets,
        twin=lambda x: 1 - (1 - x["correct"] / x["total"]) ** x["k"],
        slip="drawing with replacement",
        source=f"{_CHEN}, eq. 1",
        derivatives=0,
    ),
    Claim(
        id="41c",
        title="The estimate that first comes to mind is too low",
        statement=r"\mathbb{E}\Bigl[1 - \bigl(1-\tfrac{c}{n}\bigr)^k\Bigr] \le 1 - (1-p)^k",
        kind=Kind.INEQUALITY,
        draw=_success,
        left=lambda x: _plug_in(x["p"]),
        right=lambda x: expected_pass_at_k(x["p"])[1:],
        twin=lambda x: expected_pass_at_k(x["p"])[:-1],
        slip="k − 1 tries instead of k",
        source=f"{_CHEN}, appendix A",
    ),
    Claim(
        id="42a",
        title="The difference of two pass@k curves is a difference of failures",
        statement=r"\text{pass@}k_A - \text{pass@}k_B = \mathbb{E}\bigl[(1-p_B)^k - (1-p_A)^k\bigr]",
        kind=Kind.EXACT,
        draw=_two_models,
        left=lambda x: x["weight"] @ (expected_pass_at_k(x["first"]) - expected_pass_at_k(x["second"])),
        right=lambda x: _failures(x, TRIES),
        twin=lambda x: _failures(x, TRIES + 1),
        slip="k + 1 tries instead of k",
        source="derived here",
        samples=250_000,
    ),
    Claim(
        id="42b",
        title="For many tries only the share of prompts that are ever solved counts",
        statement=r"\bigl|\text{pass@}k_A - \text{pass@}k_B - (\Pr[p_A>0] - \Pr[p_B>0])\bigr|"
        r" \le (1 - p_{\min})^k",
        kind=Kind.INEQUALITY,
        draw=_two_models,
        left=_distance_to_limit,
        right=lambda x: (1 - _lowest_rate(x)) ** TRIES,
        twin=lambda x: (1 - jnp.max(jnp.stack(_with_hopeless_prompts(x)))) ** TRIES,
        slip="the highest success rate in the place of the lowest that is not 0",
        source="derived here",
    ),
    Claim(
        id="42c",
        title="A model that has forgotten some prompts leads at one try and is overtaken",
        statement=r"\Pr[p_A = 0] \ge (1 - p_{B,\min})^k \;\Rightarrow\; \text{pass@}k_A \le \text{pass@}k_B,"
        r" \quad\text{though}\quad \text{pass@}1_B \le \text{pass@}1_A",
        kind=Kind.INEQUALITY,
        draw=_forgetful,
        left=lambda x: _crossed(x)[0],
        right=lambda x: _crossed(x)[1],
        twin=lambda x: jnp.stack([_crossed(x)[1][0], _crossed(x)[0][0]]),
        slip="the base model's pass@1 in the place of its pass@12",
        source=f"derived here; {_YUE}",
    ),
    Claim(
        id="42d",
        title="The exact KL-regularised optimum never crosses below its reference",
        statement=r"1 - (1-p_{\mathrm{ref}})^k \le 1 - (1-p^*)^k \quad\text{for every } k",
        kind=Kind.INEQUALITY,
        draw=judged_policy(4),
        left=lambda x: expected_pass_at_k(success_gradient(x)[0]),
        right=lambda x: chance_of_any(_optimal_success(x), TRIES),
        twin=lambda x: chance_of_any(_optimal_success(x, -1), TRIES),
        slip="the reward's sign",
        source="derived here from the odds law (39c)",
    ),
)
