"""Tiles against NumPy in float64: values, gradients, statistics; and what a mask, a budget or a filter saves."""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.logprobs import Tiles, TokenStatistics, chunked, token_logps, token_statistics

FIELDS = ("logp", "log_normaliser", "entropy", "mean_logit", "sum_squares")
SMALL = Tiles(rows=8, tail=2, vocabulary=24)


class Case(NamedTuple):
    """A problem in the numbers that float32 or bfloat16 can hold, as float64."""

    hidden: np.ndarray
    vocabulary: np.ndarray
    bias: np.ndarray
    targets: np.ndarray
    where: np.ndarray
    cotangents: np.ndarray
    hyper: dict[str, float]


def draw(rng: np.random.Generator, dtype: Any, rows: int = 37, vocab: int = 101, features: int = 9, **hyper: float):
    def number(*shape: int) -> np.ndarray:
        return np.asarray(jnp.asarray(rng.normal(size=shape).astype(np.float32), dtype), np.float64)

    return Case(
        hidden=number(rows, features) * 2,
        vocabulary=number(vocab, features),
        bias=number(vocab),
        targets=rng.integers(0, vocab, rows).astype(np.int32),
        where=rng.random(rows) < 0.6,
        cotangents=rng.normal(size=(len(FIELDS), rows)),
        hyper=hyper,
    )


def exact(case: Case) -> tuple[TokenStatistics, tuple[np.ndarray, ...]]:
    """Every statistic, and the gradients of Σ cotangents · statistics in hidden, vocabulary, bias: plain formulas."""
    scale, cap, temperature = (case.hyper.get(k, 1.0) for k in ("logit_scale", "soft_cap", "temperature"))
    u = scale * case.hidden @ case.vocabulary.T + case.bias
    bent = cap * np.tanh(u / cap) if "soft_cap" in case.hyper else u
    slope = (1 - np.tanh(u / cap) ** 2 if "soft_cap" in case.hyper else np.ones_like(u)) / temperature
    z = bent / temperature
    vocab = z.shape[1]
    normaliser = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1)
    p = np.exp(z - normaliser[:, None])
    onehot = np.arange(vocab) == case.targets[:, None]
    entropy, squares = -(p * np.log(p)).sum(1), (p * p).sum(1)
    logp = (onehot * z).sum(1) - normaliser
    values = TokenStatistics(logp, normaliser, entropy, z.mean(1), squares, z.argmax(1) == case.targets)
    slopes = [onehot - p, p, -p * (np.log(p) + entropy[:, None]), np.full_like(p, 1 / vocab)]
    slopes.append(2 * p * (p - squares[:, None]))
    weights = np.where(case.where, case.cotangents, 0)
    d_u = sum(w[:, None] * s for w, s in zip(weights, slopes, strict=True)) * slope
    values = TokenStatistics(*(np.where(case.where, x, 0) for x in values))
    return values, (scale * d_u @ case.vocabulary, scale * d_u.T @ case.hidden, d_u.sum(0))


def differentiated(case: Case, **options: Any) -> Any:
    """(hidden, vocabulary, bias) -> gradients of Σ cotangents · statistics, and the statistics."""

    def total(hidden: jax.Array, vocabulary: jax.Array, bias: jax.Array) -> tuple[jax.Array, TokenStatistics]:
        came = token_statistics(hidden, vocabulary, case.targets, bias=bias, where=case.where, **case.hyper, **options)
        return sum(jnp.sum(jnp.asarray(c, x.dtype) * x) for c, x in zip(case.cotangents, came, strict=False)), came

    return jax.grad(total, (0, 1, 2), has_aux=True)


def ours(case: Case, dtype: Any, **options: Any) -> tuple[TokenStatistics, tuple[np.ndarray, ...]]:
    slopes, came = quickly_compiled(differentiated(case, **options))(*arguments(case, dtype)[:3])
    return came, slopes


def worst(came: Any, wanted: Any) -> float:
    return float(np.max(np.abs(np.asarray(came, np.float64) - np.asarray(wanted, np.float64))))


