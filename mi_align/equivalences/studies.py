"""The numbers behind the ledger's pictures: each study is a function from its settings to arrays, in float64.

`figures` draws them, `experiments/` states what they should come to.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mi_align.equivalences import dynamics
from mi_align.equivalences.spectrum import spectrum
from mi_align.equivalences.toys import Toy
from mi_align.methods import METHODS
from mi_align.objectives import bradley_terry_loss, donsker_varadhan_bound, nca_loss

__all__ = [
    "BatchBias",
    "Chain",
    "Optimum",
    "PassAtK",
    "Pulls",
    "batch_bias",
    "chain",
    "chosen_pulls",
    "descent_directions",
    "gain_cap",
    "learning_curves",
    "optimum_reached",
    "pass_at_k",
    "solving_times",
    "steps_to_solve",
]

P = ParamSpec("P")
R = TypeVar("R")


def in_float64(study: Callable[P, R]) -> Callable[P, R]:
    """Run in double precision, whatever the caller has switched on."""

    @functools.wraps(study)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.enable_x64(True):
            return study(*args, **kwargs)

    return wrapped


@in_float64
def learning_curves(
    toy: Toy, methods: tuple[str, ...], *, steps: int | None = None, also: tuple[int, ...] = ()
) -> Mapping[str, dynamics.History]:
    """How methods of the table train a toy, looked at on log-spaced steps and at those in `also`; NumPy arrays."""
    last = toy.steps if steps is None else steps
    record = tuple(sorted({*dynamics.log_spaced(last), *(step for step in also if step <= last)}))

    def curve(name: str) -> dynamics.History:
        method = METHODS[name].configure(beta=toy.beta)
        return dynamics.train(toy.task, method, learning_rate=toy.learning_rate, record=record)

    return {name: jax.tree.map(np.asarray, curve(name)) for name in methods}


@in_float64
def gain_cap(
    betas: tuple[float, ...] = (1.0, 0.5, 0.25), *, reference: float = 1e-4, steps: int = 100_000
) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """A rare chosen response in a tabular policy: steps and its probability, under DPO at β = 1 and MIO at each β.

    The rejected response starts at probability ½. The step size is 1/β², which makes the speeds comparable. Step 10,000
    is among those recorded.
    """
    toy = Toy(
        responses=("chosen", "rejected", "other"),
        features=((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
        reference=(reference, 0.5, 0.5 - reference),
        comparisons=((0, 1),),
        learning_rate=1.0,
        steps=steps,
    )
    curves = {}
    for method, beta in (("dpo", 1.0), *(("mio", beta) for beta in betas)):
        configured = dataclasses.replace(toy, beta=beta, learning_rate=1 / beta**2)
        history = learning_curves(configured, (method,), also=(10_000,))[method]
        label = f"{method.upper()}, β = {beta:g}"
        curves[label] = (np.asarray(history.step), np.exp(np.asarray(history.log_policy[:, 0])))
    return curves


class Pulls(NamedTuple):
    """How strongly each loss pulls the chosen implicit reward a up, as the rejected one c falls: −∂ℓ/∂a."""

    rejected: Float[Array, "c"]
    chosen: Float[Array, "a"]
    dpo: Float[Array, "a c"]
    mio: Float[Array, "a c"]


@in_float64
def chosen_pulls(chosen: tuple[float, ...] = (-2.0, 0.0, 0.5), lowest: float = -12.0, count: int = 121) -> Pulls:
    """`Pulls` at a few chosen levels, by automatic differentiation of the public losses."""
    a, c = jnp.asarray(chosen), jnp.linspace(lowest, 4.0, count)

    def pull(loss: Callable[[Array, Array], Array]) -> Array:
        return -jax.vmap(jax.vmap(jax.grad(loss), (None, 0)), (0, None))(a, c)

    pulls = Pulls(c, a, pull(bradley_terry_loss), pull(lambda x, y: nca_loss(x, y[None])))
    return jax.tree.map(np.asarray, pulls)


@in_float64
def descent_directions(
    loss: Callable[[Array, Array], Array], chosen: np.ndarray, rejected: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """−∂ℓ/∂(a, c) of a pairwise loss on the grid `rejected` × `chosen`."""
    a, c = jnp.meshgrid(jnp.asarray(chosen), jnp.asarray(rejected))
    da, dc = jax.vmap(jax.vmap(jax.grad(loss, (0, 1))))(a, c)
    return -np.asarray(da), -np.asarray(dc)


def steps_to_solve(answers: int, learning_rate: float = 1.0) -> Array:
    """Exact policy-gradient steps from a uniform softmax policy until the one correct answer has probability ½."""

    def value(logits: Array) -> Array:
        return jax.nn.softmax(logits)[0]

    def climb(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return state[0] + learning_rate * jax.grad(value)(state[0]), state[1] + 1

    start = (jnp.zeros(answers), jnp.asarray(0))
    return jax.lax.while_loop(lambda state: value(state[0]) < 0.5, climb, start)[1]


@in_float64
def solving_times(answers: tuple[int, ...] = (10, 100, 1000, 10_000)) -> np.ndarray:
    """`steps_to_solve` for each number of answers."""
    return np.asarray([int(jax.jit(steps_to_solve, static_argnums=0)(n)) for n in answers])


class Optimum(NamedTuple):
    """Total variation between the policy that DPO trains and the RLHF optimum π*, over optimiser steps."""

    step: np.ndarray
    newton: Mapping[str, np.ndarray]
    descent: Mapping[str, np.ndarray]


@in_float64
def optimum_reached(key: PRNGKeyArray, *, responses: int = 6, beta: float = 0.5, steps: int = 3000) -> Optimum:
    """Minimise DPO's population loss under Bradley–Terry preferences, for three laws that draw the pairs.

    Newton's method and gradient descent (rate 2/β²) on the logits of an enumerated policy. π* ∝ π_ref e^{r/β}.
    """
    reward_key, reference_key, law_key = jax.random.split(key, 3)
    reward = jax.random.normal(reward_key, (responses,))
    log_reference = jax.nn.log_softmax(jax.random.normal(reference_key, (responses,)))
    best = jax.nn.softmax(log_reference + reward / beta)
    wins = jax.nn.sigmoid(reward[:, None] - reward[None, :])
    reference = jnp.exp(log_reference)
    laws = {
        "uniform pairs": jnp.ones((responses, responses)),
        "pairs from the reference": jnp.outer(reference, reference),
        "a skewed law": jnp.exp(1.5 * jax.random.normal(law_key, (responses, responses))),
    }

    def distance(tilt: Array) -> Array:
        return 0.5 * jnp.sum(jnp.abs(jax.nn.softmax(log_reference + tilt) - best))

    record = dynamics.log_spaced(steps, 60)

    def distances(law: Array) -> tuple[Array, Array]:
        symmetric = (law + law.T) * (1 - jnp.eye(responses))
        loss = functools.partial(_population_dpo, law=symmetric, wins=wins, beta=beta)
        path = dynamics.descend(loss, jnp.zeros(responses), learning_rate=2 / beta**2, record=record)
        return jax.vmap(distance)(_newton(loss, jnp.zeros(responses), 12)), jax.vmap(distance)(path)

    newton, descent = (np.asarray(x) for x in jax.jit(jax.vmap(distances))(jnp.stack(list(laws.values()))))
    return Optimum(np.asarray(record), dict(zip(laws, newton, strict=True)), dict(zip(laws, descent, strict=True)))


def _population_dpo(tilt: Array, *, law: Array, wins: Array, beta: float) -> Array:
    """DPO's expected loss of an enumerated policy whose log-ratio is `tilt` up to a constant.

    `law` is the chance that an unordered pair is asked about, so it is symmetric; `wins` then orders the pair.
    """
    score = jnp.broadcast_to(beta * tilt[:, None], law.shape)
    return jnp.sum(law / jnp.sum(law) * wins * bradley_terry_loss(score, score.T))


def _newton(loss: Callable[[Array], Array], start: Array, steps: int) -> Array:
    """Newton iterates, the start first; the loss's null direction (1, …, 1) is left alone."""

    def one_step(x: Array, _: None) -> tuple[Array, Array]:
        curvature, directions = spectrum(jax.hessian(loss)(x))
        slope = directions.T @ jax.grad(loss)(x)
        flat = curvature < len(x) * jnp.finfo(x.dtype).eps * jnp.max(curvature)
        step = directions @ jnp.where(flat, 0, slope / jnp.where(flat, 1, curvature))
        return x - step, x

    return jax.lax.scan(one_step, start, length=steps)[1]


