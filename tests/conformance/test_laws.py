"""What every objective of pairs, lists and single responses obeys, and which of the laws each one breaks."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_align import objectives
from tests.conformance import inputs
from tests.conformance.cases import LISTS, NAMES, seed_of

Arrays = dict[str, Any]

#: Only differences of logits matter.
LEVEL_FREE = {
    *("aot_loss", "bradley_terry_loss", "discopop_loss", "exo_loss", "exo_pair_loss", "exponential_loss", "hinge_loss"),
    *("info_nce_bound", "info_nce_loss", "plackett_luce_loss", "robust_bradley_terry_loss", "savage_loss"),
    *("squared_loss", "truncated_quadratic_loss", "weighted_info_nce_loss"),
}
#: The midpoint of two sets of logits costs at most the mean of what they cost.
CONVEX = {
    *("bco_loss", "bco_pair_loss", "bradley_terry_loss", "centring_penalty", "exponential_loss", "hinge_loss"),
    *("info_nce_loss", "mio_loss", "nca_loss", "nwj_pair_loss", "plackett_luce_loss", "robust_bradley_terry_loss"),
    *("sppo_hard_loss", "squared_loss", "truncated_quadratic_loss", "weighted_info_nce_loss", "weighted_nca_loss"),
}
#: A better positive never costs more, and a better negative never less.
MONOTONE = {
    *("apo_zero_loss", "bco_pair_loss", "exponential_loss", "hinge_loss", "info_nce_loss", "nwj_pair_loss"),
    *("savage_loss", "truncated_quadratic_loss"),
}
#: f(λ · logits, λ · lengths) = λᵖ f(logits, lengths), with the arguments that are lengths.
HOMOGENEOUS = {
    "hinge_loss": (1, {"margin"}),
    "squared_loss": (2, {"target"}),
    "sppo_hard_loss": (2, {"target"}),
    "truncated_quadratic_loss": (2, {"margin"}),
    "centring_penalty": (2, set()),
}

seeds = st.integers(0, 2**32 - 1)
a_few = settings(max_examples=15, deadline=None)
every_objective = pytest.mark.parametrize("name", NAMES)


def drawn(name: str, seed: int, regime: float | str = 3.0, **sizes: int) -> Arrays:
    """Arguments of four examples; weights and smoothings off their neutral values."""
    objective = getattr(objectives, name)
    rng = np.random.default_rng((seed_of(name), seed))
    return inputs.draw(objective, rng, regime, batch=(4,), sizes={**inputs.SIZES, **sizes})


def evaluated(name: str, arguments: Arrays) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(getattr(objectives, name)(**arguments))


def moved(arguments: Arrays, change: Callable[[str, np.ndarray], np.ndarray]) -> Arrays:
    """The arguments with their logits changed."""
    return {n: change(n, x) if n in inputs.LOGITS else x for n, x in arguments.items()}


def test_the_tables_of_laws_name_objectives() -> None:
    assert (LEVEL_FREE | CONVEX | MONOTONE | HOMOGENEOUS.keys()) <= set(NAMES)


@every_objective
@a_few
@given(seed=seeds, shift=st.integers(-50, 50).filter(bool))
def test_a_shift_of_all_logits_changes_nothing_exactly_where_only_differences_matter(
    name: str, seed: int, shift: int
) -> None:
    arguments = drawn(name, seed)
    before, after = evaluated(name, arguments), evaluated(name, moved(arguments, lambda _, x: x + shift))
    if name in LEVEL_FREE:
        np.testing.assert_array_equal(after, before)  # on the grid of `inputs.logits` the shift itself is exact
    else:
        assert (np.abs(after - before) > 1e-9 * np.abs(before)).any()


@pytest.mark.parametrize("name", sorted(set(LISTS) - {"plackett_luce_loss"}))
@a_few
@given(seed=seeds)
def test_the_order_of_candidates_changes_nothing_but_the_order_of_addition(name: str, seed: int) -> None:
    arguments = drawn(name, seed)
    order = np.random.default_rng(seed).permutation(4 if name == "aot_loss" else inputs.SIZES["K"])
    on_last_axis = {n for n, x in arguments.items() if np.ndim(x) and np.shape(x)[-1] == len(order)}
    permuted = {n: x[..., order] if n in on_last_axis else x for n, x in arguments.items()}
    np.testing.assert_allclose(
        np.sort(evaluated(name, permuted)), np.sort(evaluated(name, arguments)), rtol=1e-12, atol=1e-15
    )


def test_the_order_of_a_ranking_is_what_its_loss_is_about() -> None:
    arguments = drawn("plackett_luce_loss", 0)
    reverse = {**arguments, "scores": arguments["scores"][..., ::-1]}
    assert (evaluated("plackett_luce_loss", reverse) != evaluated("plackett_luce_loss", arguments)).all()


@pytest.mark.parametrize("name", sorted(CONVEX))
@settings(max_examples=40, deadline=None)
@given(seed=seeds)
def test_convex_losses_lie_below_their_chords(name: str, seed: int) -> None:
    assert (_bend(name, seed) <= 1e-10).all()


def _bend(name: str, seed: int) -> np.ndarray:
    """How far the loss at the midpoint of two sets of logits lies above the mean of their losses, relatively."""
    one, other = drawn(name, seed), drawn(name, seed + 1)
    other = {**one, **{n: other[n] for n in one if n in inputs.LOGITS}}
    middle = {n: (x + other[n]) / 2 if n in inputs.LOGITS else x for n, x in one.items()}
    ends = (evaluated(name, one) + evaluated(name, other)) / 2
    return (evaluated(name, middle) - ends) / np.maximum(1, np.abs(ends))


@pytest.mark.parametrize("name", sorted(set(NAMES) - CONVEX))
def test_what_is_not_listed_as_convex_is_not(name: str) -> None:
    assert max(_bend(name, seed).max() for seed in range(200)) > 1e-3


@pytest.mark.parametrize("name", sorted(MONOTONE))
@a_few
@given(seed=seeds, step=st.floats(0.01, 10))
def test_better_positives_cost_no_more_and_better_negatives_no_less(name: str, seed: int, step: float) -> None:
    arguments = drawn(name, seed)
    negative = "negatives" if "negatives" in arguments else "negative"
    before = evaluated(name, arguments)
    better = evaluated(name, {**arguments, "positive": arguments["positive"] + step})
    worse = evaluated(name, {**arguments, negative: arguments[negative] + step})
    slack = 1e-13 * np.maximum(1, np.abs(before))
    assert (better <= before + slack).all() and (worse >= before - slack).all()
    assert (better != before).any() or (before == 0).all()


@pytest.mark.parametrize("name", HOMOGENEOUS)
@a_few
@given(seed=seeds, exponent=st.integers(-4, 4).filter(bool))
def test_scaling_logits_and_lengths_scales_the_loss(name: str, seed: int, exponent: int) -> None:
    power, lengths = HOMOGENEOUS[name]
    arguments, factor = drawn(name, seed), 2.0**exponent  # a power of two: scaling is exact
    scaled = {n: factor * x if n in inputs.LOGITS | lengths else x for n, x in arguments.items()}
    np.testing.assert_array_equal(evaluated(name, scaled), factor**power * evaluated(name, arguments))


@pytest.mark.parametrize("name", sorted(set(LISTS) - {"aot_loss"}))
@a_few
@given(seed=seeds)
def test_a_masked_list_is_the_list_without_what_is_masked(name: str, seed: int) -> None:
    short, long = drawn(name, seed, K=5, n=5), drawn(name, seed, K=8, n=8)
    where = np.ones((4, 8), bool)
    where[:, np.random.default_rng(seed).choice(8, 3, replace=False)] = False
    padded = dict(short)
    for n, x in short.items():
        if np.shape(x)[-1:] == (5,):
            padded[n] = np.empty((4, 8), np.asarray(x).dtype)
            padded[n][where] = np.ravel(x)
            padded[n][~where] = long[n][~where]
    np.testing.assert_allclose(evaluated(name, {**padded, "where": where}), evaluated(name, short), rtol=1e-13)


# ------------------------------------------------------------------------------------------- the ways to call it


@every_objective
def test_jit_eager_vmap_and_any_batch_shape_are_one_function(name: str) -> None:
    objective, arguments = getattr(objectives, name), drawn(name, 0)
    shared = {n for n, axes in inputs.shapes(objective).items() if axes is None}
    varied = {n: x for n, x in arguments.items() if n not in shared}
    fixed = {n: x for n, x in arguments.items() if n in shared}
    expected = evaluated(name, arguments)
    with jax.enable_x64(True):
        reshaped = objective(**{n: x.reshape(2, 2, *x.shape[1:]) for n, x in varied.items()}, **fixed)
        with jax.disable_jit():
            eager = objective(**arguments)
        ways = {"jit": jax.jit(lambda varied: objective(**varied, **fixed))(varied), "eager": eager}
        if name != "aot_loss":  # which sorts its batch
            ways["vmap"] = jax.vmap(lambda one: objective(**one, **fixed))(varied)
            ways["reshaped"] = reshaped.reshape(4)
    for way, values in ways.items():
        np.testing.assert_allclose(values, expected, rtol=4e-15, atol=1e-300, err_msg=way)


@every_objective
def test_the_value_beside_a_derivative_is_the_value(name: str) -> None:
    """Derivatives by hand come with a value of their own."""
    objective, arguments = getattr(objectives, name), drawn(name, 0)
    smooth = {n: x for n, x in arguments.items() if jnp.issubdtype(jnp.result_type(x), jnp.floating)}
    with jax.enable_x64(True):
        value, _ = jax.jvp(lambda smooth: objective(**(arguments | smooth)), (smooth,), (smooth,))
    np.testing.assert_allclose(value, evaluated(name, arguments), rtol=4e-15, atol=1e-300)


@pytest.mark.parametrize("name", ["info_nce_loss", "info_nce_bound", "nca_loss"])
def test_vmap_over_negatives_is_one_pair_for_each(name: str) -> None:
    objective, x = getattr(objectives, name), drawn(name, 1)
    with jax.enable_x64(True):
        mapped = jax.vmap(lambda one: objective(x["positive"], one[:, None]), in_axes=-1, out_axes=-1)(x["negatives"])
        repeated = np.repeat(x["positive"][:, None], x["negatives"].shape[-1], axis=-1)
        np.testing.assert_allclose(mapped, objective(repeated, x["negatives"][..., None]), rtol=4e-15)


@every_objective
def test_half_precision_is_computed_in_float32_and_float64_is_kept(name: str) -> None:
    arguments = drawn(name, 2, 0.1)
    half = {n: jnp.asarray(x, jnp.bfloat16) if n in inputs.LOGITS else x for n, x in arguments.items()}
    rest = {n: np.asarray(x, np.float32) if np.asarray(x).dtype == float else x for n, x in half.items()}
    single = {n: x.astype(jnp.float32) if n in inputs.LOGITS else x for n, x in rest.items()}
    values = getattr(objectives, name)(**rest)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, getattr(objectives, name)(**single))
    assert evaluated(name, arguments).dtype == np.float64


@every_objective
def test_an_empty_batch_has_no_losses(name: str) -> None:
    arguments = drawn(name, 3)
    none = {n: x[:0] if np.ndim(x) else x for n, x in arguments.items()}
    assert getattr(objectives, name)(**none).shape[0] == 0


@every_objective
def test_a_sweep_over_values_compiles_once(name: str) -> None:
    objective = getattr(objectives, name)
    with jax.enable_x64(True):
        objective(**drawn(name, 4))
        compiled = objective.jitted._cache_size()
        for seed in range(5, 8):
            objective(**drawn(name, seed))
        assert objective.jitted._cache_size() == compiled


@pytest.mark.parametrize("name", ["info_nce_loss", "nca_loss", "plackett_luce_loss"])
def test_a_million_candidates_take_a_few_copies_of_themselves(name: str) -> None:
    scores = jax.ShapeDtypeStruct((2, 1_000_000), jnp.float32)
    positive = () if name == "plackett_luce_loss" else (jax.ShapeDtypeStruct((2,), jnp.float32),)
    objective = getattr(objectives, name)
    memory = jax.jit(objective).lower(*positive, scores).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 8 * 4 * 2_000_000


# ------------------------------------------------------------------------------------------------------------ errors

_PAIRS = [n for n in NAMES if "negative" in inputs.shapes(getattr(objectives, n))]


def _refuses(error: type[Exception], message: str, name: str, **changed: Any) -> None:
    with pytest.raises(error, match=message):
        getattr(objectives, name)(**{**drawn(name, 0), **changed})


@pytest.mark.parametrize("name", _PAIRS)
def test_pairs_of_unequal_shape_are_named(name: str) -> None:
    _refuses(ValueError, r"`positive` \[4.*\], `negative` \[3\].*broadcast_to", name, negative=np.zeros(3))


@every_objective
def test_integers_and_lists_are_refused_with_the_remedy(name: str) -> None:
    logits = min(n for n in inputs.shapes(getattr(objectives, name)) if n in inputs.LOGITS)
    shape = drawn(name, 0)[logits].shape
    _refuses(TypeError, rf"`{logits}` has dtype int.*astype", name, **{logits: np.zeros(shape, int)})
    _refuses(TypeError, rf"`{logits}` is a list.*jnp.asarray", name, **{logits: np.zeros(shape).tolist()})


@pytest.mark.parametrize("name", [n for n in NAMES if "negatives" in inputs.shapes(getattr(objectives, n))])
def test_no_negatives_and_those_of_another_batch_are_refused(name: str) -> None:
    _refuses(ValueError, r"`negatives` has shape \[4, 0\]: K = 0", name, negatives=np.zeros((4, 0)))
    _refuses(ValueError, r"`negatives` has shape \[3, 2\] and `positive` \[4\]", name, negatives=np.zeros((3, 2)))
    _refuses(ValueError, r"`negatives` has shape \[4\]", name, negatives=np.zeros(4))


@pytest.mark.parametrize("name", LISTS)
def test_masks_of_another_shape_or_dtype_are_refused(name: str) -> None:
    _refuses(ValueError, r"`where` has shape \[4, 9\]", name, where=np.ones((4, 9), bool))
    shape = inputs.masks(getattr(objectives, name))["where"]
    sizes = (4, *(inputs.SIZES[a] for a in shape))
    _refuses(TypeError, r"`where` has dtype float.*!= 0", name, where=np.ones(sizes))


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("bradley_terry_loss", {"label_smoothing": 0.5}, "`label_smoothing` is 0.5.*< 0.5"),
        ("bradley_terry_loss", {"label_smoothing": -0.1}, "`label_smoothing` is -0.1"),
        ("bradley_terry_loss", {"margin": float("nan")}, "`margin` is nan"),
        ("exo_pair_loss", {"label_smoothing": 0.0}, "`label_smoothing` is 0.0.*infinite"),
        ("discopop_loss", {"temperature": 0.0}, "`temperature` is 0.0"),
        ("plackett_luce_loss", {"top_k": 0}, "`top_k` is 0"),
        ("kto_loss", {"desirable_weight": -1.0}, "`desirable_weight` is -1.0"),
        ("bradley_terry_loss", {"margin": np.zeros(3)}, r"`margin` has shape \[3\]"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(name: str, wrong: Arrays, message: str) -> None:
    _refuses(ValueError, message, name, **wrong)


def test_a_law_that_is_broken_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tilt of one millionth makes InfoNCE see the level."""
    true = objectives.info_nce_loss

    @functools.wraps(true)
    def tilted(positive: Any, negatives: Any, **rest: Any) -> Any:
        return true(positive, negatives, **rest) + 1e-6 * positive

    monkeypatch.setattr(objectives, "info_nce_loss", tilted)
    with pytest.raises(AssertionError):
        test_a_shift_of_all_logits_changes_nothing_exactly_where_only_differences_matter("info_nce_loss")
