"""With the exact critic, bounds on mutual information trade a ceiling for variance.

Claim      InfoNCE never exceeds log N, the Jensen–Shannon estimate (plus log 4) never 2 log 2, the interpolated bound
           never log (N − 1)/α. DV and NWJ have no ceiling but a spread that grows with the information. SMILE has
           little spread and no ceiling, and lies above the truth: it is no bound.
Source     Ledger 3 to 10; Poole et al. 2019 (arXiv 1905.06922), figure 2; Song & Ermon 2020 (arXiv 1910.06222).
Command    python -m experiments.bounds_against_truth [--short] [--output bounds_against_truth.png]
Hardware   2 CPU cores, float64
Minutes    0.2 (short: 0.1)
Expected   `EXPECTED` below, (value, tolerance); means over batches, tolerances of some four standard errors in the
           short run
Refuted by an InfoNCE value above log N, or a DV spread that does not grow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from experiments._command import command
from mi_align.equivalences import gaussian_bounds
from mi_align.equivalences.figures.estimation import draw_bounds

EXPECTED = {
    "DV − I at I = 2": (0.0, 0.1),
    "NWJ − I at I = 2": (0.0, 0.1),
    "interpolated − I at I = 2": (0.0, 0.1),
    "largest InfoNCE − log N": (-0.02, 0.02),
    "largest JS + log 4 − 2 log 2": (-0.02, 0.02),
    "InfoNCE at I = 8": (4.69, 0.04),
    "SMILE − I at I = 8": (1.45, 0.2),
    "DV spread at I = 8 over I = 2": (4.0, 2.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Which informations, in nats, and how many batches at each."""

    information: tuple[float, ...] = tuple(np.linspace(0.5, 10.0, 20))
    batches: int = 100
    batch: int = 128
    seed: int = 0

    @classmethod
    def short(cls) -> Config:
        """Three informations and fewer batches."""
        return cls(information=(2.0, 8.0, 10.0), batches=50)


class Result(NamedTuple):
    """All estimates, and the numbers read off them."""

    estimates: gaussian_bounds.Estimates
    numbers: Mapping[str, float]


def run(config: Config) -> Result:
    """Estimate on correlated Gaussians in ten dimensions."""
    estimates = gaussian_bounds.estimate(
        jax.random.key(config.seed), config.information, batch=config.batch, batches=config.batches
    )
    truth, value = estimates.information, estimates.values
    low, high = int(np.argmin(np.abs(truth - 2))), int(np.argmin(np.abs(truth - 8)))
    smile, mixed = (next(name for name in value if name.startswith(kind)) for kind in ("SMILE", "interpolated"))
    numbers = {
        "DV − I at I = 2": value["DV"][low].mean() - 2,
        "NWJ − I at I = 2": value["NWJ"][low].mean() - 2,
        "interpolated − I at I = 2": value[mixed][low].mean() - 2,
        "largest InfoNCE − log N": value["InfoNCE"].max() - np.log(config.batch),
        "largest JS + log 4 − 2 log 2": value["Jensen–Shannon + log 4"].max() - 2 * np.log(2),
        "InfoNCE at I = 8": value["InfoNCE"][high].mean(),
        "SMILE − I at I = 8": value[smile][high].mean() - 8,
        "DV spread at I = 8 over I = 2": value["DV"][high].std() / value["DV"][low].std(),
    }
    return Result(estimates, {name: float(x) for name, x in numbers.items()})


def plot(result: Result) -> Figure:
    """Means and spreads against the true value."""
    return draw_bounds(result.estimates)


if __name__ == "__main__":
    command(__doc__, Config, run, plot, EXPECTED)
