"""Values and derivatives of every objective against 50 digits, masks and all."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance import inputs
from tests.conformance.cases import LISTS, NAMES, Case, case
from tests.conformance.compare import compare_gradients, compare_values
from tests.oracles import ORACLES
from tests.precise import Truth

DTYPES = [np.float32, np.float64]
PADDING = [0.0, 1e30, np.inf, -np.inf, np.nan]

every_objective = pytest.mark.parametrize("name", NAMES)
every_list = pytest.mark.parametrize("name", LISTS)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)


def test_every_objective_has_an_oracle_and_every_oracle_an_objective() -> None:
    assert set(NAMES) == set(ORACLES)


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


@every_objective
def test_hessian_vector_products_are_those_of_the_formula(name: str) -> None:
    c = case(name)
    for row, truth in enumerate(c.truths):
        direction = {p: _entry(c, c.directions, p, row) for p in truth.point if p[0] in c.directions}
        expected = truth.hessian_times(direction)
        largest = max(abs(expected[p]) for p in direction)  # beyond 1e20: a kink's, or an overflow
        for path in direction:
            got, true = _entry(c, c.result[2], path, row), expected[path]
            # No bound in ulp for these: to 1e-7 of the row's largest, or of a bounded one's own scale, they are right.
            close = abs(got - true) <= 1e-7 * largest + 1e-13
            assert close or largest > 1e20, (path, truth.arguments, got, float(true))


def _entry(c: Case, arrays: dict[str, np.ndarray], path: tuple, row: int) -> float:
    """The entry of a batch of arrays that an argument's path, counted among kept entries, leads to."""
    name, *index = path
    x = arrays[name][row]
    for mask, axes in inputs.masks(c.objective).items():
        if index and inputs.shapes(c.objective)[name] == axes and mask in (f"where_{name}", "where"):
            kept = c.arguments[mask][row]
            return x[kept][index[0]] if kept.ndim == 1 else x[index[0]][kept[index[0]]][index[1]]
    return float(x[tuple(index)])


@pytest.mark.parametrize("junk", PADDING)
@every_list
def test_what_is_under_a_mask_changes_nothing_and_gets_no_derivative(name: str, junk: float) -> None:
    c = case(name)
    padded = dict(c.arguments)
    for mask, axes in inputs.masks(c.objective).items():
        for n, x in c.arguments.items():
            if inputs.shapes(c.objective).get(n) == axes and mask in (f"where_{n}", "where"):
                hidden = junk if x.dtype.kind == "f" else ~x
                padded[n] = np.where(c.arguments[mask], x, hidden).astype(x.dtype)
    for clean, dirty in zip(c.result, c.run(padded), strict=True):
        np.testing.assert_equal(dirty, clean)
    for n in c.differentiable:
        for mask, axes in inputs.masks(c.objective).items():
            if inputs.shapes(c.objective)[n] == axes and mask in (f"where_{n}", "where"):
                dropped = ~c.arguments[mask]
                assert not c.result[1][n][dropped].any() and not c.result[2][n][dropped].any()


@every_list
def test_nothing_kept_gives_zero_without_a_derivative(name: str) -> None:
    c = case(name)
    values, slopes, bends = c.run({n: np.zeros_like(x) if n.startswith("where") else x for n, x in c.arguments.items()})
    single = {n for n in c.differentiable if not inputs.shapes(c.objective)[n]}
    if name == "nca_loss" or name == "mio_loss":  # the positive alone: against a mixture of itself
        expected = [
            Truth(ORACLES[name], {"positive": p, "negatives": []}).values[0] for p in c.arguments["positive"].tolist()
        ]
        np.testing.assert_allclose(values, [float(e) for e in expected], rtol=1e-15)
        return
    np.testing.assert_array_equal(values, 0)
    for n in c.differentiable:
        assert np.all(slopes[n] == 0) and np.all(bends[n] == 0), n
    assert single <= set(c.differentiable)


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@both_dtypes
@every_list
def test_lists_of_any_length_are_exact(name: str, dtype: type, size: int) -> None:
    c = case(name, dtype, size, (3.0,))
    values, gradients = compare_values(c, c.result[0]), compare_gradients(c, c.result[1])
    assert values.share <= 1, values.case[:1000]
    assert gradients.share <= 1, gradients.case[:1000]
