"""Critics: their numbers on the whole range, what masks and references must not do, and the errors.

The conformance tests compare each critic, inside its methods, with its formula; here is what those inputs do not reach.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from flax import nnx

from mi_align import critics
from mi_align.critics import Candidates
from mi_align.critics.networks import Bilinear, Concatenated, Separable

mpmath.mp.dps = 60

#: Every critic that reads a policy, with hyper-parameters that do something.
CRITICS = {
    "implicit_reward": {"beta": 0.3},
    "log_ratio": {},
    "length_normalised_reward": {"beta": 0.3},
    "mean_log_ratio": {},
    "log_probability": {"beta": 0.3},
    "mean_log_probability": {},
    "length_normalised": {"beta": 0.3},
    "log_odds": {},
    "length_desensitised_reward": {"beta": 0.3, "tail_weight": 0.4},
    "length_regularised_reward": {"beta": 0.3, "length_penalty": 0.02},
    "displacement_penalised_reward": {"beta": 0.3, "penalty": 7.0},
    "token_divergence_reward": {"beta": 0.3},
    "token_regularised_reward": {"beta": 0.3, "kl_weight": 0.6},
    "forward_kl_reward": {"beta": 0.3},
    "jensen_shannon_reward": {"beta": 0.3},
    "alpha_reward": {"beta": 0.3, "alpha": 0.7},
    "tsallis_reward": {"beta": 0.3, "alpha": 0.7},
    "power_likelihood": {"beta": 0.3, "alpha": 0.7},
}
#: Critics whose logit is 0 where policy and reference agree.
ZERO_AT_REFERENCE = [
    name for name in CRITICS if name.endswith(("reward", "log_ratio")) and name != "length_regularised_reward"
]


def drawn(rng: np.random.Generator, batch: tuple[int, ...] = (5,), dtype: type = np.float32) -> Candidates:
    """Three candidates a prompt, responses in the middle of the tokens, every length and the last candidate random."""
    shape = (*batch, 3, 9)
    start, stop = rng.integers(0, 3, (*batch, 3, 1)), rng.integers(4, 10, (*batch, 3, 1))
    position = np.arange(9)
    return Candidates(
        policy=jnp.asarray(-rng.exponential(0.8, shape), dtype),
        reference=jnp.asarray(-rng.exponential(0.8, shape), dtype),
        response_mask=jnp.asarray((start <= position) & (position < stop)),
        candidate_mask=jnp.asarray(np.concatenate([np.ones((*batch, 2), bool), rng.random((*batch, 1)) < 0.5], -1)),
        reference_kl=jnp.asarray(rng.exponential(0.3, shape), dtype),
    )


def logits(name: str, candidates: Candidates) -> jax.Array:
    return getattr(critics, name)(candidates, **CRITICS[name])


def spoilt(candidates: Candidates, value: float) -> Candidates:
    """Something else under the masks."""
    kept = candidates.response_mask & candidates.candidate_mask[..., None]
    tokens = {k: jnp.where(kept, getattr(candidates, k), value) for k in ("policy", "reference", "reference_kl")}
    return candidates._replace(**tokens)


# --- Masks, shapes, dtypes


@pytest.mark.parametrize("name", CRITICS)
def test_what_masks_drop_changes_neither_logits_nor_gradients(name: str, rng: np.random.Generator) -> None:
    candidates = drawn(rng)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope_and_logits(policy: jax.Array, candidates: Candidates) -> tuple[jax.Array, jax.Array]:
        came = logits(name, candidates._replace(policy=policy))
        return jnp.sum(came**2), came

    slope, clean = slope_and_logits(candidates.policy, candidates)
    kept = candidates.response_mask & candidates.candidate_mask[..., None]
    np.testing.assert_array_equal(clean[~candidates.candidate_mask], 0)
    np.testing.assert_array_equal(slope[~kept], 0)
    assert np.abs(slope).max() > 1e-3
    for value in (np.nan, np.inf, -np.inf, 1e30):
        other = spoilt(candidates, value)
        same_slope, same = slope_and_logits(other.policy, other)
        np.testing.assert_array_equal(same, clean)
        np.testing.assert_array_equal(same_slope, slope)


@pytest.mark.parametrize("name", CRITICS)
def test_masked_candidates_are_as_if_they_were_not_there(name: str, rng: np.random.Generator) -> None:
    candidates = drawn(rng)
    candidates = candidates._replace(candidate_mask=jnp.asarray([[True, True, False]] * 5))
    pair = jax.tree.map(lambda x: x[:, :2], candidates)
    np.testing.assert_array_equal(logits(name, candidates)[:, :2], logits(name, pair))


@pytest.mark.parametrize("name", CRITICS)
def test_batches_of_any_rank_and_vmap_give_the_same_logits(name: str, rng: np.random.Generator) -> None:
    candidates = drawn(rng, (2, 3))
    flat = jax.tree.map(lambda x: x.reshape(6, *x.shape[2:]), candidates)
    expected = logits(name, flat)
    # XLA may sum a batch's tokens in another order than one example's.
    close = {"rtol": 4e-7 * 9, "atol": 1e-6}
    np.testing.assert_allclose(logits(name, candidates).reshape(6, 3), expected, **close)
    np.testing.assert_allclose(jax.vmap(lambda c: logits(name, c))(flat), expected, **close)
    np.testing.assert_allclose(jax.jit(lambda c: logits(name, c))(flat), expected, **close)


@pytest.mark.parametrize("name", CRITICS)
def test_half_precision_is_computed_in_float32_and_float64_is_kept(name: str, rng: np.random.Generator) -> None:
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, drawn(rng))
    same = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, half)
    assert logits(name, half).dtype == jnp.float32
    np.testing.assert_array_equal(logits(name, half), logits(name, same))
    with jax.enable_x64(True):
        assert logits(name, drawn(rng, dtype=np.float64)).dtype == jnp.float64


# --- The reference


@pytest.mark.parametrize("name", CRITICS)
def test_no_gradient_reaches_the_reference(name: str, rng: np.random.Generator) -> None:
    candidates = drawn(rng)
    slope = jax.grad(lambda r: jnp.sum(logits(name, candidates._replace(reference=r)) ** 2))(candidates.reference)
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("name", ZERO_AT_REFERENCE)
def test_logits_are_exactly_zero_where_the_policy_is_its_reference(
    name: str, dtype: jnp.dtype, rng: np.random.Generator
) -> None:
    candidates = drawn(rng)
    policy = candidates.policy.astype(dtype)
    same = candidates._replace(policy=policy, reference=policy, reference_kl=jnp.zeros_like(policy))
    np.testing.assert_array_equal(jax.jit(lambda c: logits(name, c))(same), 0)


def test_sums_of_differences_are_a_thousand_times_more_exact_than_differences_of_sums(rng: np.random.Generator) -> None:
    """Ledger L4: 1,024 tokens whose log-ratios are about 1e-4."""
    reference = -rng.exponential(2.0, (1, 1, 1024))
    policy = (reference + 1e-4 * rng.normal(1, 0.3, reference.shape)).astype(np.float32)
    reference = reference.astype(np.float32)
    true = float(
        mpmath.fsum(
            mpmath.mpf(float(p)) - mpmath.mpf(float(r)) for p, r in zip(policy.flat, reference.flat, strict=True)
        )
    )
    ours = float(critics.log_ratio(Candidates(jnp.asarray(policy), jnp.asarray(reference)))[0, 0])
    theirs = float(jnp.sum(jnp.asarray(policy)) - jnp.sum(jnp.asarray(reference)))
    # Each difference is exact (Sterbenz); rounding their sum once costs at most half an ulp of 0.1.
    assert abs(ours - true) < 8e-9
    assert abs(theirs - true) > 1e3 * abs(ours - true)


# --- On the whole range


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_odds_are_right_from_ten_thousand_nats_to_a_millionth_of_a_millionth(dtype: type) -> None:
    means = np.concatenate([-np.geomspace(1e-12, 1e4, 200), [-math.log(2), -0.693, -1e-30]]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):

        def odds(mean: jax.Array) -> jax.Array:
            return critics.log_odds(Candidates.from_sequences(mean[:, None], length=jnp.ones((len(means), 1))))[:, 0]

        came, slope = odds(jnp.asarray(means)), jax.grad(lambda m: jnp.sum(odds(m)))(jnp.asarray(means))
    exact = [mpmath.mpf(float(m)) - mpmath.log(-mpmath.expm1(mpmath.mpf(float(m)))) for m in means]
    derivative = [-1 / mpmath.expm1(mpmath.mpf(float(m))) for m in means]
    eps = float(np.finfo(dtype).eps)
    # Near p = ½ two terms of size log 2 cancel: errors are of that size's rounding.
    np.testing.assert_allclose(came, [float(x) for x in exact], rtol=4 * eps, atol=4 * eps)
    np.testing.assert_allclose(slope, [float(x) for x in derivative], rtol=8 * eps)


def test_odds_of_certainty_are_finite_and_without_gradient() -> None:
    certain = Candidates(jnp.zeros((1, 2, 3)))
    odds = critics.log_odds(certain)
    assert np.all(odds > 80) and np.all(np.isfinite(odds))
    np.testing.assert_array_equal(jax.grad(lambda p: jnp.sum(critics.log_odds(Candidates(p))))(certain.policy), 0)


def power(log_x: float, exponent: float) -> mpmath.mpf:
    x = mpmath.mpf(float(log_x))
    return x if exponent == 0 else mpmath.expm1(exponent * x) / exponent


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("exponent", [-1.0, -0.25, 0.5, 0.0, 3e-5])
def test_powers_keep_their_digits_near_one_and_far_from_it(exponent: float, dtype: type) -> None:
    limit = 60 / max(abs(exponent), 0.1)
    log_x = np.concatenate([s * np.geomspace(1e-10, limit, 80) for s in (-1, 1)] + [np.zeros(1)]).astype(dtype)
    exponent = float(dtype(exponent))
    with jax.enable_x64(dtype == np.float64):
        came = critics.box_cox(jnp.asarray(log_x), exponent)
        slope = jax.vmap(jax.grad(critics.box_cox), (0, None))(jnp.asarray(log_x), exponent)
    eps = float(np.finfo(dtype).eps)
    # e^z turns one rounding of z = λ log x into |z| of its own.
    bound = eps * (4 + 1.5 * np.abs(exponent * log_x.astype(np.float64)))
    for ours, true in [
        (came, [float(power(x, exponent)) for x in log_x]),
        (slope, [float(mpmath.exp(exponent * mpmath.mpf(float(x)))) for x in log_x]),
    ]:
        assert np.all(np.abs(np.asarray(ours, np.float64) - true) <= bound * np.abs(true))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_likelihoods_shaped_by_a_power_stay_finite_and_in_order_where_powers_overflow(dtype: type) -> None:
    """TRL's AlphaPO goes through p = exp(−120), which is 0 in float32; and at −10⁴ nats p^(−1/4) overflows float64."""
    means = -np.concatenate([[0.5, 120.0, 350.0, 351.0], np.linspace(2e3, 1e4, 9)]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):

        def shaped(mean: jax.Array) -> jax.Array:
            candidates = Candidates.from_sequences(mean[:, None], length=jnp.ones((len(means), 1)))
            return critics.power_likelihood(candidates, beta=0.1, alpha=0.25)[:, 0]

        slope = np.asarray(jax.grad(lambda m: jnp.sum(shaped(m)))(jnp.asarray(means)))
        came = np.asarray(shaped(jnp.asarray(means)))
    assert np.all(np.diff(came) < 0) and np.all(np.isfinite(came))
    assert np.all(slope > 0) and np.all(np.isfinite(slope))
    exact = float(0.1 * power(-120.0, -0.25))
    np.testing.assert_allclose(came[1], exact, rtol=40 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_jensen_shannon_scores_keep_their_digits_on_both_sides_and_at_the_reference(dtype: type) -> None:
    ratios = np.concatenate([s * np.geomspace(1e-12, 1e4, 150) for s in (-1, 1)]).astype(dtype)
    with jax.enable_x64(dtype == np.float64):

        def scores(ratio: jax.Array) -> jax.Array:
            candidates = Candidates.from_sequences(ratio[:, None], jnp.zeros((len(ratios), 1), ratio.dtype))
            return critics.jensen_shannon_reward(candidates, beta=1.0)[:, 0]

        came, slope = scores(jnp.asarray(ratios)), jax.grad(lambda r: jnp.sum(scores(r)))(jnp.asarray(ratios))
    exact = [mpmath.log(2) - mpmath.log1p(mpmath.exp(-mpmath.mpf(float(r)))) for r in ratios]
    derivative = np.array([float(1 / (1 + mpmath.exp(mpmath.mpf(float(r))))) for r in ratios])
    info = np.finfo(dtype)
    np.testing.assert_allclose(came, [float(x) for x in exact], rtol=4 * float(info.eps))
    np.testing.assert_allclose(slope, derivative, rtol=8 * float(info.eps), atol=float(info.tiny))


def test_penalties_and_tails_are_where_they_belong() -> None:
    policy = jnp.array([[[-1.0, -2.0, -3.0], [-2.0, -1.0, -4.0]]])
    reference = jnp.array([[[-0.5, -1.0, -1.0], [-1.0, -3.0, -1.5]]])
    candidates = Candidates(policy, reference, response_mask=jnp.array([[[1, 1, 1], [0, 1, 1]]], bool))
    ratios = [-3.5, 2.0 - 2.5]
    dpop = critics.displacement_penalised_reward(candidates, beta=0.5, penalty=2.0)
    np.testing.assert_allclose(dpop, [[0.5 * (ratios[0] * 3), 0.5 * ratios[1]]])
    regularised = critics.length_regularised_reward(candidates, beta=0.5, length_penalty=0.25)
    np.testing.assert_allclose(regularised, [[0.5 * ratios[0] + 0.75, 0.5 * ratios[1] + 0.5]])
    tail = critics.length_desensitised_reward(candidates, beta=0.5, tail_weight=0.25)
    np.testing.assert_allclose(tail, [[0.5 * (-1.5 - 0.25 * 2), 0.5 * ratios[1]]])


def test_the_weight_of_a_pair_is_a_product_and_no_gradient_goes_through_it() -> None:
    policy, collision = jnp.log(jnp.array([[[0.5, 0.25], [0.1, 0.9]]])), jnp.log(jnp.array([[[0.5, 0.5], [0.4, 0.9]]]))
    candidates = Candidates(policy, log_collision=collision, response_mask=jnp.array([[[1, 1], [1, 0]]], bool))
    np.testing.assert_allclose(critics.on_policy_weight(candidates), [0.5**0.5 * 0.25], rtol=1e-6)
    slope = jax.grad(lambda p: critics.on_policy_weight(candidates._replace(policy=p))[0])(policy)
    np.testing.assert_array_equal(slope, 0)


# --- Whole responses


def test_sequences_give_the_logits_of_their_tokens(rng: np.random.Generator) -> None:
    tokens = drawn(rng)._replace(candidate_mask=None)
    sums = [jnp.where(tokens.response_mask, x, 0).sum(-1) for x in (tokens.policy, tokens.reference)]
    whole = Candidates.from_sequences(*sums, length=tokens.response_mask.sum(-1))
    for name in CRITICS.keys() - {"length_desensitised_reward", "token_divergence_reward", "token_regularised_reward"}:
        np.testing.assert_allclose(logits(name, whole), logits(name, tokens), rtol=2e-5, atol=2e-6, err_msg=name)


def test_critics_refuse_to_guess_lengths_and_positions() -> None:
    whole = Candidates.from_sequences(-jnp.ones((2, 2)), -2 * jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"`length` has shape \[2, 0\].*from_sequences\(…, length=…\)"):
        critics.length_normalised(whole, beta=1.0)
    with pytest.raises(ValueError, match="weighed by position"):
        critics.length_desensitised_reward(whole, beta=1.0, tail_weight=0.5)
    np.testing.assert_array_equal(critics.implicit_reward(whole, beta=0.5), 0.5)


# --- Errors


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        (Candidates(score=jnp.ones((2, 2))), ValueError, r"`candidates.policy` is None.*`\[\*batch, C, T\]`"),
        (Candidates(jnp.ones((2, 2, 3))), ValueError, "`candidates.reference` is None.*without a reference"),
        (Candidates(jnp.ones(3), jnp.ones(3)), ValueError, r"`policy` has shape \[3\].*from_sequences"),
        (Candidates(jnp.ones((2, 2, 0)), jnp.ones((2, 2, 0))), ValueError, "T ≥ 1"),
        (Candidates(jnp.ones((2, 2, 3)), jnp.ones((2, 3, 3))), ValueError, r"`reference` \[2, 3, 3\]"),
        (Candidates(jnp.ones((2, 2, 3), int), jnp.ones((2, 2, 3))), TypeError, "`policy` has dtype int32"),
        (Candidates(jnp.ones((2, 2, 3)), jnp.ones((2, 2, 3), int)), TypeError, "`reference` has dtype int32"),
        (
            Candidates(jnp.ones((2, 2, 3)), jnp.ones((2, 2, 3)), response_mask=jnp.ones((2, 2), bool)),
            ValueError,
            r"`response_mask` has shape \[2, 2\]",
        ),
        (
            Candidates(jnp.ones((2, 2, 3)), jnp.ones((2, 2, 3)), candidate_mask=jnp.ones((2, 2))),
            TypeError,
            "`candidate_mask` has dtype float32",
        ),
    ],
)
def test_errors_name_the_field_and_the_remedy(candidates: Candidates, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        critics.implicit_reward(candidates, beta=0.1)


def test_fields_of_other_critics_are_asked_for_by_name() -> None:
    candidates = Candidates(jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)))
    with pytest.raises(ValueError, match=r"`candidates.reference_kl` is None.*TDPO"):
        critics.token_divergence_reward(candidates, beta=0.1)
    with pytest.raises(ValueError, match=r"`candidates.log_collision` is None.*WPO"):
        critics.on_policy_weight(candidates)
    with pytest.raises(ValueError, match=r"`candidates.score` is None.*reward head"):
        critics.reward_score(candidates)
    with pytest.raises(ValueError, match="`reference_kl` "):
        critics.token_divergence_reward(candidates._replace(reference_kl=jnp.ones((1, 2))), beta=0.1)
    with pytest.raises(ValueError, match="3 candidates"):
        critics.policy_and_reference_margins(Candidates(jnp.ones((1, 3, 2)), jnp.ones((1, 3, 2))), beta=0.1)
    with pytest.raises(ValueError, match=r"`policy` \[2, 2\], `reference` \[2, 3\]"):
        Candidates.from_sequences(jnp.ones((2, 2)), jnp.ones((2, 3)))


