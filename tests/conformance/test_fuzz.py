"""The fuzz: `make test-slow` runs it over 100,000 inputs a function and dtype, and refreshes `FUZZ.md`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.conformance import fuzz
from tests.conformance.fuzz import SUBJECTS
from tests.conformance.fuzz_table import known_rows, merged
from tests.oracles import NUMERICS, ORACLES

DTYPES = [np.float32, np.float64]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", SUBJECTS)
def test_100000_inputs_are_within_their_ulps_or_the_condition_number(
    name: str, dtype: type, record_property: Callable[[str, Any], None]
) -> None:
    row = fuzz.fuzz(name, dtype)
    record_property("fuzz", row.cells())
    assert row.inputs >= fuzz.INPUTS
    assert row.value.share <= 1, row.value.case[:2000]
    assert row.gradient.share <= 1, row.gradient.case[:2000]


def test_every_formula_is_fuzzed() -> None:
    assert set(SUBJECTS) == ORACLES.keys() | NUMERICS.keys()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", NUMERICS)
def test_the_building_blocks_are_exact_on_a_few_inputs(name: str, dtype: type) -> None:
    row = fuzz.fuzz(name, dtype, 20 * len(fuzz.REGIMES))
    assert row.value.share <= 1, row.value.case
    assert row.gradient.share <= 1, row.gradient.case


def _off(function: Callable[..., Any], by: float) -> Callable[..., Any]:
    return lambda **arguments: function(**arguments) * (1 + by)


@pytest.mark.parametrize(("dtype", "by"), [(np.float32, 2e-6), (np.float64, 4e-15)], ids=["float32", "float64"])
@pytest.mark.parametrize("name", ["bradley_terry_loss", "info_nce_loss", "jensen_shannon_bound", "kl_k3", "log_odds"])
def test_an_error_of_twenty_ulp_is_seen(name: str, dtype: type, by: float, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SUBJECTS[name]._replace(function=_off(SUBJECTS[name].function, by))
    monkeypatch.setitem(SUBJECTS, name, wrong)
    row = fuzz.fuzz(name, dtype, 4 * len(fuzz.REGIMES))
    assert row.value.share > 1 and row.gradient.share > 1


def test_a_run_of_some_rows_refreshes_these_and_keeps_the_others(tmp_path: Path) -> None:
    old = [[n, d, "1,000", "0.50", "1.25", "—", "3 (0.10)", "x=-1.5, k=[1, 2, …]", "x=0.0"] for n in "ab" for d in "fg"]
    (tmp_path / "FUZZ.md").write_text(fuzz.page(old))
    assert known_rows(tmp_path / "FUZZ.md") == old
    fresh = [["b", "f", "2,000", *old[0][3:]]]
    assert merged(old, fresh) == [*old[:2], *fresh, old[3]]
    assert known_rows(tmp_path / "none.md") == []


def test_a_nan_anywhere_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_bad(x: jax.Array) -> jax.Array:
        return jnp.where(x > 30, jnp.nan, jax.nn.sigmoid(x))

    monkeypatch.setitem(SUBJECTS, "sigmoid", SUBJECTS["sigmoid"]._replace(function=one_bad))
    assert fuzz.fuzz("sigmoid", np.float32, 4 * len(fuzz.REGIMES)).value.share == np.inf
