"""What comes of certifying a claim, and what a comparison may leave."""

from __future__ import annotations

import dataclasses
from typing import Any

from mi_align.equivalences.claim import Claim, Kind

__all__ = ["DTYPES", "Certificate", "tolerance_of"]

DTYPES = ("float64", "float32", "bfloat16")

#: What a comparison may leave by default, relative to max(1, |left|, |right|). In bfloat16 the inputs are rounded to
#: that format and both sides are computed in float32, as the objectives do.
DEFAULTS = {
    Kind.EXACT: {"float64": 1e-10, "float32": 1e-5, "bfloat16": 1e-5},
    Kind.INEQUALITY: {"float64": 1e-12, "float32": 1e-6, "bfloat16": 1e-6},
    Kind.OPTIMUM: {"float64": 1e-8, "float32": 1e-3, "bfloat16": 1e-3},
    Kind.ASYMPTOTIC: {"float64": 0.05, "float32": 0.1, "bfloat16": 0.1},
    Kind.MONTE_CARLO: {"float64": 4.0, "float32": 4.0, "bfloat16": 4.0},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """What came of certifying one claim.

    Attributes:
      id, title, statement, kind, slip, source, why, figure: the claim's.
      samples: how many inputs were drawn.
      dtype: in what the inputs were given.
      error: the worst case, in the kind's own measure (see `Kind`); for an inequality, minus the smallest slack.
      tolerance: what it may be.
      holds: error ≤ tolerance, and nothing was NaN.
      twin_error: the same measure for the twin.
      twin_fails: twin_error > tolerance; None where the twin is not judged (dtypes other than float64).
      derivatives: how many orders of derivative were compared too.
      worst: the input that made the worst case, or the error's text where evaluating the claim failed.
      seconds: compilation included.
      device: where it ran.
    """

    id: str
    title: str
    statement: str
    kind: str
    slip: str
    source: str
    why: str
    figure: str | None
    samples: int
    dtype: str
    error: float
    tolerance: float
    holds: bool
    twin_error: float
    twin_fails: bool | None
    derivatives: int
    worst: Any
    seconds: float
    device: str

    @property
    def passed(self) -> bool:
        """Whether the claim holds and, where it is judged, its twin fails."""
        return self.holds and self.twin_fails is not False


def tolerance_of(claim: Claim, dtype: str) -> float:
    """What the claim's comparison may leave in `dtype`."""
    return float(claim.tolerance.get(dtype, DEFAULTS[claim.kind][dtype]))