class BatchBias(NamedTuple):
    """How far the batch Donsker–Varadhan value lies above the true one on average, in nats, by batch size."""

    size: np.ndarray
    exact: np.ndarray
    predicted: np.ndarray


@in_float64
def batch_bias(*, rare: float = 0.2, gap: float = 1.5, largest: int = 256) -> BatchBias:
    """E[DV_n] − DV for a critic with two values, 0 and `gap`, the higher of marginal probability `rare`.

    The expectation over batches of n is the exact sum over the n + 1 binomial outcomes; the prediction is the delta
    method's Var(e^T) / (2 n Z²).
    """
    sizes = 2 ** np.arange(int(np.log2(largest)) + 1)
    values, weights = np.asarray([0.0, gap]), np.asarray([1 - rare, rare])
    normaliser = weights @ np.exp(values)
    variance = weights @ np.exp(2 * values) - normaliser**2
    mean_of_batches = jax.jit(functools.partial(_mean_batch_bound, rare=rare, gap=gap, largest=int(sizes[-1])))
    exact = np.asarray([mean_of_batches(jnp.asarray(size)) for size in sizes]) + np.log(normaliser)
    return BatchBias(sizes, exact, variance / (2 * sizes * normaliser**2))


def _mean_batch_bound(size: Array, *, rare: float, gap: float, largest: int) -> Array:
    """E of the batch bound with T = 0 on the joint: a row for each number of high values, weighted by its chance."""
    high, column = jnp.arange(largest + 1), jnp.arange(largest)
    marginal = gap * (column[None, :] < high[:, None])
    inside = jnp.broadcast_to(column < size, marginal.shape)
    bound = donsker_varadhan_bound(jnp.zeros_like(marginal), marginal, where_marginal=inside)
    chance = jnp.exp(jax.scipy.stats.binom.logpmf(high, size, rare))
    return jnp.sum(jnp.where(high <= size, chance * bound, 0))


