"""Training: exact zeros at the start, gradients that add up exactly, and learning that does what it should."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mi_align.critics.candidates import Candidates
from mi_align.data import (
    ByteTokenizer,
    PreferenceBatch,
    arithmetic_preferences,
    batch_indices,
    encode_preferences,
    take,
)
from mi_align.methods import METHODS
from mi_align.models import DecoderConfig, cast, init_decoder
from mi_align.numerics import Mean
from mi_align.training import (
    TrainState,
    candidates,
    follow_policy,
    init_state,
    join,
    merge,
    partition,
    preference_loss,
    preference_metrics,
    scan_steps,
    scorer,
    summarise,
    supervised_loss,
    train_step,
)

CONFIG = DecoderConfig(vocab_size=258, width=16, layers=1, heads=2)


@functools.cache
def setting(negatives: int = 2):
    graphdef, params = init_decoder(CONFIG, jax.random.key(0))
    batch, _ = encode_preferences(arithmetic_preferences(12, negatives=negatives, seed=1), ByteTokenizer())
    return scorer(graphdef), params, batch


def moved(params, size: float = 0.02):
    """A policy that is not the reference."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    noisy = [x + size * jax.random.normal(key, x.shape, x.dtype) for x, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, noisy)


def assert_trees_close(came, wanted, *, of_scale: float) -> None:
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=of_scale * max(np.abs(np.asarray(b)).max(), 1e-30))


# --- The first step (ledger L2)


@pytest.mark.parametrize(
    "dtype", [jnp.float32, *(pytest.param(x, marks=pytest.mark.slow) for x in (jnp.bfloat16, jnp.float64))]
)
@pytest.mark.parametrize("cached", [True, False])
def test_before_the_first_step_every_log_ratio_is_exactly_zero(dtype: jnp.dtype, cached: bool) -> None:
    logps, params, batch = setting()
    method = METHODS["dpo"].configure(beta=0.3)
    with jax.enable_x64(dtype == jnp.float64):
        params = cast(params, dtype)
        copy = jax.tree.map(jnp.copy, params)
        loss = preference_loss(logps, method)
        pair = PreferenceBatch(batch.tokens[:, :2], batch.response_mask[:, :2], batch.candidate_mask[:, :2])

        def report(params, reference):
            def total(p):
                mean, metrics = loss(p, (pair, reference))
                return mean.total, metrics

            slope, metrics = jax.grad(total, has_aux=True)(params)
            return metrics, slope

        if cached:
            reference = jax.jit(logps)(copy, pair)
            metrics, slope = jax.jit(report)(params, reference)
        else:
            metrics, slope = jax.jit(lambda p, r: report(p, logps(r, pair)))(params, copy)
        numbers, norm = summarise(metrics), float(optax.tree.norm(slope))
    assert numbers["log_ratio/chosen"] == numbers["log_ratio/rejected"] == 0.0
    assert numbers["accuracy"] == 0.5
    assert norm > 1e-3, "and yet there is something to learn"


def test_the_step_itself_reports_the_loss_at_zero_to_the_last_bit() -> None:
    logps, params, batch = setting()
    optimiser = optax.sgd(0.1)
    for name, wanted in {"infonce_dpo": np.log(3), "mio": np.log(4)}.items():
        step = jax.jit(train_step(preference_loss(logps, METHODS[name].configure(beta=0.7)), optimiser))
        reference = jax.jit(logps)(params, batch)
        _, metrics = step(init_state(params, optimiser), (batch, reference))
        zeros = candidates(batch, jnp.zeros_like(reference), jnp.zeros_like(reference))
        numbers = summarise(metrics)
        assert numbers["loss"] == float(Mean.of(METHODS[name](zeros, beta=0.7)).value())
        assert numbers["loss"] == pytest.approx(wanted, rel=1e-6)
        assert numbers["log_ratio/chosen"] == 0.0


# --- The step