def quickly_compiled(function: Any) -> Any:
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def assert_as_exact_as_plain(came: Any, plain: Any, wanted: Any, of: float) -> None:
    """No more than 1.5 times the plain way's error; below a few roundings of the numbers added up the two are one."""
    eps = float(jnp.finfo(came.dtype).eps)
    assert worst(came, wanted) <= 1.5 * worst(plain, wanted) + 4 * eps * of


SETTINGS: dict[str, dict[str, float]] = {
    "plain": {},
    "capped": {"soft_cap": 3.0},
    "warm": {"temperature": 0.7, "logit_scale": 1.3},
    "all": {"soft_cap": 4.0, "temperature": 1.7, "logit_scale": 0.6},
}


@pytest.mark.parametrize(
    "dtype, setting",
    [("float32", "plain"), ("float32", "capped"), ("float32", "all"), ("bfloat16", "warm"), ("float64", "all")],
)
def test_every_statistic_and_gradient_is_as_exact_as_the_plain_way(
    dtype: str, setting: str, rng: np.random.Generator
) -> None:
    with jax.enable_x64(dtype == "float64"):
        case = draw(rng, dtype, **SETTINGS[setting])
        wanted, slopes = exact(case)
        came, plain = (ours(case, dtype, **k) for k in ({"tiles": SMALL}, {"implementation": "reference"}))
        largest = float(np.abs(case.hidden @ case.vocabulary.T).max())
        for field in FIELDS:
            values = (getattr(x, field) for x in (came[0], plain[0], wanted))
            assert_as_exact_as_plain(*values, of=largest)
        np.testing.assert_array_equal(came[0].hit, wanted.hit)
        for one, other, third in zip(came[1], plain[1], slopes, strict=True):
            # ∂entropy/∂z = p·(a + b·z): terms |z| times larger than their sum
            assert_as_exact_as_plain(one, other, third, of=max(1.0, largest) * float(np.abs(third).max()))
            assert one.dtype == jnp.dtype(dtype)


