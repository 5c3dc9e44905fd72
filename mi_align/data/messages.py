"""Rows that hold lists of messages to rows of texts: what was asked, and what answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

__all__ = ["Chat", "as_text", "is_messages"]

Row = Mapping[str, Any]


class Chat(Protocol):
    """Messages as one text."""

    def __call__(self, messages: Sequence[Mapping[str, Any]], *, open_turn: bool = False) -> str:
        """With `open_turn` the assistant's turn stands open at the end."""


def as_text(row: Row, chat: Chat) -> Row:
    """A row whose lists of messages have become a prompt, with the assistant's turn open, and responses.

    Where no prompt is given, it is what the dialogues share up to their last message. Where answers are whole dialogues
    that begin with the prompt, as in UltraFeedback's binarised form, it stands once.
    """
    if isinstance(row.get("completions"), list) and any(map(is_messages, row["completions"])):
        return _list_as_text(row, chat)
    answers = {name: row[name] for name in ("chosen", "rejected", "completion") if is_messages(row.get(name))}
    if not answers and is_messages(row.get("messages")):
        answers = {"messages": row["messages"]}
    if not answers:
        return row
    prompt, answers = _asked(row.get("prompt"), answers)
    opened = chat(prompt, open_turn=True)
    texts = {}
    for name, answer in answers.items():
        whole = chat([*prompt, *answer])
        if not whole.startswith(opened):
            raise ValueError(f"the chat template writes the prompt otherwise once `{name}` follows it.")
        texts["completion" if name == "messages" else name] = whole[len(opened) :].rstrip("\n")
    return {**row, "prompt": opened, **texts}


def _asked(prompt: Any, answers: dict[str, list[Any]]) -> tuple[list[Any], dict[str, list[Any]]]:
    """The prompt as messages, and what answers it."""
    if prompt is None:
        return _shared_messages(answers)
    if isinstance(prompt, str):
        if not any(_says(m, "user") for answer in answers.values() for m in answer):
            return [{"role": "user", "content": prompt}], answers
        shared, last = _shared_messages(answers)
        if any(_says(m, "user", prompt) for m in shared):
            return shared, last
        raise ValueError("`prompt` is a text, but the dialogues beside it do not begin with it as a user's turn.")
    if not is_messages(prompt):
        raise ValueError(
            "the answers are lists of messages, but `prompt` is neither a text nor such: a list of messages was wanted."
        )
    length = len(prompt)
    if all(len(answer) > length and answer[:length] == prompt for answer in answers.values()):
        return prompt, {name: answer[length:] for name, answer in answers.items()}
    return prompt, answers


def _says(message: Mapping[str, Any], role: str, text: str | None = None) -> bool:
    """Whether somebody speaks, and says this; spaces around it do not matter."""
    said = message.get("content")
    same = text is None or (isinstance(said, str) and said.strip() == text.strip())
    return message["role"] == role and same


def _list_as_text(row: Row, chat: Chat) -> Row:
    parts = [as_text({"prompt": row.get("prompt"), "completion": answer}, chat) for answer in row["completions"]]
    return {**row, "prompt": parts[0]["prompt"], "completions": [part["completion"] for part in parts]}


def _shared_messages(dialogues: Mapping[str, list[Any]]) -> tuple[list[Any], dict[str, list[Any]]]:
    prompts = [dialogue[:-1] for dialogue in dialogues.values()]
    if not prompts[0] or any(prompt != prompts[0] for prompt in prompts):
        raise ValueError(
            "the dialogues do not share all messages but the last, which would be their prompt. Add a `prompt` column "
            "that holds it as messages."
        )
    return prompts[0], {name: dialogue[-1:] for name, dialogue in dialogues.items()}


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, each with its role."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, Mapping) and "role" in m for m in value)
