"""Ledger 26, a negative control: no bound on mutual information cures the starvation of sampling.

Positives that are rarely drawn pull little, under Donsker–Varadhan and under Jensen–Shannon alike. What the latter does
is to take the critic's values apart, item by item.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.objectives import donsker_varadhan_bound, jensen_shannon_bound

__all__ = ["CLAIMS"]

_ANSWERS, _SAMPLES = 4, 6
_ENOUGH = 100_000  # each sample is a gradient over a whole population


def _critic(key: PRNGKeyArray) -> Inputs:
    """Critic values of a finite alphabet, and samples of a joint, a second joint and a marginal law on it."""
    values, answers = jax.random.split(key)
    drawn = jnp.floor(_ANSWERS * jax.random.uniform(answers, (3, _SAMPLES))).astype(jnp.int32)
    return {"T": 2 * jax.random.normal(values, (_ANSWERS,)), "joint": drawn[:2], "marginal": drawn[2]}


def _is_answer(index: Array) -> Array:
    """One row a sample, 1 at its answer."""
    return jax.nn.one_hot(index, _ANSWERS)


def _slope(bound: Callable[[Array, Array], Array], x: Inputs, joint: Array) -> Array:
    """∂/∂T(y) of a bound whose expectations are over the drawn samples, which may themselves be whole populations."""
    return jax.grad(lambda table: bound(_is_answer(joint) @ table, _is_answer(x["marginal"]) @ table))(x["T"])


def _laws(x: Inputs) -> tuple[Array, Array]:
    """The joint and the marginal law of the drawn samples."""
    return jnp.mean(_is_answer(x["joint"][0]), axis=0), jnp.mean(_is_answer(x["marginal"]), axis=0)


def _gibbs(x: Inputs) -> Array:
    """q_T ∝ q e^T."""
    weight = _laws(x)[1] * jnp.exp(x["T"])
    return weight / jnp.sum(weight)


def _both_slopes(x: Inputs, joint: Array) -> Array:
    return jnp.stack([_slope(bound, x, joint) for bound in (donsker_varadhan_bound, jensen_shannon_bound)])


def _mean_slopes(x: Inputs) -> Array:
    return (_both_slopes(x, x["joint"][0]) + _both_slopes(x, x["joint"][1])) / 2


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="26a",
        title="Population gradient of Donsker–Varadhan in the critic's value",
        statement=r"\frac{\partial I_{\mathrm{DV}}}{\partial T(y)} = p(y) - q_T(y), \quad q_T \propto q\,e^{T}",
        kind=Kind.EXACT,
        draw=_critic,
        left=lambda x: _slope(donsker_varadhan_bound, x, x["joint"][0]),
        right=lambda x: _laws(x)[0] - _gibbs(x),
        twin=lambda x: _laws(x)[0] - _laws(x)[1],
        slip="the marginal law not tilted by the critic",
        source="derived here",
        derivatives=0,
        samples=_ENOUGH,
    ),
    Claim(
        id="26b",
        title="Population gradient of the Jensen–Shannon bound in the critic's value",
        statement=r"\frac{\partial I_{\mathrm{JS}}}{\partial T(y)} = p(y)\,\sigma(-T(y)) - q(y)\,\sigma(T(y))",
        kind=Kind.EXACT,
        draw=_critic,
        left=lambda x: _slope(jensen_shannon_bound, x, x["joint"][0]),
        right=lambda x: _laws(x)[0] * jax.nn.sigmoid(-x["T"]) - _laws(x)[1] * jax.nn.sigmoid(x["T"]),
        twin=lambda x: _laws(x)[0] * jax.nn.sigmoid(-x["T"]) - _gibbs(x) * jax.nn.sigmoid(x["T"]),
        slip="a global normaliser, as DV has one",
        source="derived here",
        derivatives=0,
        samples=_ENOUGH,
    ),
    Claim(
        id="26c",
        title="Negative control: both bounds' gradients are linear in the law that positives are drawn from",
        statement=r"\nabla I\!\left(\tfrac{p+p'}{2}, q\right) = \tfrac12\nabla I(p, q) + \tfrac12\nabla I(p', q)"
        r"\quad\text{for DV and for JS}",
        kind=Kind.EXACT,
        draw=_critic,
        left=lambda x: _both_slopes(x, x["joint"].ravel()),
        right=_mean_slopes,
        twin=lambda x: _both_slopes(x, x["joint"][0]),
        slip="the second half of the positives left out",
        source="derived here",
        derivatives=0,
        samples=_ENOUGH,
    ),
    Claim(
        id="26d",
        title="Negative control: neither bound pulls an answer up by more than its probability among the positives",
        statement=r"\frac{\partial I_{\mathrm{DV}}}{\partial T(y)} \le p(y) \quad\text{and}\quad"
        r" \frac{\partial I_{\mathrm{JS}}}{\partial T(y)} \le p(y)",
        kind=Kind.INEQUALITY,
        draw=_critic,
        left=lambda x: _both_slopes(x, x["joint"][0]),
        right=lambda x: jnp.stack([_laws(x)[0]] * 2),
        twin=lambda x: jnp.stack([_laws(x)[0] / 2] * 2),
        slip="half the probability",
        source="derived here: with positives drawn from the base model, JS does not remove the O(ε) factor",
        samples=_ENOUGH,
    ),
)
