"""Edges of the objectives that the random inputs of the conformance tests do not meet; mutants have lived here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from mi_align import critics
from mi_align.critics import Candidates
from mi_align.elementary import log1mexp
from mi_align.numerics import log_sum_exp
from mi_align.objectives import (
    cispo_loss,
    discopop_loss,
    donsker_varadhan_bound,
    group_advantage,
    kto_reference_point,
    mine_init,
    mine_step,
)


def test_ktos_reference_point_is_the_kept_mean_from_0_on_and_a_constant() -> None:
    score = jnp.array([0.5, -0.25, 9.0])
    assert float(kto_reference_point(score, where=jnp.array([True, True, False]))) == 0.125
    assert float(kto_reference_point(score)) == pytest.approx(9.25 / 3, rel=1e-6)
    assert float(kto_reference_point(-score)) == 0.0
    np.testing.assert_array_equal(jax.grad(kto_reference_point)(score), 0)


def test_mine_leaves_out_joint_scores_under_the_mask() -> None:
    joint, marginal = jnp.array([2.0, jnp.nan, 1.0]), jnp.array([0.0, 1.0, -1.0])
    where = jnp.array([True, False, True])
    bound, _ = mine_step(mine_init(), joint, marginal, where_joint=where)
    assert float(bound) == pytest.approx(float(donsker_varadhan_bound(joint[where], marginal)), rel=1e-6)


def test_no_gradient_passes_through_mines_state() -> None:
    marginal = jnp.array([0.0, 1.0, -1.0])

    def later(scores: jax.Array) -> jax.Array:
        _, state = mine_step(mine_init(), jnp.zeros(3), scores)
        bound, after = mine_step(state, jnp.zeros(3), marginal)
        return bound + after.log_average

    np.testing.assert_array_equal(jax.grad(later)(jnp.array([0.5, -0.5, 2.0])), 0)

    def of_average(log_average: jax.Array) -> jax.Array:
        state = mine_init()._replace(log_average=log_average, weight=jnp.float32(1.0))
        bound, after = mine_step(state, jnp.zeros(3), marginal)
        return bound + after.log_average

    assert float(jax.grad(of_average)(jnp.float32(0.3))) == 0.0


@pytest.mark.parametrize("correction", [0.0, 0.5, 1.0, 1.5])
def test_a_groups_spread_is_divided_by_its_number_less_any_correction(correction: float) -> None:
    reward = np.array([1.0, 0.0])
    wanted = (reward - 0.5) / np.sqrt(0.5 / (2 - correction))
    np.testing.assert_allclose(group_advantage(jnp.asarray(reward), correction=correction, eps=0.0), wanted, rtol=1e-6)


def test_length_desensitised_rewards_need_no_mask(rng: np.random.Generator) -> None:
    policy, reference = (jnp.asarray(-rng.uniform(0.1, 3, (2, 2, 4)).astype(np.float32)) for _ in range(2))
    bare = critics.length_desensitised_reward(Candidates(policy, reference), beta=0.5, tail_weight=0.25)
    mask = jnp.ones(policy.shape, bool)
    kept = critics.length_desensitised_reward(Candidates(policy, reference, mask), beta=0.5, tail_weight=0.25)
    np.testing.assert_array_equal(bare, kept)


def test_discopops_slope_is_finite_where_its_value_is_not() -> None:
    temperature, u = 2.0, -178.2  # e^(−u) σ(u/τ) ≈ e^89.1, above the largest float32; its slope is about half of it
    value, slope = jax.value_and_grad(lambda x: discopop_loss(x, jnp.float32(0), temperature=temperature))(
        jnp.float32(u)
    )
    assert not np.isfinite(value)

    def exact(x: mpmath.mpf) -> mpmath.mpf:
        gate = 1 / (1 + mpmath.exp(-x / temperature))
        return (1 - gate) * mpmath.log(1 + mpmath.exp(-x)) + gate * mpmath.exp(-x)

    with mpmath.workdps(60):
        wanted = float(mpmath.diff(exact, mpmath.mpf(float(np.float32(u)))))
    assert float(slope) == pytest.approx(wanted, rel=1e-4)  # the exponent's own rounding: 178 · 2⁻²⁴ · 2


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_cispo_pulls_by_the_ratio_times_the_advantage_whatever_that_is(advantage: float) -> None:
    logp, old = jnp.array([[-0.5, -1.0]]), jnp.array([[-0.7, -0.4]])
    slope = jax.grad(lambda x: cispo_loss(x, old, jnp.array([advantage]), ratio_cap=1.1).value())(logp)
    wanted = -np.minimum(np.exp([0.2, -0.6]), 1.1) * advantage / 2
    np.testing.assert_allclose(slope[0], wanted, rtol=1e-6)


def test_a_masked_log_sum_exp_is_that_of_what_is_kept() -> None:
    x, where = jnp.array([1.0, jnp.inf, -2.0, jnp.nan]), jnp.array([True, False, True, False])
    assert float(log_sum_exp(x, where)) == pytest.approx(np.logaddexp(1.0, -2.0), rel=1e-6)
    np.testing.assert_allclose(jax.grad(log_sum_exp)(x, where), [0.95257413, 0, 0.04742587, 0], rtol=1e-6)
    assert float(log_sum_exp(x, jnp.zeros(4, bool))) == -np.inf


@pytest.mark.parametrize("x", [-1e-7, -1e-3, -0.5, -0.7, -3.0, -30.0, -80.0])
def test_log1mexp_has_full_precision_on_both_sides(x: float) -> None:
    with mpmath.workdps(60):
        wanted = float(mpmath.log(1 - mpmath.exp(mpmath.mpf(float(np.float32(x))))))
    assert float(log1mexp(jnp.float32(x))) == pytest.approx(wanted, rel=4 * 2**-23)
