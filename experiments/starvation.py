"""What is rarely sampled is slowly learned, and what DPO pushes low it lets go of.

Claim      The pull on the chosen reward vanishes under DPO as the rejected one falls, even while the chosen one is
           below its reference; under MIO it stays at ¼ or more. An exact policy gradient takes about 1/ε steps to find
           an answer of probability ε: choosing another bound does not change that (ledger 26).
Source     Ledger 24 to 26 (derived here; the paper's own theorem is known only in reconstruction).
Command    python -m experiments.starvation [--short] [--output starvation.png]
Hardware   2 CPU cores, float64
Minutes    0.1 (short: the same)
Expected   `EXPECTED` below, (value, tolerance)
Refuted by steps that grow more slowly than 1/ε, or a pull of DPO's above e^(c−a).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments._command import command
from mi_align.equivalences import studies
from mi_align.equivalences.figures.sampling import draw_starvation

EXPECTED = {
    "steps, 10 answers": (13, 0),
    "steps, 100 answers": (109, 0),
    "steps, 1000 answers": (1015, 0),
    "steps, 10000 answers": (10_021, 0),
    "dpo pull at a = −2, c = −12": (4.5398e-5, 1e-9),
    "mio pull at a = −2, c = −12": (0.821196, 1e-6),
    "mio least pull at a = 0": (0.25, 1e-15),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of equally likely answers, one of which is correct."""

    answers: tuple[int, ...] = (10, 100, 1000, 10_000)

    @classmethod
    def short(cls) -> Config:
        """Without the largest."""
        return cls(answers=(10, 100, 1000))


class Result(NamedTuple):
    """Pulls, steps, and the numbers read off them."""

    pulls: studies.Pulls
    answers: tuple[int, ...]
    steps: np.ndarray
    numbers: Mapping[str, float]


def run(config: Config) -> Result:
    """Differentiate both losses on a grid, and climb the exact policy gradient."""
    pulls, steps = studies.chosen_pulls((-2.0, 0.0, 0.5)), studies.solving_times(config.answers)
    numbers = {f"steps, {count} answers": float(n) for count, n in zip(config.answers, steps, strict=True)}
    numbers |= {
        "dpo pull at a = −2, c = −12": float(pulls.dpo[0, 0]),
        "mio pull at a = −2, c = −12": float(pulls.mio[0, 0]),
        "mio least pull at a = 0": float(pulls.mio[1].min()),
    }
    return Result(pulls, config.answers, steps, numbers)


def plot(result: Result) -> Figure:
    """Pulls against the rejected reward, and steps against 1/ε."""
    return draw_starvation(result.pulls, result.answers, result.steps)


if __name__ == "__main__":
    command(__doc__, Config, run, plot, EXPECTED)
