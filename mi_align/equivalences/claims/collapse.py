"""Ledger 34, several features: displacement from the first step on, near-duplicates, and where MIO does not recover.

On one line of comparisons DPO moves θ along fixed directions, so that its margin follows a scalar recursion: the
right-hand sides for DPO are that recursion and plain arithmetic. Small steps over long times are made in float64.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import dynamics
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.toys import COLLAPSE, NEAR_DUPLICATES, Toy
from mi_align.methods import METHODS

__all__ = ["CLAIMS"]

_CORNERS = tuple(itertools.product((-1.0, 1.0), repeat=3))
#: The same pair, but the eight other responses sit at the corners of a cube: they share features with it.
_CROWDED = dataclasses.replace(COLLAPSE, features=(*COLLAPSE.features[:2], *_CORNERS))
_DUPLICATE_STEPS = (149, 1000, 100_000)
_THREE_DECIMALS = dict.fromkeys(("float64", "float32", "bfloat16"), 6e-4)
_AS_STATED = "the numbers are stated to three decimals"


def _start(toy: Toy) -> Callable[[PRNGKeyArray], Inputs]:
    """Where training starts, whatever the key: at the reference."""
    return lambda key: {"theta": jnp.zeros(len(toy.features[0]))}


def _path(x: Inputs, toy: Toy, method: str, record: tuple[int, ...]) -> Array:
    """The chosen and the rejected log-ratio after some steps, `[records, 2]`."""
    configured = METHODS[method].configure(beta=toy.beta)
    start = x["theta"].astype(jnp.float64)
    history = dynamics.train(toy.task, configured, learning_rate=toy.learning_rate, record=record, start=start)
    return history.log_ratio[:, :2]


def _along(toy: Toy, gains: tuple[float, ...], record: tuple[int, ...]) -> Array:
    """How far DPO has moved: s ← s + η mean_j g_j σ(−g_j s), where g_j is the jth margin at s = 1."""
    gain = jnp.asarray(np.asarray(gains))

    def step(s: Array) -> Array:
        return s + toy.learning_rate * jnp.mean(gain / (1 + jnp.exp(gain * s)))

    return dynamics.iterate(step, jnp.zeros(()), record)


def _log_ratios(toy: Toy, direction: np.ndarray, distance: Array) -> Array:
    """log π/π_ref of the first two responses at θ = distance · direction, by arithmetic on probabilities."""
    tilt = jnp.outer(distance, jnp.asarray(np.asarray(toy.features) @ direction))
    reference = np.asarray(toy.reference) / np.sum(toy.reference)
    return (tilt - jnp.log(jnp.exp(tilt) @ jnp.asarray(reference))[:, None])[:, :2]


def _exaggerated(rejected: tuple[float, float] = (1.5, 0.3)) -> Array:
    """DPO on the collapse toy: θ moves along φ_w − φ_l, and a unit along it adds ‖φ_w − φ_l‖ to the margin."""
    difference = np.asarray([1.0 - rejected[0], -rejected[1], 0.0])
    length = float(np.linalg.norm(difference))
    return _log_ratios(COLLAPSE, difference / length, _along(COLLAPSE, (length,), (COLLAPSE.steps,)))[0]


def _duplicated(gains: tuple[float, ...] = (0.1, 0.2)) -> Array:
    """DPO on near-duplicates: only the detail's weight grows, through margins of .1 and .2 of it."""
    return _log_ratios(NEAR_DUPLICATES, np.asarray([0.0, 1.0]), _along(NEAR_DUPLICATES, gains, _DUPLICATE_STEPS))


