"""Prompts alone: what a model answers that learns from its own responses, and the rows that they came from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from mi_align.data.formats import LAYOUTS, read_rows
from mi_align.data.messages import Chat, is_messages
from mi_align.data.tokenizer import Tokenizer

__all__ = ["Prompt", "PromptBatch", "encode_prompts", "read_prompts"]


class Prompt(NamedTuple):
    """A prompt.

    Attributes:
      text: everything before the response; may be empty.
      row: the row that it stood in, all its columns included.
    """

    text: str
    row: Mapping[str, Any]


class PromptBatch(NamedTuple):
    """Prompts as tokens.

    Attributes:
      tokens: BOS and prompt, then padding at the right.
      lengths: how many tokens of each count.
      prompts: the texts, as they were before a limit cut them.
    """

    tokens: Int[np.ndarray, "prompts time"]
    lengths: Int[np.ndarray, "prompts"]
    prompts: Sequence[Prompt]


def read_prompts(
    rows: Iterable[Mapping[str, Any] | ValueError],
    columns: Iterable[str],
    *,
    source: str,
    chat: Chat | None = None,
    on_fault: Callable[[str], None] | None = None,
    numbers: Iterable[int] | None = None,
    least: int = 1,
) -> list[Prompt]:
    """Every row's prompt: its `prompt`, a text or a list of messages, or that of whichever of `LAYOUTS` it has.

    Args:
      rows: as for `read_rows`, and so all the others.
      columns: of the table.
      source: what errors call it.
      chat: how lists of messages become text.
      on_fault: is told of each faulty row.
      numbers: what errors call the rows.
      least: how many usable rows there have to be.

    Raises:
      ValueError: no row is left, or one has no prompt; the message has the row's number.
    """
    columns = set(columns)
    if columns and not any(columns.issuperset(layout) for layout in (("prompt",), *LAYOUTS)):
        raise ValueError(
            f"{source} has the columns ({', '.join(sorted(columns))}), but a `prompt` was wanted, or `messages`, or "
            "`chosen` and `rejected` dialogues."
        )
    found = []
    for number, row in zip(itertools.count(1) if numbers is None else numbers, rows, strict=False):
        try:
            found.append(_prompt(row, columns, source, number, chat))
        except ValueError as error:
            if on_fault is None:
                raise
            on_fault(str(error))
    if len(found) < least:
        raise ValueError(f"{source} has no usable row. At least one prompt was wanted.")
    return found


def _prompt(
    row: Mapping[str, Any] | ValueError, columns: set[str], source: str, number: int, chat: Chat | None
) -> Prompt:
    at = f"{source}, row {number}"
    if isinstance(row, ValueError):
        raise ValueError(f"{at}: {row}")
    given = row.get("prompt")
    if isinstance(given, str):
        return Prompt(given, row)
    if isinstance(given, list) and is_messages(given):
        if chat is None:
            raise ValueError(f"{at}: `prompt` is a list of messages, which the tokenizer has no chat template for.")
        return Prompt(chat(given, open_turn=True), row)
    if given is not None or "prompt" in columns:
        came = "missing" if given is None else f"of type {type(given).__name__}"
        raise ValueError(f"{at}: `prompt` is {came}, but text or a list of messages was wanted.")
    return Prompt(read_rows([row], row.keys(), source=source, chat=chat, numbers=[number])[0].prompt, row)


def encode_prompts(
    prompts: Sequence[Prompt], tokenizer: Tokenizer, *, max_prompt: int = 512
) -> tuple[PromptBatch, int]:
    """Tokenise prompts into one array; one that is too long loses its beginning and keeps BOS.

    Args:
      prompts: at least one.
      tokenizer: gives ids. A BOS that the text itself brings, as chat templates do, is not doubled.
      max_prompt: most tokens of a prompt, BOS included.

    Returns:
      The prompts, as long as the longest, and how many were cut.
    """
    if max_prompt < 1:
        raise ValueError(f"`max_prompt` is {max_prompt}, but at least 1 token was wanted.")
    ids = [tokenizer.encode(prompt.text) for prompt in prompts]
    ids = [one[1:] if one.size and one[0] == tokenizer.bos_id else one for one in ids]
    kept = [np.append(tokenizer.bos_id, one[max(0, len(one) + 1 - max_prompt) :]) for one in ids]
    tokens = np.full((len(kept), max(map(len, kept))), tokenizer.eos_id, np.int32)
    for row, one in zip(tokens, kept, strict=True):
        row[: len(one)] = one
    lengths = np.array([len(one) for one in kept], np.int32)
    return PromptBatch(tokens, lengths, list(prompts)), sum(len(one) + 1 > max_prompt for one in ids)
