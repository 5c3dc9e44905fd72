"""Ledger 34: toys on which DPO's chosen response declines late or from the first step, and what MIO does instead.

The right-hand sides know nothing of policies: on the one-dimensional toy DPO is the scalar recursion
θ ← θ + η σ(−θ), whose class maximum and growth have closed forms, and MIO's and BCO's limits are roots of one equation.
Small steps over long times are made in float64, whatever precision the ledger is asked for.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import dynamics
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.toys import LATE_DECLINE
from mi_align.methods import METHODS

__all__ = ["CLAIMS"]

_PEAKS = {"dpo": 194, "mio": 345, "bco_pair": 158}
_EARLY = tuple(range(1, 401))
_SETTLED = 20_000
_LATE = (20_000, 50_000, 100_000, 200_000, 400_000)
_STEPS = (10, 100, 1000, 4000)
_SOURCE = "derived here"
_THREE_DECIMALS = dict.fromkeys(("float64", "float32", "bfloat16"), 6e-4)


def _three(key: PRNGKeyArray) -> Inputs:
    """π_ref of (chosen, rejected, other), θ, and a learning rate."""
    reference, theta, rate = jax.random.split(key, 3)
    return {
        "reference": jax.nn.softmax(jax.random.normal(reference, (3,))),
        "theta": 2 * jax.random.normal(theta, ()),
        "rate": jax.random.uniform(rate, minval=0.005, maxval=0.5),
    }


def _start(key: PRNGKeyArray) -> Inputs:
    """Where training on toy 34 starts, whatever the key: at the reference."""
    return {"theta": jnp.zeros(())}


def _task(x: Inputs) -> dynamics.Task:
    features = jnp.asarray([[1.0], [0.0], [2.0]], x["reference"].dtype)
    return dynamics.Task(features, jnp.log(x["reference"]), jnp.asarray([[0, 1]]))


def _train(x: Inputs, method: str, record: tuple[int, ...]) -> dynamics.History:
    """On toy 34, or on the drawn reference with the drawn learning rate; in float64, whatever x is given in."""
    reference = jnp.asarray(x.get("reference", np.asarray(LATE_DECLINE.reference)), jnp.float64)
    rate = jnp.asarray(x.get("rate", LATE_DECLINE.learning_rate), jnp.float64)
    start = jnp.zeros(1) if "rate" in x else x["theta"].astype(jnp.float64)[None]
    configured = METHODS[method].configure(beta=LATE_DECLINE.beta)
    task = _task({"reference": reference})
    return dynamics.train(task, configured, learning_rate=rate, record=record, start=start)


def _peak(x: Inputs) -> Array:
    """The step and the height of the chosen log-ratio's peak, for each method."""
    chosen = jnp.stack([_train(x, method, _EARLY).log_ratio[:, 0] for method in _PEAKS])
    return jnp.stack([1.0 + jnp.argmax(chosen, axis=1), jnp.max(chosen, axis=1)])


def _highest(x: Inputs) -> Array:
    """−log(π_w + 2 √(π_l π_o)), at θ = ½ log(π_l / π_o)."""
    chosen, rejected, other = x["reference"]
    return -jnp.log(chosen + 2 * jnp.sqrt(rejected * other))


def _at_top(x: Inputs) -> Array:
    """The library's chosen log-ratio where its maximum is claimed to be."""
    theta = jnp.log(x["reference"][1] / x["reference"][2]) / 2
    return dynamics.log_ratio(_task(x), theta[None])[0]


def _recursion(rate: Array, record: tuple[int, ...], sign: float = -1.0) -> Array:
    """θ ← θ + η σ(−θ), from 0."""
    return dynamics.iterate(lambda theta: theta + rate / (1 + jnp.exp(-sign * theta)), jnp.zeros_like(rate), record)


def _excess(x: Inputs) -> tuple[Array, Array]:
    """θ + e^θ − 1 − ηt after some steps of the library's DPO, and θ."""
    history = _train(x, "dpo", _STEPS)
    theta = history.parameters[:, 0]
    return theta + jnp.expm1(theta) - x["rate"].astype(jnp.float64) * history.step, theta


