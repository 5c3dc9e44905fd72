"""KL estimators, advantages and policy-gradient losses against 50 digits and exact enumeration of small alphabets."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from mi_align import objectives
from mi_align.numerics import Mean
from mi_align.objectives import (
    bnpo_loss,
    centred_advantage,
    cispo_loss,
    dapo_loss,
    dr_grpo_loss,
    group_advantage,
    grpo_loss,
    gspo_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_regularised_value,
    ppo_loss,
    ppo_value_loss,
    reinforce_loss,
    rloo_advantage,
    rloo_loss,
)
from tests.against_truth import worst_errors
from tests.conformance.drawn import POLICY_GRADIENT, Arrays
from tests.conformance.inputs import REGIMES
from tests.oracles import ORACLES

DTYPES = [np.float32, np.float64]
both_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)

# ---------------------------------------------------------------------------------------------- values and derivatives


every_function = pytest.mark.parametrize("name", POLICY_GRADIENT)


def _number_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a `Mean` turned into its value."""

    @functools.wraps(function)
    def valued(**arguments: Any) -> Any:
        result = function(**arguments)
        return result.value() if isinstance(result, Mean) else result

    return valued


FUNCTIONS = {name: _number_of(getattr(objectives, name)) for name in POLICY_GRADIENT}


def _drawn(name: str, rng: np.random.Generator, regime: float | str, dtype: type, number: int) -> Arrays:
    return POLICY_GRADIENT[name][0](rng, regime, (number,), dtype)


@both_dtypes
@every_function
def test_value_is_within_4_ulp_and_derivatives_within_8_of_50_digits(
    name: str, dtype: type, rng: np.random.Generator
) -> None:
    for regime in REGIMES:
        value, gradient = worst_errors(FUNCTIONS[name], _drawn(name, rng, regime, dtype, 8), **POLICY_GRADIENT[name][1])
        assert value.share <= 1, value.case
        assert gradient.share <= 1, gradient.case


def _other(name: str, **changes: Callable[[Arrays], Any]) -> Callable[..., Any]:
    """A function with some of its arguments changed."""
    return lambda **arguments: FUNCTIONS[name](**arguments | {key: f(arguments) for key, f in changes.items()})


SLIPS: dict[str, dict[str, Callable[..., Any]]] = {
    "kl_k1": {"swapped": lambda logp, reference_logp: kl_k1(reference_logp, logp)},
    "kl_k2": {"not halved": lambda **pair: 2 * kl_k2(**pair), "k1": kl_k1},
    "kl_k3": {"swapped": lambda logp, reference_logp: kl_k3(reference_logp, logp), "k2": kl_k2},
    "kl_regularised_value": {"the sign of beta": _other("kl_regularised_value", beta=lambda a: -a["beta"])},
    "centred_advantage": {"leave-one-out": rloo_advantage},
    "rloo_advantage": {"itself in the baseline": centred_advantage},
    "group_advantage": {
        "no correction": _other("group_advantage", correction=lambda a: 0 * a["correction"]),
        "eps off by 1e-9": _other("group_advantage", eps=lambda a: a["eps"] + 1e-9),
    },
    "reinforce_loss": {
        "the sign": lambda **pair: -reinforce_loss(**pair),
        "a gradient in the advantage": lambda logp, advantage: -advantage * logp,
    },
    "rloo_loss": {
        "itself in the baseline": lambda logp, reward: reinforce_loss(logp, centred_advantage(reward)),
        "a gradient in the reward": lambda logp, reward: -rloo_advantage(reward) * logp,
    },
    "ppo_loss": {
        "clips swapped": _other("ppo_loss", clip_low=lambda a: a["clip_high"], clip_high=lambda a: a["clip_low"]),
        "no cap": _other("ppo_loss", ratio_cap=lambda a: 1e30 * a["ratio_cap"]),
        "the larger of the two for negative advantages": lambda logp, old_logp, advantage, **clips: jnp.where(
            advantage < 0, -ppo_loss(logp, old_logp, -advantage, **clips), ppo_loss(logp, old_logp, advantage, **clips)
        ),
        "a gradient in the old policy": lambda old_logp, **rest: (
            FUNCTIONS["ppo_loss"](old_logp=old_logp, **rest) + 1e-9 * old_logp
        ),
    },
    "ppo_value_loss": {
        "not halved": lambda **rest: 2 * FUNCTIONS["ppo_value_loss"](**rest),
        "around the return": _other("ppo_value_loss", old_value=lambda a: a["returns"]),
    },
    "grpo_loss": {
        "a sum": lambda **tokens: 3 * grpo_loss(**tokens),
        "no penalty": _other("grpo_loss", reference_logp=lambda a: a["logp"]),
        "clips swapped": _other("grpo_loss", clip_low=lambda a: a["clip_high"], clip_high=lambda a: a["clip_low"]),
    },
    "dr_grpo_loss": {"its own length": _other("dr_grpo_loss", max_length=lambda a: 3.0 + 0 * a["max_length"])},
    "dapo_loss": {
        "a sum": lambda **tokens: dapo_loss(**tokens).total,
        "beta off by 1e-9": _other("dapo_loss", beta=lambda a: a["beta"] + 1e-9),
    },
    "bnpo_loss": {"responses weigh alike twice": lambda **tokens: grpo_loss(**tokens).sum()},
    "gspo_loss": {
        "token ratios": grpo_loss,
        "a gradient in the old policy": lambda old_logp, **rest: (
            gspo_loss(old_logp=old_logp, **rest) + 1e-9 * old_logp[0, 0]
        ),
    },
    "cispo_loss": {
        "no cap": _other("cispo_loss", ratio_cap=lambda a: 1e30 * a["ratio_cap"]),
        "no penalty": _other("cispo_loss", reference_logp=lambda a: a["logp"]),
    },
}


