"""The benchmark of objectives: every one of them has a case, all cases are right, and the gate sees what is wrong."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

import mi_align.objectives

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import objective_cases
import objectives as bench

CASES = {case.name: case for case in objective_cases.CASES}


def gate(case, runs_of=None) -> bool:
    arrays = bench.arrays_for(case, 512 if "1024" not in case.name else 4096)
    return bench.is_right(case, bench.jax_runs(runs_of or case.ours, case, arrays), arrays)


def test_every_objective_is_timed() -> None:
    timed = {case.objective for case in objective_cases.CASES}
    assert timed | objective_cases.NO_OBJECTIVES == set(mi_align.objectives.__all__)
    assert not timed & objective_cases.NO_OBJECTIVES


@pytest.mark.parametrize(
    "name", [name if i % 3 == 0 else pytest.param(name, marks=pytest.mark.slow) for i, name in enumerate(CASES)]
)
def test_ours_is_the_formula_and_a_slightly_wrong_one_is_seen(name: str) -> None:
    case = CASES[name]
    assert gate(case)
    assert not gate(case, lambda *x: case.ours(*x) * 1.001 + 1e-4)


def test_a_wrong_derivative_is_seen() -> None:
    import jax

    case = CASES["bradley_terry_loss"]
    stopped = dataclasses.replace(case, ours=lambda s, t: case.ours(s, jax.lax.stop_gradient(t)))
    assert not gate(stopped)
    cispo = CASES["cispo_loss (T=64)"]
    assert gate(cispo), "whose ratios are constants"
    free = dataclasses.replace(cispo, formula=lambda m, *x: cispo.formula(dataclasses.replace(m, hold=lambda y: y), *x))
    assert not gate(free)
