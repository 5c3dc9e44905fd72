"""pass@k curves cross where training gives prompts up, and not under the KL-regularised optimum.

Claim      The exact KL-regularised optimum raises every prompt's log-odds by 1/β, so its pass@k lies above the base
           model's at every k. A policy that is sharper on most prompts but never solves some has the better pass@1 and
           is overtaken at large k. This shows what a crossover needs, not how often it happens.
Source     Ledger 39, 41, 42 (theory; derived here). Empirical crossovers: Yue et al. 2025 (arXiv 2504.13837).
Command    python -m experiments.pass_at_k [--short] [--output pass_at_k.png]
Hardware   2 CPU cores, float64
Minutes    0.1 (short: the same)
Expected   `EXPECTED` below, (value, tolerance)
Refuted by a k at which the optimum lies below the base model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments._command import command
from mi_align.equivalences import studies
from mi_align.equivalences.figures.sampling import draw_pass_at_k

# The short run's coarser grid of prompts moves averages by up to .002.
EXPECTED = {
    "base pass@1": (0.0589, 0.002),
    "collapsed pass@1": (0.390, 0.002),
    "collapsed pass@largest": (0.7, 1e-3),
    "least gain of the optimum": (0.0793, 0.0025),
    "crossover k": (494, 0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How many prompts."""

    prompts: int = 1000

    @classmethod
    def short(cls) -> Config:
        """A tenth."""
        return cls(prompts=100)


class Result(NamedTuple):
    """Three curves, and the numbers read off them."""

    curves: studies.PassAtK
    numbers: Mapping[str, float]


def run(config: Config) -> Result:
    """Base success rates from 1e-4 to ½; the hardest 30 percent are given up by the collapsed policy."""
    curves = studies.pass_at_k(prompts=config.prompts)
    first = int(np.argmax(curves.base > curves.collapsed))
    numbers = {
        "base pass@1": curves.base[0],
        "collapsed pass@1": curves.collapsed[0],
        "collapsed pass@largest": curves.collapsed[-1],
        "least gain of the optimum": (curves.regularised - curves.base).min(),
        "crossover k": curves.k[first],
    }
    return Result(curves, {name: float(value) for name, value in numbers.items()})


def plot(result: Result) -> Figure:
    """Mean pass@k of the three."""
    return draw_pass_at_k(result.curves)


if __name__ == "__main__":
    command(__doc__, Config, run, plot, EXPECTED)
