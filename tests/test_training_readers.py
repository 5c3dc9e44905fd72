"""What WPO and TDPO read of the whole vocabulary, against plain sums over all logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.data import ByteTokenizer, arithmetic_preferences, encode_preferences
from mi_align.methods import METHODS
from mi_align.models import DecoderConfig, cast, hidden_states, init_decoder, vocabulary_matrix
from mi_align.training import preference_loss, scorer
from mi_align.training.readers import reader, token_divergence

BETA = 0.3


@pytest.fixture
def models(x64: None):
    config = DecoderConfig(vocab_size=258, width=16, layers=1, heads=2, logit_soft_cap=3.0)
    graphdef, first = init_decoder(config, jax.random.key(0))
    _, second = init_decoder(config, jax.random.key(1))
    first, second = (jax.tree.map(lambda x: 4 * x, cast(params, jnp.float64)) for params in (first, second))
    batch, _ = encode_preferences(arithmetic_preferences(4, negatives=1, seed=1), ByteTokenizer())
    return graphdef, first, second, batch


def all_log_probabilities(graphdef, params, batch) -> jax.Array:
    """[batch, candidates, time − 1, vocabulary], held as a whole."""
    hidden = hidden_states(graphdef, params, jnp.asarray(batch.tokens))[..., :-1, :]
    logits = hidden @ vocabulary_matrix(graphdef, params).T
    return jax.nn.log_softmax(3.0 * jnp.tanh(logits / 3.0))


def ratios(graphdef, policy, reference, batch):
    """Log-ratios of responses, and what they are made of."""
    p, r = (all_log_probabilities(graphdef, params, batch) for params in (policy, reference))
    kept = jnp.asarray(batch.response_mask)[..., 1:]
    own, other = (jnp.take_along_axis(x, batch.tokens[..., 1:, None], -1)[..., 0] for x in (p, r))
    return jnp.where(kept, own - jax.lax.stop_gradient(other), 0).sum(-1), p, jax.lax.stop_gradient(r), kept, own


def wpo(graphdef, policy, reference, batch):
    rho, p, _, kept, own = ratios(graphdef, policy, reference, batch)
    collision = jnp.log((jnp.exp(p) ** 2).sum(-1))
    weight = jnp.exp((jnp.where(kept, own - collision, 0).sum(-1) / kept.sum(-1)).sum(-1))
    return jnp.mean(jax.lax.stop_gradient(weight) * -jax.nn.log_sigmoid(BETA * (rho[:, 0] - rho[:, 1])))


def tdpo(graphdef, policy, reference, batch, second: bool):
    rho, p, r, kept, _ = ratios(graphdef, policy, reference, batch)
    kl = jnp.where(kept, (jnp.exp(r) * (r - p)).sum(-1), 0).sum(-1)
    held = jnp.stack([jax.lax.stop_gradient(kl[:, 0]), kl[:, 1]], -1)
    reward = rho + (0.5 * held if second else kl)
    return jnp.mean(-jax.nn.log_sigmoid(BETA * (reward[:, 0] - reward[:, 1])))


@pytest.mark.parametrize("name", ["wpo", pytest.param("tdpo1", marks=pytest.mark.slow), "tdpo2"])
def test_losses_and_gradients_are_those_of_all_logits_at_once(name: str, models) -> None:
    graphdef, policy, reference, batch = models
    score, method = scorer(graphdef), METHODS[name].configure(beta=BETA)
    read = reader(graphdef, method, live=score)
    loss = preference_loss(score, method, live=score, read=read)

    def came(params):
        return loss(params, (batch, None), reference)[0].value()

    def wanted(params):
        if name == "wpo":
            return wpo(graphdef, params, reference, batch)
        return tdpo(graphdef, params, reference, batch, name == "tdpo2")

    (value, slope), (true, true_slope) = (jax.jit(jax.value_and_grad(f))(policy) for f in (came, wanted))
    assert float(value) == pytest.approx(float(true), rel=1e-10)
    for a, b in zip(jax.tree.leaves(slope), jax.tree.leaves(true_slope), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-10 * float(jnp.abs(b).max() + 1e-3))


def test_a_cached_reference_serves_wpo(models) -> None:
    graphdef, policy, reference, batch = models
    score, method = scorer(graphdef), METHODS["wpo"].configure(beta=BETA)
    loss = preference_loss(score, method, read=reader(graphdef, method, live=None))
    value = jax.jit(loss)(policy, (batch, jax.jit(score)(reference, batch)))[0].value()
    wanted = jax.jit(lambda policy, reference: wpo(graphdef, policy, reference, batch))(policy, reference)
    assert float(value) == pytest.approx(float(wanted), rel=1e-10)


@pytest.mark.parametrize("most_bytes", [1, 3 * 4 * 2 * 31, 2**30])
def test_the_divergence_is_the_same_in_pieces_of_any_size(most_bytes: int, rng: np.random.Generator, x64: None) -> None:
    p, r = ((jnp.asarray(rng.normal(size=(2, 7, 5))), jnp.asarray(rng.normal(size=(31, 5)))) for _ in range(2))
    where = jnp.asarray(rng.random((2, 7)) < 0.7)
    log_p, log_r = (jax.nn.log_softmax(hidden @ matrix.T) for hidden, matrix in (p, r))
    wanted = jnp.where(where, (jnp.exp(log_r) * (log_r - log_p)).sum(-1), 0)
    np.testing.assert_allclose(token_divergence(p, r, where, most_bytes=most_bytes), wanted, rtol=1e-12)
    assert (np.asarray(token_divergence(p, p, where, most_bytes=most_bytes)) == 0).all()


def test_logits_of_all_tokens_are_never_held() -> None:
    time, vocab, width = 512, 4096, 8
    own = jnp.zeros((1, time, width)), jnp.zeros((vocab, width))

    def total(hidden):
        return token_divergence((hidden, own[1]), own, jnp.ones((1, time), bool), most_bytes=2**18).sum()

    used = jax.jit(jax.grad(total)).lower(own[0]).compile().memory_analysis()
    assert used.temp_size_in_bytes < time * vocab * 4 / 2, "half of one model's logits"


def test_other_methods_need_no_reader(models) -> None:
    graphdef, *_ = models
    assert reader(graphdef, METHODS["dpo"], live=None) is None
