"""The dynamics where everything can be enumerated: ledger 34's numbers, and near-duplicate rejected responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mi_align.equivalences import studies, toys
from mi_align.equivalences.dynamics import History
from mi_align.reproduction.finding import Finding

__all__ = ["EXPECTED", "ToyRuns", "run_toys", "toy_findings"]

Runs = Mapping[str, History]

#: Toy 34's chosen log-ratio: (method, step) -> its value and how far from it is still right, half the last digit.
EXPECTED = {
    ("dpo", 194): (0.4147, 5e-5),
    ("dpo", 1_000): (-0.217, 5e-4),
    ("dpo", 5_000): (-1.635, 5e-4),
    ("dpo", 400_000): (-5.991, 5e-4),
    ("mio", 345): (0.4147, 5e-5),
    ("mio", 400_000): (0.1849, 5e-5),
}


class ToyRuns(NamedTuple):
    """Trajectories of DPO and MIO on each toy."""

    late_decline: Runs
    collapse: Runs
    near_duplicates: Runs


def run_toys() -> ToyRuns:
    """Train all three from the reference on, by plain gradient descent in float64."""
    both = ("dpo", "mio")
    return ToyRuns(
        studies.learning_curves(toys.LATE_DECLINE, both, also=tuple(step for _, step in EXPECTED)),
        studies.learning_curves(toys.COLLAPSE, both),
        studies.learning_curves(toys.NEAR_DUPLICATES, both),
    )


def toy_findings(runs: ToyRuns) -> list[Finding]:
    """The known numbers, and what came."""
    findings = []
    for (method, step), (expected, tolerance) in EXPECTED.items():
        history = runs.late_decline[method]
        value = float(history.log_ratio[np.searchsorted(history.step, step), 0])
        findings.append(
            Finding(
                f"toy 34, {method.upper()}: chosen log-ratio after {step:,} steps",
                f"{expected:g}",
                f"{value:.6f}",
                abs(value - expected) <= tolerance,
            )
        )
    findings += [_peak(runs.late_decline, method, step) for method, step in (("dpo", 194), ("mio", 345))]
    return findings + _duplicates(runs.near_duplicates)


def _peak(runs: Runs, method: str, expected: int) -> Finding:
    chosen = runs[method].log_ratio[:, 0]
    step = int(runs[method].step[np.argmax(chosen)])
    return Finding(f"toy 34, {method.upper()}: where it peaks", f"step {expected}", f"step {step}", step == expected)


def _duplicates(runs: Runs) -> list[Finding]:
    dpo, mio = (runs[name].log_ratio[:, 0] for name in ("dpo", "mio"))
    return [
        Finding(
            "near-duplicates, DPO: chosen log-ratio",
            "rises to +0.07, falls to −36 nats",
            f"rises to {dpo.max():+.2f}, falls to {dpo[-1]:.1f}",
            bool(abs(dpo.max() - 0.07) < 0.01 and abs(dpo[-1] + 36) < 1),
        ),
        Finding(
            "near-duplicates, MIO: chosen log-ratio",
            "settles near +0.30",
            f"settles at {mio[-1]:+.3f}",
            bool(abs(mio[-1] - 0.30) < 0.01),
        ),
    ]
