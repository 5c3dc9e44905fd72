"""Encoded data on disk: found where nothing has changed and only there, and never believed when damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mi_align.data import ByteTokenizer, Preference, arithmetic_preferences, cache_folder, cached_encoding, token_cache
from mi_align.data import encode_preferences as encode
from mi_align.data.hub_tokenizer import HubTokenizer, save_byte_tokenizer

DATA = [
    *arithmetic_preferences(5, negatives=2, seed=0),
    Preference("é", "日", ("a", "b"), scores=(2.0, 1.0, 0.5)),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that something is encoded."""
    made: list[int] = []
    monkeypatch.setattr(token_cache, "encode_preferences", lambda *a, **k: made.append(1) or encode(*a, **k))
    return made


def cached(data, folder: Path | None, tokenizer=None, note=lambda text: None, **limits):
    return cached_encoding(
        data, tokenizer or ByteTokenizer(), **{"max_prompt": 9, "max_response": 4} | limits, folder=folder, note=note
    )


def assert_same(came, wanted) -> None:
    for a, b in zip(came[0], wanted[0], strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
    assert came[1] == wanted[1]


@pytest.mark.parametrize(
    "data",
    [DATA, DATA[-1:], [Preference("p", "a", (), desirable=label) for label in (True, False)]],
    ids=["pairs", "scores", "labels"],
)
def test_what_is_read_is_what_was_encoded(data, tmp_path: Path, calls: list[int]) -> None:
    wanted = encode(data, ByteTokenizer(), max_prompt=9, max_response=4)
    for _ in range(2):
        assert_same(cached(data, tmp_path / "new"), wanted)
    assert len(calls) == 1
    assert [file.suffix for file in (tmp_path / "new").iterdir()] == [".npz"], "no file is left half written"


def test_everything_that_tokens_depend_on_is_in_the_key(tmp_path: Path, calls: list[int]) -> None:
    save_byte_tokenizer(tmp_path)
    cached(DATA, tmp_path)
    cached(DATA, tmp_path, max_prompt=8)
    cached(DATA, tmp_path, max_response=3)
    cached(DATA, tmp_path, HubTokenizer(tmp_path))
    cached(DATA[:-1], tmp_path)
    cached([DATA[0]._replace(chosen=DATA[0].chosen + "1"), *DATA[1:]], tmp_path)
    cached([DATA[0]._replace(rejected=DATA[0].rejected[::-1]), *DATA[1:]], tmp_path)
    cached([*DATA[:-1], DATA[-1]._replace(scores=(2.0, 1.0, 0.4))], tmp_path)
    assert len(calls) == 8
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    cached(DATA, tmp_path, HubTokenizer(tmp_path))
    assert len(calls) == 9
    cached(DATA, tmp_path, HubTokenizer(tmp_path))
    assert len(calls) == 9


@pytest.mark.parametrize("damage", ["one byte", "cut short", "another file", "emptied"])
def test_a_damaged_file_is_noticed_and_made_anew(damage: str, tmp_path: Path, calls: list[int]) -> None:
    wanted = cached(DATA, tmp_path)
    (file,) = tmp_path.glob("*.npz")
    data = bytearray(file.read_bytes())
    place = data.find(wanted[0].tokens.tobytes())
    assert place > 0
    data[place] ^= 1
    changed = {"one byte": bytes(data), "cut short": data[:-50], "another file": b"no zip file", "emptied": b""}
    file.write_bytes(changed[damage])
    notes: list[str] = []
    assert_same(cached(DATA, tmp_path, note=notes.append), wanted)
    assert notes == [f"{file} was damaged and is made anew"] and len(calls) == 2
    cached(DATA, tmp_path)
    assert len(calls) == 2


def test_a_disk_that_cannot_be_written_is_told_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    notes: list[str] = []
    assert_same(cached(DATA, tmp_path / "file", note=notes.append), cached(DATA, None))
    assert len(notes) == 1 and notes[0].startswith("encoded data were not kept: ")


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder(None) is None, "tests keep nothing"
    assert cache_folder("a") == Path("a/tokens")
    monkeypatch.setenv("MI_ALIGN_CACHE", "/b")
    assert cache_folder(None) == Path("/b/tokens") and cache_folder("off") is None
    monkeypatch.delenv("MI_ALIGN_CACHE")
    assert cache_folder(None) == Path.home() / ".cache/mi_align/tokens"