class Chain(NamedTuple):
    """The four members of the chain 2 JSD(p, m) ≤ KL(p‖m) ≤ JSD(p⊗r‖r⊗p) ≤ log 2 as p and r move apart, in nats."""

    separation: np.ndarray
    jensen_shannon: np.ndarray
    donsker_varadhan: np.ndarray
    dpo: np.ndarray


@in_float64
def chain(*, responses: int = 8, furthest: float = 6.0, count: int = 121) -> Chain:
    """The optima of MIO's, DV's and DPO's chosen-against-mixture problems: p ∝ e^{sx/2}, r ∝ e^{−sx/2}, |x| ≤ 1."""
    x = jnp.linspace(-1, 1, responses)

    def members(s: Array) -> tuple[Array, Array, Array]:
        p, r = jax.nn.softmax(s * x / 2), jax.nn.softmax(-s * x / 2)
        m = (p + r) / 2
        return 2 * _jensen_shannon(p, m), _kullback_leibler(p, m), _jensen_shannon(jnp.outer(p, r), jnp.outer(r, p))

    separation = jnp.linspace(0.0, furthest, count)
    return Chain(np.asarray(separation), *(np.asarray(y) for y in jax.vmap(members)(separation)))


def _kullback_leibler(p: Array, q: Array) -> Array:
    """KL(p‖q) of strictly positive laws, in nats."""
    return jnp.sum(p * (jnp.log(p) - jnp.log(q)))


def _jensen_shannon(p: Array, q: Array) -> Array:
    """Jensen–Shannon divergence with weights ½, in nats."""
    return (_kullback_leibler(p, (p + q) / 2) + _kullback_leibler(q, (p + q) / 2)) / 2


class PassAtK(NamedTuple):
    """pass@k, averaged over prompts, of a base model, of an over-trained one and of the KL-regularised optimum."""

    k: np.ndarray
    base: np.ndarray
    collapsed: np.ndarray
    regularised: np.ndarray


@in_float64
def pass_at_k(*, prompts: int = 1000, gain: float = 2.0, lost: float = 0.3, largest: int = 4096) -> PassAtK:
    """1 − (1 − p)^k for base success rates spread evenly in log p from 1e-4 to .5.

    The optimum for a 0/1 reward moves every prompt's log-odds up by `gain` = 1/β (ledger 39). The collapsed policy
    moves them up by twice that, except that it never solves the hardest `lost` of the prompts.
    """
    base = jnp.geomspace(1e-4, 0.5, prompts)
    log_odds = jnp.log(base) - jnp.log1p(-base)
    hardest = jnp.arange(prompts) < lost * prompts
    laws = (base, jnp.where(hardest, 0.0, jax.nn.sigmoid(log_odds + 2 * gain)), jax.nn.sigmoid(log_odds + gain))
    k = jnp.asarray(dynamics.log_spaced(largest, 60), float)
    solved = [-jnp.mean(jnp.expm1(jnp.outer(k, jnp.log1p(-p))), axis=1) for p in laws]
    return PassAtK(np.asarray(k), *(np.asarray(y) for y in solved))
