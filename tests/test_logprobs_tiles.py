"""Tile sizes: within their limit, evened out, and small where a mask has to save something."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

from mi_align.logprobs.tiles import TAIL, TILE_BYTES, choose, kept_tiles, tile_bytes

#: Vocabularies of Llama 2, GPT-2, Llama 3, Qwen 2.5, and of a byte-level toy.
VOCABULARIES = [32000, 50257, 128256, 151936, 259]


@pytest.mark.parametrize("platform", TILE_BYTES)
@pytest.mark.parametrize("vocab", VOCABULARIES)
@pytest.mark.parametrize("rows", [1, 7, 2048, 65536])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_tile_is_within_its_limit_and_the_last_one_is_not_a_sliver(
    rows: int, vocab: int, masked: bool, dtype: jnp.dtype, platform: str
) -> None:
    tiles = choose(rows, vocab, dtype, masked=masked, platform=platform)
    number = -(-vocab // tiles.vocabulary)
    assert tiles.rows * tiles.vocabulary * jnp.dtype(dtype).itemsize <= tile_bytes(platform) * 17 / 16
    assert tiles.rows <= rows and tiles.rows % tiles.tail == 0 and tiles.vocabulary <= vocab
    assert number * tiles.vocabulary - vocab <= vocab / 15, "tiles overlap in little"
    if rows >= 2048:
        assert tiles.tail <= tiles.rows / TAIL + 1
    if masked and rows >= 2048:
        assert tiles.rows <= rows / 4 and tiles.tail <= rows / 32, "half of the rows cost half of the time"


def test_tiles_are_wide_and_tall_enough_to_multiply_at_full_rate() -> None:
    """The shape of the benchmark, for which these sizes were measured."""
    assert choose(2048, 32768, jnp.float32, platform="cpu") == choose(4096, 32768, jnp.float32, platform="cpu")
    tiles = choose(2048, 32768, jnp.float32, platform="cpu")
    assert (tiles.rows, tiles.vocabulary) == (1024, 2048)


def test_a_budget_keeps_as_many_tiles_as_fit_and_no_more_than_there_are() -> None:
    tiles = choose(2048, 32000, jnp.float32, platform="cpu")
    one = 2048 * tiles.vocabulary * 4
    assert [kept_tiles(b, 2048, 32000, tiles, jnp.float32) for b in (0, one - 1, one, 3 * one + 1)] == [0, 0, 1, 3]
    assert kept_tiles(1 << 40, 2048, 32000, tiles, jnp.float32) == -(-32000 // tiles.vocabulary)