def test_micro_batches_give_the_gradient_of_the_whole_batch_also_where_their_weights_differ() -> None:
    logps, params, batch = setting()
    lengths = batch.response_mask[:, 0].sum(-1).reshape(4, 3).sum(-1)
    assert len(set(lengths.tolist())) > 1, "parts of equal weight would not tell means of means from the mean"
    with jax.enable_x64(True):
        params = cast(params, jnp.float64)
        optimiser = optax.sgd(1.0)
        reference = jax.jit(logps)(moved(params), batch)
        for loss, data in [
            (supervised_loss(logps), batch),
            (preference_loss(logps, METHODS["infonce_dpo"].configure(beta=0.4)), (batch, reference)),
        ]:
            state = init_state(params, optimiser)
            whole, whole_metrics = jax.jit(train_step(loss, optimiser))(state, data)
            parts, parts_metrics = jax.jit(train_step(loss, optimiser, micro_batches=4))(state, data)
            assert_trees_close(parts.params, whole.params, of_scale=1e-14)
            for name, value in summarise(whole_metrics).items():
                assert summarise(parts_metrics)[name] == pytest.approx(value, rel=1e-12, abs=1e-15)


def test_micro_batches_of_a_loss_that_couples_its_batch_are_refused() -> None:
    logps, *_ = setting()
    coupled = next(row for row in METHODS.values() if row.couples_batch)
    train_step(preference_loss(logps, coupled), optax.sgd(1.0))
    with pytest.raises(ValueError, match="`micro_batches` is 2, but this loss couples the examples"):
        train_step(preference_loss(logps, coupled), optax.sgd(1.0), micro_batches=2)


def test_a_prompt_without_candidates_has_no_weight() -> None:
    logps, params, batch = setting()
    absent = batch._replace(candidate_mask=batch.candidate_mask & (np.arange(12) < 9)[:, None])
    fewer = jax.tree.map(lambda x: x[:9], batch)
    loss = preference_loss(logps, METHODS["infonce_dpo"])
    reference = logps(moved(params), batch)
    (came, _), (wanted, _) = loss(params, (absent, reference)), loss(params, (fewer, reference[:9]))
    assert came.weight == wanted.weight == 9
    np.testing.assert_allclose(came.value(), wanted.value(), rtol=1e-6)


def test_micro_batches_that_do_not_divide_the_batch_are_refused() -> None:
    logps, params, batch = setting()
    optimiser = optax.sgd(1.0)
    step = train_step(supervised_loss(logps), optimiser, micro_batches=5)
    with pytest.raises(ValueError, match="12 examples, which `micro_batches` = 5 does not divide"):
        step(init_state(params, optimiser), batch)


def test_a_step_descends_the_gradient_of_the_mean_loss() -> None:
    logps, params, batch = setting()
    with jax.enable_x64(True):
        params = cast(params, jnp.float64)
        policy = moved(params)
        reference = jax.jit(logps)(params, batch)

        @jax.jit
        def mean_loss(p):
            policy_logps = logps(p, batch)
            ratio = jnp.where(batch.response_mask[..., 1:], policy_logps - reference, 0).sum(-1)
            return jnp.mean(-jnp.log(jnp.exp(0.4 * ratio[:, 0]) / jnp.exp(0.4 * ratio).sum(-1)))

        optimiser = optax.sgd(0.05)
        loss = preference_loss(logps, METHODS["infonce_dpo"].configure(beta=0.4))
        state, metrics = jax.jit(train_step(loss, optimiser))(init_state(policy, optimiser), (batch, reference))
        slope = jax.jit(jax.grad(mean_loss))(policy)
        assert_trees_close(state.params, jax.tree.map(lambda p, g: p - 0.05 * g, policy, slope), of_scale=1e-13)
        assert summarise(metrics)["loss"] == pytest.approx(float(mean_loss(policy)), rel=1e-12)
        norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(slope)))
        assert summarise(metrics)["grad_norm"] == pytest.approx(norm, rel=1e-11)
    assert int(state.step) == 1