def _root(slope: Callable[[Array], Array]) -> Array:
    """Where an increasing function of θ in [0, 10] vanishes, by bisection."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        below = slope(middle) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.fori_loop(0, 60, halve, (jnp.zeros(()), jnp.asarray(10.0)))[0]


def _limit(share: float, marginal: float) -> Array:
    """θ, a, c and π where σ(−a) a' = share·σ(a) a' + marginal·σ(c) c', with a' = 1 − φ̄ and c' = −φ̄."""
    reference = jnp.asarray(np.asarray(LATE_DECLINE.reference))

    def policy(theta: Array) -> Array:
        weight = reference * jnp.exp(theta * np.asarray([1.0, 0.0, 2.0]))
        return weight / jnp.sum(weight)

    def slope(theta: Array) -> Array:
        pi = policy(theta)
        odds, mean = pi / reference, pi[0] + 2 * pi[2]
        return (share * odds[0] - 1) / (1 + odds[0]) * (1 - mean) - marginal * odds[1] / (1 + odds[1]) * mean

    theta = _root(slope)
    pi = policy(theta)
    return jnp.concatenate([theta[None], jnp.log(pi[:2] / reference[:2]), pi])


def _settled(x: Inputs, method: str) -> Array:
    """The same five numbers after 20,000 steps of the library's gradient descent."""
    history = _train(x, method, (_SETTLED,))
    return jnp.concatenate([history.parameters[0], history.log_ratio[0, :2], jnp.exp(history.log_policy[0])])


