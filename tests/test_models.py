"""The decoder: what it computes, recomputed apart from it, and what it must not look at."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_align.models import DecoderConfig, cast, count_parameters, hidden_states, init_decoder, response_logps
from mi_align.models.positions import rotate, turn

CONFIG = DecoderConfig(
    vocab_size=37,
    width=24,
    layers=2,
    heads=4,
    kv_heads=2,
    mlp_width=40,
    rope_base=50.0,
    norm_epsilon=1e-3,
    tied_head=False,
)
TIME = 11


@functools.cache
def decoder(config: DecoderConfig = CONFIG):
    """A decoder whose norms are not at their neutral scale 1."""
    graphdef, params = init_decoder(config, jax.random.key(3))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    noisy = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return graphdef, jax.tree.unflatten(treedef, noisy)


@functools.cache
def hidden_of(config: DecoderConfig = CONFIG):
    return jax.jit(functools.partial(hidden_states, decoder(config)[0]))


@functools.cache
def logps_of(config: DecoderConfig = CONFIG):
    return jax.jit(functools.partial(response_logps, decoder(config)[0]))


def random_tokens(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape).astype(np.int32)


# --- The forward pass, a second time: in NumPy, position by position, with complex rotations ---------------------


def numpy_forward(params: dict, config: DecoderConfig, tokens: np.ndarray) -> np.ndarray:
    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean() + config.norm_epsilon) * scale

    def turn(vector: np.ndarray, position: int) -> np.ndarray:
        half = len(vector) // 2
        frequencies = config.rope_base ** (-np.arange(half) / half)
        turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * position * frequencies)
        return np.concatenate([turned.real, turned.imag])

    stream = [params["embedding"][token] for token in tokens]
    for layer in range(config.layers):
        block = jax.tree.map(lambda x, layer=layer: x[layer], params["blocks"])
        attention, mlp = block["attention"], block["feed_forward"]
        normed = [norm(x, block["attention_norm"]["scale"]) for x in stream]
        queries, keys, values = (
            [(x @ attention[name]["kernel"]).reshape(-1, config.head_width) for x in normed]
            for name in ("query", "key", "value")
        )
        for t in range(len(tokens)):
            heads = []
            for head in range(config.heads):
                shared = head // (config.heads // config.key_value_heads)
                query = turn(queries[t][head], t)
                scores = np.array([query @ turn(keys[s][shared], s) for s in range(t + 1)]) / config.head_width**0.5
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                heads.append(sum(w * values[s][shared] for s, w in enumerate(weights)))
            stream[t] = stream[t] + np.concatenate(heads) @ attention["out"]["kernel"]
        for t, x in enumerate(stream):
            normed_x = norm(x, block["feed_forward_norm"]["scale"])
            gate = normed_x @ mlp["gate"]["kernel"]
            inner = gate / (1 + np.exp(-gate)) * (normed_x @ mlp["up"]["kernel"])
            stream[t] = x + inner @ mlp["down"]["kernel"]
    return np.stack([norm(x, params["norm"]["scale"]) for x in stream])


def test_the_forward_pass_is_the_one_recomputed_in_numpy() -> None:
    _, params = decoder()
    tokens = random_tokens(TIME)
    with jax.enable_x64(True):
        params = cast(params, jnp.float64)
        came = hidden_of()(params, jnp.asarray(tokens))
        assert came.dtype == jnp.float64
        wanted = numpy_forward(jax.tree.map(np.asarray, nnx.to_pure_dict(params)), CONFIG, tokens)
        # A few hundred roundings of numbers near 1.
        np.testing.assert_allclose(came, wanted, rtol=0, atol=1e-13)


def test_response_logps_are_the_log_softmax_of_hidden_times_vocabulary_one_step_ahead() -> None:
    _, params = decoder()
    tokens = random_tokens(2, 3, TIME)
    mask = np.random.default_rng(1).random(tokens.shape) < 0.6
    with jax.enable_x64(True):
        params = cast(params, jnp.float64)
        came = np.asarray(logps_of()(params, jnp.asarray(tokens), jnp.asarray(mask)))
        hidden = np.asarray(hidden_of()(params, jnp.asarray(tokens)))
        head = np.asarray(nnx.to_pure_dict(params)["head"])
    assert came.shape == (2, 3, TIME - 1)
    for index in np.ndindex(came.shape):
        *example, t = index
        logits = head @ hidden[(*example, t)]
        wanted = logits[tokens[(*example, t + 1)]] - np.log(np.exp(logits).sum())
        assert came[index] == pytest.approx(wanted if mask[(*example, t + 1)] else 0.0, rel=1e-12)


# --- What the decoder must not look at ---------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data(), time=st.integers(0, TIME - 2))
def test_causality_no_hidden_state_depends_on_a_later_token(data: st.DataObject, time: int) -> None:
    _, params = decoder()
    ids = st.integers(0, CONFIG.vocab_size - 1)
    tokens = np.array(data.draw(st.lists(ids, min_size=TIME, max_size=TIME)), np.int32)
    later = np.array(data.draw(st.lists(ids, min_size=TIME, max_size=TIME)), np.int32)
    changed = np.where(np.arange(TIME) > time, later, tokens)
    before, after = hidden_of()(params, tokens), hidden_of()(params, changed)
    np.testing.assert_array_equal(before[: time + 1], after[: time + 1])
    if (first := np.flatnonzero(tokens != changed)).size:
        assert np.abs(before[first[0]] - after[first[0]]).max() > 1e-3, "a token does enter its own hidden state"


@pytest.mark.parametrize("pad_id", [0, 36])
def test_padding_on_the_right_changes_no_log_probability(pad_id: int) -> None:
    _, params = decoder()
    tokens = random_tokens(3, TIME, seed=5)
    mask = np.broadcast_to(np.arange(TIME) >= 4, tokens.shape)
    padded = np.pad(tokens, ((0, 0), (0, 6)), constant_values=pad_id)
    padded_mask = np.pad(mask, ((0, 0), (0, 6)))
    with jax.enable_x64(True):
        params = cast(params, jnp.float64)
        short = np.asarray(logps_of()(params, jnp.asarray(tokens), jnp.asarray(mask)))
        long = np.asarray(logps_of()(params, jnp.asarray(padded), jnp.asarray(padded_mask)))
    np.testing.assert_allclose(long[:, : TIME - 1], short, rtol=1e-13)
    np.testing.assert_array_equal(long[:, TIME - 1 :], 0)


def test_an_example_does_not_see_its_neighbours_in_the_batch() -> None:
    _, params = decoder()
    tokens = random_tokens(5, TIME, seed=6)
    together = hidden_of()(params, jnp.asarray(tokens))
    alone = jnp.concatenate([hidden_of()(params, jnp.asarray(tokens[i : i + 1])) for i in range(5)])
    # Batches of other sizes are rounded otherwise: each is within 11 eps of float64's, in units of the largest entry.
    np.testing.assert_allclose(together, alone, atol=20 * np.finfo(np.float32).eps * np.abs(alone).max())


# --- Rotary positions --------------------------------------------------------------------------------------------


def test_rotated_inner_products_depend_on_the_distance_alone() -> None:
    rng = np.random.default_rng(7)
    query, key = rng.normal(size=(2, 1, 1, 1, 8))
    with jax.enable_x64(True):

        def product(at_query: int, at_key: int) -> float:
            radians = 100.0 ** (-np.arange(4) / 4)
            left = rotate(jnp.asarray(query), turn(jnp.array([[at_query]]), radians))
            return float(jnp.sum(left * rotate(jnp.asarray(key), turn(jnp.array([[at_key]]), radians))))

        assert product(9, 4) == pytest.approx(product(1005, 1000), rel=1e-11)
        assert product(0, 0) == pytest.approx(float(np.sum(query * key)), rel=1e-14)
        assert abs(product(9, 4) - product(4, 9)) > 1e-3, "the sign of the distance matters"
        assert abs(product(9, 4) - product(9, 5)) > 1e-3


# --- Parameters --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_the_parameter_count_is_that_of_the_matrices(tied_head: bool, kv_heads: int | None) -> None:
    config = dataclasses.replace(CONFIG, tied_head=tied_head, kv_heads=kv_heads, mlp_width=None)
    _, params = init_decoder(config, jax.random.key(0))
    width, inner = 24, 64  # 8/3 of 24
    keys_and_values = 2 * width * (6 if kv_heads == 1 else 24)
    block = 2 * width**2 + keys_and_values + 3 * width * inner + 2 * width
    assert count_parameters(params) == 2 * block + width + 37 * width * (1 if tied_head else 2)


def test_a_tied_head_is_a_free_head_that_equals_the_embedding_and_their_gradients_add() -> None:
    free_graphdef, free = decoder(dataclasses.replace(CONFIG, tied_head=False))
    tied_graphdef, tied = decoder(dataclasses.replace(CONFIG, tied_head=True))
    free_dict = nnx.to_pure_dict(free)
    nnx.replace_by_pure_dict(free, {**nnx.to_pure_dict(tied), "head": nnx.to_pure_dict(tied)["embedding"]})
    tokens = jnp.asarray(random_tokens(4, TIME, seed=8))

    @functools.partial(jax.jit, static_argnums=0)
    def loss_and_slope(graphdef: nnx.GraphDef, params: nnx.State):
        mask = jnp.ones(tokens.shape, bool)
        return jax.value_and_grad(lambda p: response_logps(graphdef, p, tokens, mask).mean())(params)

    free_loss, free_slope = loss_and_slope(free_graphdef, free)
    tied_loss, tied_slope = loss_and_slope(tied_graphdef, tied)
    nnx.replace_by_pure_dict(free, free_dict)
    assert free_loss == tied_loss
    free_slope, tied_slope = nnx.to_pure_dict(free_slope), nnx.to_pure_dict(tied_slope)
    both = free_slope["embedding"] + free_slope["head"]
    np.testing.assert_allclose(tied_slope["embedding"], both, atol=4 * np.finfo(np.float32).eps * np.abs(both).max())
    assert np.abs(free_slope["head"]).max() > 1e-4 and np.abs(free_slope["embedding"]).max() > 1e-4


def test_the_same_key_draws_the_same_parameters_and_another_key_others() -> None:
    first, again, other = (init_decoder(CONFIG, jax.random.key(seed))[1] for seed in (1, 1, 2))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, again)))
    assert not np.array_equal(jax.tree.leaves(first)[0], jax.tree.leaves(other)[0])


def test_float32_agrees_with_float64_to_float32s_rounding() -> None:
    _, params = decoder()
    tokens = jnp.asarray(random_tokens(8, TIME, seed=9))
    mask = jnp.ones(tokens.shape, bool)
    single = logps_of()(params, tokens, mask)
    assert single.dtype == jnp.float32
    with jax.enable_x64(True):
        double = np.asarray(logps_of()(cast(params, jnp.float64), tokens, mask))
    error = np.abs(np.asarray(single, np.float64) - double).max() / np.abs(double).max()
    # Errors of the layers add up; each is a few ulp of numbers of the size of the logits.
    assert 0 < error < 16 * np.finfo(np.float32).eps


def test_parameters_in_bfloat16_give_float32_log_probabilities() -> None:
    _, params = decoder()
    tokens = jnp.asarray(random_tokens(8, TIME, seed=10))
    mask = jnp.ones(tokens.shape, bool)
    half = logps_of()(cast(params, jnp.bfloat16), tokens, mask)
    assert half.dtype == jnp.float32
    whole = np.asarray(logps_of()(params, tokens, mask))
    assert np.abs(half - whole).max() < 16 * float(jnp.finfo(jnp.bfloat16).eps) * np.abs(whole).max()


# --- Shapes that no decoder can have -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 20, "heads": 3}, "`width` is 20 and `heads` 3"),
        ({"width": 12, "heads": 4}, "a multiple of 8"),
        ({"heads": 4, "kv_heads": 3}, "a divisor of `heads` = 4"),
        ({"layers": 0}, "`layers` is 0, but at least 1"),
        ({"vocab_size": 0}, "`vocab_size` is 0"),
    ],
)
def test_an_impossible_shape_is_refused_by_name(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(CONFIG, **change)
