"""Ledger 24–25: when a loss lets go of the chosen response, and what sampling hardly sees.

Certified as derived here; the paper's own starvation theorem is known only in reconstruction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.studies import steps_to_solve
from mi_align.objectives import (
    bradley_terry_loss,
    group_advantage,
    nca_loss,
    reinforce_loss,
)

__all__ = ["CLAIMS"]

_ANSWERS, _NEGATIVES, _GROUP = 5, 4, 5
_SOLVED_IN = {10: 13.0, 100: 109.0, 1000: 1015.0, 10_000: 10_021.0}
_GROUPS = np.asarray(list(itertools.product([0.0, 1.0], repeat=_GROUP)))


def _pair(key: PRNGKeyArray) -> Inputs:
    a, c, other = 3 * jax.random.normal(key, (3,))
    return {"a": a, "c": c, "other": other}


def _below_reference(key: PRNGKeyArray) -> Inputs:
    pair = _pair(key)
    return {"a": -jnp.abs(pair["a"]), "c": pair["c"]}


def _pull(loss: Callable[[Array, Array], Array], a: Array, c: Array) -> Array:
    """How strongly a loss pulls the chosen implicit reward up: −∂ℓ/∂a."""
    return -jax.grad(loss)(a, c)


def _mio(a: Array, c: Array) -> Array:
    return nca_loss(a, jnp.atleast_1d(c))


def _policy(key: PRNGKeyArray) -> Inputs:
    logits, reward = jax.random.normal(key, (2, _ANSWERS))
    return {"logits": 2 * logits, "reward": reward}


def _policy_gradient(x: Inputs) -> Array:
    """−∇ of REINFORCE's loss, averaged exactly over the policy's own answers."""

    def loss(logits: Array) -> Array:
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(jax.lax.stop_gradient(jnp.exp(logp)) * reinforce_loss(logp, x["reward"]))

    return -jax.grad(loss)(x["logits"])


def _one_correct(x: Inputs) -> Inputs:
    """The same policy where only answer 0 is right."""
    return {"logits": x["logits"], "reward": (jnp.arange(_ANSWERS) == 0).astype(x["logits"].dtype)}


def _advantage(x: Inputs) -> tuple[Array, Array]:
    """π(y) and R(y) − J."""
    policy = jax.nn.softmax(x["logits"])
    return policy, x["reward"] - policy @ x["reward"]


def _rare(x: Inputs) -> Array:
    """ε (1 − ε) of the one correct answer."""
    correct = jax.nn.softmax(x["logits"])[0]
    return correct * (1 - correct)


def _flow_time(answers: Array) -> Array:
    """When gradient flow from a uniform policy gives the correct answer probability ½."""
    others = answers - 1
    return others / answers * (others + 2 * jnp.log(others) - 1 / others)


def _success(key: PRNGKeyArray) -> Inputs:
    return {"p": jax.random.uniform(key, minval=0.02, maxval=0.98)}


def _no_signal(x: Inputs) -> Array:
    """The chance of a group whose advantages all vanish, by enumerating the groups."""
    groups = jnp.asarray(_GROUPS, x["p"].dtype)
    chance = jnp.prod(jnp.where(groups > 0, x["p"], 1 - x["p"]), axis=-1)
    silent = jnp.all(group_advantage(groups) == 0, axis=-1)
    return jnp.sum(chance * silent)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="24a",
        title="DPO lets go of the chosen response as the rejected one falls",
        statement=r"-\frac{\partial \ell_{\mathrm{DPO}}}{\partial a} = \sigma(c-a) \le e^{c-a}",
        kind=Kind.INEQUALITY,
        draw=_pair,
        left=lambda x: _pull(bradley_terry_loss, x["a"], x["c"]),
        right=lambda x: jnp.exp(x["c"] - x["a"]),
        twin=lambda x: 0.9 * jnp.exp(x["c"] - x["a"]),
        slip="the bound multiplied by 0.9",
        source="derived here; a reconstruction of the paper's starvation claim at the level of the loss",
        figure="starvation",
    ),
    Claim(
        id="24b",
        title="MIO holds on to a chosen response that lies below the reference",
        statement=r"a \le 0 \;\Rightarrow\; -\frac{\partial \ell_{\mathrm{MIO}}}{\partial a}"
        r" = 1 - \tfrac{3}{2}\sigma(a) \ge \tfrac{1}{4}",
        kind=Kind.INEQUALITY,
        draw=_below_reference,
        left=lambda x: jnp.full_like(x["a"], 0.25),
        right=lambda x: _pull(_mio, x["a"], x["c"]),
        twin=lambda x: 1 - 2 * jax.nn.sigmoid(x["a"]),
        slip="2 instead of 3/2: the marginal taken to be the chosen law alone",
        source="derived here (MIO = pairwise NCA, Chen et al. 2024, arXiv 2402.05369)",
        figure="starvation",
    ),
    Claim(
        id="24c",
        title="MIO's pull on the chosen response does not see the rejected one",
        statement=r"\frac{\partial \ell_{\mathrm{MIO}}}{\partial a}(a, c) ="
        r" \frac{\partial \ell_{\mathrm{MIO}}}{\partial a}(a, c')",
        kind=Kind.EXACT,
        draw=_pair,
        left=lambda x: _pull(_mio, x["a"], x["c"]),
        right=lambda x: _pull(_mio, x["a"], x["other"]),
        twin=lambda x: _pull(bradley_terry_loss, x["a"], x["other"]),
        slip="DPO's pull in place of MIO's",
        source="derived here",
        figure="starvation",
    ),
    Claim(
        id="24d",
        title="With K negatives too, MIO's pull depends on the chosen level alone",
        statement=r"-\frac{\partial}{\partial s^+}\ell_{\mathrm{MIO}}(s^+, s^-_{1..K}) ="
        r" 1 - \tfrac{K+2}{K+1}\,\sigma(s^+)",
        kind=Kind.EXACT,
        draw=lambda key: {"s": 3 * jax.random.normal(key, (1 + _NEGATIVES,))},
        left=lambda x: -jax.grad(lambda s: nca_loss(s, x["s"][1:]))(x["s"][0]),
        right=lambda x: 1 - (_NEGATIVES + 2) / (_NEGATIVES + 1) * jax.nn.sigmoid(x["s"][0]),
        twin=lambda x: 1 - 1.5 * jax.nn.sigmoid(x["s"][0]),
        slip="the factor 3/2 of one negative kept for four",
        source="derived here",
    ),
    Claim(
        id="25a",
        title="The exact policy gradient of a softmax policy",
        statement=r"\frac{\partial J}{\partial \theta_y} = \pi(y)\,(R(y) - J)",
        kind=Kind.EXACT,
        draw=_policy,
        left=_policy_gradient,
        right=lambda x: jnp.multiply(*_advantage(x)),
        twin=lambda x: jax.nn.softmax(x["logits"]) * x["reward"],
        slip="the baseline J left out",
        source="Williams 1992; enumerated here",
        derivatives=0,
    ),
    Claim(
        id="25b",
        title="An answer that is hardly sampled is hardly updated",
        statement=r"\left|\frac{\partial J}{\partial \theta_y}\right| \le \pi(y)\,(\max R - \min R)",
        kind=Kind.INEQUALITY,
        draw=_policy,
        left=lambda x: jnp.abs(_policy_gradient(x)),
        right=lambda x: jax.nn.softmax(x["logits"]) * jnp.ptp(x["reward"]),
        twin=lambda x: jax.nn.softmax(x["logits"]) * jnp.ptp(x["reward"]) / 2,
        slip="half the range of the reward",
        source="derived here",
    ),
    Claim(
        id="25c",
        title="One correct answer of probability ε: the gradient is at least ε(1−ε)",
        statement=r"\varepsilon(1-\varepsilon) \le \lVert\nabla J\rVert",
        kind=Kind.INEQUALITY,
        draw=_policy,
        left=_rare,
        right=lambda x: jnp.linalg.norm(_policy_gradient(_one_correct(x))),
        twin=lambda x: jnp.linalg.norm(_policy_gradient(_one_correct(x))[1:]),
        slip="the correct answer's own component left out",
        source="derived here",
    ),
    Claim(
        id="25d",
        title="One correct answer of probability ε: the gradient is at most √2 ε(1−ε)",
        statement=r"\lVert\nabla J\rVert \le \sqrt{2}\,\varepsilon(1-\varepsilon)",
        kind=Kind.INEQUALITY,
        draw=_policy,
        left=lambda x: jnp.linalg.norm(_policy_gradient(_one_correct(x))),
        right=lambda x: jnp.sqrt(2.0) * _rare(x),
        twin=_rare,
        slip="the factor √2 left out",
        source="derived here",
    ),
    Claim(
        id="25e",
        title="Steps to solve a task with one correct answer in K",
        statement=r"K = 10, 100, 1000, 10^4:\quad \min\{t : J_t \ge \tfrac{1}{2}\} = 13, 109, 1015, 10021",
        kind=Kind.EXACT,
        draw=lambda key: {"rate": jnp.ones(())},
        left=lambda x: jnp.stack([steps_to_solve(k, x["rate"]) for k in _SOLVED_IN]).astype(x["rate"].dtype),
        right=lambda x: jnp.asarray(list(_SOLVED_IN.values()), x["rate"].dtype),
        twin=lambda x: jnp.asarray(list(_SOLVED_IN), x["rate"].dtype),
        slip="exactly 1/ε steps",
        source="derived here: exact policy gradient, rate 1, uniform start",
        derivatives=0,
        samples=1,
        figure="starvation",
    ),
    Claim(
        id="25f",
        title="An answer of probability ε takes about 1/ε steps",
        statement=r"t(K) \sim \frac{K-1}{K}\left[K - 1 + 2\log(K-1) - \frac{1}{K-1}\right] \sim \frac{1}{\varepsilon},"
        r"\quad \varepsilon = 1/K",
        kind=Kind.ASYMPTOTIC,
        draw=lambda key: {"rate": jnp.ones(())},
        left=lambda x: jnp.stack([steps_to_solve(k, x["rate"]) for k in _SOLVED_IN]).astype(x["rate"].dtype),
        right=lambda x: _flow_time(jnp.asarray(list(_SOLVED_IN), x["rate"].dtype)),
        twin=lambda x: jnp.log(jnp.asarray(list(_SOLVED_IN), x["rate"].dtype)),
        slip="log 1/ε steps",
        source="derived here: the time that gradient flow needs, in closed form",
        samples=1,
        grid=tuple(map(float, _SOLVED_IN)),
        figure="starvation",
    ),
    Claim(
        id="25g",
        title="How often a group of samples carries no signal",
        statement=r"\Pr[A_1 = \dots = A_G = 0] = p^G + (1-p)^G",
        kind=Kind.EXACT,
        draw=_success,
        left=_no_signal,
        right=lambda x: x["p"] ** _GROUP + (1 - x["p"]) ** _GROUP,
        twin=lambda x: (1 - x["p"]) ** _GROUP,
        slip="groups that are right throughout forgotten",
        source="derived here, by enumeration of all groups of five",
        samples=100_000,
    ),
)