# --- Heads and networks


def test_a_reward_head_reads_the_last_token_of_each_response_and_nothing_else(rng: np.random.Generator) -> None:
    hidden, weight = rng.normal(size=(2, 3, 5, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    mask = np.zeros((2, 3, 5), bool)
    last = np.array([[4, 1, 2], [0, 3, 2]])
    for i in np.ndindex(2, 3):
        mask[i][max(0, last[i] - 1) : last[i] + 1] = True
    mask[1, 2] = False
    spoilt = np.where(np.arange(5)[:, None] == last[..., None, None], hidden, np.nan).astype(np.float32)
    spoilt[1, 2] = np.nan

    def head(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return critics.reward_head(hidden, weight, jnp.asarray(mask), bias=0.5)

    expected = np.take_along_axis(hidden, last[..., None, None], -2)[..., 0, :] @ weight + 0.5
    expected[1, 2] = 0
    np.testing.assert_allclose(head(spoilt, weight), expected, rtol=1e-5)
    to_hidden, to_weight = jax.grad(lambda h, w: jnp.sum(head(h, w)), argnums=(0, 1))(spoilt, weight)
    np.testing.assert_array_equal(to_hidden[1, 2], 0)
    np.testing.assert_array_equal(to_hidden[0, 0], np.where(np.arange(5)[:, None] == 4, weight, 0))
    read = np.take_along_axis(hidden, last[..., None, None], -2)[..., 0, :]
    np.testing.assert_allclose(to_weight, read.sum((0, 1)) - read[1, 2], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"`weight` has shape \[3\], but \[4\]"):
        critics.reward_head(hidden, weight[:3], mask)


def test_networks_score_every_x_against_every_y() -> None:
    x, y = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(5, 3), (4, 2)]))
    rngs = nnx.Rngs(0)
    bilinear, separable = Bilinear(3, 2, rngs=rngs), Separable(3, 2, width=8, features=2, rngs=rngs)
    concatenated = Concatenated(3, 2, width=8, rngs=rngs)
    product = np.asarray(x) @ np.asarray(bilinear.weight[...]) @ np.asarray(y).T
    np.testing.assert_allclose(bilinear(x, y), product, rtol=1e-5, atol=1e-6)
    assert np.linalg.matrix_rank(np.asarray(separable(x, y), np.float64), tol=1e-5) == 2
    np.testing.assert_allclose(separable(x, y), separable.f(x) @ separable.g(y).T, rtol=1e-5, atol=1e-6)
    first = np.concatenate([concatenated.of_x.kernel[...], concatenated.of_y.kernel[...]])
    for i, j in np.ndindex(5, 4):
        hidden = np.maximum(np.concatenate([x[i], y[j]]) @ first + concatenated.of_x.bias[...], 0)
        np.testing.assert_allclose(concatenated(x, y)[i, j], concatenated.rest(hidden)[0], rtol=1e-4, atol=1e-6)
    for critic in (bilinear, separable, concatenated):
        graphdef, state = nnx.split(critic)
        slopes = jax.grad(lambda s, g=graphdef: jnp.sum(nnx.merge(g, s)(x, y) ** 2))(state)
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(slopes))


