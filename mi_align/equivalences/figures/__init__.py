"""The ledger's pictures, by name: each is a function without arguments that returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from mi_align.equivalences.figures import estimation, sampling, training

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FIGURES"]

FIGURES: Mapping[str, Callable[[], Figure]] = {
    "late_decline": training.late_decline,
    "displacement": training.displacement,
    "flow_field": training.flow_field,
    "gain_cap": training.gain_cap,
    "starvation": sampling.starvation,
    "rlhf_optimum_by_dpo": sampling.rlhf_optimum_by_dpo,
    "pass_at_k": sampling.pass_at_k,
    "bounds_against_truth": estimation.bounds_against_truth,
    "batch_bias": estimation.batch_bias,
    "chain_of_bounds": estimation.chain_of_bounds,
}
