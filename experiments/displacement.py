"""Where responses share features, DPO lowers the chosen response with the rejected one; MIO holds it, where it can.

Claim      A rejected response that exaggerates the chosen one drags it down from DPO's first step on (MIO dips, then
           recovers towards ln 2). Rejected near-duplicates drag it down later: +.07, then −36 nats, under DPO; near
           +.30 under MIO. Negative control: where the other responses share features with the pair, MIO does not
           recover either.
Source     Ledger 31 and 34 (theory 34; derived here). The settings are `toys.COLLAPSE` and `toys.NEAR_DUPLICATES`.
Command    python -m experiments.displacement [--short] [--output displacement.png]
Hardware   2 CPU cores, float64
Minutes    0.1 (short: 0.1)
Expected   `EXPECTED` below, (value, tolerance)
Refuted by a chosen response under DPO that ends above its reference on either toy, or, under MIO, below it on the
           near-duplicates.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

from experiments._command import command
from mi_align.equivalences import dynamics, studies, toys
from mi_align.equivalences.figures.training import draw_displacement

_HALF = 5e-4  # numbers are stated to three decimals

EXPECTED = {
    "collapse criterion": (-0.366, 1e-12),
    "collapse dpo final a": (-8.328, _HALF),
    "collapse dpo final c": (-14.143, _HALF),
    "collapse mio lowest a": (-0.179, _HALF),
    "collapse mio final a": (0.625, _HALF),
    "crowded mio final a": (-0.187, _HALF),
    "duplicates dpo peak": (0.074, _HALF),
    "duplicates dpo peak step": (149, 0),
    "duplicates dpo final a": (-35.598, _HALF),
    "duplicates mio a(10000)": (0.2985, _HALF),
    "duplicates mio final a": (0.3006, _HALF),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to train on near-duplicates; the other toys always run their 20,000 steps."""

    steps: int = toys.NEAR_DUPLICATES.steps

    @classmethod
    def short(cls) -> Config:
        """A tenth of it."""
        return cls(steps=10_000)


class Result(NamedTuple):
    """The trajectories and the numbers read off them."""

    collapse: Mapping[str, dynamics.History]
    duplicates: Mapping[str, dynamics.History]
    numbers: Mapping[str, float]


def run(config: Config) -> Result:
    """Train both toys, and the crowded one, under DPO and MIO."""
    corners = tuple(itertools.product((-1.0, 1.0), repeat=3))
    crowded = dataclasses.replace(toys.COLLAPSE, features=(*toys.COLLAPSE.features[:2], *corners))
    collapse = studies.learning_curves(toys.COLLAPSE, ("dpo", "mio"), also=tuple(range(100, 151)))
    last = studies.learning_curves(crowded, ("mio",))["mio"].log_ratio[-1, 0]
    duplicates = studies.learning_curves(
        toys.NEAR_DUPLICATES, ("dpo", "mio"), steps=config.steps, also=(*range(130, 161), 10_000)
    )
    with jax.enable_x64(True):
        criterion = float(dynamics.displacement_criterion(toys.COLLAPSE.task, jnp.zeros(3))[0])
    chosen = {name: history.log_ratio[:, 0] for name, history in duplicates.items()}
    step = duplicates["dpo"].step
    numbers = {
        "collapse criterion": criterion,
        "collapse dpo final a": collapse["dpo"].log_ratio[-1, 0],
        "collapse dpo final c": collapse["dpo"].log_ratio[-1, 1],
        "collapse mio lowest a": collapse["mio"].log_ratio[:, 0].min(),
        "collapse mio final a": collapse["mio"].log_ratio[-1, 0],
        "crowded mio final a": last,
        "duplicates dpo peak": chosen["dpo"].max(),
        "duplicates dpo peak step": step[chosen["dpo"].argmax()],
        "duplicates mio a(10000)": chosen["mio"][step == 10_000][0],
    }
    if config.steps == toys.NEAR_DUPLICATES.steps:
        numbers |= {f"duplicates {name} final a": values[-1] for name, values in chosen.items()}
    return Result(collapse, duplicates, {name: float(value) for name, value in numbers.items()})


def plot(result: Result) -> Figure:
    """Chosen and rejected log-ratios over steps, on both toys."""
    return draw_displacement(result.collapse, result.duplicates)


if __name__ == "__main__":
    command(__doc__, Config, run, plot, EXPECTED)
