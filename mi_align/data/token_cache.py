"""Encoded data kept on disk, under a hash of all that they depend on: texts, tokenizer and rules.

What is hashed is the content of the rows as they were read, so that a copied file, another format of the same rows or a
moved folder finds what is there, and a changed letter does not.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from mi_align.data.batches import EncodingCounts, PreferenceBatch, encode_preferences
from mi_align.data.preference import Preference
from mi_align.data.tokenizer import Tokenizer

__all__ = ["OFF", "cache_folder", "cached_encoding"]

#: In the place of a folder: nothing is kept.
OFF = "off"

#: Of the encoding's rules; a new one where the same texts become other tokens.
_VERSION = 1


def cache_folder(wanted: str | None) -> Path | None:
    """Where encoded data are kept: as wanted, else `$MI_ALIGN_CACHE`, else `~/.cache/mi_align`; None for "off"."""
    name = wanted or os.environ.get("MI_ALIGN_CACHE") or "~/.cache/mi_align"
    return None if name == OFF else Path(name).expanduser() / "tokens"


def cached_encoding(
    preferences: Sequence[Preference],
    tokenizer: Tokenizer,
    *,
    max_prompt: int,
    max_response: int,
    folder: Path | None,
    note: Callable[[str], None] = lambda text: None,
) -> tuple[PreferenceBatch, EncodingCounts]:
    """What `encode_preferences` gives, from the file of this key if there is one; otherwise encoded, and written.

    Args:
      preferences: as for `encode_preferences`.
      tokenizer: with a `fingerprint`; what one without makes is not kept.
      max_prompt: as there.
      max_response: as there.
      folder: from `cache_folder`; None keeps nothing.
      note: is told when a file was damaged and is made anew, or could not be written.
    """
    own = getattr(tokenizer, "fingerprint", None)
    if folder is None or own is None:
        return encode_preferences(preferences, tokenizer, max_prompt=max_prompt, max_response=max_response)
    rules = {"tokenizer": own, "max_prompt": max_prompt, "max_response": max_response, "version": _VERSION}
    path = folder / f"{_key(preferences, rules)}.npz"
    found = _read(path)
    if found is not None:
        return found
    if path.exists():
        note(f"{path} was damaged and is made anew")
    encoded = encode_preferences(preferences, tokenizer, max_prompt=max_prompt, max_response=max_response)
    try:
        _write(path, *encoded)
    except OSError as error:  # a full or read-only disk is no reason not to train
        note(f"encoded data were not kept: {error}")
    return encoded


def _key(preferences: Sequence[Preference], rules: dict[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(rules, sort_keys=True).encode())
    for preference in preferences:
        digest.update(json.dumps(preference).encode() + b"\n")
    return digest.hexdigest()[:32]


def _write(path: Path, batch: PreferenceBatch, counts: EncodingCounts) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: array for name, array in batch._asdict().items() if array is not None}
    partial = path.with_suffix(f".{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            np.savez(file, counts=np.array(counts), **arrays)
        partial.replace(path)  # whole or not at all
    finally:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()


def _read(path: Path) -> tuple[PreferenceBatch, EncodingCounts] | None:
    """The file's content; None where there is none, or where its checksums or its arrays are not right."""
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}  # zip files have a checksum for each array
        counts = EncodingCounts(*(int(n) for n in arrays.pop("counts")))
        return PreferenceBatch(**arrays), counts
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error):
        return None
