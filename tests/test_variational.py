"""Bounds on mutual information against 50 digits, closed forms, enumeration, and themselves spread over devices."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from mi_align import objectives
from mi_align.objectives import (
    donsker_varadhan_bound,
    info_nce_bound,
    interpolated_bound,
    jensen_shannon_bound,
    mine_init,
    mine_step,
    nwj_bound,
    smile_bound,
    tuba_bound,
)
from tests.against_truth import worst_errors
from tests.conformance.drawn import BOUNDS, Arrays
from tests.conformance.inputs import REGIMES, logits
from tests.oracles import ORACLES

DTYPES = [np.float32, np.float64]
TWO_SAMPLES: dict[str, Callable[..., Any]] = {
    "donsker_varadhan_bound": donsker_varadhan_bound,
    "nwj_bound": nwj_bound,
    "tuba_bound": functools.partial(tuba_bound, log_baseline=0.7),
    "jensen_shannon_bound": jensen_shannon_bound,
    "smile_bound": functools.partial(smile_bound, clip=1.3),
}
every_bound = pytest.mark.parametrize("bound", TWO_SAMPLES.values(), ids=TWO_SAMPLES)
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)


every_formula = pytest.mark.parametrize("name", BOUNDS)


def _drawn(name: str, rng: np.random.Generator, regime: float | str, dtype: type, number: int) -> Arrays:
    return BOUNDS[name][0](rng, regime, (number,), dtype)


def _two(rng: np.random.Generator, regime: float | str, dtype: type) -> Arrays:
    """A joint and a marginal sample."""
    return {key: x[0] for key, x in _drawn("nwj_bound", rng, regime, dtype, 1).items()}


@both_dtypes
@every_formula
def test_value_is_within_4_ulp_and_derivatives_within_8_of_50_digits(
    name: str, dtype: type, rng: np.random.Generator
) -> None:
    for regime in REGIMES:
        sample = _drawn(name, rng, regime, dtype, 8)
        value, gradient = worst_errors(getattr(objectives, name), sample, **BOUNDS[name][1])
        assert value.share <= 1, value.case
        assert gradient.share <= 1, gradient.case


SLIPS: dict[str, dict[str, Callable[..., Any]]] = {
    "donsker_varadhan_bound": {
        "one marginal entry counts twice": lambda joint, marginal: donsker_varadhan_bound(
            joint, jnp.concatenate([marginal, marginal[:1]])
        ),
        "the samples are swapped": lambda joint, marginal: donsker_varadhan_bound(marginal, joint),
        "log of the sum, not of the mean": lambda joint, marginal: (
            donsker_varadhan_bound(joint, marginal) - math.log(6)
        ),
    },
    "nwj_bound": {
        "e⁻¹ is off by 1e-9": lambda joint, marginal: tuba_bound(joint, marginal, log_baseline=1 + 1e-9),
        "the samples are swapped": lambda joint, marginal: nwj_bound(marginal, joint),
    },
    "tuba_bound": {
        "the baseline is not a logarithm": lambda joint, marginal, log_baseline: tuba_bound(
            joint, marginal, log_baseline=jnp.exp(log_baseline)
        ),
        "the constant 1 is missing": lambda **sample: tuba_bound(**sample) - 1,
    },
    "jensen_shannon_bound": {
        "log 4 is added": lambda **sample: jensen_shannon_bound(**sample) + math.log(4),
        "the joint sample's sign": lambda joint, marginal: jensen_shannon_bound(-joint, marginal),
    },
    "smile_bound": {
        "the joint sample is clipped too": lambda joint, marginal, clip: smile_bound(
            jnp.clip(joint, -clip, clip), marginal, clip=clip
        ),
        "not clipped": lambda joint, marginal, clip: donsker_varadhan_bound(joint, marginal) + 0 * clip,
        "the clip is off by 1e-9": lambda joint, marginal, clip: smile_bound(joint, marginal, clip=clip * (1 + 1e-9)),
    },
    "interpolated_bound": {
        "the weights are swapped": lambda scores, alpha, log_baseline: interpolated_bound(
            scores, alpha=1 - alpha, log_baseline=log_baseline
        ),
        "transposed": lambda scores, **rest: interpolated_bound(scores.T, **rest),
        "the baseline is off by 1e-9": lambda scores, alpha, log_baseline: interpolated_bound(
            scores, alpha=alpha, log_baseline=log_baseline + 1e-9
        ),
    },
}


@pytest.mark.parametrize(("name", "slip"), [(name, slip) for name, slips in SLIPS.items() for slip in slips])
def test_a_slip_in_the_formula_is_seen(name: str, slip: str, rng: np.random.Generator) -> None:
    sample = _drawn(name, rng, 3.0, np.float64, 8)  # of which some have scores beyond the clip
    value, gradient = worst_errors(SLIPS[name][slip], sample, formula=ORACLES[name], **BOUNDS[name][1])
    assert value.share > 1e3 or gradient.share > 1e3


@every_formula
def test_a_relative_error_of_1e_14_is_seen(name: str, rng: np.random.Generator) -> None:
    def off(**arguments: jax.Array) -> jax.Array:
        return getattr(objectives, name)(**arguments) * (1 + 1e-14)

    value, _ = worst_errors(off, _drawn(name, rng, 0.1, np.float64, 4), formula=ORACLES[name], **BOUNDS[name][1])
    assert value.share > 1


def _sample_of_100000(rng: np.random.Generator, spread: float) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(1, spread, 30_000).astype(np.float32), rng.normal(0, spread, 100_000).astype(np.float32)


@pytest.mark.parametrize("spread", [1e-3, 3.0, 2500.0])
def test_a_hundred_thousand_marginal_scores_keep_every_digit(spread: float, rng: np.random.Generator) -> None:
    joint, marginal = _sample_of_100000(rng, spread)
    top = float(marginal.max())
    below = marginal.astype(np.float64) - top
    weights = np.exp(below)
    # Doubles are truth enough for float32 but for log mean e^b near 0, hence the sums in one go.
    log_mean = math.log1p(math.fsum(np.expm1(below)) / below.size)
    expected = math.fsum(joint.astype(np.float64) - top) / joint.size - log_mean
    scale = abs(expected) if spread > 1 else math.fsum(abs(joint)) / joint.size + abs(log_mean + top)
    bound, slopes = jax.value_and_grad(donsker_varadhan_bound, argnums=(0, 1))(joint, marginal)
    eps = np.finfo(np.float32).eps
    assert abs(float(bound) - expected) <= 4 * eps * max(scale, math.fsum(abs(joint)) / joint.size)
    np.testing.assert_array_max_ulp(np.asarray(slopes[0]), np.full(joint.size, np.float32(1 / joint.size)), maxulp=1)
    true_slopes = -weights / math.fsum(weights)
    seen = -true_slopes > 1e-35
    np.testing.assert_allclose(
        np.asarray(slopes[1])[seen], true_slopes[seen], rtol=8 * eps * (1 + np.abs(below[seen]).max())
    )


def test_scores_of_10000_shift_out_of_donsker_varadhan_bit_by_bit(rng: np.random.Generator) -> None:
    sample = _two(rng, 3.0, np.float64)
    coarse = {key: np.round(x * 64) / 64 for key, x in sample.items()}
    bounds = {
        float(donsker_varadhan_bound(*(jnp.asarray(x + shift, jnp.float32) for x in coarse.values())))
        for shift in (0.0, 10_000.0, -10_000.0, 777.25)
    }
    assert len(bounds) == 1


@settings(max_examples=50, deadline=None)
@given(shift=st.floats(-1e3, 1e3), data=st.data())
def test_donsker_varadhan_ignores_a_shift_and_jensen_shannon_does_not(shift: float, data: st.DataObject) -> None:
    scores = st.lists(st.floats(-20, 20), min_size=5, max_size=5)
    joint, marginal = np.array(data.draw(scores)), np.array(data.draw(scores))
    with jax.enable_x64(True):
        moved = donsker_varadhan_bound(joint + shift, marginal + shift)
        # Each shifted score is off by half an ulp of the shift.
        np.testing.assert_allclose(moved, donsker_varadhan_bound(joint, marginal), atol=4e-16 * (abs(shift) + 40))
        level = jensen_shannon_bound(joint + 1, marginal + 1) - jensen_shannon_bound(joint, marginal)
        true = np.logaddexp(0, -joint).mean() - np.logaddexp(0, -joint - 1).mean()
        true += np.logaddexp(0, marginal).mean() - np.logaddexp(0, marginal + 1).mean()
        np.testing.assert_allclose(level, true, atol=1e-14)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_nwj_is_below_donsker_varadhan_by_the_excess_of_the_partition(data: st.DataObject) -> None:
    scores = st.lists(st.floats(-8, 8), min_size=4, max_size=4)
    joint, marginal = np.array(data.draw(scores)), np.array(data.draw(scores))
    with jax.enable_x64(True):
        gap = float(donsker_varadhan_bound(joint, marginal) - nwj_bound(joint, marginal))
    partition = np.exp(marginal - 1).mean()
    assert gap >= -1e-12 * partition
    np.testing.assert_allclose(gap, partition - 1 - np.log(partition), rtol=1e-12, atol=1e-12 * max(partition, 1))


def test_nwj_overflows_only_where_its_mean_does() -> None:
    joint = jnp.zeros(3)
    alone = jnp.full(4, 89.5)
    value, slope = jax.value_and_grad(nwj_bound, argnums=1)(joint, alone)
    np.testing.assert_allclose(value, -float(mpmath.exp(88.5)), rtol=4e-7)
    np.testing.assert_allclose(slope, np.full(4, -float(mpmath.exp(88.5)) / 4), rtol=4e-7)
    among_many = jnp.full(100_000, -3.0).at[7].set(100.0)
    value, slope = jax.value_and_grad(nwj_bound, argnums=1)(joint, among_many)
    np.testing.assert_allclose(value, -float(mpmath.exp(99) / 100_000), rtol=4e-7)
    np.testing.assert_allclose(slope[7], -float(mpmath.exp(99) / 100_000), rtol=4e-7)
    np.testing.assert_allclose(slope[8], -float(mpmath.exp(-4) / 100_000), rtol=1e-6)
    nearly = jnp.zeros(6).at[5].set(90.875)
    slope = jax.grad(nwj_bound, argnums=1)(joint, nearly)
    np.testing.assert_allclose(slope[5], -float(mpmath.exp(89.875) / 6), rtol=4e-7)
    assert nwj_bound(joint, jnp.full(4, 89.8)) == -jnp.inf


def test_jensen_shannon_keeps_both_tails() -> None:
    joint, marginal = jnp.array([50.0, -1e4, 90.0]), jnp.array([-50.0, 1e4])
    value, slopes = jax.value_and_grad(jensen_shannon_bound, argnums=(0, 1))(joint, marginal)
    np.testing.assert_allclose(value, -1e4 / 3 - 1e4 / 2, rtol=2e-7)
    np.testing.assert_allclose(slopes[0], [math.exp(-50) / 3, 1 / 3, 0], rtol=4e-7, atol=1e-38)
    np.testing.assert_allclose(slopes[1], [-math.exp(-50) / 2, -1 / 2], rtol=4e-7)


def test_smile_is_donsker_varadhan_once_nothing_is_clipped(rng: np.random.Generator) -> None:
    sample = _two(rng, 3.0, np.float32)
    for clip in (float(np.abs(sample["marginal"]).max()) + 0.5, np.inf):
        smile = jax.value_and_grad(lambda m, clip=clip: smile_bound(sample["joint"], m, clip=clip))
        plain = jax.value_and_grad(lambda m: donsker_varadhan_bound(sample["joint"], m))
        np.testing.assert_array_equal(smile(sample["marginal"])[1], plain(sample["marginal"])[1])
        assert smile(sample["marginal"])[0] == plain(sample["marginal"])[0]


@settings(max_examples=60, deadline=None)
@given(
    scores=st.lists(st.floats(-30, 30), min_size=2, max_size=6),
    weights=st.lists(st.floats(0.01, 1), min_size=6, max_size=6),
    clip=st.floats(0.1, 6),
)
def test_a_clipped_term_varies_by_at_most_popovicius_bound(scores: list, weights: list, clip: float) -> None:
    law = np.array(weights[: len(scores)]) / np.sum(weights[: len(scores)])
    with jax.enable_x64(True):
        # One marginal score and a joint one of 0: what is left of the bound is the clipped term's logarithm.
        term = np.exp([-float(smile_bound(jnp.zeros(1), jnp.array([b]), clip=clip)) for b in scores])
    variance = law @ term**2 - (law @ term) ** 2
    assert variance <= (np.exp(clip) - np.exp(-clip)) ** 2 / 4 * (1 + 1e-9)
    if max(scores) > clip and min(scores) < -clip and len(scores) == 2:
        np.testing.assert_allclose(variance, law[0] * law[1] * (np.exp(clip) - np.exp(-clip)) ** 2, rtol=1e-9)


def test_smile_reported_with_the_jensen_shannon_gradient_is_what_the_authors_train(rng: np.random.Generator) -> None:
    sample = _two(rng, 3.0, np.float32)

    def reported(marginal: jax.Array) -> jax.Array:
        js = jensen_shannon_bound(sample["joint"], marginal)
        return js + jax.lax.stop_gradient(smile_bound(sample["joint"], marginal, clip=0.5) - js)

    value, slope = jax.value_and_grad(reported)(sample["marginal"])
    np.testing.assert_allclose(value, smile_bound(**sample, clip=0.5), rtol=1e-6)
    np.testing.assert_array_equal(slope, jax.grad(jensen_shannon_bound, argnums=1)(*sample.values()))


def test_mine_has_the_value_of_donsker_varadhan_and_the_gradient_over_the_average(rng: np.random.Generator) -> None:
    batches = [_two(rng, 1.5, np.float64) for _ in range(4)]
    for level, batch in enumerate(batches):
        batch["marginal"] += level - 1.5
    decay, total, weight = 0.8, 0.0, 0.0
    with jax.enable_x64(True):
        state = mine_init(dtype=jnp.float64)
        for batch in batches:
            total = decay * total + (1 - decay) * np.exp(batch["marginal"]).mean()
            weight = decay * weight + (1 - decay)
            step = functools.partial(mine_step, state, decay=decay)
            (bound, new), slopes = jax.value_and_grad(step, argnums=(0, 1), has_aux=True)(*batch.values())
            np.testing.assert_allclose(bound, donsker_varadhan_bound(**batch), rtol=1e-14)
            np.testing.assert_allclose(slopes[0], np.full(4, 1 / 4), rtol=1e-15)
            expected = -np.exp(batch["marginal"]) / 6 / (total / weight)
            np.testing.assert_allclose(slopes[1], expected, rtol=1e-14)
            np.testing.assert_allclose(new.log_average, np.log(total / weight), rtol=1e-13, atol=1e-15)
            np.testing.assert_allclose(new.weight, weight, rtol=1e-15)
            state = new
    gap = np.abs(expected / np.exp(batch["marginal"]) * np.exp(batch["marginal"]).sum() + 1).max()
    assert gap > 0.05, "the average must differ from the last batch's mean, or the test says nothing"


def _mean_slope(decay: float, law: np.ndarray, scores: np.ndarray, size: int) -> np.ndarray:
    """MINE's gradient in the scores of an alphabet, averaged exactly over all marginal batches, the average being Z."""
    partition = np.log(law @ np.exp(scores))
    state = mine_init(dtype=jnp.float64)._replace(log_average=jnp.asarray(partition), weight=jnp.asarray(1.0))
    batches = np.array(list(itertools.product(range(len(law)), repeat=size)))

    def bound(table: jax.Array, batch: jax.Array) -> jax.Array:
        return mine_step(state, jnp.zeros(1), table[batch], decay=decay)[0]

    slopes = jax.vmap(jax.grad(bound), (None, 0))(jnp.asarray(scores), batches)
    return law[batches].prod(axis=1) @ np.asarray(slopes)


