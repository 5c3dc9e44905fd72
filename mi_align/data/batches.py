"""Preferences to arrays, and which of them make up a batch: `batch = f(seed, step)`, without state.

Shapes: batch B, candidates C = 1 + K with the chosen response at 0, time T. Masks come from lengths, never from ids, so
padding may be any token.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mi_align.data.preference import Preference
from mi_align.data.tokenizer import Tokenizer

__all__ = ["EncodingCounts", "PreferenceBatch", "batch_indices", "encode_preferences", "take"]


class PreferenceBatch(NamedTuple):
    """Preferences as tokens; a pytree.

    Attributes:
      tokens: BOS, prompt, response, EOS, then padding at the right; the prompt is repeated for each candidate.
      response_mask: True on the response's tokens, its EOS included.
      candidate_mask: False for the candidates that fill up a prompt with fewer than K rejected responses.
      desirable: labels of single responses (`Preference.desirable`); None where there are none.
      reward: scores of all candidates, 0 for those that are not there; None where there are none.
      margin: by how much the chosen response was said to be better, in logits; None where nobody said.
    """

    tokens: Int[np.ndarray, "batch candidates time"]
    response_mask: Bool[np.ndarray, "batch candidates time"]
    candidate_mask: Bool[np.ndarray, "batch candidates"]
    desirable: Bool[np.ndarray, "batch candidates"] | None = None
    reward: Float[np.ndarray, "batch candidates"] | None = None
    margin: Float[np.ndarray, " batch"] | None = None


class EncodingCounts(NamedTuple):
    """What encoding did to the texts.

    Attributes:
      preferences: how many were kept.
      truncated_prompts: prompts that lost their beginning.
      truncated_responses: responses, chosen and rejected, that lost their end and with it their EOS.
      indistinct: preferences left out, as truncation made the chosen and a rejected response the same.
      merged: responses whose first token begins in the prompt, as the tokenizer has one for both.
    """

    preferences: int
    truncated_prompts: int
    truncated_responses: int
    indistinct: int
    merged: int = 0


def encode_preferences(
    preferences: Sequence[Preference],
    tokenizer: Tokenizer,
    *,
    max_prompt: int = 512,
    max_response: int = 512,
) -> tuple[PreferenceBatch, EncodingCounts]:
    """Tokenise preferences into one array each for tokens and masks.

    A prompt that is too long loses its *beginning* (what was said last matters most) and keeps BOS; a response that is
    too long loses its *end*, and then has no EOS, as it has not ended.

    Args:
      preferences: at least one.
      tokenizer: gives ids, of prompt and response as one text; a token that spans the two belongs to the response.
      max_prompt: most tokens of a prompt, BOS included.
      max_response: most tokens of a response, EOS included.

    Returns:
      The batch of all preferences, its time axis as long as the longest candidate, and what was cut.

    Raises:
      ValueError: a limit < 1, or no preference left.
    """
    for name, value in {"max_prompt": max_prompt, "max_response": max_response}.items():
        if value < 1:
            raise ValueError(f"`{name}` is {value}, but at least 1 token was wanted.")
    rows: list[list[_Pieces]] = []
    encoded: list[Preference] = []
    cut_prompts = cut_responses = indistinct = merged = 0
    for preference in preferences:
        whole = [_pieces(tokenizer, preference.prompt, text) for text in (preference.chosen, *preference.rejected)]
        kept = [_Pieces(_tail(x.prompt, max_prompt), x.response[:max_response], x.merged) for x in whole]
        compared = preference.desirable is None  # a labelled response is not compared with another
        if compared and any(np.array_equal(kept[0].response, other.response) for other in kept[1:]):
            indistinct += 1
            continue
        cut_prompts += any(len(x.prompt) > max_prompt for x in whole)
        cut_responses += sum(len(x.response) > max_response for x in whole)
        merged += sum(x.merged for x in whole)
        rows.append(kept)
        encoded.append(preference)
    if not rows:
        raise ValueError(
            f"none of {len(preferences)} preferences is left ({indistinct} had the same chosen and rejected response "
            f"within `max_response` = {max_response} tokens). Give more data or raise the limit."
        )
    counts = EncodingCounts(len(rows), cut_prompts, cut_responses, indistinct, merged)
    return _annotated(_pad(rows, tokenizer.eos_id), encoded), counts


class _Pieces(NamedTuple):
    prompt: np.ndarray
    response: np.ndarray
    merged: bool


def _pieces(tokenizer: Tokenizer, prompt: str, response: str) -> _Pieces:
    """BOS and prompt, response and EOS. The two are encoded as one text, as they will be read when the model is used.

    Where a token spans their boundary, it is the response's: the prompt is what the ids of the whole begin with, alike
    with and without a response. BOS and EOS that the texts themselves bring, as chat templates do, are not doubled.
    """
    alone, whole = tokenizer.encode(prompt), tokenizer.encode(prompt + response)
    most = min(len(alone), len(whole))
    differs = np.flatnonzero(alone[:most] != whole[:most])
    shared = int(differs[0]) if differs.size else most
    ids, answer = whole[:shared], whole[shared:]
    ids = ids[1:] if ids.size and ids[0] == tokenizer.bos_id else ids
    answer = answer[:-1] if answer.size and answer[-1] == tokenizer.eos_id else answer
    return _Pieces(np.append(tokenizer.bos_id, ids), np.append(answer, tokenizer.eos_id), shared < len(alone))


def _tail(prompt: np.ndarray, most: int) -> np.ndarray:
    """BOS and as much of the prompt's end as there is room for."""
    return prompt if len(prompt) <= most else np.append(prompt[:1], prompt[len(prompt) + 1 - most :])