def test_scanned_steps_are_the_same_steps_one_by_one() -> None:
    logps, params, batch = setting()
    optimiser = optax.sgd(0.3, momentum=0.9)  # unlike Adam it does not blow up the rounding of tiny gradients
    data = jax.tree.map(jnp.asarray, batch)
    step = jax.jit(train_step(supervised_loss(logps), optimiser))
    indices = np.stack([batch_indices(12, 5, seed=2, step=t) for t in range(4)])
    at_once, history = jax.jit(functools.partial(scan_steps, step))(init_state(params, optimiser), data, indices)
    state, losses = init_state(params, optimiser), []
    for picked in indices:
        state, metrics = step(state, take(batch, picked))
        losses.append(summarise(metrics)["loss"])
    assert_trees_close(at_once, state, of_scale=1e-5)
    np.testing.assert_allclose(history["loss"].value(), losses, rtol=1e-5)
    assert losses[-1] < losses[0] - 0.1


def test_supervised_learning_raises_the_chosen_answers_and_ignores_the_rejected_ones() -> None:
    logps, params, batch = setting()
    spoiled = batch._replace(tokens=np.where(np.arange(3)[:, None] == 0, batch.tokens, 65).astype(np.int32))
    loss = jax.jit(supervised_loss(logps))
    mean, _ = loss(params, batch)
    assert float(mean.weight) == batch.response_mask[:, 0].sum()
    assert float(loss(params, spoiled)[0].total) == float(mean.total)
    expected = -np.where(batch.response_mask[:, 0, 1:], np.asarray(jax.jit(logps)(params, batch))[:, 0], 0).sum()
    assert float(mean.total) == pytest.approx(expected, rel=1e-5)


# --- Metrics


def made_up() -> Candidates:
    """Two prompts with K = 2, the second of which lacks its last candidate; NaN wherever a mask says no."""
    nan = jnp.nan
    policy = jnp.array([[[-1.0, -2.0], [-3.0, nan], [-4.0, -1.0]], [[-2.0, -2.5], [-1.5, -0.5], [nan, nan]]])
    reference = jnp.array([[[-1.5, -2.0], [-1.0, nan], [-4.0, -1.0]], [[-2.0, -1.0], [-2.0, -2.0], [nan, nan]]])
    response = jnp.array([[[1, 1], [1, 0], [1, 1]], [[1, 1], [1, 1], [0, 0]]], bool)
    return Candidates(policy, reference, response_mask=response, candidate_mask=jnp.array([[1, 1, 1], [1, 1, 0]], bool))


def test_metrics_are_means_over_the_candidates_that_are_there() -> None:
    came = summarise(preference_metrics(made_up()))
    assert came == pytest.approx(
        {
            "logp/chosen": (-3.0 - 4.5) / 2,
            "logp/rejected": (-3.0 - 5.0 - 2.0) / 3,
            "log_ratio/chosen": (0.5 - 1.5) / 2,
            "log_ratio/rejected": (-2.0 + 0.0 + 2.0) / 3,
            "accuracy": (1 + 1 + 0) / 3,
        }
    )


def test_metrics_of_two_batches_merge_to_those_of_both_together() -> None:
    whole = made_up()
    halves = [jax.tree.map(lambda x, i=i: x[i : i + 1], whole) for i in (0, 1)]
    merged = merge(*(preference_metrics(half) for half in halves))
    assert summarise(merged) == pytest.approx(summarise(preference_metrics(whole)))
    assert summarise(merged) != pytest.approx(
        {
            k: (summarise(preference_metrics(halves[0]))[k] + v) / 2
            for k, v in summarise(preference_metrics(halves[1])).items()
        }
    ), "means of means would be something else"
    with pytest.raises(ValueError, match="cannot be merged"):
        merge(merged, {"loss": Mean.of(jnp.ones(2))})


def test_without_a_reference_there_are_no_log_ratios() -> None:
    came = preference_metrics(made_up()._replace(reference=None))
    assert sorted(came) == ["logp/chosen", "logp/rejected"]