def _dip_and_recovery(x: Inputs) -> Array:
    """MIO's lowest chosen log-ratio on the collapse toy, and its last."""
    chosen = _path(x, COLLAPSE, "mio", (*range(100, 151), COLLAPSE.steps))[:, 0]
    return jnp.stack([jnp.min(chosen), chosen[-1]])


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="34k",
        title="A rejected response that exaggerates the chosen one: the criterion is negative at the first step",
        statement=r"\phi_w = (1,0,0),\ \phi_l = (1.5,.3,0),\ \text{eight others at } 0:\quad"
        r" \langle\phi_w-\bar\phi,\ \phi_w-\phi_l\rangle = -.366",
        kind=Kind.EXACT,
        draw=_start(COLLAPSE),
        left=lambda x: dynamics.displacement_criterion(COLLAPSE.task, x["theta"]),
        right=lambda x: jnp.asarray([-0.366]),
        twin=lambda x: jnp.asarray([-0.465]),
        slip="the mean feature left out",
        source="derived here from 31",
        derivatives=0,
        samples=1,
        figure="displacement",
    ),
    Claim(
        id="34l",
        title="DPO's synchronous collapse: both log-ratios fall",
        statement=r"t = 20000:\quad a = -8.33,\quad c = -14.14",
        kind=Kind.EXACT,
        draw=_start(COLLAPSE),
        left=lambda x: _path(x, COLLAPSE, "dpo", (COLLAPSE.steps,))[0],
        right=lambda x: _exaggerated(),
        twin=lambda x: _exaggerated(rejected=(1.5, 0.31)),
        slip="a rejected feature of .31 instead of .3",
        source="derived here",
        derivatives=0,
        samples=1,
        figure="displacement",
    ),
    Claim(
        id="34m",
        title="MIO dips on the same pair, then recovers towards ln 2",
        statement=r"\min_t a_t = -.179 \ (t \approx 125),\quad a_{20000} = +.625",
        kind=Kind.EXACT,
        draw=_start(COLLAPSE),
        left=_dip_and_recovery,
        right=lambda x: jnp.asarray([-0.179, 0.625]),
        twin=lambda x: jnp.asarray([-0.179, 0.693]),
        slip="ln 2 reached already",
        source="derived here",
        derivatives=0,
        samples=1,
        tolerance=_THREE_DECIMALS,
        why=_AS_STATED,
        figure="displacement",
    ),
    Claim(
        id="34n",
        title="Negative control: where other responses share features with the pair, MIO does not recover",
        statement=r"\text{others at } (\pm1,\pm1,\pm1):\quad \text{MIO's } a_{20000} = -.187,\quad"
        r" \text{DPO's } a_{20000} = -20.624",
        kind=Kind.EXACT,
        draw=_start(_CROWDED),
        left=lambda x: jnp.stack([_path(x, _CROWDED, m, (_CROWDED.steps,))[0, 0] for m in ("mio", "dpo")]),
        right=lambda x: jnp.asarray([-0.187, -20.624]),
        twin=lambda x: jnp.asarray([0.625, -20.624]),
        slip="the recovery of 34m",
        source="derived here",
        derivatives=0,
        samples=1,
        tolerance=_THREE_DECIMALS,
        why=_AS_STATED,
    ),
    Claim(
        id="34o",
        title="Near-duplicates: DPO's chosen log-ratio goes from +.07 to −36 nats",
        statement=r"a_{149} = +.074,\quad a_{1000} = -3.01,\quad a_{100000} = -35.60",
        kind=Kind.EXACT,
        draw=_start(NEAR_DUPLICATES),
        left=lambda x: _path(x, NEAR_DUPLICATES, "dpo", _DUPLICATE_STEPS),
        right=lambda x: _duplicated(),
        twin=lambda x: _duplicated(gains=(0.1, 0.1)),
        slip="both rejected responses at distance .1",
        source="derived here",
        derivatives=0,
        samples=1,
        figure="displacement",
    ),
    Claim(
        id="34p",
        title="Near-duplicates: MIO's chosen log-ratio rises to +.30 and stays",
        statement=r"a_{10000} = +.299,\quad a_{100000} = +.301",
        kind=Kind.EXACT,
        draw=_start(NEAR_DUPLICATES),
        left=lambda x: _path(x, NEAR_DUPLICATES, "mio", (10_000, 100_000))[:, 0],
        right=lambda x: jnp.asarray([0.299, 0.301]),
        twin=lambda x: jnp.asarray([0.299, 0.311]),
        slip="the last value a hundredth higher",
        source="derived here",
        derivatives=0,
        samples=1,
        tolerance=_THREE_DECIMALS,
        why=_AS_STATED,
        figure="displacement",
    ),
)
