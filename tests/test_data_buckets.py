"""Batches of similar lengths: nothing is lost, little is padding, and seed and step decide."""

from __future__ import annotations

import numpy as np
import pytest

from mi_align.data import Buckets, ByteTokenizer, Preference, buckets, encode_preferences, one_pass, take, trimmed

SIZE, BATCH = 40, 4


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "WINDOW", 5)


def data(rng: np.random.Generator):
    words = ["x" * int(n) for n in rng.integers(1, 60, SIZE)]
    return encode_preferences([Preference("p", word, (word + "y",)) for word in words], ByteTokenizer())[0]


def test_each_example_comes_once_an_epoch_and_a_batch_depends_on_seed_and_step_alone(rng: np.random.Generator) -> None:
    batch = data(rng)
    run = Buckets.of(batch, "powers", batch=BATCH, seed=3, steps=20)
    order = [run.batch(step)[0] for step in range(20)]
    for epoch in (order[:10], order[10:]):
        assert sorted(np.concatenate(epoch)) == list(range(SIZE))
    again = Buckets.of(batch, "powers", batch=BATCH, seed=3, steps=20)
    np.testing.assert_array_equal(again.batch(13)[0], order[13])
    other = Buckets.of(batch, "powers", batch=BATCH, seed=4, steps=20)
    assert any(not np.array_equal(other.batch(step)[0], order[step]) for step in range(20))
    assert not np.array_equal(order[:10], order[10:])


def test_a_run_that_ends_inside_a_window_has_seen_what_it_would_have_seen_without_buckets(
    rng: np.random.Generator,
) -> None:
    batch = data(rng)
    run = Buckets.of(batch, "powers", batch=3, seed=3, steps=7)
    from mi_align.data import batch_indices

    wanted = np.concatenate([batch_indices(SIZE, 3, seed=3, step=step) for step in range(7)])
    assert sorted(np.concatenate([run.batch(step)[0] for step in range(7)])) == sorted(wanted)


def test_what_is_cut_off_is_padding_and_nothing_else(rng: np.random.Generator) -> None:
    batch = data(rng)
    run = Buckets.of(batch, (16, 24, 48), batch=BATCH, seed=0, steps=10)
    assert run.table == (16, 24, 48, batch.tokens.shape[-1])
    cut = []
    for step in range(10):
        picked, length = run.batch(step)
        whole = take(batch, picked)
        part = trimmed(whole, length)
        assert part.tokens.shape[-1] == length and length in run.table
        assert not whole.response_mask[..., length:].any()
        shorter = [n for n in run.table if n < length]
        assert not shorter or whole.response_mask[..., shorter[-1] :].any(), "a shorter length would not have done"
        cut.append(length)
    saved = 1 - sum(cut[:5]) / (5 * batch.tokens.shape[-1])
    assert f"leaves out {saved:.0%} of all positions" in str(run)
    assert saved > 0.1


def test_lengths_that_are_none_are_refused(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="`buckets` holds 1, but lengths of at least 2"):
        Buckets.of(data(rng), (1, 8), batch=2, seed=0, steps=1)
    batch = data(rng)
    assert Buckets.of(batch, (10_000,), batch=2, seed=0, steps=1).table == (batch.tokens.shape[-1],)


@pytest.mark.parametrize("size", [BATCH, 7, 64])
def test_a_pass_has_each_example_once_cut_where_nothing_but_padding_follows(
    size: int, rng: np.random.Generator
) -> None:
    batch = data(rng)
    seen, cut = [], []
    for picked, count, length in one_pass(batch, size, (16, 24, 48)):
        assert len(picked) == size and 0 < count <= size
        ends = np.flatnonzero(take(batch, picked[:count]).response_mask.any((0, 1)))
        assert length == min(n for n in (16, 24, 48, batch.tokens.shape[-1]) if n > ends[-1])
        seen += picked[:count].tolist()
        cut += [length] * count
    assert sorted(seen) == list(range(SIZE))
    assert cut == sorted(cut) and (size > SIZE or np.mean(cut) < 0.8 * batch.tokens.shape[-1])


def test_a_pass_without_buckets_keeps_the_order_and_cuts_nothing(rng: np.random.Generator) -> None:
    batch = data(rng)
    parts = list(one_pass(batch, 7))
    np.testing.assert_array_equal(np.concatenate([p.picked[: p.fresh] for p in parts]), np.arange(SIZE))
    assert {p.length for p in parts} == {batch.tokens.shape[-1]}


def test_an_example_without_responses_is_no_longer_than_any(rng: np.random.Generator) -> None:
    batch = data(rng)
    batch.response_mask[3] = False
    first, *_ = one_pass(batch, 1, (16,))
    assert first.picked.tolist() == [3] and first.length == 16