def _pad(rows: Sequence[list[_Pieces]], pad_id: int) -> PreferenceBatch:
    """Ragged rows as rectangular arrays."""
    candidates = max(len(row) for row in rows)
    time = max(len(x.prompt) + len(x.response) for row in rows for x in row)
    shape = (len(rows), candidates, time)
    tokens = np.full(shape, pad_id, np.int32)
    response_mask = np.zeros(shape, bool)
    candidate_mask = np.zeros(shape[:2], bool)
    for i, row in enumerate(rows):
        for c, (prompt, response, _) in enumerate(row):
            end = len(prompt) + len(response)
            tokens[i, c, :end] = np.concatenate((prompt, response))
            response_mask[i, c, len(prompt) : end] = True
            candidate_mask[i, c] = True
    return PreferenceBatch(tokens, response_mask, candidate_mask)


def _annotated(batch: PreferenceBatch, preferences: Sequence[Preference]) -> PreferenceBatch:
    """The batch with the labels, scores and margins of its preferences, where all of them have such."""
    if all(p.desirable is not None for p in preferences):
        desirable = np.zeros(batch.candidate_mask.shape, bool)
        desirable[:, 0] = [p.desirable for p in preferences]
        batch = batch._replace(desirable=desirable)
    if all(p.scores is not None for p in preferences):
        reward = np.zeros(batch.candidate_mask.shape, np.float32)
        for i, preference in enumerate(preferences):
            scores = preference.scores or ()
            if len(scores) != 1 + len(preference.rejected):
                raise ValueError(
                    f"preference {i} has {1 + len(preference.rejected)} responses, but {len(scores)} scores: one for "
                    "each was wanted, the chosen one's first."
                )
            reward[i, : len(scores)] = scores
        batch = batch._replace(reward=reward)
    if all(p.margin is not None for p in preferences):
        batch = batch._replace(margin=np.array([p.margin for p in preferences], np.float32))
    return batch


def batch_indices(size: int, batch_size: int, *, seed: int, step: int) -> Int[np.ndarray, " batch"]:
    """Which of `size` examples make up batch number `step`: a pure function, so that resuming needs one integer.

    Every epoch is a fresh permutation drawn from (seed, epoch); batches run on across the boundary between epochs, so
    each example comes exactly once an epoch whether or not `batch_size` divides `size`.
    """
    if size < 1 or batch_size < 1 or step < 0:
        raise ValueError(
            f"`size` is {size}, `batch_size` {batch_size} and `step` {step}: ≥ 1, ≥ 1 and ≥ 0 were wanted."
        )
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), size)
    return np.concatenate([_order(size, seed, int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])


@functools.lru_cache(maxsize=4)
def _order(size: int, seed: int, epoch: int) -> Int[np.ndarray, " examples"]:
    """An epoch's permutation, kept for the steps of the epoch: of many examples it takes longer than a small step."""
    return np.random.default_rng([seed, epoch]).permutation(size)


def take(batch: PreferenceBatch, indices: Int[np.ndarray, " picked"]) -> PreferenceBatch:
    """Some examples of a batch, in the given order."""
    return batch._replace(**{name: x[indices] for name, x in batch._asdict().items() if x is not None})