@pytest.mark.parametrize(("name", "slip"), [(name, slip) for name, slips in SLIPS.items() for slip in slips])
def test_a_slip_in_the_formula_is_seen(name: str, slip: str, rng: np.random.Generator) -> None:
    # A ratio meets its cap in one example of eight.
    sample = _drawn(name, rng, 3.0, np.float64, 40 if name == "ppo_loss" else 4)
    value, gradient = worst_errors(SLIPS[name][slip], sample, formula=ORACLES[name], **POLICY_GRADIENT[name][1])
    assert value.share > 1e3 or gradient.share > 1e3


def test_every_function_has_a_slip() -> None:
    assert set(SLIPS) == set(POLICY_GRADIENT)


# ------------------------------------------------------------------------------------------------------ KL estimators

LAW = np.array([0.5, 0.3, 0.15, 0.05])
OTHER = np.array([0.1, 0.2, 0.3, 0.4])


def _log_softmax(theta: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(theta)


def _kl(theta: jax.Array) -> jax.Array:
    return jnp.sum(jnp.exp(_log_softmax(theta)) * (_log_softmax(theta) - np.log(OTHER)))


def _kl_reversed(theta: jax.Array) -> jax.Array:
    return jnp.sum(OTHER * (np.log(OTHER) - _log_softmax(theta)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("estimator", [kl_k1, kl_k3])
def test_k1_and_k3_average_to_the_divergence(estimator: Callable[..., Any]) -> None:
    np.testing.assert_allclose(LAW @ estimator(np.log(LAW), np.log(OTHER)), LAW @ np.log(LAW / OTHER), rtol=1e-14)


@pytest.mark.usefixtures("x64")
def test_the_estimators_gradients_average_to_zero_to_kl_and_to_the_reversed_kl() -> None:
    theta = jnp.asarray(np.log(LAW))

    def average(estimator: Callable[..., Any]) -> Any:
        return jax.grad(lambda t: LAW @ estimator(_log_softmax(t), np.log(OTHER)))(theta)

    np.testing.assert_allclose(average(kl_k1), np.zeros(4), atol=1e-15)
    np.testing.assert_allclose(average(kl_k2), jax.grad(_kl)(theta), rtol=1e-13)
    np.testing.assert_allclose(average(kl_k3), jax.grad(_kl_reversed)(theta), rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_as_a_penalty_in_the_reward_only_k1_pulls_along_the_divergence() -> None:
    theta = jnp.asarray(np.log(LAW))

    def pull(estimator: Callable[..., Any]) -> np.ndarray:
        def loss(t: jax.Array) -> jax.Array:
            logp = _log_softmax(t)
            return LAW @ reinforce_loss(logp, -estimator(logp, np.log(OTHER)))

        return np.asarray(jax.grad(loss)(theta))

    slope = np.asarray(jax.grad(_kl)(theta))
    np.testing.assert_allclose(pull(kl_k1), slope, rtol=1e-13)
    for biased in (kl_k2, kl_k3):
        assert np.abs(pull(biased) - slope).max() > 0.05


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mu", [0.3, 1.2])
def test_gaussian_moments_of_the_estimators(mu: float) -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    logp, reference = -(nodes**2) / 2, -((nodes - mu) ** 2) / 2
    moments = {f: (weights @ f(logp, reference), weights @ f(logp, reference) ** 2) for f in (kl_k1, kl_k2, kl_k3)}
    np.testing.assert_allclose([moments[kl_k1][0], moments[kl_k3][0]], mu**2 / 2, rtol=1e-12)
    np.testing.assert_allclose(moments[kl_k2][0], mu**2 / 2 + mu**4 / 8, rtol=1e-12)
    np.testing.assert_allclose(moments[kl_k1][1] - mu**4 / 4, mu**2, rtol=1e-12)
    np.testing.assert_allclose(moments[kl_k3][1] - mu**4 / 4, math.exp(mu**2) - 1 - mu**2, rtol=1e-10)


def test_k3_keeps_its_digits_where_the_policies_nearly_agree() -> None:
    logp = jnp.full(3, -2.0)
    gap = np.array([2.0**-12, 2.0**-20, -(2.0**-16)], np.float32)
    exact = gap.astype(np.float64) ** 2 / 2 + gap.astype(np.float64) ** 3 / 6
    np.testing.assert_allclose(kl_k3(logp, logp + gap), exact, rtol=3e-7)


@pytest.mark.usefixtures("x64")
def test_the_value_is_constant_at_the_optimum_and_averages_to_it() -> None:
    reward, beta = np.array([1.0, -0.5, 0.3, 2.0]), 0.7
    optimum = OTHER * np.exp(reward / beta)
    partition = optimum.sum()
    values = kl_regularised_value(np.log(optimum / partition), np.log(OTHER), reward, beta=beta)
    np.testing.assert_allclose(values, beta * np.log(partition), rtol=1e-13)
    elsewhere = LAW @ kl_regularised_value(np.log(LAW), np.log(OTHER), reward, beta=beta)
    shortfall = beta * LAW @ np.log(LAW * partition / optimum)
    np.testing.assert_allclose(elsewhere, beta * np.log(partition) - shortfall, rtol=1e-13)


# --------------------------------------------------------------------------------------------------------- advantages


def test_equal_rewards_have_exactly_no_advantage() -> None:
    reward = jnp.array([[0.1] * 3, [1e6 / 3] * 3, [-7.7] * 3])
    for advantage in (centred_advantage, rloo_advantage, functools.partial(group_advantage, eps=0.0)):
        np.testing.assert_array_equal(advantage(reward), np.zeros((3, 3)))


@pytest.mark.parametrize("right", [1, 3, 6])
def test_binary_rewards_have_the_closed_form_of_grpo(right: int) -> None:
    p = right / 7
    advantage = group_advantage(jnp.array([1.0] * right + [0.0] * (7 - right)), correction=0.0, eps=0.0)
    np.testing.assert_allclose(advantage[:right], math.sqrt((1 - p) / p), rtol=5e-7)
    np.testing.assert_allclose(advantage[right:], -math.sqrt(p / (1 - p)), rtol=5e-7)


@settings(max_examples=40, deadline=None)
@given(
    reward=st.lists(st.integers(-64, 64), min_size=4, max_size=4),
    shift=st.integers(-1000, 1000),
    scale=st.integers(1, 9),
)
def test_group_advantage_ignores_shift_and_scale_and_follows_the_correction(
    reward: list[int], shift: int, scale: int
) -> None:
    plain = np.array(reward, np.float32)
    function = functools.partial(group_advantage, eps=0.0)
    advantage = np.asarray(function(plain))
    np.testing.assert_array_equal(function(plain + shift), advantage)
    np.testing.assert_allclose(function(plain * scale), advantage, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(function(plain, correction=0.0), advantage * math.sqrt(4 / 3), rtol=1e-6)
    if len(set(reward)) > 1:
        expected = (plain - plain.mean()) / np.std(plain.astype(np.float64), ddof=1)
        np.testing.assert_allclose(advantage, expected, rtol=2e-6, atol=2e-6)


def test_centred_is_leave_one_out_times_its_share_of_others(rng: np.random.Generator) -> None:
    reward = rng.normal(size=(3, 5)).astype(np.float32)
    np.testing.assert_allclose(centred_advantage(reward), 4 / 5 * rloo_advantage(reward), rtol=1e-6)


@pytest.mark.parametrize("junk", [1e30, np.inf, np.nan])
@pytest.mark.parametrize("advantage", [centred_advantage, rloo_advantage, group_advantage])
def test_a_masked_reward_is_as_if_it_was_not_there(
    advantage: Callable[..., Any], junk: float, rng: np.random.Generator
) -> None:
    reward, kept = rng.normal(size=6).astype(np.float32), np.array([True, False, True, True, False, True])
    function = jax.value_and_grad(lambda r: jnp.vdot(advantage(r, where=kept), np.arange(6.0, dtype=np.float32)))
    got = advantage(np.where(kept, reward, junk), where=kept)
    np.testing.assert_allclose(got[kept], advantage(reward[kept]), rtol=1e-6)
    assert not got[~kept].any()
    slope = function(np.where(kept, reward, junk))[1]
    np.testing.assert_array_equal(slope, function(reward)[1])
    assert not slope[~kept].any() and slope[kept].all()


@pytest.mark.parametrize("advantage", [centred_advantage, rloo_advantage, group_advantage])
def test_a_response_alone_or_a_group_of_none_has_no_advantage(advantage: Callable[..., Any]) -> None:
    for kept in ([False, True, False], [False] * 3):
        where = jnp.array(kept)
        value, slope = jax.value_and_grad(lambda r, w=where: advantage(r, where=w)[1])(jnp.array([1.0, 2.0, 4.0]))
        assert value == 0
        if advantage is group_advantage:
            assert not slope.any()


# ------------------------------------------------------------------------- gradients of the reward, by enumeration

REWARD = np.array([1.0, 0.0, 0.25])
POLICY = np.log([0.5, 0.3, 0.2])


def _expected_gradient(
    loss: Callable[[jax.Array, np.ndarray], jax.Array], size: int, theta: Any = POLICY
) -> np.ndarray:
    """The mean over all groups of `size` samples of a policy of the gradient of the group's loss."""
    law = np.exp(theta - np.log(np.exp(theta).sum()))
    groups = np.array(list(itertools.product(range(len(law)), repeat=size)))
    slopes = jax.vmap(jax.grad(lambda t, g: loss(_log_softmax(t)[g], g)), (None, 0))(jnp.asarray(theta), groups)
    return law[groups].prod(axis=1) @ np.asarray(slopes)


def _reward_gradient(reward: np.ndarray, theta: Any = POLICY) -> np.ndarray:
    return np.asarray(jax.grad(lambda t: jnp.exp(_log_softmax(t)) @ reward)(jnp.asarray(theta)))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("baseline", [0.0, 0.6])
def test_reinforce_is_unbiased_with_any_baseline(baseline: float) -> None:
    slope = _expected_gradient(lambda logp, y: reinforce_loss(logp, jnp.asarray(REWARD - baseline)[y]).mean(), 1)
    np.testing.assert_allclose(slope, -_reward_gradient(REWARD), rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [2, 3, 4])
def test_rloo_is_unbiased_at_every_group_size_and_the_plain_mean_is_not(size: int) -> None:
    rloo = _expected_gradient(lambda logp, y: rloo_loss(logp, jnp.asarray(REWARD)[y]).mean(), size)
    np.testing.assert_allclose(rloo, -_reward_gradient(REWARD), rtol=1e-12)
    centred = _expected_gradient(
        lambda logp, y: reinforce_loss(logp, centred_advantage(jnp.asarray(REWARD)[y])).mean(), size
    )
    np.testing.assert_allclose(centred, -(size - 1) / size * _reward_gradient(REWARD), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_rloo_on_the_regularised_value_is_unbiased_for_rlhfs_objective() -> None:
    beta, reference = 0.4, jnp.asarray(np.log([0.2, 0.2, 0.6]))

    def loss(logp: jax.Array, y: np.ndarray) -> jax.Array:
        return rloo_loss(logp, kl_regularised_value(logp, reference[y], jnp.asarray(REWARD)[y], beta=beta)).mean()

    def objective(theta: jax.Array) -> jax.Array:
        logp = _log_softmax(theta)
        return jnp.exp(logp) @ (REWARD - beta * (logp - reference))

    np.testing.assert_allclose(_expected_gradient(loss, 3), -jax.grad(objective)(jnp.asarray(POLICY)), rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("correction", "factor"), [(0.0, 1.0), (1.0, math.sqrt(0.5))])
def test_grpo_with_two_responses_follows_the_chance_of_a_right_one(correction: float, factor: float) -> None:
    right = np.array([1.0, 0.0, 0.0])

    def loss(logp: jax.Array, y: np.ndarray) -> jax.Array:
        advantage = group_advantage(jnp.asarray(right)[y], correction=correction, eps=0.0)
        return grpo_loss(logp[:, None], logp[:, None], advantage).mean()

    np.testing.assert_allclose(_expected_gradient(loss, 2), -factor * _reward_gradient(right), rtol=1e-12)


# ------------------------------------------------------------------------------------------------------------ PPO


def _ppo(ratio: float, advantage: float, **clips: float) -> tuple[float, float]:
    """PPO's loss and its derivative in log π."""
    old = jnp.asarray(-1.5)
    return jax.value_and_grad(ppo_loss)(old + jnp.log(ratio), old, jnp.asarray(advantage), **clips)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (0.5, 2.0, -1.0, -1.0),
        (1.1, 2.0, -2.2, -2.2),
        (2.0, 2.0, -2.6, 0.0),
        (0.5, -2.0, 1.8, 0.0),
        (0.95, -2.0, 1.9, 1.9),
        (2.0, -2.0, 4.0, 4.0),
    ],
)
def test_ppo_clips_where_the_gain_is_and_never_where_the_loss_is(
    ratio: float, advantage: float, loss: float, slope: float
) -> None:
    value, derivative = _ppo(ratio, advantage, clip_low=0.1, clip_high=0.3)
    np.testing.assert_allclose([value, derivative], [loss, slope], rtol=5e-7, atol=1e-9)


def test_the_ratio_cap_limits_losses_alone() -> None:
    np.testing.assert_allclose(_ppo(9.0, -2.0, ratio_cap=3.0), [6.0, 0.0], rtol=5e-7)
    np.testing.assert_allclose(_ppo(2.5, -2.0, ratio_cap=3.0), [5.0, 5.0], rtol=5e-7)
    assert _ppo(9.0, 2.0, ratio_cap=3.0) == _ppo(9.0, 2.0)


def test_a_ratio_that_overflows_is_infinite_only_as_a_loss() -> None:
    far, old = jnp.asarray(1e4), jnp.asarray(-1e4)
    for advantage, loss in ((1.0, -1.2), (0.0, 0.0), (-1.0, jnp.inf)):
        value, slope = jax.value_and_grad(ppo_loss)(far, old, jnp.asarray(advantage))
        np.testing.assert_allclose(value, loss, rtol=5e-7)
        assert np.isinf(value) or slope == 0


@pytest.mark.parametrize("loss", ["ppo", "grpo", "dapo", "cispo", "gspo"])
def test_every_surrogate_starts_as_the_policy_gradient(loss: str, rng: np.random.Generator) -> None:
    logp = -rng.exponential(size=(3, 4)).astype(np.float32)
    advantage = rng.normal(size=3).astype(np.float32)
    losses = {
        "ppo": lambda p: ppo_loss(p, logp, np.repeat(advantage[:, None], 4, 1)).mean(),
        "grpo": lambda p: grpo_loss(p, logp, advantage).mean(),
        "dapo": lambda p: dapo_loss(p, logp, advantage).value(),
        "cispo": lambda p: cispo_loss(p, logp, advantage).value(),
        "gspo": lambda p: gspo_loss(p, logp, advantage).mean(),
    }
    expected = np.repeat(-advantage[:, None] / 12, 4, 1)
    np.testing.assert_allclose(jax.grad(losses[loss])(logp), expected, rtol=1e-6)


def test_the_value_is_held_near_the_old_one() -> None:
    value_and_slope = jax.value_and_grad(functools.partial(ppo_value_loss, clip=0.25))
    # Beyond the clip towards the return; away from it; inside; beyond, and past the return.
    cases = [(0.6, 0.0, 1.0), (-0.6, 0.0, 1.0), (0.1, 0.0, 1.0), (0.6, 0.0, 0.3)]
    expected = [((0.25 - 1) ** 2 / 2, 0.0), (1.6**2 / 2, -1.6), (0.9**2 / 2, -0.9), (0.3**2 / 2, 0.3)]
    got = [value_and_slope(*map(jnp.asarray, case)) for case in cases]
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------------------- how tokens are added up


def _batch(rng: np.random.Generator, groups: int = 2, size: int = 3, time: int = 5) -> dict[str, np.ndarray]:
    """Groups of responses of different lengths, off policy enough that some ratios are clipped."""
    old = -rng.exponential(size=(groups, size, time)).astype(np.float32)
    length = rng.integers(1, time + 1, (groups, size, 1))
    length[0, 0], length[0, 1] = time, 1
    logp = old + rng.normal(0, 0.4, old.shape).astype(np.float32)
    advantage = rng.normal(size=(groups, size)).astype(np.float32)
    logp[0, 0, 0], advantage[0, 0] = old[0, 0, 0] + 0.5, 1.5
    return {
        "logp": logp,
        "old_logp": old,
        "advantage": advantage,
        "where": np.arange(time) < length,
        "reference_logp": old + rng.normal(0, 0.2, old.shape).astype(np.float32),
    }


def _token_losses(batch: dict[str, np.ndarray], beta: float, **clips: float) -> np.ndarray:
    """The surrogate and penalty of every token in plain NumPy, 0 under the mask."""
    low, high = clips.get("clip_low", 0.2), clips.get("clip_high", 0.2)
    ratio = np.exp(batch["logp"].astype(np.float64) - batch["old_logp"])
    advantage = batch["advantage"][..., None].astype(np.float64)
    gap = batch["reference_logp"].astype(np.float64) - batch["logp"]
    surrogate = -np.minimum(ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage)
    return np.where(batch["where"], surrogate + beta * (np.exp(gap) - 1 - gap), 0)


LOSSES: dict[str, Callable[..., Any]] = {
    "grpo": grpo_loss,
    "dr_grpo": functools.partial(dr_grpo_loss, max_length=8),
    "dapo": dapo_loss,
    "bnpo": bnpo_loss,
    "gspo": gspo_loss,
    "cispo": cispo_loss,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def _total(result: Any) -> jax.Array:
    return result.value() if isinstance(result, Mean) else result.sum()


def test_the_four_ways_to_add_up_tokens(rng: np.random.Generator) -> None:
    batch = _batch(rng)
    tokens, length = _token_losses(batch, beta=0.1), batch["where"].sum(-1)
    np.testing.assert_allclose(grpo_loss(**batch, beta=0.1), tokens.sum(-1) / length, rtol=2e-6)
    np.testing.assert_allclose(dr_grpo_loss(**batch, beta=0.1, max_length=8), tokens.sum(-1) / 8, rtol=2e-6)
    bnpo = bnpo_loss(**batch, beta=0.1)
    np.testing.assert_allclose(bnpo.value(), tokens.sum() / length.sum(), rtol=2e-6)
    assert bnpo.weight == length.sum()
    wider = _token_losses(batch, beta=0.1, clip_high=0.28)
    np.testing.assert_allclose(dapo_loss(**batch, beta=0.1).value(), wider.sum() / length.sum(), rtol=2e-6)
    assert np.abs(wider - tokens).max() > 1e-3, "the two clips must differ somewhere, or the test says nothing"


def test_one_ratio_a_response_is_the_geometric_mean_of_its_tokens(rng: np.random.Generator) -> None:
    batch = _batch(rng)
    kept = batch["where"]
    log_ratio = np.where(kept, batch["logp"] - batch["old_logp"], 0).sum(-1) / kept.sum(-1)
    no_penalty = {key: x for key, x in batch.items() if key != "reference_logp"}
    expected = ppo_loss(log_ratio, np.zeros_like(log_ratio), batch["advantage"], clip_low=0.1, clip_high=0.15)
    np.testing.assert_allclose(gspo_loss(**no_penalty, clip_low=0.1, clip_high=0.15), expected, rtol=2e-6)
    first = {key: x if key == "advantage" else x[..., :1] for key, x in no_penalty.items()}
    clips = {"clip_low": 0.1, "clip_high": 0.15}
    np.testing.assert_allclose(gspo_loss(**first, **clips), grpo_loss(**first, **clips), rtol=2e-6)


def test_a_cispo_token_always_has_a_gradient_of_its_capped_ratio(rng: np.random.Generator) -> None:
    batch = {key: x for key, x in _batch(rng).items() if key != "reference_logp"}
    logp = batch.pop("logp") + np.float32(0.3)
    slope = jax.grad(lambda p: cispo_loss(p, **batch, ratio_cap=1.5).value())(logp)
    capped = np.minimum(np.exp(logp - batch["old_logp"]), 1.5)
    expected = np.where(batch["where"], -capped * batch["advantage"][..., None], 0) / batch["where"].sum()
    np.testing.assert_allclose(slope, expected, rtol=2e-6)
    assert (capped == 1.5).any() and (capped < 1.5).any()


@every_loss
def test_no_gradient_reaches_the_old_policy_or_the_advantage(
    loss: Callable[..., Any], rng: np.random.Generator
) -> None:
    batch = _batch(rng)

    def total(changed: dict[str, jax.Array]) -> jax.Array:
        return _total(loss(**batch | changed))

    slopes = jax.grad(total)({key: batch[key] for key in ("logp", "old_logp", "advantage")})
    assert not slopes["old_logp"].any() and not slopes["advantage"].any() and slopes["logp"].any()


@pytest.mark.parametrize("junk", [1e30, np.inf, -np.inf, np.nan])
@every_loss
def test_padding_changes_neither_value_nor_gradient(
    loss: Callable[..., Any], junk: float, rng: np.random.Generator
) -> None:
    batch = _batch(rng)
    kept = batch["where"]
    dirty = {key: np.where(kept, x, np.float32(junk)) if x.shape == kept.shape else x for key, x in batch.items()}
    dirty["where"] = kept

    def value_and_slopes(b: dict[str, np.ndarray]) -> Any:
        moving = ("logp", "reference_logp")
        return jax.value_and_grad(lambda m: _total(loss(**b | m)))({key: b[key] for key in moving})

    (clean, slopes), (masked, dirty_slopes) = value_and_slopes(batch), value_and_slopes(dirty)
    assert masked == clean
    for key, slope in slopes.items():
        np.testing.assert_array_equal(dirty_slopes[key], slope)
        assert not slope[~kept].any() and slope[kept].any()


@every_loss
def test_a_response_without_tokens_counts_0_and_has_no_gradient(
    loss: Callable[..., Any], rng: np.random.Generator
) -> None:
    batch = _batch(rng)
    batch["where"][1, 2] = False
    value, slope = jax.value_and_grad(lambda p: _total(loss(**batch | {"logp": p})))(batch["logp"])
    assert not slope[1, 2].any() and np.isfinite(value)
    if not isinstance(loss(**batch), Mean):
        assert loss(**batch)[1, 2] == 0
    nothing = batch | {"where": np.zeros_like(batch["where"])}
    value, slope = jax.value_and_grad(lambda p: _total(loss(**nothing | {"logp": p})))(batch["logp"])
    assert value == 0 and not slope.any()


@pytest.mark.parametrize("loss", [dapo_loss, bnpo_loss, cispo_loss])
def test_micro_batches_merge_to_the_whole_batch_exactly(loss: Callable[..., Any], rng: np.random.Generator) -> None:
    batch = _batch(rng, groups=4)
    whole, slope = jax.value_and_grad(lambda p: loss(**batch | {"logp": p}).value())(batch["logp"])

    def accumulated(p: jax.Array) -> jax.Array:
        parts = [
            loss(**{key: x[rows] for key, x in (batch | {"logp": p}).items()}) for rows in (slice(0, 1), slice(1, 4))
        ]
        return functools.reduce(Mean.merge, parts).value()

    merged, merged_slope = jax.value_and_grad(accumulated)(batch["logp"])
    # rtol: the order of a sum of 60 numbers.
    np.testing.assert_allclose(merged, whole, rtol=5e-6)
    np.testing.assert_allclose(merged_slope, slope, rtol=5e-6, atol=1e-9)
    apart = [loss(**{key: x[rows] for key, x in batch.items()}).value() for rows in (slice(0, 1), slice(1, 4))]
    assert abs(np.mean(apart) - whole) > 1e-4 * abs(whole), "micro-batches must weigh differently"


def test_devices_add_up_to_the_whole_batch(rng: np.random.Generator) -> None:
    batch = _batch(rng, groups=8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def local(b: dict[str, jax.Array]) -> jax.Array:
        return jax.tree.map(lambda x: jax.lax.psum(x, "data"), dapo_loss(**b)).value()

    spread = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec()))
    whole = jax.value_and_grad(lambda p: dapo_loss(**batch | {"logp": p}).value())(batch["logp"])
    got = jax.value_and_grad(lambda p: spread(batch | {"logp": p}))(batch["logp"])
    np.testing.assert_allclose(got[0], whole[0], rtol=5e-6)
    np.testing.assert_allclose(got[1], whole[1], rtol=5e-6, atol=1e-9)


@every_loss
def test_second_derivatives_are_finite(loss: Callable[..., Any], rng: np.random.Generator) -> None:
    batch = _batch(rng)
    for scale in (1.0, 30.0):
        gradient = jax.grad(lambda p: _total(loss(**batch | {"logp": p})))
        point = batch["old_logp"] + scale * (batch["logp"] - batch["old_logp"])
        _, product = jax.jvp(gradient, (point,), (batch["reference_logp"],))
        assert np.all(np.isfinite(product))


@every_loss
def test_half_precision_comes_back_as_float32(loss: Callable[..., Any], rng: np.random.Generator) -> None:
    batch = _batch(rng)
    half = {key: x if x.dtype == bool else jnp.asarray(x, jnp.bfloat16) for key, x in batch.items()}
    wide = {key: x if x.dtype == bool else x.astype(jnp.float32) for key, x in half.items()}
    assert _total(loss(**half)).dtype == jnp.float32
    np.testing.assert_array_equal(_total(loss(**half)), _total(loss(**wide)))


# -------------------------------------------------------------------------------------------------------- wrong input

_T = jnp.zeros((2, 3))
WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "two shapes": (lambda: kl_k1(_T, jnp.zeros(3)), ValueError, r"`logp` \[2, 3\], `reference_logp` \[3\]"),
    "integers": (lambda: kl_k3(_T, jnp.zeros((2, 3), int)), TypeError, "`reference_logp` has dtype int32"),
    "beta of 0": (
        lambda: kl_regularised_value(_T, _T, _T, beta=0.0),
        ValueError,
        "`beta` is 0.0, but a finite number > 0",
    ),
    "no group": (lambda: rloo_advantage(jnp.zeros((2, 0))), ValueError, r"`reward` has shape \[2, 0\]"),
    "a mask of another shape": (
        lambda: group_advantage(_T, where=jnp.ones(3, bool)),
        ValueError,
        r"`where` has shape \[3\], but `reward` have shape \[2, 3\]",
    ),
    "a negative eps": (lambda: group_advantage(_T, eps=-1.0), ValueError, "`eps` is -1.0"),
    "a negative correction": (
        lambda: group_advantage(_T, correction=-1.0),
        ValueError,
        "`correction` is -1.0.*population",
    ),
    "rewards of another shape": (lambda: rloo_loss(_T, jnp.zeros(3)), ValueError, "shapes differ"),
    "an advantage a token": (
        lambda: grpo_loss(_T, _T, _T),
        ValueError,
        r"`advantage` has shape \[2, 3\] and `logp` \[2, 3\], but \[2\] was wanted: one number a response",
    ),
    "sequences": (lambda: dapo_loss(jnp.zeros(3), jnp.zeros(3), jnp.zeros(())), ValueError, "use `reinforce_loss`"),
    "a reference of another shape": (
        lambda: gspo_loss(_T, _T, jnp.zeros(2), reference_logp=jnp.zeros((2, 4))),
        ValueError,
        r"`reference_logp` \[2, 4\]",
    ),
    "a clip of 0": (lambda: ppo_loss(_T, _T, _T, clip_high=0.0), ValueError, "`clip_high` is 0.0"),
    "a clip_low above 1": (lambda: ppo_loss(_T, _T, _T, clip_low=1.2), ValueError, "`clip_low` is 1.2"),
    "a cap below 1": (lambda: cispo_loss(_T, _T, jnp.zeros(2), ratio_cap=0.2), ValueError, "`ratio_cap` is 0.2"),
    "no length": (lambda: dr_grpo_loss(_T, _T, jnp.zeros(2), max_length=0), ValueError, "`max_length` is 0"),
    "a clip of the value": (lambda: ppo_value_loss(_T, _T, _T, clip=0.0), ValueError, "`clip` is 0.0"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_input_is_named_with_what_came_and_what_was_wanted(wrong: str) -> None:
    call, error, message = WRONG[wrong]
    with pytest.raises(error, match=message):
        call()
