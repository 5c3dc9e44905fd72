"""Every row of the table against TRL's (or its paper's) formula at 50 digits: values and all derivatives, to 1e-12."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align import METHODS, Candidates
from tests.conformance.trl import BY_BATCH, BY_EXAMPLE, Example
from tests.precise import Truth

BATCH, PROMPT, TIME = 4, 2, 8
#: How many candidates; two where nothing is said.
SIZES = {
    **dict.fromkeys(["infonce_dpo", "plackett_luce_dpo", "mio", "nca", "nca_reward", "infonca", "exo"], 4),
    **dict.fromkeys(["kto", "apo_zero_unpaired", "bco", "a2po", "plackett_luce_reward", "tpo", "tpo_l"], 3),
}
#: Rows whose candidates may be missing: the last one of the second example is.
PARTIAL = {name for name, size in SIZES.items() if size > 2} - {"tpo", "tpo_l"}
#: No hyper-parameter at a value where it does nothing.
HYPER = {
    "beta": 0.37,
    "label_smoothing": 0.13,
    "margin": 0.8,
    "temperature": 0.3,
    "alpha": 0.4,
    "penalty": 3.0,
    "length_penalty": 0.07,
    "tail_weight": 0.6,
    "kl_weight": 0.3,
    "nll_weight": 0.7,
    "reward_temperature": 0.9,
    "desirable_weight": 1.3,
    "undesirable_weight": 0.6,
    "shift": 0.21,
    "centring_weight": 0.05,
}
TOLERANCE = 1e-12


def hyper_of(name: str) -> dict[str, float]:
    return {key: HYPER[key] for key in METHODS[name].defaults}


@functools.cache
def drawn(name: str) -> tuple[Candidates, dict[str, list]]:
    """One batch for a row: padded arrays with NaN under every mask, and the same as ragged lists of what is there."""
    rng = np.random.default_rng(sum(map(ord, name)))
    size = SIZES.get(name, 2)
    length = rng.permuted(np.tile(np.arange(2, 2 + size), (BATCH, 1)), axis=1) + rng.integers(0, 2, (BATCH, 1))
    there = np.ones((BATCH, size), bool)
    there[1, -1] = name not in PARTIAL
    position = np.arange(TIME)
    response = (position >= PROMPT) & (position < PROMPT + length[..., None])
    counted = (position < PROMPT + length[..., None]) if name == "orpo" else response
    policy = -rng.exponential(0.7, (BATCH, size, TIME))
    tokens = {
        "policy": policy,
        "reference": policy + rng.normal(0, 0.8, policy.shape),
        "reference_kl": rng.exponential(0.5, policy.shape),
        "log_collision": -rng.exponential(0.6, policy.shape),
    }
    tokens = {key: np.where(counted & there[..., None], x, np.nan) for key, x in tokens.items()}
    per_candidate = {key: np.where(there, rng.normal(size=there.shape), np.nan) for key in ("score", "reward")}
    desirable = rng.random(there.shape) < 0.5
    margin, divergence = rng.normal(0.4, 0.3, BATCH), rng.exponential(0.4, BATCH)
    arrays = Candidates(
        **{key: jnp.asarray(x) for key, x in (tokens | per_candidate).items()},
        response_mask=jnp.asarray(response),
        candidate_mask=None if there.all() else jnp.asarray(there),
        desirable=jnp.asarray(desirable),
        margin=jnp.asarray(margin),
        reference_point=jnp.asarray(divergence),
        nll_mask=jnp.asarray(counted) if name == "orpo" else None,
    )

    def ragged(x: np.ndarray) -> list:
        return [[x[i, j][response[i, j]].tolist() for j in range(size) if there[i, j]] for i in range(BATCH)]

    lists: dict[str, list] = {key: ragged(x) for key, x in tokens.items()}
    lists |= {key: [x[i][there[i]].tolist() for i in range(BATCH)] for key, x in per_candidate.items()}
    lists["desirable"] = [desirable[i][there[i]].tolist() for i in range(BATCH)]
    lists |= {"given_margin": margin.tolist(), "divergence": divergence.tolist()}
    lists["prompt"] = tokens["policy"][:, 0, :PROMPT].tolist() if name == "orpo" else [[]] * BATCH
    return arrays, lists


@functools.cache
def truth(name: str) -> Truth:
    """The formula's losses, or their one sum where it is the batch's, with every derivative of that sum."""

    def formula(hyper: dict, data: dict) -> list:
        examples = [
            Example(
                data["policy"][i],
                data["reference"][i],
                kl=data["reference_kl"][i],
                collision=data["log_collision"][i],
                **{k: data[k][i] for k in ("score", "reward", "desirable", "given_margin", "divergence", "prompt")},
            )
            for i in range(BATCH)
        ]
        if name in BY_BATCH:
            return [BATCH * BY_BATCH[name](examples, **hyper)]
        return [BY_EXAMPLE[name](example, **hyper) for example in examples]

    return Truth(lambda **flat: formula({k: flat[k] for k in hyper_of(name)}, flat), hyper_of(name) | drawn(name)[1])


#: What derivatives are taken to.
FIELDS = ("policy", "reference", "reference_kl", "log_collision", "score")


@functools.cache
def evaluated(name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Our losses, and the derivatives of their sum to every field and hyper-parameter."""
    candidates, _ = drawn(name)

    def total(fields: dict, hyper: dict) -> tuple[jax.Array, jax.Array]:
        losses = METHODS[name](candidates._replace(**fields), **hyper)
        return jnp.sum(losses), losses

    fields = {field: getattr(candidates, field) for field in FIELDS}
    slopes, losses = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(fields, hyper_of(name))
    return np.asarray(losses), {key: np.asarray(x) for key, x in (slopes[0] | slopes[1]).items()}