def test_the_bias_of_mines_gradient_vanishes_in_proportion_to_one_minus_the_decay() -> None:
    law, scores = np.array([0.6, 0.3, 0.1]), np.array([0.2, -1.0, 1.7])
    true = -law * np.exp(scores) / (law @ np.exp(scores))
    with jax.enable_x64(True):
        bias = {decay: np.abs(_mean_slope(decay, law, scores, 3) - true).max() for decay in (0.0, 0.9, 0.99, 0.999)}
    assert bias[0.0] > 0.01
    # What is left is of order (1 − ρ)²: a relative 0.1 and 0.01.
    np.testing.assert_allclose(bias[0.99] / bias[0.9], 0.1, rtol=0.2)
    np.testing.assert_allclose(bias[0.999] / bias[0.99], 0.1, rtol=0.02)


def test_mine_neither_overflows_nor_underflows_at_scores_of_10000() -> None:
    state = mine_init()
    for level in (1e4, -1e4, 1e4, 0.0):
        marginal = jnp.array([level, level - 1, level + 0.5])
        step = functools.partial(mine_step, state, decay=0.9)
        (bound, state), slope = jax.value_and_grad(step, argnums=1, has_aux=True)(jnp.array([level, level]), marginal)
        assert np.all(np.isfinite(jax.tree.leaves((bound, slope, state))[0]))
        assert np.all(np.isfinite(slope)) and np.isfinite(state.log_average)
    assert 9_990 < state.log_average < 10_001


