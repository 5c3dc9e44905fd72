"""Inputs on which the fuzz once found an objective wrong, kept as quick tests with oracles of their own."""

from __future__ import annotations

from fractions import Fraction

import jax
import mpmath
import numpy as np
import pytest

from mi_align.objectives import (
    centred_advantage,
    cispo_loss,
    discopop_loss,
    exo_loss,
    group_advantage,
    interpolated_bound,
    ppo_loss,
    weighted_info_nce_loss,
    weighted_nca_loss,
)

F32, F64 = (np.finfo(dtype).eps for dtype in (np.float32, np.float64))


def _weighted_info_nce(s: np.ndarray, w: np.ndarray) -> float:
    return np.sum(w * (np.log(np.sum(np.exp(s))) - s))


def _weighted_nca(s: np.ndarray, w: np.ndarray) -> float:
    return np.sum(w * np.logaddexp(0, -s)) + np.mean(np.logaddexp(0, s))


def _exo(s: np.ndarray, w: np.ndarray) -> float:
    logp = s - np.log(np.sum(np.exp(s)))
    return np.sum(np.exp(logp) * (logp - np.log(w)))


@pytest.mark.parametrize(
    ("loss", "formula"),
    [(weighted_info_nce_loss, _weighted_info_nce), (weighted_nca_loss, _weighted_nca), (exo_loss, _exo)],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("size", [16_383, 16_384, 20_000])
def test_long_weighted_lists_are_summed_to_the_last_digits(loss, formula, size: int, rng: np.random.Generator) -> None:
    """XLA joins several sums of one program in a loop that adds 20,000 terms one by one: 10 to 24 ulp were lost."""
    s = (3 * rng.normal(size=size)).astype(np.float32)
    w = rng.gamma(0.7, size=size) + 1e-3
    w = (w / w.sum()).astype(np.float32)
    true = formula(s.astype(np.float64), w.astype(np.float64))
    assert abs(float(loss(s[None], w[None])[0]) - true) <= 4 * F32 * true


@pytest.mark.parametrize(
    ("dtype", "positive", "negative", "temperature"),
    [
        (np.float32, -1829.1875, -1492.9375, 1.3591138124465942),
        (np.float64, -1670.1518621147843, 2787.1235606032424, 1.1894627835191527),
    ],
    ids=["float32", "float64"],
)
def test_discopops_slope_is_finite_where_only_its_value_overflows(
    dtype: type, positive: float, negative: float, temperature: float
) -> None:
    with jax.enable_x64(dtype == np.float64):
        slope = float(jax.grad(discopop_loss)(dtype(positive), dtype(negative), temperature=dtype(temperature)))
    with mpmath.workdps(60):
        t, u = mpmath.mpf(float(dtype(temperature))), mpmath.mpf(positive) - mpmath.mpf(negative)

        def loss(u: mpmath.mpf) -> mpmath.mpf:
            switch = 1 / (1 + mpmath.exp(-u / t))
            return (1 - switch) * mpmath.log1p(mpmath.exp(-u)) + switch * mpmath.exp(-u)

        true = mpmath.diff(loss, u, h=mpmath.mpf(10) ** -25)
    assert np.isfinite(slope)
    assert abs(slope - float(true)) <= 8 * np.finfo(dtype).eps * abs(float(u)) * abs(
        float(true)
    )  # its condition is |u|


REWARDS = np.array([3.346954345703125, 0.600311279296875, -2.949615478515625, 9.261245727539062, -4.408721923828125])


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_centred_rewards_are_as_exact_as_their_rounding_allows(offset: float) -> None:
    """A mean relative to the group's best loses the digits of rewards far below it; taken again, it does not."""
    rewards = (REWARDS + offset).astype(np.float32)
    exact = [Fraction(float(r)) for r in rewards]
    centred = np.array([float(r - sum(exact) / len(exact)) for r in exact])
    rounding = F32 / 2 * np.mean(np.abs(centred))  # of the differences that are averaged
    np.testing.assert_allclose(centred_advantage(rewards), centred, rtol=F32, atol=rounding)
    deviation = np.sqrt(np.sum(centred**2) / 4) + float(np.float32(1e-4))
    np.testing.assert_allclose(group_advantage(rewards), centred / deviation, rtol=4 * F32, atol=rounding / deviation)


@pytest.mark.parametrize("unit", [1e-25, 1.0, 1e20, 1e38])
def test_a_groups_advantage_has_no_unit_whatever_the_rewards_size(unit: float) -> None:
    """Deviations whose squares overflow or vanish."""
    came = group_advantage(np.array([1.0, 0.0, 0.5], np.float32) * np.float32(unit), eps=0.0)
    np.testing.assert_allclose(came, [1.0, -1.0, 0.0], atol=4 * F32)


def test_no_advantage_is_no_loss_however_large_an_unclipped_ratio_is() -> None:
    logp, old, advantage = np.zeros(1, np.float32), np.full(1, -100, np.float32), np.zeros(1, np.float32)
    loss, slope = jax.jit(jax.value_and_grad(lambda x: ppo_loss(x, old, advantage, clip_high=np.inf)[0]))(logp)
    assert loss == 0 and not slope.any()
    total = cispo_loss(logp[:1, None], old[:1, None], advantage[:1], ratio_cap=np.inf).total
    assert total == 0


def test_the_interpolated_bound_keeps_one_less_alpha_whole(x64: None) -> None:
    """α e^−x + 1 − α, added from the left, rounds at 1 what is a fortieth of it."""
    scores = [
        [144.5401069106183, 51.92477464789954, 58.726240529005736],
        [-35.758942624323026, -5.068713992847734, -51.84379175159938],
        [6.350397795289609, -39.813710048834764, 99.08188816843358],
    ]
    alpha, log_c = 0.976246824438716, [20.695244932909645, -17.61825722394542, 69.85801299172681]
    came = float(interpolated_bound(np.array(scores), alpha=alpha, log_baseline=np.array(log_c)))
    with mpmath.workdps(60):
        a, true = mpmath.mpf(alpha), mpmath.mpf(1)
        for i, row in enumerate(scores):
            e = [mpmath.exp(s) for s in row]

            def mixture(j: int, e: list = e, i: int = i) -> mpmath.mpf:
                return a * (sum(e) - e[j]) / 2 + (1 - a) * mpmath.exp(log_c[i])

            for j in {0, 1, 2} - {i}:
                true += (row[i] - mpmath.log(mixture(j)) - e[j] / mixture(i)) / 6
    assert abs(came - float(true)) <= 4 * F64 * float(true)


def test_the_interpolated_bounds_value_beside_its_gradient_is_its_value(x64: None, rng: np.random.Generator) -> None:
    """A mutant that gave another value where a derivative was taken once survived."""
    scores, log_c = rng.normal(0, 3, (5, 5)), rng.normal(size=5)

    def bound(alpha: jax.Array) -> jax.Array:
        return interpolated_bound(scores, alpha=alpha, log_baseline=log_c)

    np.testing.assert_allclose(jax.value_and_grad(bound)(0.3)[0], bound(0.3), rtol=1e-14)


def test_the_interpolated_bounds_slope_by_alpha_does_not_cancel_where_the_given_baseline_is_far_larger() -> None:
    scores = np.array(
        [[85.1416015625, -92.17236328125, -39.3759765625], [-22.031494140625, 27.014892578125, -58.05859375]]
    )
    scores = np.array([*scores, [-25.87890625, -1.830078125, 138.998046875]], np.float32)
    log_c = np.array([63.778564453125, -112.268310546875, 44.73876953125], np.float32)
    slope = jax.grad(lambda alpha: interpolated_bound(scores, alpha=alpha, log_baseline=log_c))(0.9796514511108398)
    np.testing.assert_allclose(slope, -0.6734465895150827, rtol=4 * F32)
