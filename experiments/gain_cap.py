"""Negative control: MIO raises a chosen response by a factor of 2^(1/β) at most, however long it trains.

Claim      In a tabular policy, a chosen response of reference probability 1e-4 ends at 2^(1/β) times that under MIO:
           twice at the paper's β = 1. DPO has no such level. MIO prevents decline; it does not unlock rare answers.
Source     Ledger 21 (theory; derived here). MIO = pairwise NCA (Chen et al. 2024) at the same β.
Command    python -m experiments.gain_cap [--short] [--output gain_cap.png]
Hardware   2 CPU cores, float64
Minutes    0.1 (short: the same)
Expected   `EXPECTED` below, (value, tolerance)
Refuted by an MIO curve that settles elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments._command import command
from mi_align.equivalences import studies
from mi_align.equivalences.figures.training import draw_gain_cap

REFERENCE = 1e-4

# Under MIO c falls like −log t, so that 10,000 steps leave the gain a few parts in ten thousand short of its limit.
EXPECTED = {
    "gain under MIO, β = 1": (2.0, 0.001),
    "gain under MIO, β = 0.5": (4.0, 0.002),
    "gain under MIO, β = 0.25": (16.0, 0.01),
    "gain under DPO, β = 1": (273.24, 0.01),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to train; DPO's gain is stated at 10,000 steps."""

    steps: int = 100_000

    @classmethod
    def short(cls) -> Config:
        """Enough for MIO to settle."""
        return cls(steps=10_000)


class Result(NamedTuple):
    """Steps and probabilities by method, and the numbers read off them."""

    curves: Mapping[str, tuple[np.ndarray, np.ndarray]]
    numbers: Mapping[str, float]


def run(config: Config) -> Result:
    """Train; the gain is the chosen response's probability over that of the reference."""
    curves = studies.gain_cap(reference=REFERENCE, steps=config.steps)
    gains = {name: probability[step == 10_000][0] / REFERENCE for name, (step, probability) in curves.items()}
    return Result(curves, {f"gain under {name}": float(gain) for name, gain in gains.items()})


def plot(result: Result) -> Figure:
    """The chosen response's probability over steps."""
    return draw_gain_cap(result.curves, reference=REFERENCE)


if __name__ == "__main__":
    command(__doc__, Config, run, plot, EXPECTED)