def test_mine_scans_jits_and_keeps_the_dtype_of_its_state(rng: np.random.Generator) -> None:
    joint, marginal = (jnp.asarray(rng.normal(size=(5, 2, 7)), jnp.bfloat16) for _ in range(2))
    state, bounds = jax.lax.scan(lambda s, x: mine_step(s, *x)[::-1], mine_init((2,)), (joint, marginal))
    assert bounds.shape == (5, 2) and bounds.dtype == jnp.float32
    assert state.log_average.shape == (2,) and state.log_average.dtype == jnp.float32
    one_by_one = mine_init((2,))
    for x in zip(joint, marginal, strict=True):
        one_by_one = mine_step(one_by_one, *x)[1]
    np.testing.assert_allclose(state.log_average, one_by_one.log_average, rtol=1e-6)


def test_mine_stays_as_it_was_where_no_marginal_score_is_kept(rng: np.random.Generator) -> None:
    joint, marginal = jnp.asarray(rng.normal(size=(2, 3))), jnp.asarray(rng.normal(size=(2, 4)))
    _, before = mine_step(mine_init((2,)), joint, marginal)
    kept = jnp.array([[False] * 4, [True, False, True, True]])
    bound, after = mine_step(before, joint, jnp.where(kept, marginal, jnp.nan), where_marginal=kept, decay=0.5)
    assert bound[0] == 0 and bound[1] != 0
    assert after.log_average[0] == before.log_average[0] and after.weight[0] == before.weight[0]
    assert after.log_average[1] != before.log_average[1] and after.weight[1] > before.weight[1]


