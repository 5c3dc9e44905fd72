"""The reference's log-probabilities, scored once and kept on disk, so that training holds one model.

They are kept a token, under a key of all that they depend on: parameters, tokens and masks, and how they are scored.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from mi_align.data import PreferenceBatch, one_pass, take, trimmed
from mi_align.training.hosts import fetch, is_first, wait_for_all
from mi_align.training.parts import Params, path_of
from mi_align.training.scoring import TokenLogps

__all__ = ["cached_reference", "fingerprint", "score_all"]


def fingerprint(tree: Any) -> str:
    """A hash of a pytree's arrays, their names, shapes and types."""
    digest = hashlib.sha256()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = fetch(leaf)
        digest.update(f"{path_of(keys)} {array.dtype.name} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def score_all(
    logps: TokenLogps,
    params: Params,
    data: PreferenceBatch,
    *,
    batch: int,
    buckets: Sequence[int] | str | None = None,
    tick: Callable[[float], None] = lambda share: None,
) -> Float[np.ndarray, "examples candidates time-1"]:
    """log π of every response token of a data set, `batch` examples at a time, cut to buckets where there are some."""
    *examples, longest = data.tokens.shape
    scores, done = np.zeros(()), 0
    # The last batch is full like the others: one program, and the rounding of training's own batches.
    for picked, count, length in one_pass(data, batch, buckets):
        came = fetch(logps(params, trimmed(take(data, picked), length)))
        scores = scores if done else np.zeros((*examples, longest - 1), came.dtype)
        scores[picked[:count], :, : length - 1] = came[:count]
        done += count
        tick(done / len(data.tokens))
    return scores


def cached_reference(
    logps: TokenLogps,
    params: Params,
    data: PreferenceBatch,
    *,
    batch: int,
    buckets: Sequence[int] | str | None = None,
    folder: Path,
    rules: Mapping[str, Any],
    tick: Callable[[float], None] = lambda share: None,
) -> Float[np.ndarray, "examples candidates time-1"]:
    """What `score_all` gives, from the file of this key if there is one; otherwise scored, and written.

    Args:
      logps: from `scorer`, compiled.
      params: the reference's.
      data: everything that is to be scored.
      batch: examples at a time. As many as in training, and what is read here equals a live reference but for the last
        bit of a few tokens: the compiler fuses, and so rounds, another program otherwise.
      buckets: lengths to which batches are cut, as in `data.Buckets.of`.
      folder: of the cache.
      rules: what else the numbers depend on, of JSON's types; part of the key.
      tick: is told which share has been scored.
    """
    key = {"params": fingerprint(params), "data": fingerprint(data), "batch": batch, "buckets": buckets, **rules}
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / f"reference-{name}.npy"
    found = _read(path, (*data.tokens.shape[:-1], data.tokens.shape[-1] - 1))
    if found is not None:
        return found
    wait_for_all(f"looked for {path.name}")  # before the first host writes it: all have to score, or none
    scores = score_all(logps, params, data, batch=batch, buckets=buckets, tick=tick)
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        with partial.open("wb") as file:
            np.save(file, scores)
        partial.replace(path)  # whole or not at all
    return scores


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The file's array; None where there is none, or it is not whole."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found if found.shape == shape else None
