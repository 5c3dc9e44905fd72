"""DPO's chosen response peaks and then declines without bound; MIO settles.

Claim      In a one-dimensional log-linear policy over three responses, all of DPO, MIO (= pairwise NCA at the same β)
           and BCO reach the most that the policy class allows, .4147. DPO then gives everything to a third response.
Source     Ledger 34 (theory 34; derived here). The counterpart of the paper's late-stage decline (its figure 3).
Command    python -m experiments.late_decline [--short] [--output late_decline.png]
Hardware   2 CPU cores, float64
Minutes    0.1 (short: 0.1)
Expected   `EXPECTED` below, (value, tolerance)
Refuted by a DPO curve that stays above 0 at 400,000 steps, or a MIO curve that falls below 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from experiments._command import command
from mi_align.equivalences import studies, toys
from mi_align.equivalences.dynamics import History
from mi_align.equivalences.figures.training import draw_late_decline

_HALF = 5e-4  # numbers are stated to three decimals

EXPECTED = {
    "dpo peak": (0.414675, 1e-6),
    "dpo peak step": (194, 0),
    "dpo a(1000)": (-0.217, _HALF),
    "dpo a(5000)": (-1.635, _HALF),
    "dpo a(400000)": (-5.991, _HALF),
    "dpo other(400000)": (0.999, _HALF),
    "mio peak": (0.414675, 1e-6),
    "mio peak step": (345, 0),
    "mio final theta": (2.220, 1e-3),
    "mio final a": (0.1849, 1e-4),
    "mio final c": (-2.0356, 1e-4),
    "bco final theta": (2.116, 1e-3),
    "bco final a": (0.2315, 1e-4),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """How long to train."""

    steps: int = toys.LATE_DECLINE.steps

    @classmethod
    def short(cls) -> Config:
        """Long enough for the decline to be seen and for MIO to settle."""
        return cls(steps=20_000)


class Result(NamedTuple):
    """The trajectories and the numbers read off them."""

    curves: Mapping[str, History]
    numbers: Mapping[str, float]


def run(config: Config) -> Result:
    """Train under the three losses, recording each of the first 400 steps."""
    looked_at = (*range(1, 401), 1000, 5000)
    curves = studies.learning_curves(toys.LATE_DECLINE, ("dpo", "mio", "bco_pair"), steps=config.steps, also=looked_at)
    numbers: dict[str, float] = {}
    for name in ("dpo", "mio"):
        chosen, step = curves[name].log_ratio[:, 0], curves[name].step
        numbers |= {f"{name} peak": chosen.max(), f"{name} peak step": step[chosen.argmax()]}
    dpo = dict(zip(curves["dpo"].step.tolist(), curves["dpo"].log_ratio[:, 0], strict=True))
    numbers |= {f"dpo a({step})": dpo[step] for step in (1000, 5000, 400_000) if step in dpo}
    if config.steps == toys.LATE_DECLINE.steps:
        numbers["dpo other(400000)"] = float(np.exp(curves["dpo"].log_policy[-1, 2]))
    mio, bco = curves["mio"], curves["bco_pair"]
    numbers |= {"mio final theta": mio.parameters[-1, 0], "mio final a": mio.log_ratio[-1, 0]}
    numbers |= {"mio final c": mio.log_ratio[-1, 1]}
    numbers |= {"bco final theta": bco.parameters[-1, 0], "bco final a": bco.log_ratio[-1, 0]}
    return Result(curves, {name: float(value) for name, value in numbers.items()})


def plot(result: Result) -> Figure:
    """Chosen log-ratios over steps, and where DPO's probability mass goes."""
    return draw_late_decline(result.curves)


if __name__ == "__main__":
    command(__doc__, Config, run, plot, EXPECTED)