def test_interpolated_is_info_nce_of_every_leave_one_out_batch_at_alpha_1(rng: np.random.Generator) -> None:
    scores = logits(rng, 2.0, (5, 5), np.float64)
    with jax.enable_x64(True):
        bound = interpolated_bound(scores, alpha=1.0, log_baseline=rng.normal(size=5))
        left_out = []
        for i, j in itertools.permutations(range(5), 2):
            negatives = [scores[i, k] for k in range(5) if k not in (i, j)]
            left_out.append(float(info_nce_bound(jnp.asarray(scores[i, i]), jnp.asarray(negatives))))
    np.testing.assert_allclose(bound, np.mean(left_out), rtol=1e-14)


def test_interpolated_is_tuba_with_each_rows_baseline_at_alpha_0(rng: np.random.Generator) -> None:
    scores, baseline = logits(rng, 2.0, (5, 5), np.float64), rng.normal(size=5)
    with jax.enable_x64(True):
        bound = interpolated_bound(scores, alpha=0.0, log_baseline=baseline)
        above = scores - baseline[:, None]
        off_diagonal = ~np.eye(5, dtype=bool)
        tuba = tuba_bound(jnp.diagonal(above), jnp.asarray(above[off_diagonal]), log_baseline=0.0)
    np.testing.assert_allclose(bound, tuba, rtol=1e-13)


