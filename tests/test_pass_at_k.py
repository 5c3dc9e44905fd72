"""pass@k against exact fractions, enumeration of all subsets, and an unbiasedness that needs no samples."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_align.estimation.pass_at_k import pass_at_k


def _exact(correct: int, total: int, k: int) -> Fraction:
    return 1 - Fraction(math.comb(total - correct, k), math.comb(total, k))


@st.composite
def _counts(draw: st.DrawFn) -> tuple[int, int, int]:
    total = draw(st.integers(1, 400))
    return draw(st.integers(0, total)), total, draw(st.integers(1, total))


def test_pass_at_k_counts_the_subsets_of_the_samples_that_hold_a_right_one() -> None:
    for correct, total, k in [(2, 5, 3), (1, 6, 4), (4, 6, 2), (3, 7, 6)]:
        right = [i < correct for i in range(total)]
        subsets = list(itertools.combinations(right, k))
        assert float(pass_at_k(correct, total, k)) == pytest.approx(sum(map(any, subsets)) / len(subsets), rel=1e-6)


@settings(deadline=None, max_examples=300)
@given(counts=_counts())
def test_pass_at_k_has_the_relative_error_that_its_docstring_states(counts: tuple[int, int, int]) -> None:
    correct, total, k = counts
    exact = _exact(*counts)
    with jax.enable_x64(True):
        error = abs(Fraction(float(pass_at_k(correct, total, k))) - exact)
    assert error <= 3 * min(correct, k) * Fraction(np.finfo(np.float64).eps) * exact


def test_a_small_chance_keeps_its_digits_where_one_minus_a_product_has_lost_them() -> None:
    exact = float(_exact(1, 10_000_019, 3))
    plain = 1 - (1 - np.float32(3) / np.float32(10_000_019))
    assert abs(float(pass_at_k(1, 10_000_019, 3)) / exact - 1) < 2 * np.finfo(np.float32).eps
    assert abs(plain / exact - 1) > 1e-3


def test_it_is_exactly_one_once_the_wrong_samples_do_not_suffice() -> None:
    correct, k = np.arange(1, 50), 50 - np.arange(1, 50) + 1
    np.testing.assert_array_equal(pass_at_k(correct, 50, k), 1.0)
    assert float(pass_at_k(2, 6, 4)) == pytest.approx(14 / 15, rel=1e-6)


def test_it_is_exactly_zero_without_a_right_sample_even_at_k_equal_to_n() -> None:
    np.testing.assert_array_equal(pass_at_k(0, 8, np.arange(1, 9)), 0.0)


def test_its_mean_over_binomial_counts_is_the_true_chance_for_every_k() -> None:
    p, n = Fraction(3, 10), 7
    law = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    with jax.enable_x64(True):
        curves = np.asarray(pass_at_k(np.arange(n + 1)[:, None], n, np.arange(1, n + 1)))
    wanted = [float(1 - (1 - p) ** k) for k in range(1, n + 1)]
    np.testing.assert_allclose(np.asarray(law, float) @ curves, wanted, rtol=1e-14)


def test_counts_broadcast_and_jit_and_vmap_change_nothing() -> None:
    correct, total, k = np.array([0, 2, 5, 9]), np.array([4, 8, 6, 9]), np.array([3, 2, 4, 1])
    wanted = [float(_exact(*map(int, counts))) for counts in zip(correct, total, k, strict=True)]
    np.testing.assert_allclose(pass_at_k(correct, total, k), wanted, rtol=1e-6)
    np.testing.assert_array_equal(jax.jit(pass_at_k)(correct, total, k), pass_at_k(correct, total, k))
    np.testing.assert_array_equal(jax.vmap(pass_at_k)(correct, total, k), pass_at_k(correct, total, k))
    assert pass_at_k(correct[:, None], 9, np.arange(1, 10)).shape == (4, 9)
    assert pass_at_k(jnp.zeros((0,), int), 4, 2).shape == (0,)


@pytest.mark.parametrize(
    ("counts", "error", "says"),
    [
        ((2.0, 5, 3), TypeError, "`correct` has dtype float32, but integers were wanted"),
        ((2, 5, True), TypeError, "`k` has dtype bool"),
        ((6, 5, 3), ValueError, "`correct` is 6 and `total` 5, but at most `total` was wanted"),
        ((2, 5, 6), ValueError, "`k` is 6 and `total` 5"),
        ((np.array([1, 4]), np.array([5, 3]), 2), ValueError, "entry by entry"),
        ((-1, 5, 3), ValueError, "`correct` is -1, but a finite number ≥ 0 was wanted"),
        ((2, 5, 0), ValueError, "`k` is 0, but a finite number ≥ 1 was wanted"),
        ((0, 0, 1), ValueError, "`total` is 0"),
    ],
)
def test_counts_that_make_no_sense_are_refused(counts: tuple, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        pass_at_k(*counts)
