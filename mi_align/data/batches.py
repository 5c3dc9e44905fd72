"""Preferences to arrays, and which of them make up a batch: `batch = f(seed, step)`, without state.

Shapes: batch B, candidates C = 1 + K with the chosen response at 0, time T. Masks come from lengths, never from ids, so
padding may be any token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from mi_align.data.preference import Preference
from mi_align.data.tokenizer import Tokenizer

__all__ = ["EncodingCounts", "PreferenceBatch", "batch_indices", "encode_preferences", "take"]


class PreferenceBatch(NamedTuple):
    """Preferences as tokens; a pytree.

    Attributes:
      tokens: BOS, prompt, response, EOS, then padding at the right; the prompt is repeated for each candidate.
      response_mask: True on the response's tokens, its EOS included.
      candidate_mask: False for the candidates that fill up a prompt with fewer than K rejected responses.
    """

    tokens: Int[np.ndarray, "batch candidates time"]
    response_mask: Bool[np.ndarray, "batch candidates time"]
    candidate_mask: Bool[np.ndarray, "batch candidates"]


class EncodingCounts(NamedTuple):
    """What encoding did to the texts.

    Attributes:
      preferences: how many were kept.
      truncated_prompts: prompts that lost their beginning.
      truncated_responses: responses, chosen and rejected, that lost their end and with it their EOS.
      indistinct: preferences left out, as truncation made the chosen and a rejected response the same.
    """

    preferences: int
    truncated_prompts: int
    truncated_responses: int
    indistinct: int


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
      tokenizer: gives ids; prompt and response are encoded apart from each other.
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
    rows: list[tuple[np.ndarray, list[np.ndarray]]] = []
    cut_prompts = cut_responses = indistinct = 0
    for preference in preferences:
        prompt = tokenizer.encode(preference.prompt)
        whole = [
            np.append(tokenizer.encode(text), tokenizer.eos_id) for text in (preference.chosen, *preference.rejected)
        ]
        responses = [ids[:max_response] for ids in whole]
        if any(np.array_equal(responses[0], other) for other in responses[1:]):
            indistinct += 1
            continue
        cut_prompts += len(prompt) + 1 > max_prompt
        cut_responses += sum(len(ids) > max_response for ids in whole)
        kept = prompt[max(0, len(prompt) + 1 - max_prompt) :]
        rows.append((np.concatenate(([tokenizer.bos_id], kept)), responses))
    if not rows:
        raise ValueError(
            f"none of {len(preferences)} preferences is left ({indistinct} had the same chosen and rejected response "
            f"within `max_response` = {max_response} tokens). Give more data or raise the limit."
        )
    return _pad(rows, tokenizer.eos_id), EncodingCounts(len(rows), cut_prompts, cut_responses, indistinct)


def _pad(rows: Sequence[tuple[np.ndarray, list[np.ndarray]]], pad_id: int) -> PreferenceBatch:
    """Ragged rows as rectangular arrays."""
    candidates = max(len(responses) for _, responses in rows)
    time = max(len(prompt) + len(response) for prompt, responses in rows for response in responses)
    shape = (len(rows), candidates, time)
    tokens = np.full(shape, pad_id, np.int32)
    response_mask = np.zeros(shape, bool)
    candidate_mask = np.zeros(shape[:2], bool)
    for i, (prompt, responses) in enumerate(rows):
        for c, response in enumerate(responses):
            end = len(prompt) + len(response)
            tokens[i, c, :end] = np.concatenate((prompt, response))
            response_mask[i, c, len(prompt) : end] = True
            candidate_mask[i, c] = True
    return PreferenceBatch(tokens, response_mask, candidate_mask)


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
    orders = {epoch: np.random.default_rng([seed, epoch]).permutation(size) for epoch in np.unique(epochs)}
    return np.array([orders[epoch][place] for epoch, place in zip(epochs, places, strict=True)])


def take(batch: PreferenceBatch, indices: Int[np.ndarray, " picked"]) -> PreferenceBatch:
    """Some examples of a batch, in the given order."""
    return PreferenceBatch(*(array[indices] for array in batch))
