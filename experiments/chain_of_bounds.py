"""MIO's, DV's and DPO's optima form a chain below log 2.

Claim      2 JSD(p, m) ≤ KL(p‖m) ≤ JSD(p⊗r‖r⊗p) ≤ log 2 for chosen law p, rejected law r, m = (p + r)/2: what MIO, DV
           and DPO can each make of the same chosen-against-mixture problem.
Source     Ledger 16 (theory; derived here).
Command    python -m experiments.chain_of_bounds [--short] [--output chain_of_bounds.png]
Hardware   2 CPU cores, float64
Minutes    0.1 (short: the same)
Expected   `EXPECTED` below, (value, tolerance)
Refuted by two curves that cross.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments._command import command
from mi_align.equivalences import studies
from mi_align.equivalences.figures.estimation import draw_chain

EXPECTED = {
    "least KL(p‖m) − 2 JSD(p, m)": (0.0, 1e-12),
    "least JSD(p⊗r‖r⊗p) − KL(p‖m)": (0.0, 1e-12),
    "largest JSD(p⊗r‖r⊗p) − log 2": (-0.0186, 1e-4),
    "2 JSD(p, m) where p and r are furthest apart": (0.3639, 1e-4),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How many separations to look at, from 0 to 6."""

    count: int = 121

    @classmethod
    def short(cls) -> Config:
        """Fewer."""
        return cls(count=13)


class Result(NamedTuple):
    """The chain by separation, and the numbers read off it."""

    chain: studies.Chain
    numbers: Mapping[str, float]


def run(config: Config) -> Result:
    """Exponentially tilted laws over eight responses."""
    chain = studies.chain(count=config.count)
    numbers = {
        "least KL(p‖m) − 2 JSD(p, m)": (chain.donsker_varadhan - chain.jensen_shannon).min(),
        "least JSD(p⊗r‖r⊗p) − KL(p‖m)": (chain.dpo - chain.donsker_varadhan).min(),
        "largest JSD(p⊗r‖r⊗p) − log 2": chain.dpo.max() - np.log(2),
        "2 JSD(p, m) where p and r are furthest apart": chain.jensen_shannon[-1],
    }
    return Result(chain, {name: float(value) for name, value in numbers.items()})


def plot(result: Result) -> Figure:
    """The chain against the separation."""
    return draw_chain(result.chain)


if __name__ == "__main__":
    command(__doc__, Config, run, plot, EXPECTED)