@pytest.mark.parametrize("alpha", [0.03, 0.4, 1.0])
def test_interpolated_saturates_at_log_of_n_minus_1_over_alpha(alpha: float) -> None:
    bound = interpolated_bound(jnp.eye(6) * 5000, alpha=alpha, log_baseline=0.0)
    # The second term is at least −(1 − α)/α · … and 0 for off-diagonal scores at the baseline.
    np.testing.assert_allclose(bound, math.log(5 / alpha), rtol=1e-6)


def test_interpolated_drops_a_pair_with_its_row_and_column(rng: np.random.Generator) -> None:
    scores, baseline = logits(rng, 2.0, (5, 5), np.float32), rng.normal(size=5).astype(np.float32)
    kept = np.array([True, True, False, True, True])
    dirty = np.where(kept[:, None] & kept, scores, np.nan)
    dirty_baseline = jnp.where(kept, baseline, jnp.inf)
    masked = jax.value_and_grad(lambda s: interpolated_bound(s, alpha=0.3, log_baseline=dirty_baseline, where=kept))
    small = jax.value_and_grad(lambda s: interpolated_bound(s, alpha=0.3, log_baseline=baseline[kept]))
    value, slope = masked(dirty)
    true_value, true_slope = small(scores[np.ix_(kept, kept)])
    np.testing.assert_allclose(value, true_value, rtol=1e-6)
    np.testing.assert_allclose(slope[np.ix_(kept, kept)], true_slope, rtol=1e-5, atol=1e-8)
    assert not slope[~kept].any() and not slope[:, ~kept].any()


