"""DPO moves a pair along (1, −1) for ever; MIO has a level of its own, a = ln 2.

Claim      In a pair's free implicit rewards (a, c), DPO's descent direction has equal and opposite components
           everywhere, while MIO's component along a vanishes exactly on the line a = ln 2 and points to it.
Source     Ledger 20 and 21 (theory; derived here). MIO = pairwise NCA (Chen et al. 2024) at the same β.
Command    python -m experiments.flow_field [--short] [--output flow_field.png]
Hardware   2 CPU cores, float64
Minutes    0.1 (short: the same)
Expected   `EXPECTED` below, (value, tolerance)
Refuted by a point where DPO changes a + c, or where MIO's a moves away from ln 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments._command import command
from mi_align.equivalences import studies
from mi_align.equivalences.figures.training import draw_flow_field
from mi_align.objectives import bradley_terry_loss, nca_loss

EXPECTED = {
    "dpo: largest |da + dc|": (0.0, 1e-15),
    "mio: largest |da| on a = ln 2": (0.0, 1e-15),
    "mio: share pointing to ln 2": (1.0, 0.0),
    "mio: dc at the start": (-0.25, 1e-15),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The grid of (a, c)."""

    points: int = 81

    @classmethod
    def short(cls) -> Config:
        """A coarser grid."""
        return cls(points=21)


class Result(NamedTuple):
    """The numbers read off the fields."""

    numbers: Mapping[str, float]


def run(config: Config) -> Result:
    """Both fields on the grid, and MIO's on the line a = ln 2 and at the start (0, 0)."""
    a, c = np.linspace(-4, 4, config.points), np.linspace(-6, 2, config.points)
    dpo_a, dpo_c = studies.descent_directions(bradley_terry_loss, a, c)

    def mio(a: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return studies.descent_directions(lambda x, y: nca_loss(x, y[None]), a, c)

    numbers = {
        "dpo: largest |da + dc|": np.abs(dpo_a + dpo_c).max(),
        "mio: largest |da| on a = ln 2": np.abs(mio(np.log([2.0]), c)[0]).max(),
        "mio: share pointing to ln 2": np.mean(np.sign(mio(a, c)[0]) == np.sign(np.log(2) - a)),
        "mio: dc at the start": mio(np.zeros(1), np.zeros(1))[1].item(),
    }
    return Result({name: float(value) for name, value in numbers.items()})


def plot(result: Result) -> Figure:
    """Stream lines of both fields."""
    return draw_flow_field()


if __name__ == "__main__":
    command(__doc__, Config, run, plot, EXPECTED)
