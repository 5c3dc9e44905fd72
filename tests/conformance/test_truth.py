"""Values and derivatives of every objective against 50 digits, masks and all."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import mi_align.objectives as objectives
from tests.conformance import inputs
from tests.conformance.cases import LISTS, NAMES, case
from tests.conformance.compare import SORTED, by_path, compare_gradients, compare_values
from tests.oracles import ORACLES
from tests.precise import Truth

DTYPES = [np.float32, np.float64]
#: Public names of the room that are no formula: MINE's state and step, and a statistic of the batch.
NO_FORMULA = {"MineState", "mine_init", "mine_step", "kto_reference_point"}
PADDING = [0.0, 1e30, np.inf, -np.inf, np.nan]

every_objective = pytest.mark.parametrize("name", NAMES)
every_list = pytest.mark.parametrize("name", LISTS)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)


def test_every_objective_has_an_oracle_and_every_oracle_an_objective() -> None:
    assert set(objectives.__all__) - NO_FORMULA == set(ORACLES)


@both_dtypes
@every_objective
def test_values_are_within_4_ulp_or_the_condition_number(name: str, dtype: type) -> None:
    c = case(name, dtype)
    worst = compare_values(c, c.result[0])
    assert worst.share <= 1, worst.case


@both_dtypes
@every_objective
def test_partial_derivatives_are_within_8_ulp_or_the_condition_number(name: str, dtype: type) -> None:
    c = case(name, dtype)
    worst = compare_gradients(c, c.result[1])
    assert worst.share <= 1, worst.case


@every_objective
def test_an_error_of_one_part_in_a_trillion_is_seen(name: str) -> None:
    c = case(name)
    assert compare_values(c, c.result[0] * (1 + 1e-12)).share > 1
    wrong = {n: g * (1 - 1e-12) for n, g in c.result[1].items()}
    assert not any(g.any() for g in wrong.values()) or compare_gradients(c, wrong).share > 1


def _has_ties(truth: Truth) -> bool:
    return any(len(set(sample)) < len(sample) for sample in truth.arguments.values() if isinstance(sample, list))


@every_objective
def test_hessian_vector_products_are_those_of_the_formula(name: str) -> None:
    c = case(name)
    for row, truth in enumerate(c.truths):
        if name in SORTED and _has_ties(truth):
            continue  # a kink: which of the equal entries comes first depends on the direction
        direction, bends = by_path(c, c.directions, row), by_path(c, c.result[2], row)
        expected = truth.hessian_times(direction)
        largest = max(abs(expected[p]) for p in direction)  # beyond 1e20: a kink's, or an overflow
        for path in direction:
            got, true = bends[path], expected[path]
            # No bound in ulp for these: to 1e-7 of the row's largest, or of a bounded one's own scale, they are right.
            close = abs(got - true) <= 1e-7 * largest + 1e-13
            assert close or largest > 1e20, (path, truth.arguments, got, float(true))


@pytest.mark.parametrize("junk", PADDING)
@every_list
def test_what_is_under_a_mask_changes_nothing_and_gets_no_derivative(name: str, junk: float) -> None:
    c = case(name)
    where, hidden = c.arguments["where"], [n for n in c.arguments if inputs.hidden_by_mask(c.objective, n)]
    other = {n: junk if c.arguments[n].dtype.kind == "f" else ~c.arguments[n] for n in hidden}
    padded = {n: np.where(where, c.arguments[n], other[n]).astype(c.arguments[n].dtype) for n in hidden}
    for clean, dirty in zip(c.result, c.run({**c.arguments, **padded}), strict=True):
        np.testing.assert_equal(dirty, clean)
    for derivative in c.result[1:]:
        assert not any(derivative[n][~where].any() for n in hidden if n in derivative)


@every_list
def test_no_mask_is_a_mask_that_keeps_everything(name: str) -> None:
    c = case(name)
    everything = {**c.arguments, "where": np.ones_like(c.arguments["where"])}
    bare = {n: x for n, x in c.arguments.items() if n != "where"}
    for came, wanted in zip(jax.tree.leaves(c.run(bare)), jax.tree.leaves(c.run(everything)), strict=True):
        np.testing.assert_allclose(came, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())


@every_list
def test_nothing_kept_gives_the_stated_value_without_a_derivative(name: str) -> None:
    c = case(name)
    values, *derivatives = c.run({**c.arguments, "where": np.zeros_like(c.arguments["where"])})
    if name in {"nca_loss", "mio_loss"}:  # the positive against itself
        alone = [Truth(ORACLES[name], {"positive": p, "negatives": []}).values[0] for p in c.arguments["positive"]]
        np.testing.assert_allclose(values, np.array(alone, float), rtol=1e-15)
        return
    np.testing.assert_array_equal(values, 0)
    for derivative in derivatives:
        for n, d in derivative.items():
            np.testing.assert_array_equal(d, 0, err_msg=n)


@pytest.mark.parametrize(
    ("size", "dtype"),
    [
        (1, np.float32),
        (1000, np.float32),
        pytest.param(2, np.float64, marks=pytest.mark.slow),
        pytest.param(7, np.float32, marks=pytest.mark.slow),
    ],
)
@every_list
def test_lists_of_any_length_are_exact(name: str, size: int, dtype: type) -> None:
    c = case(name, dtype, size, (3.0,))
    values, gradients = compare_values(c, c.result[0]), compare_gradients(c, c.result[1])
    assert values.share <= 1, values.case[:1000]
    assert gradients.share <= 1, gradients.case[:1000]
