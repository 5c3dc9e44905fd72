"""Packed batches: every token once, at its place, and the numbers of the layout without packing."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mi_align.data import (
    PackedBatch,
    PreferenceBatch,
    chosen_only,
    first_fit_decreasing,
    pack,
    plan_packing,
)
from mi_align.methods import METHODS
from mi_align.models import DecoderConfig, decoder, init_decoder
from mi_align.training import init_state, preference_loss, scorer, summarise, supervised_loss, train_step

VOCAB = 23


def written(*examples: list[tuple[list[int], list[int]]], time: int) -> PreferenceBatch:
    """A batch from (prompt, response) of each candidate; without a response a candidate is not there."""
    shape = (len(examples), max(len(candidates) for candidates in examples), time)
    tokens, mask = np.full(shape, 22, np.int32), np.zeros(shape, bool)
    for i, candidates in enumerate(examples):
        for c, (prompt, response) in enumerate(candidates):
            end = len(prompt) + len(response)
            tokens[i, c, :end] = prompt + response
            mask[i, c, len(prompt) : end] = True
    return PreferenceBatch(tokens, mask, mask.any(axis=-1))


def drawn(rng: np.random.Generator, examples: int = 8, candidates: int = 3) -> PreferenceBatch:
    """Uneven prompts and responses, some of them absent, and some prompts that differ in their last tokens."""

    def ids(low: int, high: int) -> list[int]:
        return rng.integers(0, VOCAB, rng.integers(low, high)).tolist()

    batch = []
    for i in range(examples):
        prompt, k = ids(2, 9), candidates - i % 2
        kept = [prompt[: len(prompt) - (i % 4 == 1 and c == 1)] for c in range(k)]
        if i == 2:
            kept = [ids(1, 9) for _ in range(k)]  # nothing in common
        batch.append([(p, ids(1, 8)) for p in kept])
    return written(*batch, time=18)


def packed(batch: PreferenceBatch, *, shared: bool, packs: int = 2, length: int | None = None) -> PackedBatch:
    indices = np.arange(len(batch.tokens)).reshape(packs, -1)
    return pack(batch, plan_packing([(batch, indices)], shared=shared, length=length))


# --- Rows


def test_a_group_has_its_prompt_once_and_every_branch_goes_on_from_its_end() -> None:
    batch = written([([7, 8, 9], [1, 2]), ([7, 8, 9], [3, 4, 5])], [([6, 5], [4]), ([6, 5], [3])], time=6)
    came = packed(batch, shared=True, packs=1, length=14)
    assert came.tokens.tolist() == [[[7, 8, 9, 1, 2, 3, 4, 5, 6, 5, 4, 3, 0, 0]]]
    assert came.group.tolist() == [[[1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 0, 0]]]
    assert came.branch.tolist() == [[[0, 0, 0, 1, 1, 2, 2, 2, 0, 0, 1, 2, 0, 0]]]
    assert came.positions.tolist() == [[[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 2, 0, 0]]]
    assert came.previous[came.scored].tolist() == [2, 3, 2, 5, 6, 9, 9]
    assert np.flatnonzero(came.scored).tolist() == [3, 4, 5, 6, 7, 10, 11]
    assert came.places[0].tolist() == [[0, 0, 3, 4, 0], [0, 0, 5, 6, 7]]
    assert came.places[1].tolist() == [[0, 10, 0, 0, 0], [0, 11, 0, 0, 0]]


def test_without_sharing_every_candidate_is_a_group() -> None:
    batch = written([([7, 8, 9], [1, 2]), ([7, 8, 9], [3, 4, 5])], time=6)
    came = packed(batch, shared=False, packs=1, length=11)
    assert came.tokens.tolist() == [[[7, 8, 9, 3, 4, 5, 7, 8, 9, 1, 2]]]  # the longest first
    assert came.group.tolist() == [[[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]]]
    assert came.positions.tolist() == [[[0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]]]
    assert came.previous[came.scored].tolist() == [2, 3, 4, 8, 9]


def test_prompts_that_differ_share_what_they_begin_with() -> None:
    batch = written([([7, 8, 9], [1]), ([7, 8], [9, 2])], time=4)
    came = packed(batch, shared=True, packs=1)
    assert came.tokens.tolist() == [[[7, 8, 9, 1, 9, 2]]]
    assert came.branch.tolist() == [[[0, 0, 1, 1, 2, 2]]]
    assert came.scored.tolist() == [[[False, False, False, True, True, True]]]
    assert came.previous[came.scored].tolist() == [2, 1, 4]


@pytest.mark.parametrize("shared", [True, False])
def test_every_token_of_a_response_is_scored_once_and_after_what_it_follows(
    shared: bool, rng: np.random.Generator
) -> None:
    batch = drawn(rng, examples=24)
    came = packed(batch, shared=shared, packs=3, length=70)
    wanted = batch.response_mask[..., 1:]
    assert came.scored.sum() == wanted.sum()
    pack_of = np.arange(24)[:, None, None] // 8
    found = (came.places + pack_of * came.tokens[0].size)[wanted]
    assert np.unique(found).size == wanted.sum()
    row, place = np.divmod(found, 70)
    tokens, positions, group, branch, previous, scored = (x.reshape(-1, 70) for x in came[:6])
    assert scored[row, place].all()
    assert (tokens[row, place] == batch.tokens[..., 1:][wanted]).all()
    assert (tokens[row, previous[row, place]] == batch.tokens[..., :-1][wanted]).all()
    assert (positions[row, place] == np.broadcast_to(np.arange(1, 18), wanted.shape)[wanted]).all()
    assert (group[row, place] == group[row, previous[row, place]]).all()
    before = branch[row, previous[row, place]]
    assert ((before == 0) | (before == branch[row, place])).all()


def test_the_same_batch_is_packed_alike_and_sharing_needs_fewer_places(rng: np.random.Generator) -> None:
    batch = drawn(rng)
    for first, second in zip(packed(batch, shared=True), packed(batch, shared=True), strict=True):
        assert np.array_equal(first, second) if first is not None else second is None
    places = [(packed(batch, shared=shared, length=64).group > 0).sum() for shared in (True, False)]
    assert places[0] < places[1] < batch.tokens.size


def test_first_fit_decreasing_wastes_less_than_it_may(rng: np.random.Generator) -> None:
    for _ in range(20):
        sizes = rng.integers(0, 50, 200)
        bins = first_fit_decreasing(sizes, 50)
        assert sorted(i for items in bins for i in items) == np.flatnonzero(sizes).tolist()
        loads = [sizes[items].sum() for items in bins]
        assert max(loads) <= 50
        assert len(bins) <= 11 / 9 * np.ceil(sizes.sum() / 50) + 6 / 9 + (sizes > 25).sum() / 9
    assert first_fit_decreasing(np.array([6, 5, 4, 3, 2]), 10) == [[0, 2], [1, 3, 4]]


def test_a_plan_has_room_for_the_fullest_pack_and_says_how_full_they_are() -> None:
    batch = written(*([([1], [2] * n), ([1], [3])] for n in (1, 6, 1, 6)), time=8)
    came = plan_packing([(batch, np.array([[0, 2], [1, 3]]))], shared=True)
    assert (came.rows, came.length) == (2, 8)
    assert came.fill == pytest.approx((3 + 3 + 8 + 8) / (2 * 2 * 8))
    assert plan_packing([(batch, np.array([[0, -1]]))], shared=True, length=8).fill == 3 / 8


def test_what_cannot_be_packed_is_named(rng: np.random.Generator) -> None:
    batch = written([([1], [2]), ([1], [3])], [([1, 2, 3], [4, 5]), ([1, 2, 3], [6])], time=6)
    with pytest.raises(ValueError, match=r"example 1 has a group of 6 tokens, but a row has 5 places"):
        packed(batch, shared=True, packs=1, length=5)
    plan = plan_packing([(batch, np.array([[0, 1]]))], shared=True)
    with pytest.raises(ValueError, match=r"pack 0 needs 2 rows of 6 places, but has 1"):
        pack(batch, plan._replace(rows=1))
    with pytest.raises(ValueError, match=r"2 examples, but whole packs of `examples` = 3"):
        pack(batch, plan._replace(examples=3))


# --- Scores


MODELS = {
    "grouped heads": {"kv_heads": 2},
    "windows and caps": {
        "layers": 2,
        "window": 3,
        "windowed": (True, False),
        "window_rope_base": 100.0,
        "attention_soft_cap": 4.0,
        "logit_soft_cap": 6.0,
    },
    "learned positions": {"learned_positions": 17, "norm": "layer"},
}


@functools.cache
def model(name: str, dtype: str = "float32"):
    config = DecoderConfig(vocab_size=VOCAB, width=16, heads=4, **{"layers": 1, **MODELS[name]})
    return init_decoder(config, jax.random.key(0), dtype=jnp.dtype(dtype))


def weighed(graphdef, params, batch: PreferenceBatch | PackedBatch):
    """The sum of log-probabilities with fixed, uneven weights, and they themselves."""
    values = scorer(graphdef)(params, batch)
    return jnp.sum(values * jnp.cos(jnp.arange(values.size)).reshape(values.shape)), values


values_of = jax.jit(lambda graphdef, *rest: weighed(graphdef, *rest)[1], static_argnums=0)
slopes_of = jax.jit(jax.grad(weighed, argnums=1, has_aux=True), static_argnums=0)


def furthest(came, wanted) -> float:
    """The largest difference, as a share of the largest number of its array."""
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max() / jnp.abs(b).max()), came, wanted)
    return max(jax.tree.leaves(gaps))


@pytest.mark.parametrize(
    "name", ["grouped heads", "windows and caps", pytest.param("learned positions", marks=pytest.mark.slow)]
)
def test_scores_and_gradients_are_those_without_packing(name: str, rng: np.random.Generator) -> None:
    batch = drawn(rng)
    slope, wanted = slopes_of(*model(name), batch)
    for shared in (True, False):
        also, came = slopes_of(*model(name), packed(batch, shared=shared, length=64))
        assert came.shape == wanted.shape
        assert furthest(came, wanted) < 1e-6
        assert furthest(also, slope) < 1e-5
        assert (came == 0)[~batch.response_mask[..., 1:]].all()


@pytest.mark.slow
def test_in_float64_they_are_the_same_to_its_rounding(rng: np.random.Generator, x64: None) -> None:
    batch, decoder = drawn(rng), model("windows and caps", "float64")
    wanted = slopes_of(*decoder, batch)
    came = slopes_of(*decoder, packed(batch, shared=True, length=64))
    assert came[1].dtype == jnp.float64
    assert furthest(came, wanted) < 1e-12


def _no_branches(s: decoder.Segments):
    return s.group[:, None, :] == s.group[:, :, None]


def _no_groups(s: decoder.Segments):
    return (s.branch[:, None, :] == 0) | (s.branch[:, None, :] == s.branch[:, :, None])


def _no_prompt(s: decoder.Segments):
    return _no_branches(s) & (s.branch[:, None, :] == s.branch[:, :, None])


@pytest.mark.parametrize("rule", [_no_branches, _no_groups, _no_prompt])
def test_each_rule_of_the_mask_is_needed(rule: Callable, rng: np.random.Generator, monkeypatch) -> None:
    batch = drawn(rng)
    wanted = values_of(*model("grouped heads"), batch)
    monkeypatch.setattr(decoder, "_same_path", rule)
    jax.clear_caches()
    came = values_of(*model("grouped heads"), packed(batch, shared=True, length=64))
    jax.clear_caches()
    assert furthest(came, wanted) > 1e-2


@pytest.mark.parametrize("field", ["positions", "previous"])
def test_positions_and_predecessors_of_branches_are_needed(field: str, rng: np.random.Generator) -> None:
    batch = drawn(rng)
    wanted = values_of(*model("grouped heads"), batch)
    rows = packed(batch, shared=True, length=64)
    straight = np.arange(64)[None, None] - (field == "previous")
    wrong = rows._replace(**{field: np.broadcast_to(np.maximum(straight, 0), rows.tokens.shape).astype(np.int32)})
    assert furthest(values_of(*model("grouped heads"), wrong), wanted) > 1e-3


def test_more_positions_than_were_learned_are_refused(rng: np.random.Generator) -> None:
    config = DecoderConfig(vocab_size=VOCAB, width=16, layers=1, learned_positions=16)
    graphdef, params = init_decoder(config, jax.random.key(0))
    with pytest.raises(ValueError, match="there are 17 positions, but this model has learned 16"):
        scorer(graphdef)(params, packed(drawn(rng), shared=True, length=64))


# --- Losses


def test_losses_are_those_without_packing(rng: np.random.Generator) -> None:
    batch = drawn(rng)
    graphdef, params = model("grouped heads")
    logps = functools.partial(values_of, graphdef)
    reference = 0.9 * logps(params, batch)
    rows = packed(batch, shared=True, length=64)
    for name in ("mio", "infonce_dpo"):
        loss = preference_loss(logps, METHODS[name])
        (wanted, told), (came, also) = loss(params, (batch, reference)), loss(params, (rows, reference))
        assert float(came.value()) == pytest.approx(float(wanted.value()), rel=2e-6), name
        told, also = summarise(told), summarise(also)
        assert also == pytest.approx(told, rel=1e-4, abs=1e-6)
    supervised = supervised_loss(logps)
    came, wanted = supervised(params, rows)[0], supervised(params, batch)[0]
    assert float(came.value()) == pytest.approx(float(wanted.value()), rel=1e-6)
    assert came.weight == wanted.weight == batch.response_mask[:, 0, 1:].sum() == chosen_only(rows).scored.sum()


@pytest.mark.slow
def test_micro_batches_are_cut_between_packs(rng: np.random.Generator) -> None:
    batch, optimiser = drawn(rng), optax.sgd(0.1)
    graphdef, params = model("grouped heads")
    loss = preference_loss(scorer(graphdef), METHODS["mio"])
    reference = np.full(batch.response_mask[..., 1:].shape, -2.0, np.float32)
    rows = packed(batch, shared=True, packs=4, length=64)
    whole, parts = (
        jax.jit(train_step(loss, optimiser, micro_batches=n))(init_state(params, optimiser), (x, reference))[0].params
        for n, x in ((1, batch), (2, rows))
    )
    assert furthest(parts, whole) < 1e-6