@pytest.mark.parametrize("kept", [[False, False, False], [False, True, False]])
def test_interpolated_needs_two_pairs(kept: list[bool]) -> None:
    bound = functools.partial(interpolated_bound, alpha=0.3, log_baseline=0.1, where=jnp.array(kept))
    value, slope = jax.value_and_grad(bound)(jnp.full((3, 3), jnp.nan))
    assert value == 0 and not slope.any()


@pytest.mark.parametrize("junk", [0.0, 1e30, np.inf, -np.inf, np.nan])
@every_bound
def test_what_is_under_a_mask_changes_neither_value_nor_derivative(
    bound: Callable[..., Any], junk: float, rng: np.random.Generator
) -> None:
    joint, marginal = rng.normal(size=7).astype(np.float32), rng.normal(size=9).astype(np.float32)
    masks = {"where_joint": rng.random(7) < 0.6, "where_marginal": rng.random(9) < 0.6}
    masks["where_joint"][0] = masks["where_marginal"][0] = True
    masks["where_joint"][1] = masks["where_marginal"][1] = False
    dirty = [np.where(w, x, np.float32(junk)) for x, w in zip((joint, marginal), masks.values(), strict=True)]
    slopes_of = jax.value_and_grad(lambda a, b: bound(a, b, **masks), argnums=(0, 1))
    (clean, clean_slopes), (masked, slopes) = slopes_of(joint, marginal), slopes_of(*dirty)
    np.testing.assert_array_equal(masked, clean)
    kept = [x[w] for x, w in zip((joint, marginal), masks.values(), strict=True)]
    np.testing.assert_allclose(masked, bound(*kept), rtol=2e-6)
    for slope, clean_slope, where in zip(slopes, clean_slopes, masks.values(), strict=True):
        np.testing.assert_array_equal(slope, clean_slope)
        assert not slope[~where].any() and slope[where].any()


@pytest.mark.parametrize("empty", ["where_joint", "where_marginal"])
@every_bound
def test_an_empty_sample_gives_0_without_a_derivative(bound: Callable[..., Any], empty: str) -> None:
    scores = [jnp.array([[1.0, 2.0], [0.3, 0.4]]), jnp.array([[0.5, -1.0], [0.1, 0.2]])]
    mask = jnp.array([[False, False], [True, True]])
    value, slopes = jax.value_and_grad(lambda a, b: bound(a, b, **{empty: mask}).sum(), argnums=(0, 1))(*scores)
    np.testing.assert_allclose(value, bound(scores[0][1], scores[1][1]), rtol=1e-6)
    assert not slopes[0][0].any() and not slopes[1][0].any()


@every_bound
def test_any_axis_or_axes_may_be_the_sample(bound: Callable[..., Any], rng: np.random.Generator) -> None:
    joint, marginal = rng.normal(size=(3, 4, 2)).astype(np.float32), rng.normal(size=(5, 4, 6)).astype(np.float32)
    # rtol: the order of a sum of at most 30 numbers.
    together = bound(joint, marginal, axis=(0, 2))
    flat = [np.moveaxis(x, 1, 0).reshape(4, -1) for x in (joint, marginal)]
    np.testing.assert_allclose(together, bound(*flat), rtol=5e-6)
    first = bound(joint[:, :, 0], marginal[:, :, 0], axis=0)
    np.testing.assert_allclose(first, bound(joint[:, :, 0].T, marginal[:, :, 0].T), rtol=5e-6)
    looped = [bound(joint[:, i, 0], marginal[:, i, 0]) for i in range(4)]
    np.testing.assert_allclose(first, looped, rtol=5e-6)


