"""The table of methods as users meet it: calls, configuration, errors, extension; and each row's edge cases.

That each row computes its formula is in `conformance/test_trl_formulas.py`.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import math
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align import METHODS, Candidates, Method, critics, objectives
from mi_align.methods import Table, UnknownMethod, mean_nll, methods_table, pair

ROOT = Path(__file__).resolve().parents[1]
MANY = ("infonce_dpo", "plackett_luce_dpo", "mio", "nca", "nca_reward", "infonca", "exo")


def drawn(rng: np.random.Generator, size: int = 2, batch: int = 5, scale: float = 0.8) -> Candidates:
    """All that any row reads, for prompts with `size` candidates."""
    shape = (batch, size, 7)
    policy = -rng.exponential(1.0, shape)
    return Candidates(
        policy=jnp.asarray(policy, jnp.float32),
        reference=jnp.asarray(policy + rng.normal(0, scale, shape), jnp.float32),
        response_mask=jnp.asarray(np.arange(7) < rng.integers(2, 8, (batch, size, 1))),
        score=jnp.asarray(rng.normal(size=shape[:2]), jnp.float32),
        reward=jnp.asarray(rng.normal(size=shape[:2]), jnp.float32),
        reference_point=jnp.asarray(rng.exponential(0.3, batch), jnp.float32),
        reference_kl=jnp.asarray(rng.exponential(0.3, shape), jnp.float32),
        log_collision=jnp.asarray(-rng.exponential(0.7, shape), jnp.float32),
    )


def size_of(name: str) -> int:
    return 3 if name in ("tpo", "tpo_l") or name in MANY else 2


def pair_of(positive: float, negative: float) -> Candidates:
    """One pair with these log-ratios."""
    return Candidates.from_sequences(jnp.array([[positive, negative]]), jnp.zeros((1, 2)), length=jnp.ones((1, 2)))


# --- Calls and configuration


def test_hyper_parameters_given_to_a_call_win_over_the_configured_and_those_over_the_defaults(
    rng: np.random.Generator,
) -> None:
    candidates = drawn(rng)
    dpo = METHODS["dpo"]
    rewards = critics.log_ratio(candidates)
    for method, hyper, beta in [
        (dpo, {}, 0.1),
        (dpo.configure(beta=0.4), {}, 0.4),
        (dpo.configure(beta=0.4), {"beta": 0.7}, 0.7),
    ]:
        expected = np.log1p(np.exp(-beta * np.asarray(rewards[:, 0] - rewards[:, 1], np.float64)))
        np.testing.assert_allclose(method(candidates, **hyper), expected, rtol=1e-5)
        np.testing.assert_allclose(method.logits(candidates, **hyper), beta * rewards, rtol=1e-6)
    assert dpo.defaults == {"beta": 0.1}, "configuring changes nothing else"


@pytest.mark.parametrize(
    ("name", "hyper", "error", "message"),
    [
        ("dpo", {"betta": 0.1}, ValueError, "hyper-parameter of 'dpo' called 'betta'. Did you mean 'beta'"),
        ("simpo", {"tail_weight": 0.1}, ValueError, "hyper-parameter of 'simpo' called 'tail_weight'"),
        ("dpo", {"beta": 0.0}, ValueError, "`beta` is 0.0, but a finite number > 0 was wanted"),
        ("dpo", {"beta": math.nan}, ValueError, "`beta` is nan"),
        ("dpo", {"beta": "0.1"}, TypeError, "`beta` is '0.1', but a real number was wanted"),
        ("cdpo", {"label_smoothing": 0.5}, ValueError, "`label_smoothing` is 0.5.*≥ 0 and < 0.5"),
        ("exo_pair", {"label_smoothing": 0.0}, ValueError, "`label_smoothing` is 0.0.*> 0 and < 0.5"),
        ("rpo", {"nll_weight": -1.0}, ValueError, "`nll_weight` is -1.0"),
        ("ld_dpo", {"tail_weight": 1.5}, ValueError, "`tail_weight` is 1.5"),
        ("infonca", {"reward_temperature": 0.0}, ValueError, "`reward_temperature` is 0.0"),
        ("plackett_luce_dpo", {"top_k": 0}, ValueError, "`top_k` is 0"),
        ("tdpo2", {"kl_weight": -0.1}, ValueError, "`kl_weight` is -0.1"),
        ("dpop", {"penalty": -1}, ValueError, "`penalty` is -1"),
        ("r_dpo", {"length_penalty": -1}, ValueError, "`length_penalty` is -1"),
        ("bradley_terry", {"centring_weight": -1}, ValueError, "`centring_weight` is -1"),
        ("alpha_po", {"alpha": math.inf}, ValueError, "`alpha` is inf"),
    ],
)
def test_configure_and_calls_refuse_unknown_names_and_values_out_of_range(
    name: str, hyper: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        METHODS[name].configure(**hyper)
    with pytest.raises(error, match=message):
        METHODS[name](drawn(np.random.default_rng(0)), **hyper)
    with pytest.raises(error, match=message):
        dataclasses.replace(METHODS[name], defaults=hyper)


ALONE = [
    name
    for name, row in METHODS.items()
    if not row.couples_batch and any(isinstance(v, float) for v in row.defaults.values())
]


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("name", ALONE)
def test_one_number_an_example_is_what_each_example_alone_is_given(
    name: str, batch: int, rng: np.random.Generator
) -> None:
    """A batch of two is as long as a pair: a number an example must not be taken for a number a candidate."""
    row, candidates = METHODS[name], drawn(rng, size_of(name), batch)
    factors = np.linspace(0.7, 1.2, batch).astype(np.float32)
    hyper = {n: v * factors for n, v in row.defaults.items() if isinstance(v, float) and v}
    together = row(candidates, **hyper)
    for i in range(batch):
        one = jax.tree.map(lambda x, i=i: x[i : i + 1], candidates)
        alone = row(one, **{n: float(v[i]) for n, v in hyper.items()})
        np.testing.assert_allclose(together[i], alone[0], rtol=2e-5, atol=1e-6, err_msg=str(hyper))
    for n, v in hyper.items():
        with pytest.raises(ValueError, match=f"`{n}` has shape .* a scalar or one value an example was wanted"):
            row(candidates, **{n: np.full(batch + 1, v[0])})


def test_configuring_looks_at_arrays_on_the_device_too() -> None:
    with pytest.raises(ValueError, match=r"`beta` is -1\.0, but a finite number > 0"):
        METHODS["dpo"].configure(beta=jnp.array(-1.0))
    assert jax.jit(lambda beta: METHODS["dpo"].configure(beta=beta)(pair_of(1.0, 0.0)))(jnp.array(0.5)).shape == (1,)


def test_methods_with_arrays_among_their_numbers_compare_by_them() -> None:
    one, same, other = (METHODS["dpo"].configure(beta=np.array(b)) for b in ([0.1, 0.2], [0.1, 0.2], [0.1, 0.3]))
    assert one == same and one != other and hash(one) == hash(same)


def test_a_margin_of_ones_own_adds_to_what_annotators_said_and_a_masked_one_leaves_no_trace() -> None:
    row, scores = METHODS["bradley_terry"], jnp.array([[1.0, 0.2], [0.3, 0.1]])
    said = Candidates(score=scores, margin=jnp.array([0.1, jnp.nan]), candidate_mask=jnp.array([[1, 1], [1, 0]], bool))
    np.testing.assert_allclose(row(said, margin=0.5), [np.log1p(np.exp(0.6 - 0.8)), 0], rtol=1e-6)
    slope = jax.grad(lambda s: row(said._replace(score=s)).sum())(scores)
    assert np.isfinite(slope).all() and slope[0].all() and not slope[1].any()


def test_unknown_methods_are_answered_with_the_nearest_names_and_with_our_name_for_theirs() -> None:
    with pytest.raises(UnknownMethod, match=r"no method called 'dppo'. Did you mean 'dpo'"):
        METHODS["dppo"]
    with pytest.raises(UnknownMethod, match=r"no method called 'nca_pair': here it is 'nca'"):
        METHODS["nca_pair"]
    with pytest.raises(ValueError, match="There are: "):
        METHODS["zzzzzzzz"]
    assert "dppo" not in METHODS and METHODS.get("dppo") is None and "dpo" in METHODS
    assert METHODS.get("dpo") is METHODS["dpo"]


def test_a_table_refuses_two_rows_of_one_name() -> None:
    with pytest.raises(ValueError, match=r"two methods share a name: \['dpo'\]"):
        Table([METHODS["dpo"], METHODS["cdpo"], METHODS["dpo"]])
    assert list(Table([METHODS["cdpo"], METHODS["dpo"]])) == ["cdpo", "dpo"]


def test_several_negatives_given_to_a_pair_method_are_refused_with_the_remedy(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=r"4 candidates a prompt, but 2 were wanted.*'infonce_dpo'") as error:
        METHODS["dpo"](drawn(rng, 4))
    for name in re.findall(r"'(\w+)'", str(error.value)):
        METHODS[name](drawn(rng, 4))
    with pytest.raises(ValueError, match="3 were wanted: chosen, rejected and a gold"):
        METHODS["tpo"](drawn(rng, 2))


def test_arguments_that_are_no_candidates_are_refused() -> None:
    with pytest.raises(TypeError, match=r"`candidates` is of type ArrayImpl.*from_sequences"):
        METHODS["dpo"](jnp.ones((2, 2)))


@pytest.mark.parametrize("name", METHODS)
def test_needs_reference_is_the_truth(name: str, rng: np.random.Generator) -> None:
    candidates = drawn(rng, size_of(name))
    without = candidates._replace(reference=None)
    if METHODS[name].needs_reference:
        with pytest.raises(ValueError, match=f"`candidates.reference` is None, but '{name}' compares.*'simpo'"):
            METHODS[name](without)
    else:
        np.testing.assert_array_equal(METHODS[name](without), METHODS[name](candidates))


def test_missing_fields_are_asked_for_by_name(rng: np.random.Generator) -> None:
    for name, field in [
        ("kto", "reference_point"),
        ("infonca", "reward"),
        ("a2po", "reward"),
        ("tdpo1", "reference_kl"),
        ("wpo", "log_collision"),
        ("bradley_terry", "score"),
    ]:
        with pytest.raises(ValueError, match=f"`candidates.{field}` is None"):
            METHODS[name](drawn(rng)._replace(**{field: None}))


# --- Methods and JAX


def test_a_sweep_over_a_hyper_parameter_compiles_once(rng: np.random.Generator) -> None:
    traces = []

    def critic(candidates: Candidates, *, beta: float) -> jax.Array:
        traces.append(beta)
        return critics.implicit_reward(candidates, beta=beta)

    method = dataclasses.replace(METHODS["dpo"], critic=critic)
    candidates = drawn(rng)
    losses = [method(candidates, beta=beta) for beta in (0.1, 0.2)] + [method.configure(beta=0.3)(candidates)]
    assert len(traces) == 1
    assert len({float(x[0]) for x in losses}) == 3


def test_methods_are_constants_that_hash_compare_copy_and_pickle(rng: np.random.Generator) -> None:
    dpo, candidates = METHODS["dpo"], drawn(rng)
    assert dpo.configure(beta=0.2) == dpo.configure(beta=0.3).configure(beta=0.2) != dpo
    assert len({dpo, dpo.configure(beta=0.1), METHODS["cdpo"]}) == 2
    for twin in (pickle.loads(pickle.dumps(dpo)), copy.deepcopy(dpo)):
        assert twin == dpo and hash(twin) == hash(dpo)
    with pytest.raises(dataclasses.FrozenInstanceError):
        dpo.name = "mine"  # type: ignore[misc]
    with pytest.raises(TypeError):
        dpo.defaults["beta"] = 1.0  # type: ignore[index]
    static = jax.jit(lambda method, c: method(c), static_argnums=0)
    np.testing.assert_array_equal(static(dpo, candidates), dpo(candidates))


@pytest.mark.parametrize("name", METHODS)
def test_an_example_sees_its_batch_exactly_if_the_row_says_so(name: str, rng: np.random.Generator) -> None:
    candidates = drawn(rng, size_of(name), batch=4)
    candidates = candidates._replace(response_mask=candidates.response_mask.at[0].set(True))
    shortened = candidates._replace(response_mask=candidates.response_mask.at[1:, :, 1:].set(False))

    @jax.jit
    def looked_at(c: Candidates) -> tuple[Candidates, jax.Array, jax.Array]:
        def first(policy: jax.Array, score: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses = METHODS[name](c._replace(policy=policy, score=score))
            return losses[0], losses

        slopes, losses = jax.grad(first, argnums=(0, 1), has_aux=True)(c.policy, c.score)
        alone = losses if METHODS[name].couples_batch else jax.vmap(METHODS[name])(c)
        return slopes, losses, alone

    slopes, losses, alone = looked_at(candidates)
    coupled = any(np.any(s[1:]) for s in slopes) or float(looked_at(shortened)[1][0]) != float(losses[0])
    assert coupled == METHODS[name].couples_batch
    np.testing.assert_allclose(alone, losses, rtol=2e-5, atol=1e-6)


def test_hyper_parameters_may_be_traced_and_differentiated(rng: np.random.Generator) -> None:
    candidates = drawn(rng)

    def loss(beta: jax.Array) -> jax.Array:
        return METHODS["mio"](candidates, beta=beta)

    betas = jnp.array([0.2, 0.9])
    each = jax.vmap(loss)(betas)
    np.testing.assert_allclose(each, [loss(0.2), loss(0.9)], rtol=1e-6)
    numeric = (loss(0.51) - loss(0.49)) / 0.02
    np.testing.assert_allclose(jax.jacobian(loss)(0.5), numeric, rtol=2e-2, atol=2e-3)


# --- Where policy and reference agree

_AT_ZERO = {
    "dpo": math.log(2),
    "cdpo": math.log(2),
    "robust_dpo": math.log(2),
    "ipo": 25.0,
    "ipo_sum": 25.0,
    "hinge": 1.0,
    "gpo_exponential": 1.0,
    "gpo_truncated_quadratic": 1.0,
    "gpo_savage": 0.25,
    "exo_pair": math.log(0.5) - 0.5 * (math.log1p(-1e-3) + math.log(1e-3)),
    "discopop": 0.5 * math.log(2) + 0.5,
    "sigmoid_norm": math.log(2),
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "f_dpo_reverse_kl": math.log(2),
    "f_dpo_forward_kl": math.log(2),
    "f_dpo_js": math.log(2),
    "f_dpo_alpha": math.log(2),
    "f_dpo_alpha_trl": math.log(2),
    "dpop": math.log(2),
    "ld_dpo": math.log(2),
    "tdpo1": math.log(2),
    "tdpo2": math.log(2),
    "mi_dpo": math.log(2),
    "bco_pair": math.log(4),
    "sppo_hard": 50.0,
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "nwj_po": 1.0,
    "infonce_dpo": math.log(3),
    "plackett_luce_dpo": math.log(6),
    "mio": math.log(4),
    "nca": math.log(4),
    "nca_reward": math.log(4),
    "infonca": math.log(3),
    "apo_zero_unpaired": 0.5,
    "bco": math.log(2),
}


@pytest.mark.parametrize("name", _AT_ZERO)
def test_before_the_first_step_margins_are_exactly_zero_and_losses_exactly_their_value_there(
    name: str, rng: np.random.Generator
) -> None:
    candidates = drawn(rng, size_of(name))
    same = candidates._replace(reference=candidates.policy, reference_kl=jnp.zeros_like(candidates.policy))
    logits = METHODS[name].logits(same)
    if name == "aot":  # its two logits are samples, and what is compared is their difference
        logits = logits[:, 0] - logits[:, 1]
    np.testing.assert_array_equal(logits, 0)
    np.testing.assert_array_max_ulp(np.asarray(METHODS[name](same)), np.full(5, _AT_ZERO[name], np.float32), maxulp=2)


# --- Lists, missing candidates


def test_with_one_negative_lists_are_pairs(rng: np.random.Generator) -> None:
    candidates = drawn(rng)
    for many, two in [("infonce_dpo", "dpo"), ("plackett_luce_dpo", "dpo")]:
        np.testing.assert_allclose(METHODS[many](candidates, beta=0.3), METHODS[two](candidates, beta=0.3), rtol=1e-6)
    a, b = jnp.moveaxis(0.3 * critics.log_ratio(candidates), -1, 0)
    np.testing.assert_allclose(
        METHODS["mio"](candidates, beta=0.3),
        jax.nn.softplus(-a) + 0.5 * jax.nn.softplus(a) + 0.5 * jax.nn.softplus(b),
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", MANY)
def test_candidates_that_are_not_there_change_nothing(name: str, rng: np.random.Generator) -> None:
    four = drawn(rng, 4)
    three = jax.tree.map(lambda x: x[:, :3] if x.ndim > 1 else x, four)
    mask = jnp.broadcast_to(jnp.arange(4) < 3, (5, 4))
    spoilt = four._replace(
        candidate_mask=mask, policy=four.policy.at[:, 3].set(jnp.nan), reward=four.reward.at[:, 3].set(jnp.nan)
    )
    np.testing.assert_allclose(METHODS[name](spoilt), METHODS[name](three), rtol=1e-6)


#: Rows that go on with the candidates that are left: nothing is missing until all are.
_LEFT = ("kto", "apo_zero_unpaired", "bco", "a2po", "nca_reward", "infonca", "exo")


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("plackett_luce_dpo", "plackett_luce_reward", "sft")])
def test_an_example_without_its_pair_has_loss_zero_and_no_gradient(name: str, rng: np.random.Generator) -> None:
    candidates = drawn(rng, size := 3 if name.startswith("tpo") else 2)
    method, sorts = METHODS[name], name.startswith("aot")

    @jax.jit
    def slopes_and_losses(fields: dict, mask: jax.Array, hyper: dict) -> tuple[dict, jax.Array]:
        def total(fields: dict) -> tuple[jax.Array, jax.Array]:
            losses = method(candidates._replace(candidate_mask=mask, **fields), **hyper)
            return jnp.sum(losses), losses

        return jax.grad(total, has_aux=True)(fields)

    for gone in [slice(None)] if name in _LEFT else [0, 1]:
        mask = np.ones((5, size), bool)
        mask[2, gone] = False
        spoilt = {"policy": jnp.nan, "score": jnp.inf, "reward": jnp.nan, "reference_kl": jnp.nan}
        fields = {key: getattr(candidates, key).at[2, gone].set(value) for key, value in spoilt.items()}
        # The likelihood term goes on while its own response is there: the chosen one, or TPO's gold one.
        likelihood_stays = "nll_weight" in method.defaults and (gone == 1 or size == 3)
        hyper = {"nll_weight": 0.0 if likelihood_stays else 0.7} if "nll_weight" in method.defaults else {}
        slopes, losses = slopes_and_losses(fields, jnp.asarray(mask), hyper)
        assert np.all(np.isfinite(losses)) and (sorts or losses[2] == 0)
        for slope in slopes.values():
            assert np.all(np.isfinite(slope)) and not np.any(slope[2])


def test_rankings_count_the_places_that_are_asked_for(rng: np.random.Generator) -> None:
    candidates = drawn(rng, 4)
    s = np.asarray(METHODS["plackett_luce_dpo"].logits(candidates), np.float64)
    first = np.log(np.exp(s).sum(-1)) - s[:, 0]
    second = np.log(np.exp(s[:, 1:]).sum(-1)) - s[:, 1]
    np.testing.assert_allclose(METHODS["plackett_luce_dpo"](candidates, top_k=2), first + second, rtol=1e-5)
    np.testing.assert_allclose(METHODS["infonce_dpo"](candidates), first, rtol=1e-5)


# --- What TRL gets wrong


def test_discopop_is_right_where_trls_exponential_overflows() -> None:
    losses, slopes = [], []
    for margin in (-300.0, -1000.0):
        candidates = pair_of(margin, 0.0)
        losses.append(METHODS["discopop"](candidates, beta=1.0)[0])
        slopes.append(
            jax.grad(lambda p, c=candidates: METHODS["discopop"](c._replace(policy=p), beta=1.0)[0])(candidates.policy)
        )
    np.testing.assert_allclose(losses, [300.0, 1000.0], rtol=1e-6)
    np.testing.assert_allclose(np.stack(slopes)[:, 0, 0, 0], -1.0, rtol=1e-6)


def test_alpha_po_is_right_where_trls_probability_is_zero() -> None:
    """Mean log-probabilities of −120 and −121, α = ¼: p^(−¼) is e^30, and p is 0 in float32."""
    candidates = Candidates.from_sequences(jnp.array([[-120.0, -121.0]]), length=jnp.ones((1, 2)))
    beta = 1e-13
    margin = beta * (math.exp(30.25) - math.exp(30.0)) / 0.25
    hyper = {"beta": beta, "alpha": 0.25, "margin": 0.1}
    np.testing.assert_allclose(METHODS["alpha_po"](candidates, **hyper), math.log1p(math.exp(0.1 - margin)), rtol=1e-5)


def test_alpha_po_at_no_power_is_simpo(rng: np.random.Generator) -> None:
    candidates = drawn(rng)
    hyper = {"beta": 1.7, "margin": 0.4}
    simpo = METHODS["simpo"](candidates, **hyper)
    np.testing.assert_array_equal(METHODS["alpha_po"](candidates, alpha=0.0, **hyper), simpo)
    np.testing.assert_allclose(METHODS["alpha_po"](candidates, alpha=1e-6, **hyper), simpo, rtol=1e-5)


def test_orpo_is_right_for_responses_that_are_almost_certain() -> None:
    """u = −1e-9, v = −2e-9: the odds ratio is 2, though exp(u) and exp(v) are 1 in float32."""
    candidates = Candidates.from_sequences(jnp.array([[-1e-9, -2e-9]]), length=jnp.ones((1, 2)))
    loss = METHODS["orpo"](candidates, beta=1.0, nll_weight=0.0)
    np.testing.assert_allclose(loss, math.log1p(0.5), rtol=1e-5)
    certain = Candidates(jnp.zeros((1, 2, 3)))
    assert np.isfinite(METHODS["orpo"](certain)).all()


def test_label_smoothing_is_not_ignored_by_dpo(rng: np.random.Generator) -> None:
    candidates = drawn(rng)
    smoothed = METHODS["dpo"](candidates, label_smoothing=0.2)
    np.testing.assert_array_equal(smoothed, METHODS["cdpo"](candidates, label_smoothing=0.2))
    assert np.all(smoothed != METHODS["dpo"](candidates))


#: Rows whose true value overflows with an exponential of a log-ratio.
_EXPONENTIAL = ("gpo_exponential", "nwj_po")


@pytest.mark.parametrize("name", [n for n in METHODS if n not in _EXPONENTIAL])
def test_losses_and_gradients_are_finite_for_policies_far_from_their_reference(
    name: str, rng: np.random.Generator
) -> None:
    candidates = drawn(rng, size_of(name))
    # WPO's weight may truly overflow, where a policy is likelier than chance by more than e^88.
    candidates = candidates._replace(log_collision=jnp.zeros_like(candidates.log_collision))

    @jax.jit
    @jax.value_and_grad
    def total(policy: jax.Array, scale: jax.Array) -> jax.Array:
        far = candidates._replace(policy=scale * policy, reference=scale * candidates.reference)
        return jnp.sum(METHODS[name](far._replace(score=scale * candidates.score)))

    for scale in (1.0, 1e2, 1e3):
        value, slope = total(candidates.policy, jnp.float32(scale))
        assert np.isfinite(value) and np.all(np.isfinite(slope))


# --- The likelihood terms


def test_trls_likelihood_is_a_mean_over_the_batchs_tokens_and_ours_over_each_response(rng: np.random.Generator) -> None:
    candidates = drawn(rng)
    kept = np.asarray(candidates.response_mask[:, 0])
    surprise = -np.where(kept, candidates.policy[:, 0], 0).sum(-1)
    theirs = METHODS["cpo"](candidates, nll_weight=0.5) - METHODS["cpo"](candidates, nll_weight=0.0)
    np.testing.assert_allclose(np.mean(theirs), 0.5 * surprise.sum() / kept.sum(), rtol=1e-5)
    by_response = dataclasses.replace(METHODS["cpo"], regulariser=mean_nll, couples_batch=False)
    ours = by_response(candidates, nll_weight=0.5) - by_response(candidates, nll_weight=0.0)
    np.testing.assert_allclose(ours, 0.5 * surprise / kept.sum(-1), rtol=1e-4)


# --- Extension

_MINE = '''
import dataclasses
import jax.numpy as jnp
from mi_align import METHODS, Candidates, Method, critics
from mi_align.methods import Table, pair


def entropy_bonus(candidates: Candidates, *, beta: float, bonus: float = 0.5):
    """A critic that reads an array of its own."""
    return critics.implicit_reward(candidates, beta=beta) + bonus * candidates.extras["entropy"]


def cubic_loss(positive, negative, *, margin: float):
    return jnp.abs(margin - (positive - negative)) ** 3


MINE = Table([
    *METHODS.values(),
    Method(
        name="cubic",
        critic=entropy_bonus,
        objective=cubic_loss,
        arrange=pair,
        defaults={"beta": 0.2, "margin": 1.0},
    ),
    dataclasses.replace(METHODS["dpo"], name="sharp_dpo", defaults={"beta": 2.0}),
])
'''


def test_a_user_adds_rows_critics_and_objectives_in_a_file_of_their_own(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(_MINE)
    spec = importlib.util.spec_from_file_location("mine", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    candidates = drawn(rng)._replace(extras={"entropy": jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)})
    s = 0.2 * critics.log_ratio(candidates) + 0.25 * candidates.extras["entropy"]
    came = module.MINE["cubic"].configure(margin=0.5)(candidates, bonus=0.25)
    np.testing.assert_allclose(came, jnp.abs(0.5 - s[:, 0] + s[:, 1]) ** 3, rtol=1e-4)
    np.testing.assert_array_equal(module.MINE["sharp_dpo"](candidates), METHODS["dpo"](candidates, beta=2.0))
    with pytest.raises(ValueError, match=r"hyper-parameter of 'cubic' called 'bonnus'. Did you mean 'bonus'"):
        module.MINE["cubic"].configure(bonnus=1.0)
    with pytest.raises(ValueError, match="`margin` is inf"):
        module.MINE["cubic"].configure(margin=math.inf)
    assert "cubic" not in METHODS


def test_any_critic_trains_under_any_objective(rng: np.random.Generator) -> None:
    candidates = drawn(rng)
    odds = Method(
        name="odds_mio",
        critic=critics.log_odds,
        objective=lambda positive, negative: objectives.nca_loss(positive, negative[..., None]),
        arrange=pair,
        needs_reference=False,
    )
    s = critics.log_odds(candidates)
    np.testing.assert_allclose(odds(candidates), objectives.mio_loss(s[:, 0], s[:, 1:]), rtol=1e-6)


# --- What is written down


def test_every_loss_type_of_trls_trainers_is_found_by_its_name() -> None:
    dpo = "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop"
    names = {
        *dpo.split(),
        "sigmoid_norm",
        "sft",
        "kto",
        "apo_zero_unpaired",
        "CPO sigmoid",
        "CPO hinge",
        "CPO ipo",
        "CPO simpo",
        "CPO alpha",
    }
    names |= {"ORPO", "tpo-l", "reward", "BCO", "rpo_alpha", "sigmoid, ld_alpha", "sigmoid, use_weighting"}
    assert names <= {alias for method in METHODS.values() for alias in method.aliases}


def test_rows_say_where_they_come_from() -> None:
    assert all(method.source for method in METHODS.values())
    assert all(len(method.source) + len(method.note) < 200 for method in METHODS.values())


def test_the_written_table_has_a_row_a_method_and_the_page_has_that_table() -> None:
    written = methods_table()
    lines = written.splitlines()[2:]
    assert [re.match(r"\| `(\w+)` \|", line)[1] for line in lines] == list(METHODS)
    assert "| `dpo` | `bradley_terry_loss` of pair on `implicit_reward` | beta 0.1 | yes | sigmoid |" in written
    assert written in (ROOT / "docs" / "methods.md").read_text(), "docs/methods.md is out of date: run `make readme`"


def blocks(path: Path) -> Iterator[str]:
    yield from re.findall(r"^```python\n(.*?)^```$", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def test_the_code_of_the_extension_guide_runs_from_top_to_bottom(capsys: pytest.CaptureFixture) -> None:
    page = ROOT / "docs" / "extending.md"
    names: dict = {"__name__": "extending"}
    for block in blocks(page):
        exec(compile(block, str(page), "exec"), names)  # each block goes on where the last one stopped
    promised = re.findall(r"^ *(?:print|show)\(.*\)  # (.*)", page.read_text(), flags=re.MULTILINE)
    assert promised and capsys.readouterr().out.splitlines() == promised