def value_error(name: str, losses: np.ndarray) -> float:
    """The worst loss, relative to the largest true one; the sum's, where the formula is the batch's."""
    true = np.array([float(v) for v in truth(name).values])
    came = losses.sum(keepdims=True) if len(true) == 1 else losses
    return np.abs(came - true).max() / np.abs(true).max()


def true_slopes(name: str) -> dict[str, np.ndarray]:
    """The formula's derivatives, laid out as ours are; 0 under masks."""
    like = evaluated(name)[1]
    slopes = {key: np.zeros_like(x) for key, x in like.items()}
    for (key, *index), slope in truth(name).gradient.items():
        if key == "prompt":
            slopes["policy"][index[0], 0, index[1]] = float(slope)
        elif key in ("policy", "reference_kl", "log_collision"):
            slopes[key][index[0], index[1], PROMPT + index[2]] = float(slope)
        elif key in like and key != "reference":
            slopes[key][tuple(index)] = float(slope)
    return slopes


def test_the_formulas_cover_the_table() -> None:
    assert BY_EXAMPLE.keys() | BY_BATCH.keys() == METHODS.keys()
    assert {name for name in METHODS if METHODS[name].couples_batch} == BY_BATCH.keys()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_its_formula_in_value(name: str) -> None:
    assert value_error(name, evaluated(name)[0]) < TOLERANCE


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_its_formula_in_every_derivative_and_masks_and_references_have_none(name: str) -> None:
    ours, true = evaluated(name)[1], true_slopes(name)
    scale = max(np.abs(x).max() for key, x in true.items() if key in FIELDS)
    for key, slope in true.items():
        np.testing.assert_array_equal(ours[key][slope == 0], 0, err_msg=f"{key}, where nothing should flow")
        size = scale if key in FIELDS else np.abs(slope).max()
        np.testing.assert_allclose(ours[key], slope, rtol=0, atol=TOLERANCE * size, err_msg=key)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "hyper"), [(name, key) for name in METHODS for key in METHODS[name].defaults])
def test_a_hyper_parameter_off_by_a_hundred_millionth_is_noticed(name: str, hyper: str) -> None:
    off = hyper_of(name) | {hyper: HYPER[hyper] * (1 + 1e-8)}
    assert value_error(name, np.asarray(METHODS[name](drawn(name)[0], **off))) > 4 * TOLERANCE


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", METHODS)
def test_swapped_responses_are_noticed(name: str) -> None:
    candidates, _ = drawn(name)
    swapped = {field: getattr(candidates, field)[:, ::-1] for field in (*FIELDS, "response_mask")}
    losses = np.asarray(METHODS[name](candidates._replace(**swapped), **hyper_of(name)))
    assert not value_error(name, losses) < 1e-4


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", METHODS)
def test_float32_agrees_to_float32(name: str) -> None:
    candidates = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, drawn(name)[0])
    losses = METHODS[name](candidates, **hyper_of(name))
    assert losses.dtype == jnp.float32
    # Inputs were rounded to 6e-8; β and the lengths carry that to at most a few tens of it.
    assert value_error(name, np.asarray(losses, np.float64)) < 5e-6