def test_baseline_and_clip_may_differ_between_estimates(rng: np.random.Generator) -> None:
    joint, marginal = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(6, 4)).astype(np.float32)
    hyper = jnp.array([0.2, 0.5, 0.9, 1.4])
    for bound, name in ((tuba_bound, "log_baseline"), (smile_bound, "clip")):
        together = bound(joint, marginal, axis=0, **{name: hyper})
        one_by_one = [bound(joint[:, i], marginal[:, i], **{name: hyper[i]}) for i in range(4)]
        np.testing.assert_allclose(together, one_by_one, rtol=2e-6)


def _spread_over_devices(function: Callable[..., Any]) -> Callable[..., Any]:
    mesh = jax.make_mesh((8,), ("shard",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = PartitionSpec("shard")
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(shard,) * 4, out_specs=PartitionSpec()))


def _sharded_sample(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """A sample of which the second device keeps nothing."""
    joint, marginal = rng.normal(1, 2, 24).astype(np.float32), rng.normal(0, 2, 40).astype(np.float32)
    where_joint, where_marginal = rng.random(24) < 0.7, rng.random(40) < 0.7
    where_joint[3:6] = where_marginal[5:10] = False
    return joint, marginal, where_joint, where_marginal


@every_bound
def test_a_sample_spread_over_eight_devices_gives_one_devices_number(
    bound: Callable[..., Any], rng: np.random.Generator
) -> None:
    assert len(jax.devices()) == 8
    sample = _sharded_sample(rng)

    def whole(a: jax.Array, b: jax.Array, *masks: jax.Array, axis_name: str | None = None) -> jax.Array:
        return bound(a, b, where_joint=masks[0], where_marginal=masks[1], axis_name=axis_name)

    spread = _spread_over_devices(functools.partial(whole, axis_name="shard"))
    value, slopes = jax.value_and_grad(whole, argnums=(0, 1))(*sample)
    spread_value, spread_slopes = jax.value_and_grad(spread, argnums=(0, 1))(*sample)
    # Tolerances: the order of sums of 40 numbers of order 1.
    np.testing.assert_allclose(spread_value, value, rtol=2e-6, atol=2e-6)
    for got, expected in zip(spread_slopes, slopes, strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-9)


def test_mine_spread_over_eight_devices_has_one_devices_state(rng: np.random.Generator) -> None:
    joint, marginal, where_joint, where_marginal = _sharded_sample(rng)
    _, state = mine_step(mine_init(), joint + 1, marginal + 1)

    def step(a: jax.Array, b: jax.Array, *masks: jax.Array, axis_name: str | None = None) -> Any:
        return mine_step(state, a, b, where_joint=masks[0], where_marginal=masks[1], decay=0.6, axis_name=axis_name)

    expected = step(joint, marginal, where_joint, where_marginal)
    spread = _spread_over_devices(functools.partial(step, axis_name="shard"))
    got = spread(joint, marginal, where_joint, where_marginal)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-6)


@every_bound
def test_an_axis_of_vmap_serves_as_devices_do(bound: Callable[..., Any], rng: np.random.Generator) -> None:
    joint, marginal = rng.normal(size=(4, 3)).astype(np.float32), rng.normal(size=(4, 5)).astype(np.float32)
    shards = jax.vmap(functools.partial(bound, axis_name="shard"), axis_name="shard")(joint, marginal)
    np.testing.assert_allclose(shards, np.full(4, bound(joint.ravel(), marginal.ravel())), rtol=2e-6)


def _all_as_functions_of_one_array() -> dict[str, Callable[[jax.Array], jax.Array]]:
    two = {name: lambda x, f=f: f(x[0, :3], x.ravel()[3:]) for name, f in TWO_SAMPLES.items()}
    return two | {
        "interpolated_bound": lambda x: interpolated_bound(x, alpha=0.4, log_baseline=0.2),
        "mine_step": lambda x: mine_step(mine_init()._replace(weight=0.5), x[0, :3], x.ravel()[3:])[0],
    }