def _decline(x: Inputs) -> Array:
    """DPO's chosen log-ratio after 1,000, 5,000 and 400,000 steps, and the other response's final probability."""
    history = _train(x, "dpo", (1000, 5000, 400_000))
    return jnp.append(history.log_ratio[:, 0], jnp.exp(history.log_policy[-1, 2]))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="34a",
        title="One feature, three responses: how high the chosen log-ratio can get",
        statement=r"\phi = (1, 0, 2):\quad a(\theta) \le -\log\left(\pi_w + 2\sqrt{\pi_l\,\pi_o}\right)"
        r" \quad (\pi = \pi_{\mathrm{ref}})",
        kind=Kind.INEQUALITY,
        draw=_three,
        left=lambda x: dynamics.log_ratio(_task(x), x["theta"][None])[0],
        right=_highest,
        twin=lambda x: _highest(x) - 0.1,
        slip="a tenth of a nat lower",
        source=_SOURCE,
    ),
    Claim(
        id="34b",
        title="The class maximum is attained; on the toy it is .414675 at θ = 1.2825",
        statement=r"a\left(\tfrac12\log\tfrac{\pi_l}{\pi_o}\right) = -\log\left(\pi_w + 2\sqrt{\pi_l\,\pi_o}\right)",
        kind=Kind.EXACT,
        draw=_three,
        left=_at_top,
        right=_highest,
        twin=lambda x: -jnp.log(x["reference"][0] + jnp.sqrt(x["reference"][1] * x["reference"][2])),
        slip="the factor 2 left out",
        source=_SOURCE,
    ),
    Claim(
        id="34c",
        title="DPO on this policy is one scalar recursion, whatever the reference",
        statement=r"\theta_{t+1} = \theta_t + \eta\,\sigma(-\theta_t)",
        kind=Kind.EXACT,
        draw=_three,
        left=lambda x: _train(x, "dpo", _STEPS).parameters[:, 0],
        right=lambda x: _recursion(x["rate"].astype(jnp.float64), _STEPS),
        twin=lambda x: _recursion(x["rate"].astype(jnp.float64), _STEPS, sign=1.0),
        slip="the sign inside the sigmoid",
        source=_SOURCE,
        derivatives=0,
        samples=16,
    ),
    Claim(
        id="34d",
        title="DPO's parameter grows at least like log(ηt)",
        statement=r"\eta t \le \theta_t + e^{\theta_t} - 1",
        kind=Kind.INEQUALITY,
        draw=_three,
        left=lambda x: jnp.zeros_like(_excess(x)[0]),
        right=lambda x: _excess(x)[0],
        twin=lambda x: _excess(x)[0] - _excess(x)[1],
        slip="θ left out, so that e^θ − 1 stands alone",
        source="derived here: the gradient flow solves θ + e^θ − 1 = ηt, and Euler's steps overshoot it",
        samples=16,
    ),
    Claim(
        id="34e",
        title="DPO's parameter grows at most like log(ηt)",
        statement=r"\theta_t + e^{\theta_t} - 1 \le \eta t + \tfrac12 \eta\, e^{\eta}\, \theta_t",
        kind=Kind.INEQUALITY,
        draw=_three,
        left=lambda x: _excess(x)[0],
        right=lambda x: x["rate"] * jnp.exp(x["rate"]) * _excess(x)[1] / 2,
        twin=lambda x: x["rate"] * jnp.exp(x["rate"]) * _excess(x)[1] / 20,
        slip="a tenth of the second-order term",
        source=_SOURCE,
        samples=16,
    ),
    Claim(
        id="34f",
        title="Toy 34: all three losses reach the class maximum on their way",
        statement=r"\text{peaks of } a:\quad .4147 \text{ at step } 194\ (\mathrm{DPO}),\ 345\ (\mathrm{MIO}),"
        r"\ 158\ (\mathrm{BCO})",
        kind=Kind.EXACT,
        draw=_start,
        left=_peak,
        right=lambda x: jnp.stack([jnp.asarray([194.0, 345.0, 158.0]), jnp.full(3, 0.414675)]),
        twin=lambda x: jnp.stack([jnp.asarray([345.0, 194.0, 158.0]), jnp.full(3, 0.414675)]),
        slip="DPO and MIO exchanged",
        source=_SOURCE,
        derivatives=0,
        samples=1,
        tolerance=dict.fromkeys(("float64", "float32", "bfloat16"), 3e-6),
        why="no step lands on the very top of the curve, which is flat to third order there",
        figure="late_decline",
    ),
    Claim(
        id="34g",
        title="Toy 34: DPO's chosen response declines without bound, and a third response takes the mass",
        statement=r"a_{1000} = -.217,\quad a_{5000} = -1.635,\quad a_{400000} = -5.991,\quad"
        r" \pi_{400000}(\mathrm{other}) = .999",
        kind=Kind.EXACT,
        draw=_start,
        left=_decline,
        right=lambda x: jnp.asarray([-0.217, -1.635, -5.991, 0.999]),
        twin=lambda x: jnp.asarray([-0.217, -1.635, -5.981, 0.999]),
        slip="the last value a hundredth higher",
        source=_SOURCE,
        derivatives=0,
        samples=1,
        tolerance=_THREE_DECIMALS,
        why="the numbers are stated to three decimals",
        figure="late_decline",
    ),
    Claim(
        id="34j",
        title="Toy 34: under DPO the chosen response's probability falls as 1/t",
        statement=r"\frac{\pi_t(y_w)}{\pi_{\mathrm{ref}}(y_w)} = e^{a_t} \sim"
        r" \frac{1}{\eta t\,\pi_{\mathrm{ref}}(\mathrm{other})}",
        kind=Kind.ASYMPTOTIC,
        draw=_start,
        left=lambda x: jnp.exp(_train(x, "dpo", _LATE).log_ratio[:, 0]),
        right=lambda x: 1 / (0.02 * 0.05 * jnp.asarray(_LATE)),
        twin=lambda x: 1 / jnp.sqrt(jnp.asarray(_LATE)),
        slip="the inverse square root of t",
        source=_SOURCE,
        samples=1,
        grid=tuple(map(float, _LATE)),
        figure="late_decline",
    ),
    Claim(
        id="34h",
        title="Toy 34: MIO settles",
        statement=r"\theta = 2.220,\quad a = .1849,\quad c = -2.0356,\quad \pi = (.361, .085, .554)",
        kind=Kind.OPTIMUM,
        draw=_start,
        left=lambda x: _settled(x, "mio"),
        right=lambda x: _limit(0.5, 0.5),
        twin=lambda x: _limit(0.0, 1.0),
        slip="the stationary point of BCO",
        source=_SOURCE,
        derivatives=0,
        samples=1,
        figure="late_decline",
    ),
    Claim(
        id="34i",
        title="Toy 34: BCO settles a little higher",
        statement=r"\theta = 2.116,\quad a = .2315",
        kind=Kind.OPTIMUM,
        draw=_start,
        left=lambda x: _settled(x, "bco_pair"),
        right=lambda x: _limit(0.0, 1.0),
        twin=lambda x: _limit(0.5, 0.5),
        slip="the stationary point of MIO",
        source=_SOURCE,
        derivatives=0,
        samples=1,
        figure="late_decline",
    ),
)
