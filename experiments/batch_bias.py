"""The batch value of Donsker–Varadhan lies above the true one, by Var(e^T)/(2nZ²) for batches of n.

Claim      E[DV_n(T)] ≥ DV(T), and n times the difference tends to Var_q(e^T)/(2Z²): slope −1 in log–log.
Source     Ledger 10 (theory; derived here).
Command    python -m experiments.batch_bias [--short] [--output batch_bias.png]
Hardware   2 CPU cores, float64
Minutes    0.1 (short: the same)
Expected   `EXPECTED` below, (value, tolerance); exact sums over all batches, nothing is sampled
Refuted by a negative bias, or another slope.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments._command import command
from mi_align.equivalences import studies
from mi_align.equivalences.figures.estimation import draw_batch_bias

EXPECTED = {
    "slope of the last three sizes": (-1.0, 0.02),
    "exact over predicted at the largest": (1.0, 0.02),
    "exact over predicted at n = 1": (0.678, 0.001),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Batch sizes go from 1 to the largest, by doubling."""

    largest: int = 256

    @classmethod
    def short(cls) -> Config:
        """Smaller batches."""
        return cls(largest=64)


class Result(NamedTuple):
    """Biases by batch size, and the numbers read off them."""

    bias: studies.BatchBias
    numbers: Mapping[str, float]


def run(config: Config) -> Result:
    """A critic of two values; every batch enumerated."""
    bias = studies.batch_bias(largest=config.largest)
    numbers = {
        "slope of the last three sizes": np.polyfit(np.log(bias.size[-3:]), np.log(bias.exact[-3:]), 1)[0],
        "exact over predicted at the largest": bias.exact[-1] / bias.predicted[-1],
        "exact over predicted at n = 1": bias.exact[0] / bias.predicted[0],
    }
    return Result(bias, {name: float(value) for name, value in numbers.items()})


def plot(result: Result) -> Figure:
    """Exact and predicted bias against the batch size."""
    return draw_batch_bias(result.bias)


if __name__ == "__main__":
    command(__doc__, Config, run, plot, EXPECTED)