@pytest.mark.parametrize("rows, vocab, tiles", [
    (37, 120, SMALL),  # divides
    (37, 101, Tiles(16, 16, 101)),  # one tile of the vocabulary
    (1, 101, None),  # T = 1
    (40, 7, SMALL),  # a vocabulary smaller than a tile
    (9, 97, Tiles(1, 1, 1)),
    (5, 50257, Tiles(4, 1, 2048)),
    (6, 32000, None),
])  # fmt: skip
def test_no_size_has_to_divide_another(rows: int, vocab: int, tiles: Tiles | None, x64: None, seed: int) -> None:
    case = draw(np.random.default_rng(seed), "float64", rows, vocab, soft_cap=5.0)
    case = case._replace(where=np.arange(rows) % 3 != 1)
    (values, slopes), (came, d) = exact(case), ours(case, "float64", tiles=tiles)
    for field in FIELDS:
        np.testing.assert_allclose(getattr(came, field), getattr(values, field), rtol=1e-12, atol=1e-12)
    for one, other in zip(d, slopes, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("field", FIELDS)
def test_each_statistic_has_its_own_gradient(field: str, x64: None, rng: np.random.Generator) -> None:
    case = draw(rng, "float64", soft_cap=4.0)
    case = case._replace(cotangents=case.cotangents * (np.array(FIELDS) == field)[:, None])
    for one, other in zip(ours(case, "float64", tiles=SMALL)[1], exact(case)[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)
        assert np.abs(other).max() > 1e-3


def logp_loss(case: Case, **options: Any) -> Any:
    def loss(hidden: jax.Array, vocabulary: jax.Array, bias: jax.Array, scale: jax.Array) -> jax.Array:
        hyper = {**case.hyper, "logit_scale": scale}
        came = token_logps(hidden, vocabulary, case.targets, where=case.where, bias=bias, **hyper, **options)
        return jnp.sum(jnp.asarray(case.cotangents[0], came.dtype) * came)

    return loss


def arguments(case: Case, dtype: Any = "float64") -> list[jax.Array]:
    return [jnp.asarray(x, dtype) for x in (case.hidden, case.vocabulary, case.bias, 1.3)]


def test_any_choice_of_what_is_differentiated_gives_the_plain_gradients(x64: None, rng: np.random.Generator) -> None:
    case = draw(rng, "float64", soft_cap=4.0, temperature=1.5)
    everything = jax.grad(logp_loss(case, implementation="reference"), (0, 1, 2, 3))(*arguments(case))
    for wrt in [(0,), (1,), (3,), (0, 1, 2, 3)]:
        tiled = quickly_compiled(jax.grad(logp_loss(case, tiles=Tiles(4, 4, 24)), wrt))(*arguments(case))
        for index, came in zip(wrt, tiled, strict=True):
            np.testing.assert_allclose(came, everything[index], rtol=1e-11, atol=1e-13)


def products(function: Any, *inputs: Any) -> int:
    """How many matrix products over the features or the vocabulary a program holds."""

    def count(jaxpr: Any) -> int:
        number = 0
        for equation in jaxpr.eqns:
            number += equation.primitive.name == "dot_general"
            number += sum(count(sub) for sub in jax.extend.core.jaxprs_in_params(equation.params))
        return number

    return count(jax.make_jaxpr(function)(*inputs).jaxpr)


def test_only_what_is_needed_is_multiplied(rng: np.random.Generator) -> None:
    case = draw(rng, "float32", rows=16, vocab=48)._replace(where=None)
    inputs, whole = arguments(case, "float32"), Tiles(rows=16, tail=16, vocabulary=48)
    small = {"tiles": whole, "memory_budget": 0}
    assert products(logp_loss(case, **small), *inputs) == 1
    assert products(jax.grad(logp_loss(case, **small), (0, 1, 2)), *inputs) == 4
    assert products(jax.grad(logp_loss(case, **small), (1, 2)), *inputs) == 3
    assert products(jax.grad(logp_loss(case, **small), 0), *inputs) == 2, "a frozen head"
    assert products(jax.grad(logp_loss(case, tiles=whole), (0, 1, 2)), *inputs) == 3, "logits that fit are kept"
    assert products(jax.grad(jax.jit(logp_loss(case, **small)), 0), *inputs) == 2, "seen through `jit`"


def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the tiles that forward and backward passes really visit while running."""
    visits = {"absorb": 0, "push": 0}

    def watch(name: str) -> None:
        plain = getattr(chunked, name)

        def watched(*args: Any) -> Any:
            size = args[1].shape[0] if name == "absorb" else args[0].shape[0]
            jax.debug.callback(lambda: visits.__setitem__(name, visits[name] + size))
            return plain(*args)

        monkeypatch.setattr(chunked, name, watched)

    watch("absorb")
    watch("push")
    return visits


def test_rows_under_the_mask_are_not_visited(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    case = draw(rng, "float32", rows=64, vocab=48)
    inputs, visits = arguments(case, "float32"), counted(monkeypatch)
    tiles = Tiles(rows=8, tail=2, vocabulary=16)  # sizes that no other test has, so that no trace is found ready

    @quickly_compiled
    def slopes(where: jax.Array, *inputs: jax.Array) -> Any:
        return jax.grad(logp_loss(case._replace(where=where), tiles=tiles), (0, 1, 2))(*inputs)

    for kept, visited in [(32, 32), (64, 64), (33, 34), (1, 2), (0, 0), (15, 16)]:
        visits.update(absorb=0, push=0)
        jax.block_until_ready(slopes(jnp.asarray(rng.permutation(64) < kept), *inputs))
        jax.effects_barrier()
        assert visits == {"absorb": 3 * visited, "push": 3 * visited}


@pytest.mark.parametrize("eps, skipped", [(None, 0), (1e-9, 1), (0.4, 2)])
def test_the_filter_skips_tiles_without_probability_and_errs_by_no_more_than_its_eps(
    eps: float | None, skipped: int, monkeypatch: pytest.MonkeyPatch, x64: None, rng: np.random.Generator
) -> None:
    """Tile 0 has the targets, tile 1 up to a third of the probability, tile 2 below e⁻³⁰."""
    case = draw(rng, "float64", rows=8, vocab=48)._replace(where=np.ones(8, bool), targets=np.arange(8) % 16)
    level = np.repeat([0.0, -1.0, -40.0], 16)
    case = case._replace(hidden=case.hidden * 0.1, bias=level)
    visits = counted(monkeypatch)
    loss = logp_loss(case, tiles=Tiles(8, 8, 16), filter_eps=eps)  # sizes that no other test has
    came = jax.block_until_ready(quickly_compiled(jax.grad(loss, (0, 1, 2)))(*arguments(case)))
    jax.effects_barrier()
    assert visits == {"absorb": 3 * 8, "push": (3 - skipped) * 8}
    plain = jax.grad(logp_loss(case, implementation="reference"), (0, 1, 2))(*arguments(case))
    bound = 0 if eps is None else eps * np.abs(case.cotangents[0])
    left_out = 1e-13 + np.sum(bound)  # of each entry of the bias's gradient: a sum over rows
    assert worst(came[2], plain[2]) <= left_out
    assert (worst(came[2], plain[2]) > 1e-6) == (skipped == 2)


@pytest.mark.parametrize("budget", [0, 3 * 38 * 24 * 8])
def test_a_memory_budget_changes_no_gradient(budget: int, x64: None, rng: np.random.Generator) -> None:
    case = draw(rng, "float64", soft_cap=4.0, temperature=1.5)
    came = ours(case, "float64", tiles=SMALL, memory_budget=budget)[1]
    for one, other in zip(came, exact(case)[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)


def test_memory_stays_below_the_logits_and_grows_by_the_budget_at_most() -> None:
    rows, vocab, features = 512, 4096, 16
    hidden, vocabulary = jnp.ones((rows, features)), jnp.ones((vocab, features))
    targets = jnp.zeros(rows, jnp.int32)

    def temporary(**options: Any) -> int:
        def loss(h: jax.Array, v: jax.Array, t: jax.Array) -> jax.Array:
            return token_logps(h, v, t, **options).sum()

        program = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, vocabulary, targets).compile()
        return program.memory_analysis().temp_size_in_bytes

    logits, tiles = rows * vocab * 4, Tiles(rows=128, tail=128, vocabulary=256)
    lean = temporary(tiles=tiles, memory_budget=0)
    assert lean < 10 * 128 * 256 * 4 < logits
    assert lean + logits / 4 <= temporary(tiles=tiles, memory_budget=logits // 2) < lean + 0.6 * logits
    assert temporary(implementation="reference") > logits, "the measure sees logits where there are some"


def test_jit_grad_checkpoint_vmap_and_scan_agree(x64: None, rng: np.random.Generator) -> None:
    case = draw(rng, "float64")
    inputs, loss = arguments(case), logp_loss(case, tiles=Tiles(4, 4, 24))
    wanted = jax.grad(loss, (0, 1))(*inputs)

    def over_scan(*inputs: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda total, _: (total + loss(*inputs) / 2, None), jnp.zeros(()), None, length=2)[0]

    for way in (loss, jax.jit(loss), jax.checkpoint(loss), over_scan):
        came = quickly_compiled(jax.grad(way, (0, 1)))(*inputs)
        for one, other in zip(came, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)


def test_vmap_is_a_loop_also_where_masks_differ(x64: None, rng: np.random.Generator) -> None:
    hidden, vocabulary = jnp.asarray(rng.normal(size=(3, 11, 5))), jnp.asarray(rng.normal(size=(29, 5)))
    targets, where = jnp.asarray(rng.integers(0, 29, (3, 11))), jnp.asarray(rng.random((3, 11)) < [[0.2], [0.5], [1]])
    tiles = Tiles(2, 2, 8)

    def one(h: jax.Array, t: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.value_and_grad(lambda h: jnp.sum(token_logps(h, vocabulary, t, where=w, tiles=tiles) ** 2))(h)

    mapped = quickly_compiled(jax.vmap(one))(hidden, targets, where)
    looped = [one(*x) for x in zip(hidden, targets, where, strict=True)]
    for came, wanted in zip(mapped, zip(*looped, strict=True), strict=True):
        np.testing.assert_allclose(came, np.stack(wanted), rtol=1e-12, atol=1e-14)


def test_whatever_lies_under_the_mask_leaves_no_trace_in_any_statistic(rng: np.random.Generator) -> None:
    case = draw(rng, "float32", soft_cap=4.0)
    where = case.where[:, None]

    @quickly_compiled
    def both(hidden: jax.Array, targets: jax.Array) -> Any:
        _, *others = arguments(case, "float32")[:3]
        return differentiated(case._replace(targets=targets), tiles=SMALL)(hidden, *others)

    clean = both(jnp.asarray(case.hidden, jnp.float32), jnp.asarray(case.targets))
    for filler in (np.nan, np.inf, -1e30):
        hidden = jnp.asarray(np.where(where, case.hidden, filler), jnp.float32)
        dirty = both(hidden, jnp.asarray(np.where(case.where, case.targets, -100)))
        jax.tree.map(np.testing.assert_array_equal, clean, dirty)
        assert not np.asarray(dirty[0][0])[~case.where].any()


def test_nothing_kept_is_zero_with_zero_gradient(rng: np.random.Generator) -> None:
    case = draw(rng, "float32")
    came = ours(case._replace(where=np.zeros(37, bool)), "float32", tiles=SMALL)
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(came))


def test_a_bias_of_minus_infinity_removes_an_entry(x64: None, rng: np.random.Generator) -> None:
    case = draw(rng, "float64", vocab=50)._replace(targets=rng.integers(0, 40, 37))
    padded = case._replace(bias=np.where(np.arange(50) < 40, case.bias, -np.inf))
    shorter = case._replace(vocabulary=case.vocabulary[:40], bias=case.bias[:40])
    tiles = Tiles(8, 2, 9)  # the last one holds removed entries alone
    used = np.array(FIELDS) != "mean_logit"  # which is −inf here
    padded, shorter = (x._replace(cotangents=x.cotangents * used[:, None]) for x in (padded, shorter))
    long, short = (
        quickly_compiled(jax.grad(functools.partial(_without_mean, x.cotangents[used], x, tiles), (0, 1, 2)))(
            *arguments(x)[:3]
        )
        for x in (padded, shorter)
    )
    np.testing.assert_allclose(long[0], short[0], rtol=1e-11, atol=1e-13)
    for whole, part in zip(long[1:], short[1:], strict=True):
        np.testing.assert_allclose(whole[:40], part, rtol=1e-11, atol=1e-13)
        assert not np.asarray(whole[40:]).any()


def _without_mean(weights: np.ndarray, case: Case, tiles: Tiles, *inputs: jax.Array) -> jax.Array:
    hidden, vocabulary, bias = inputs
    came = token_statistics(hidden, vocabulary, case.targets, where=case.where, bias=bias, tiles=tiles)
    used = (came.logp, came.log_normaliser, came.entropy, came.sum_squares)
    return sum(jnp.sum(w * x) for w, x in zip(weights, used, strict=True))


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_of_equal_logits_the_first_is_the_hit(implementation: str) -> None:
    vocabulary = jnp.zeros((60, 3)).at[7].set(1.0).at[31].set(1.0)
    came = token_statistics(
        jnp.ones((4, 3)), vocabulary, jnp.array([7, 31, 0, 59]), implementation=implementation, tiles=SMALL
    )
    assert came.hit.tolist() == [True, False, False, False]
    flat = token_statistics(jnp.zeros((2, 3)), vocabulary, jnp.array([0, 30]), implementation=implementation)
    assert flat.hit.tolist() == [True, False]


@pytest.mark.parametrize("outside", [-1, 101])
def test_under_jit_a_target_outside_the_vocabulary_is_nan_in_its_logp_alone(
    outside: int, rng: np.random.Generator
) -> None:
    case = draw(rng, "float32")
    targets = jnp.asarray(case.targets).at[5].set(outside)
    hidden, vocabulary = jnp.asarray(case.hidden, jnp.float32), jnp.asarray(case.vocabulary, jnp.float32)
    came = jax.jit(functools.partial(token_statistics, tiles=SMALL))(hidden, vocabulary, targets)
    assert np.flatnonzero(np.isnan(came.logp)).tolist() == [5]
    assert all(np.isfinite(x).all() for x in came[1:]) and not came.hit[5]


def test_targets_that_are_constants_of_a_program_are_looked_at_too() -> None:
    hidden, vocabulary = jnp.ones((2, 3)), jnp.ones((4, 3))
    assert jax.jit(lambda h: token_logps(h, vocabulary, jnp.array([1, 3])))(hidden).shape == (2,)
    beyond = jnp.array([1, 4])
    with pytest.raises(ValueError, match="`targets` holds 4"):
        jax.jit(lambda h: token_logps(h, vocabulary, beyond))(hidden)


def test_wrong_options_are_named() -> None:
    hidden, vocabulary, targets = jnp.ones((2, 3)), jnp.ones((4, 3)), jnp.array([0, 1])
    call = functools.partial(token_logps, hidden, vocabulary, targets)
    with pytest.raises(ValueError, match=r"no implementation called 'chunk'. Did you mean 'chunked'"):
        call(implementation="chunk")
    with pytest.raises(ValueError, match=r"`bias` has shape \[3\] and `vocabulary` \[4, 3\], but \[4\] was wanted"):
        call(bias=jnp.ones(3))
    for name, value in {"temperature": 0.0, "soft_cap": -1.0, "memory_budget": -1, "filter_eps": 1.0}.items():
        with pytest.raises(ValueError, match=f"`{name}` is {value}"):
            call(**{name: value})
    with pytest.raises(ValueError, match="a `tail` that divides `rows`"):
        Tiles(rows=6, tail=4, vocabulary=8)
    with pytest.raises(ValueError, match="`soft_cap`, or `temperature` beside one, is being differentiated"):
        jax.grad(lambda cap: call(soft_cap=cap).sum())(2.0)


def test_policy_and_reference_on_one_head_are_one_call_and_the_reference_a_constant(
    x64: None, rng: np.random.Generator
) -> None:
    case = draw(rng, "float64")
    hidden, vocabulary, *_ = arguments(case, "float64")
    other, targets, where = jnp.asarray(rng.normal(size=hidden.shape)), jnp.asarray(case.targets), case.where

    def together(hidden, vocabulary):
        both = jnp.stack([hidden, other])
        policy, reference = token_logps(
            both, vocabulary, jnp.stack([targets] * 2), where=jnp.stack([where] * 2), tiles=SMALL
        )
        return jnp.sum(jnp.square(policy - jax.lax.stop_gradient(reference)))

    def apart(hidden, vocabulary):
        policy, reference = (token_logps(h, vocabulary, targets, where=where) for h in (hidden, other))
        return jnp.sum(jnp.square(policy - jax.lax.stop_gradient(reference)))

    came, wanted = (jax.value_and_grad(f, (0, 1))(hidden, vocabulary) for f in (together, apart))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), came, wanted)


@pytest.mark.parametrize(
    "options", [{}, {"tiles": SMALL, "memory_budget": 2000}, {"tiles": SMALL, "filter_eps": 1e-30}]
)
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_calls_of_one_program_that_are_frozen_differently_keep_their_gradients_apart(
    options: dict[str, Any], order: tuple[int, ...], x64: None, rng: np.random.Generator
) -> None:
    """Both trained, a frozen head, a frozen body: JAX traces one program for all, and remembers things of it."""
    case = draw(rng, "float64")
    hidden, vocabulary, *_ = arguments(case, "float64")
    weights = jnp.asarray(rng.normal(size=(3, hidden.shape[0])))

    def total(hidden: jax.Array, vocabulary: jax.Array, implementation: str, **options: Any) -> jax.Array:
        still = jax.lax.stop_gradient
        kinds = [(hidden, vocabulary), (hidden, still(vocabulary)), (still(hidden), vocabulary)]
        calls = (
            jnp.sum(weights[n] * token_logps(*kinds[n], case.targets, implementation=implementation, **options))
            for n in order
        )
        return sum(calls, jnp.zeros(()))

    came = jax.grad(total, (0, 1))(hidden, vocabulary, "chunked", **options)
    wanted = jax.grad(total, (0, 1))(hidden, vocabulary, "reference")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), came, wanted)
