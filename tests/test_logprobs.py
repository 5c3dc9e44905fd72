"""Token log-probabilities, against NumPy's own arithmetic; what is masked leaves no trace."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.logprobs import token_logps, token_statistics

BATCH, TIME, FEATURES, VOCAB = 3, 7, 5, 13


def case(seed: int = 0, scale: float = 2.0):
    rng = np.random.default_rng(seed)
    hidden = scale * rng.normal(size=(BATCH, TIME, FEATURES))
    vocabulary = rng.normal(size=(VOCAB, FEATURES))
    targets = rng.integers(0, VOCAB, (BATCH, TIME)).astype(np.int32)
    where = rng.random((BATCH, TIME)) < 0.5
    return hidden, vocabulary, targets, where


def plain(hidden: np.ndarray, vocabulary: np.ndarray, targets: np.ndarray) -> np.ndarray:
    probabilities = np.exp(hidden @ vocabulary.T)
    probabilities /= probabilities.sum(-1, keepdims=True)
    return np.log(np.take_along_axis(probabilities, targets[..., None], -1)[..., 0])


def test_values_are_the_log_softmax_at_the_target() -> None:
    hidden, vocabulary, targets, where = case()
    with jax.enable_x64(True):
        came = token_logps(jnp.asarray(hidden), jnp.asarray(vocabulary), jnp.asarray(targets), where=jnp.asarray(where))
        assert came.dtype == jnp.float64
    np.testing.assert_allclose(came, np.where(where, plain(hidden, vocabulary, targets), 0), rtol=1e-12)


@pytest.mark.parametrize("scale", [0.3, 300.0])
def test_probabilities_of_all_targets_sum_to_one_also_where_logits_are_huge(scale: float) -> None:
    hidden, vocabulary, _, _ = case(1, scale)
    everything = np.broadcast_to(np.arange(VOCAB), (BATCH, TIME, VOCAB))
    with jax.enable_x64(True):
        repeated = jnp.broadcast_to(jnp.asarray(hidden)[..., None, :], (BATCH, TIME, VOCAB, FEATURES))
        logps = token_logps(repeated, jnp.asarray(vocabulary), jnp.asarray(everything))
    assert np.isfinite(logps).all()
    np.testing.assert_allclose(np.exp(logps).sum(-1), 1, rtol=1e-11)


def test_the_gradient_is_onehot_minus_softmax_through_the_logits() -> None:
    hidden, vocabulary, targets, where = case(2)
    weight = np.random.default_rng(3).normal(size=(BATCH, TIME))
    with jax.enable_x64(True):

        def total(h: jax.Array, v: jax.Array) -> jax.Array:
            return jnp.sum(weight * token_logps(h, v, jnp.asarray(targets), where=jnp.asarray(where)))

        d_hidden, d_vocabulary = jax.grad(total, (0, 1))(jnp.asarray(hidden), jnp.asarray(vocabulary))
    softmax = np.exp(hidden @ vocabulary.T)
    softmax /= softmax.sum(-1, keepdims=True)
    d_logits = (weight * where)[..., None] * (np.eye(VOCAB)[targets] - softmax)
    np.testing.assert_allclose(d_hidden, d_logits @ vocabulary, atol=1e-13)
    np.testing.assert_allclose(d_vocabulary, np.einsum("btv,btd->vd", d_logits, hidden), atol=1e-13)


@pytest.mark.parametrize("filler", [np.nan, np.inf, 1e30])
def test_whatever_lies_under_the_mask_changes_neither_value_nor_gradient(filler: float) -> None:
    hidden, vocabulary, targets, where = (jnp.asarray(x) for x in case(4))
    hidden, vocabulary = hidden.astype(jnp.float32), vocabulary.astype(jnp.float32)
    spoiled = jnp.where(where[..., None], hidden, filler)
    off_targets = jnp.where(where, targets, -100)

    def total(h: jax.Array, v: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.sum(token_logps(h, v, t, where=where) ** 2)

    clean = jax.value_and_grad(total, (0, 1))(hidden, vocabulary, targets)
    dirty = jax.value_and_grad(total, (0, 1))(spoiled, vocabulary, off_targets)
    jax.tree.map(np.testing.assert_array_equal, clean, dirty)
    assert clean[0] > 1


def test_nothing_kept_is_zero_with_zero_gradient() -> None:
    hidden, vocabulary, targets, _ = (jnp.asarray(x) for x in case(5))
    nothing = jnp.zeros(targets.shape, bool)
    value, slope = jax.value_and_grad(lambda h: token_logps(h, vocabulary, targets, where=nothing).sum())(hidden)
    assert value == 0 and not slope.any()


def test_bfloat16_is_computed_in_float32() -> None:
    hidden, vocabulary, targets, _ = (jnp.asarray(x) for x in case(6))
    hidden, vocabulary = hidden.astype(jnp.bfloat16), vocabulary.astype(jnp.bfloat16)
    came = token_logps(hidden, vocabulary, targets)
    assert came.dtype == jnp.float32
    wanted = plain(np.asarray(hidden, np.float64), np.asarray(vocabulary, np.float64), np.asarray(targets))
    np.testing.assert_allclose(came, wanted, rtol=1e-5)  # log-probabilities near 0 carry the logits' absolute rounding


def test_wrong_input_is_named() -> None:
    hidden, vocabulary, targets, where = (jnp.asarray(x) for x in case(7))
    with pytest.raises(ValueError, match=r"`hidden` has shape \[3, 7, 5\] and `vocabulary` \[5, 13\]"):
        token_logps(hidden, vocabulary.T, targets)
    with pytest.raises(ValueError, match=r"`targets` has shape \[3, 6\]"):
        token_logps(hidden, vocabulary, targets[:, 1:])
    with pytest.raises(TypeError, match="`targets` has dtype float32"):
        token_logps(hidden, vocabulary, targets.astype(jnp.float32))
    with pytest.raises(TypeError, match="`where` has dtype int32"):
        token_logps(hidden, vocabulary, targets, where=where.astype(jnp.int32))
    with pytest.raises(ValueError, match="`targets` holds 13, but the vocabulary has 13 rows"):
        token_logps(hidden, vocabulary, targets.at[1, 2].set(VOCAB))
    with pytest.raises(ValueError, match="`targets` holds -1"):
        token_logps(hidden, vocabulary, targets.at[0, 0].set(-1))
    with pytest.raises(TypeError, match="`targets` is a list, but an array was wanted"):
        token_logps(hidden[0, :2], vocabulary, [1, 2])
    with pytest.raises(ValueError, match="at least one token and feature"):
        token_logps(hidden[..., :0], vocabulary[:, :0], targets)


@pytest.mark.parametrize("outside", [-1, VOCAB])
def test_under_jit_a_target_outside_the_vocabulary_gives_nan_and_only_there(outside: int) -> None:
    hidden, vocabulary, targets, _ = (jnp.asarray(x) for x in case(8))
    came = jax.jit(token_logps)(hidden, vocabulary, targets.at[1, 2].set(outside))
    assert np.argwhere(np.isnan(came)).tolist() == [[1, 2]]


every_way = pytest.mark.parametrize("implementation", ["chunked", "reference", "pallas_gpu", "pallas_tpu"])


@every_way
@pytest.mark.parametrize("level", [0.0, 30.0, 3000.0])
def test_a_nearly_certain_token_keeps_its_digits_however_large_the_logits(implementation: str, level: float) -> None:
    """log p = −log(1 + e^−12): 6e-6, to half an ulp of 1 + e^−12, where a normaliser of 3000 is known to 2e-4 only."""
    hidden, vocabulary = jnp.array([[level, 12.0]]), jnp.array([[1.0, 0.0], [1.0, -1.0]])
    came = token_statistics(hidden, vocabulary, jnp.array([0]), implementation=implementation)
    p = np.exp([-np.log1p(np.exp(-12.0)), -12 - np.log1p(np.exp(-12.0))])
    np.testing.assert_allclose(came.logp, np.log(p[:1]), rtol=0, atol=6e-8)
    np.testing.assert_allclose(came.entropy, [-p @ np.log(p)], rtol=0, atol=7e-8)
    slope = jax.grad(lambda v: token_logps(hidden, v, jnp.array([0]), implementation=implementation)[0])(vocabulary)
    np.testing.assert_allclose(slope[1], [-level * p[1], -12 * p[1]], rtol=2e-6)


@every_way
def test_the_gradient_by_a_scale_of_zero_is_a_number(implementation: str) -> None:
    hidden, vocabulary, targets, where = (jnp.asarray(x, jnp.result_type(x, jnp.float16)) for x in case(9))
    targets, where = targets.astype(jnp.int32), where.astype(bool)

    def total(scale):
        return token_logps(
            hidden, vocabulary, targets, where=where, logit_scale=scale, implementation=implementation
        ).sum()

    u = np.asarray(hidden, np.float64) @ np.asarray(vocabulary, np.float64).T
    chosen = np.take_along_axis(u, np.asarray(targets)[..., None], -1)[..., 0]
    wanted = ((chosen - u.mean(-1)) * np.asarray(where)).sum()
    np.testing.assert_allclose(jax.grad(total)(0.0), wanted, rtol=1e-5)


@every_way
@pytest.mark.parametrize("shape", [(0, 5), (2, 0, 5)])
def test_no_positions_are_no_log_probabilities(implementation: str, shape: tuple[int, ...]) -> None:
    hidden, vocabulary = jnp.zeros(shape), jnp.ones((VOCAB, 5))
    targets, where = jnp.zeros(shape[:-1], jnp.int32), jnp.zeros(shape[:-1], bool)
    for mask in (None, where):
        came = token_logps(hidden, vocabulary, targets, where=mask, implementation=implementation)
        assert came.shape == shape[:-1]