def test_empty_responses_have_logits_of_zero_and_no_gradient(rng: np.random.Generator) -> None:
    candidates = drawn(rng)._replace(candidate_mask=None)
    candidates = candidates._replace(response_mask=candidates.response_mask.at[1, 0].set(False))
    assert critics.lengths(candidates)[1, 0] == 0
    for name in CRITICS.keys() - {"log_odds"}:
        assert logits(name, candidates)[1, 0] == 0, name
        slope = jax.grad(lambda p, n=name: jnp.sum(logits(n, candidates._replace(policy=p))))(candidates.policy)
        assert np.all(np.isfinite(slope)) and not np.any(slope[1, 0]), name
    assert np.isfinite(critics.log_odds(candidates)).all()


def test_a_reward_score_is_taken_as_it_is_where_there_is_a_candidate() -> None:
    mask = jnp.array([[True, False]])
    scored = Candidates(score=jnp.array([[1.5, jnp.nan]], jnp.bfloat16), candidate_mask=mask)
    np.testing.assert_array_equal(critics.reward_score(scored), [[1.5, 0.0]])
    assert critics.reward_score(scored).dtype == jnp.float32
    with pytest.raises(ValueError, match=r"`score` has shape \[\]"):
        critics.reward_score(Candidates(score=jnp.float32(1.0)))
