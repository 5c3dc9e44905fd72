"""One program for CPU, CUDA and TPU: `jax.export` of values and gradients, and what it gives here."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.logprobs import in_batch_info_nce_loss, token_logps, token_statistics

PLATFORMS = ["cpu", "cuda", "tpu"]


def case(rng: np.random.Generator, dtype):
    hidden, vocabulary = (jnp.asarray(rng.normal(size=shape), dtype) for shape in [(2, 5, 8), (21, 8)])
    return hidden, vocabulary, jnp.asarray(rng.integers(0, 21, (2, 5))), jnp.asarray(rng.random((2, 5)) < 0.6)


def again(function, *args):
    """What a program gives that was exported for all platforms."""
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*args)
    assert exported.platforms == tuple(PLATFORMS)
    return exported.call(*args)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_log_probabilities_and_their_gradients(rng: np.random.Generator, dtype) -> None:
    hidden, vocabulary, targets, where = case(rng, dtype)

    def total(h, v):
        return token_logps(h, v, targets, where=where, soft_cap=30.0).sum()

    slopes = jax.value_and_grad(total, (0, 1))
    came, wanted = again(slopes, hidden, vocabulary), jax.jit(slopes)(hidden, vocabulary)
    jax.tree.map(np.testing.assert_array_equal, came, wanted)
    assert came[0] < -1 and came[1][0].any() and came[1][1].any()


def test_statistics(rng: np.random.Generator) -> None:
    args = case(rng, jnp.float32)

    def all_of_them(h, v, t, w):
        return tuple(token_statistics(h, v, t, where=w))

    came, wanted = again(all_of_them, *args), token_statistics(*args[:3], where=args[3])
    for c, w in zip(came, wanted, strict=True):
        np.testing.assert_array_equal(c, w)
    assert came[2].max() > 0.1


def test_in_batch_negatives(rng: np.random.Generator) -> None:
    x, y = (jnp.asarray(rng.normal(size=(9, 4)), jnp.float32) for _ in range(2))
    slopes = jax.value_and_grad(lambda x, y, scale: in_batch_info_nce_loss(x, y, scale=scale).sum(), (0, 1, 2))
    args = x, y, jnp.float32(1.5)
    came, wanted = again(slopes, *args), jax.jit(slopes)(*args)
    jax.tree.map(np.testing.assert_array_equal, came, wanted)
    assert came[0] > 1
