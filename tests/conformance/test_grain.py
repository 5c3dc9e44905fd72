"""Grain reads our batches: in order, from the middle on, and ahead of time."""

from __future__ import annotations

import numpy as np
import pytest

from mi_align.data import ByteTokenizer, arithmetic_preferences, batch_indices, encode_preferences, grain_batches, take

grain = pytest.importorskip("grain")


@pytest.fixture(scope="module")
def data():
    return encode_preferences(arithmetic_preferences(11, negatives=1, seed=0), ByteTokenizer())[0]


def test_elements_are_the_batches_of_a_run(data) -> None:
    found = grain_batches(data, batch=4, seed=3, steps=7)
    assert len(found) == 7
    for step in range(7):
        wanted = take(data, batch_indices(11, 4, seed=3, step=step))
        np.testing.assert_array_equal(found[step].tokens, wanted.tokens)
        np.testing.assert_array_equal(found[step].response_mask, wanted.response_mask)
    assert not np.array_equal(grain_batches(data, batch=4, seed=4, steps=1)[0].tokens, found[0].tokens)


def test_a_stream_goes_on_from_its_state(data) -> None:
    stream = iter(grain_batches(data, batch=4, seed=3, steps=7).to_iter_dataset())
    for _ in range(3):
        next(stream)
    state, wanted = stream.get_state(), [x.tokens for x in stream]
    again = iter(grain_batches(data, batch=4, seed=3, steps=7).to_iter_dataset())
    again.set_state(state)
    assert len(wanted) == 4
    for one, other in zip(again, wanted, strict=True):
        np.testing.assert_array_equal(one.tokens, other)
