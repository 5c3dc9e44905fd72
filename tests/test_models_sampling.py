"""Sampling: the cache against whole forward passes, the filters against counting, the end of a response."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.models import (
    DecoderConfig,
    filter_logits,
    generate,
    hidden_states,
    init_decoder,
    response_logps,
    vocabulary_matrix,
)

CONFIG = DecoderConfig(vocab_size=23, width=16, layers=2, heads=2, kv_heads=1, norm_epsilon=1e-3)
KINDS = {
    "llama": CONFIG,
    "windowed, capped": dataclasses.replace(
        CONFIG, window=3, windowed=(True, False), attention_soft_cap=2.0, logit_soft_cap=3.0, qk_norm=True
    ),
    "learned positions": dataclasses.replace(CONFIG, learned_positions=14, norm="layer", gated=False, tied_head=False),
}
LENGTHS = np.array([5, 1, 3])


def model(config: DecoderConfig):
    graphdef, params = init_decoder(config, jax.random.key(1))
    return graphdef, jax.tree.map(lambda x: 3 * x if x.ndim > 2 else x, params)  # so that the context matters


def prompts(filler: int = 0) -> np.ndarray:
    tokens = np.random.default_rng(2).integers(0, 23, (3, 5))
    return np.where(np.arange(5) < LENGTHS[:, None], tokens, filler)


@pytest.mark.parametrize("kind", [k if k == "llama" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_the_likeliest_tokens_are_those_of_whole_forward_passes_whatever_the_padding(kind: str) -> None:
    config = KINDS[kind]
    graphdef, params = model(config)
    came = [
        generate(graphdef, params, prompts(filler), LENGTHS, jax.random.key(0), max_new=8, temperature=0.0)
        for filler in (0, 22)
    ]
    np.testing.assert_array_equal(came[0].tokens, came[1].tokens)
    for row, length in enumerate(LENGTHS):
        sequence = list(prompts()[row, :length])
        for token in np.asarray(came[0].tokens)[row, 0]:
            z = hidden_states(graphdef, params, jnp.asarray(sequence))[-1] @ vocabulary_matrix(graphdef, params).T
            assert token == np.argmax(z)
            sequence.append(int(token))
        mask = np.arange(len(sequence)) >= length
        logps = response_logps(graphdef, params, jnp.asarray(sequence), jnp.asarray(mask))[length - 1 :]
        np.testing.assert_allclose(came[0].logps[row, 0], logps, atol=2e-5)
    assert len(np.unique(came[0].tokens)) > 3


def test_a_response_ends_with_its_stop_token_and_is_padded_after() -> None:
    graphdef, params = model(CONFIG)
    free = generate(graphdef, params, prompts(), LENGTHS, jax.random.key(5), max_new=12, samples=4)
    stop = tuple(int(x) for x in np.unique(np.asarray(free.tokens)[0, 0])[:3])
    came = generate(graphdef, params, prompts(), LENGTHS, jax.random.key(5), max_new=12, samples=4, stop=stop, pad_id=7)
    assert came.tokens.shape == (3, 4, 12)
    for tokens, mask, logps, before in zip(
        *(np.asarray(x).reshape(12, 12) for x in (came.tokens, came.mask, came.logps, free.tokens)), strict=True
    ):
        hits = np.flatnonzero(np.isin(before, stop))
        end = hits[0] + 1 if hits.size else 12
        np.testing.assert_array_equal(tokens, np.where(np.arange(12) < end, before, 7))
        np.testing.assert_array_equal(mask, np.arange(12) < end)
        assert (logps[:end] < 0).all() and not logps[end:].any()


def test_samples_have_the_models_distribution() -> None:
    graphdef, params = model(CONFIG)
    came = generate(graphdef, params, prompts(), LENGTHS, jax.random.key(0), max_new=1, samples=4000, temperature=2.0)
    z = hidden_states(graphdef, params, jnp.asarray(prompts()))[np.arange(3), LENGTHS - 1]
    p = np.asarray(jax.nn.softmax(z @ vocabulary_matrix(graphdef, params).T / 2.0))
    for row in range(3):
        seen = np.bincount(np.asarray(came.tokens)[row, :, 0], minlength=23)
        expected = 4000 * p[row]
        assert ((seen - expected) ** 2 / expected).sum() < 60, "χ² with 22 degrees of freedom: beyond 60 once in 2e-5"


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"), [(2, None, [3, 1]), (None, 0.6, [3, 1]), (3, 0.99, [3, 1, 0]), (9, 1.0, [3, 1, 0, 2])]
)
def test_the_filters_keep_the_likeliest(top_k: int | None, top_p: float | None, kept: list[int]) -> None:
    p = np.array([0.15, 0.3, 0.05, 0.5])
    came = np.asarray(filter_logits(jnp.log(jnp.asarray(p)), temperature=1.0, top_k=top_k, top_p=top_p))
    assert sorted(np.flatnonzero(np.isfinite(came))) == sorted(kept)
    np.testing.assert_allclose(came[kept], np.log(p[kept]), rtol=1e-6)


def test_wrong_input_is_named() -> None:
    graphdef, params = model(CONFIG)
    key = jax.random.key(0)
    for change, words in [
        ({"max_new": 0}, "`max_new` is 0"),
        ({"top_p": 0.0}, "`top_p` is 0.0"),
        ({"temperature": -1.0}, "`temperature` is -1.0"),
        ({"top_k": 0}, "`top_k` is 0"),
    ]:
        with pytest.raises(ValueError, match=words):
            generate(graphdef, params, prompts(), LENGTHS, key, **({"max_new": 2} | change))
    with pytest.raises(ValueError, match=r"`prompts` has shape \[3, 5\] and `lengths` \[2\]"):
        generate(graphdef, params, prompts(), LENGTHS[:2], key, max_new=2)
    for wrong in (0, 6):
        with pytest.raises(ValueError, match=f"`lengths` holds {wrong}, but prompts of 1 to 5 tokens"):
            generate(graphdef, params, prompts(), np.array([5, wrong, 1]), key, max_new=2)
    with pytest.raises(ValueError, match="`temperature` is 0"):
        filter_logits(jnp.zeros(3), temperature=0)
    graphdef, params = model(KINDS["learned positions"])
    with pytest.raises(ValueError, match="there are 15 positions, but this model has learned 14"):
        generate(graphdef, params, prompts(), LENGTHS, key, max_new=10)
    with pytest.raises(ValueError, match="there are 15 positions, but this model has learned 14"):
        hidden_states(graphdef, params, jnp.zeros((2, 15), jnp.int32))
