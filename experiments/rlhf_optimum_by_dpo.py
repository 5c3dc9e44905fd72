"""DPO's population minimiser is the RLHF optimum, whatever law draws the pairs.

Claim      Under Bradley–Terry preferences, minimising DPO's expected loss over all policies on an enumerated space ends
           at π* ∝ π_ref exp(r/β), for every law of pairs with full support. The law sets only the speed.
Source     Ledger 49; Rafailov et al. 2023 (arXiv 2305.18290), theorem 1.
Command    python -m experiments.rlhf_optimum_by_dpo [--short] [--output rlhf_optimum_by_dpo.png]
Hardware   2 CPU cores, float64
Minutes    0.1 (short: the same)
Expected   `EXPECTED` below, (value, tolerance)
Refuted by a law of full support under which the total variation to π* does not reach 1e-12.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments._command import command
from mi_align.equivalences import studies
from mi_align.equivalences.figures.sampling import draw_optimum

_LAWS = ("uniform pairs", "pairs from the reference", "a skewed law")

EXPECTED = {
    **{f"newton, {law}": (0.0, 1e-12) for law in _LAWS},
    # Gradient descent's 3,000 steps leave the slowest law at 3e-12.
    **{f"descent, {law}": (0.0, 1e-11) for law in _LAWS},
    "start": (0.7, 0.3),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The size of the space, and how long to descend."""

    responses: int = 6
    steps: int = 3000
    seed: int = 0

    @classmethod
    def short(cls) -> Config:
        """Fewer responses, for which fewer steps do."""
        return cls(responses=4)


class Result(NamedTuple):
    """Total variation to π* over steps, and its last values."""

    optimum: studies.Optimum
    numbers: Mapping[str, float]


def run(config: Config) -> Result:
    """Random rewards, reference and pair laws; Newton's method and gradient descent."""
    optimum = studies.optimum_reached(jax.random.key(config.seed), responses=config.responses, steps=config.steps)
    numbers = {f"newton, {law}": float(path[-1]) for law, path in optimum.newton.items()}
    numbers |= {f"descent, {law}": float(path[-1]) for law, path in optimum.descent.items()}
    numbers["start"] = float(np.mean([path[0] for path in optimum.newton.values()]))
    return Result(optimum, numbers)


def plot(result: Result) -> Figure:
    """Total variation to π* over steps of both methods."""
    return draw_optimum(result.optimum)


if __name__ == "__main__":
    command(__doc__, Config, run, plot, EXPECTED)
