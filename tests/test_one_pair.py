"""The guided tour: what it prints, what its numbers are by an independent computation, and that the README shows it."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from docs import generate
from mi_align.models import cast, hidden_states, vocabulary_matrix

LEARNING_RATE = 0.003  # the tour's


class Tour(NamedTuple):
    values: dict[str, Any]
    printed: str


@pytest.fixture(scope="module")
def tour() -> Tour:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        values = runpy.run_path(str(generate.TOUR), run_name="__main__")
    return Tour(values, said.getvalue())


def log_policy(values: dict[str, Any], params: Any) -> np.ndarray:
    """log π of both responses in float64, from the hidden states on in NumPy."""
    with jax.enable_x64(True):
        wide = cast(params, np.float64)
        hidden = np.asarray(hidden_states(values["graphdef"], wide, values["tokens"]))[0]
        vocabulary = np.asarray(vocabulary_matrix(values["graphdef"], wide))
    logits = hidden @ vocabulary.T
    total = np.zeros(2)
    for candidate, text in enumerate(("85", "75")):
        prompt = 1 + len("37+48=")  # BOS comes first
        for place, token in enumerate([*text.encode(), 256], start=prompt):
            row = logits[candidate, place - 1]
            total[candidate] += row[token] - np.log(np.sum(np.exp(row)))
    return total


def loss(values: dict[str, Any], params: Any) -> float:
    """DPO as its paper writes it, the first parameters being the reference's."""
    ratio = log_policy(values, params) - log_policy(values, values["params"])
    return float(np.log1p(np.exp(-values["beta"] * (ratio[0] - ratio[1]))))


def test_dpo_infonce_and_log_2_less_dv_are_one_number(tour: Tour) -> None:
    one, two, three = (float(tour.values[name]) for name in ("dpo", "info_nce", "from_dv"))
    assert 0.1 < one < np.log(2) - 0.1, "the step has moved the logits, so that equality says something"
    # Two roundings of numbers below 1 in each of the three forms.
    assert abs(one - two) <= 4 * np.finfo(np.float32).eps
    assert abs(one - three) <= 4 * np.finfo(np.float32).eps
    said = re.search(r"DPO ([\d.]+) = InfoNCE ([\d.]+) = log 2 − DV ([\d.]+)", tour.printed)
    assert said and len(set(said.groups())) == 1


def test_the_loss_after_the_step_is_what_numpy_makes_of_the_hidden_states(tour: Tour) -> None:
    # Three log-probabilities of some 6 nats, times β = ½, in both responses; each of them 4 roundings in float32.
    allowed = 2 * 0.5 * 3 * 6 * 4 * float(np.finfo(np.float32).eps)
    assert float(tour.values["dpo"]) == pytest.approx(loss(tour.values, tour.values["state"].params), abs=allowed)


def test_training_begins_at_the_reference_with_exactly_log_2_and_opposite_pulls(tour: Tour) -> None:
    assert np.all(np.asarray(tour.values["logits"]) == 0)
    np.testing.assert_array_equal(tour.values["loss"], np.float32(np.log(2)))
    assert [float(x) for x in tour.values["pull"]] == [-0.5, 0.5]


def test_the_step_goes_down_the_gradient_of_that_loss(tour: Tour) -> None:
    """Along d = −η g the loss changes at the rate g·d = −|d|²/η: by central differences in float64."""
    first, last = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        for params in (tour.values["params"], tour.values["state"].params)
    )
    moved = jax.tree.map(np.subtract, last, first)
    square = sum(float(np.sum(x**2)) for x in jax.tree.leaves(moved))
    h = 1e-4
    forth, back = (
        loss(tour.values, jax.tree.map(lambda x, d, s=sign: x + s * h * d, first, moved)) for sign in (1, -1)
    )
    # The step was rounded to float32: 1e-7 of parameters that are some 1,000 times as large as their change.
    assert (forth - back) / (2 * h) == pytest.approx(-square / LEARNING_RATE, rel=1e-3)
    assert tour.values["seen"]["grad_norm"] == pytest.approx(np.sqrt(square) / LEARNING_RATE, rel=1e-3)


def test_the_readme_shows_the_tour_and_what_it_prints(tour: Tour) -> None:
    section = generate.one_pair(tour.printed)
    assert section in (generate.ROOT / "README.md").read_text(), "README.md is out of date: run `make readme`"


def test_the_tour_is_short(tour: Tour) -> None:
    assert len(generate.TOUR.read_text().splitlines()) <= 100
    arrows = [line.partition("  ")[0] for line in tour.printed.splitlines()]
    assert arrows == [
        "text → data",
        "data → tokens",
        "tokens → hidden",
        "hidden → log π",
        "log π → logits",
        "logits → loss",
        "loss → training",
        "new logits",
        "new loss",
    ]