@pytest.mark.parametrize("name", _all_as_functions_of_one_array())
@pytest.mark.parametrize("scale", [1e-6, 1.0, 30.0])
def test_second_derivatives_are_finite_and_symmetric(name: str, scale: float, rng: np.random.Generator) -> None:
    function = _all_as_functions_of_one_array()[name]
    x = jnp.asarray(scale * rng.normal(size=(4, 4)), jnp.float32)
    directions = [jnp.asarray(rng.normal(size=(4, 4)), jnp.float32) for _ in range(2)]
    products = [jax.jvp(jax.grad(function), (x,), (d,))[1] for d in directions]
    assert all(np.all(np.isfinite(p)) for p in products)
    crossed = [float(jnp.vdot(directions[1 - i], products[i])) for i in range(2)]
    size = max(float(jnp.abs(p).max()) for p in products)
    np.testing.assert_allclose(crossed[0], crossed[1], rtol=1e-4, atol=1e-4 * size)


@every_bound
def test_half_precision_comes_back_as_float32_and_float64_stays(bound: Callable[..., Any]) -> None:
    half = [jnp.array([1.0, 0.25], jnp.bfloat16), jnp.array([0.5, -1.0, 2.0], jnp.float16)]
    assert bound(*half).dtype == jnp.float32
    np.testing.assert_array_equal(bound(*half), bound(*(x.astype(jnp.float32) for x in half)))
    with jax.enable_x64(True):
        assert bound(*(x.astype(jnp.float64) for x in half)).dtype == jnp.float64


_A, _B = jnp.zeros(3), jnp.zeros(4)
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "integer scores": (lambda: nwj_bound(jnp.arange(3), _B), TypeError, r"`joint` has dtype int32.*astype"),
    "other axes differ": (
        lambda: nwj_bound(jnp.zeros((2, 3)), jnp.zeros((3, 3))),
        ValueError,
        r"`joint` \[2, 3\], `marginal` \[3, 3\]. Only the length along axis=-1 may differ.*broadcast_to",
    ),
    "axes of different number": (lambda: nwj_bound(_A, jnp.zeros((2, 3))), ValueError, "One number of axes"),
    "no such axis": (lambda: nwj_bound(_A, _B, axis=1), ValueError, "axis=1"),
    "an empty sample": (lambda: nwj_bound(_A, jnp.zeros(0)), ValueError, r"an empty sample.*where_"),
    "a mask of another shape": (
        lambda: nwj_bound(_A, _B, where_marginal=jnp.ones(3, bool)),
        ValueError,
        r"`where_marginal` has shape \[3\].*`marginal` have shape \[4\]",
    ),
    "a mask of numbers": (lambda: nwj_bound(_A, _B, where_joint=jnp.ones(3)), TypeError, "`where_joint` has dtype"),
    "a clip below 0": (lambda: smile_bound(_A, _B, clip=-1.0), ValueError, "`clip` is -1.0, but a number > 0"),
    "a clip an entry": (lambda: smile_bound(_A, _B, clip=jnp.ones(4)), ValueError, r"`clip` has shape \[4\]"),
    "an infinite baseline": (lambda: tuba_bound(_A, _B, log_baseline=np.inf), ValueError, "`log_baseline` is inf"),
    "no square matrix": (
        lambda: interpolated_bound(jnp.zeros((3, 4)), alpha=0.5, log_baseline=0.0),
        ValueError,
        r"`scores` has shape \[3, 4\], but \[..., N, N\]",
    ),
    "a single pair": (
        lambda: interpolated_bound(jnp.zeros((1, 1)), alpha=0.5, log_baseline=0.0),
        ValueError,
        "N ≥ 2",
    ),
    "alpha above 1": (
        lambda: interpolated_bound(jnp.zeros((2, 2)), alpha=1.5, log_baseline=0.0),
        ValueError,
        "`alpha` is 1.5, but a finite number ≥ 0 and ≤ 1",
    ),
    "a decay of 1": (lambda: mine_step(mine_init(), _A, _B, decay=1.0), ValueError, "`decay` is 1.0"),
    "a state of another shape": (
        lambda: mine_step(mine_init((2,)), _A, _B),
        ValueError,
        r"`state.log_average` \[2\], `the estimates` \[\]",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_named_with_what_came_and_what_was_wanted(wrong: str) -> None:
    call, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        call()