def test_a_state_is_a_pytree_that_knows_its_step() -> None:
    state = init_state({"w": jnp.ones(3)}, optax.adam(1e-3))
    assert isinstance(jax.tree.map(lambda x: x, state), TrainState)
    assert state.step.dtype == jnp.int32 and int(state.step) == 0


# --- References that live in the state, and parameters that are frozen


def both_ways(size: float = 0.02):
    """One step from the same parameters, with the reference's scores given and with the reference in the state."""
    logps, reference, batch = setting()
    params, method = moved(reference, size), METHODS["mio"].configure(beta=0.3)
    optimiser = optax.sgd(0.1)
    given = train_step(preference_loss(logps, method), optimiser)
    live = train_step(preference_loss(logps, method, live=logps), optimiser)
    return (
        jax.jit(given)(init_state(params, optimiser), (batch, logps(reference, batch))),
        jax.jit(live)(init_state(params, optimiser, reference=reference), (batch, None)),
        reference,
    )


def test_a_live_reference_is_a_reference_scored_before() -> None:
    (given, metrics), (live, live_metrics), reference = both_ways()
    assert_trees_close(live.params, given.params, of_scale=1e-6)
    assert summarise(live_metrics) == pytest.approx(summarise(metrics), rel=1e-5)
    for kept, began in zip(jax.tree.leaves(live.reference), jax.tree.leaves(reference), strict=True):
        np.testing.assert_array_equal(kept, began)


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.25, 2), (0.0, 3)])
def test_a_reference_follows_the_policy(decay: float, every: int) -> None:
    def loss(params, scale, anchor):
        return Mean.of(jnp.atleast_1d(scale * (params["x"] - 3.0) ** 2 + 0 * anchor["x"])), {}

    optimiser = optax.sgd(0.25)
    step = jax.jit(train_step(loss, optimiser, follow=follow_policy(decay=decay, every=every)))
    state = init_state({"x": jnp.float32(0.0)}, optimiser, reference={"x": jnp.float32(0.0)})
    x = r = 0.0
    for n in range(1, 7):
        state, _ = step(state, jnp.float32(1.0))
        x -= 0.25 * 2 * (x - 3)
        r = decay * r + (1 - decay) * x if n % every == 0 else r
        assert float(state.params["x"]) == pytest.approx(x, rel=1e-6)
        assert float(state.reference["x"]) == pytest.approx(r, rel=1e-6)


def test_frozen_parameters_stay_and_cost_no_moments() -> None:
    logps, reference, batch = setting()
    begun = moved(reference)
    params, frozen = partition(begun, lambda path: path.startswith("blocks.attention."))
    optimiser = optax.adam(1e-2)
    state = init_state(params, optimiser, frozen=frozen)
    moments = sum(x.size for x in jax.tree.leaves(state.opt_state) if x.ndim)
    assert moments == 2 * sum(x.size for x in jax.tree.leaves(params)) < 2 * sum(x.size for x in jax.tree.leaves(begun))
    step = jax.jit(train_step(preference_loss(logps, METHODS["dpo"]), optimiser))
    after, _ = step(state, (batch_of_pairs(batch), logps(reference, batch_of_pairs(batch))))
    came = dict(jax.tree_util.tree_leaves_with_path(join(after.params, after.frozen)))
    for keys, leaf in jax.tree_util.tree_leaves_with_path(begun):
        trained = "['attention']" in jax.tree_util.keystr(keys)
        assert trained != bool(np.array_equal(came[keys], leaf)), keys


def batch_of_pairs(batch: PreferenceBatch) -> PreferenceBatch:
    return jax.tree.map(lambda x: x[:, :2], batch)


def test_a_reference_that_cannot_follow_is_named() -> None:
    with pytest.raises(ValueError, match="`decay` is 1, but a finite number ≥ 0 and < 1"):
        follow_policy(decay=1)
    with pytest.raises(ValueError, match="`every` is 0"):
        follow_policy(decay=0, every=0)
