"""Rows of a table to preferences: which columns make a layout, and what a row has to hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mi_align import checks
from mi_align.data.messages import Chat, as_text
from mi_align.data.preference import Preference

__all__ = ["ASSISTANT", "LAYOUTS", "read_rows", "split_dialogue"]

#: What opens the assistant's turn in a dialogue written as one text (hh-rlhf).
ASSISTANT = "\n\nAssistant:"

Row = Mapping[str, Any]


def read_rows(
    rows: Iterable[Row | ValueError],
    columns: Iterable[str],
    *,
    source: str,
    chat: Chat | None = None,
    on_fault: Callable[[str], None] | None = None,
    numbers: Iterable[int] | None = None,
    least: int = 1,
) -> list[Preference]:
    """Every row as a preference, in whichever of `LAYOUTS` the columns fit.

    Args:
      rows: mappings from column to value; an error in the place of one that could not even be read.
      columns: the table's columns.
      source: what errors call the table, usually a file name.
      chat: how lists of messages become text (`HubTokenizer.chat`), for tables that hold such.
      on_fault: is told of each faulty row, which is then left out; by default the first one raises. Public data has
        such rows: of hh-rlhf's harmless-base test split, 4 in 2,312 have an empty response.
      numbers: what errors call the rows, such as the lines that they stand in. Default: counted from 1.
      least: how many usable rows there have to be.

    Returns:
      The preferences in the order of the rows.

    Raises:
      ValueError: the columns fit no layout, no row is left, or a row does not hold what its layout needs; the message
        has the row's number.
    """
    columns = set(columns)
    read = _layout(columns, source) if columns else None  # no column: no row could be read
    preferences = []
    for number, row in zip(itertools.count(1) if numbers is None else numbers, rows, strict=False):
        try:
            if isinstance(row, ValueError):
                raise row
            text = row if chat is None else as_text(row, chat)
            layout = _layout(set(text), source) if read is None or text is not row else read
            preferences.append(_checked(layout(text)))
        except ValueError as error:
            fault = f"{source}, row {number}: {error}"
            if on_fault is None:
                raise ValueError(fault) from None
            on_fault(fault)
    if len(preferences) < least:
        raise ValueError(f"{source} has no usable row. At least one preference was wanted.")
    return preferences


def split_dialogue(texts: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """Dialogues that differ in their last answer to (prompt, answers).

    The prompt is the texts' common beginning, cut back to the last assistant turn that opens in it: answers may begin
    alike, and what they share is theirs, not the prompt's.
    """
    texts = tuple(texts)
    # What the first and the last in alphabetical order share, all share.
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(min(texts), max(texts), strict=False))
    shared = "".join(letter for letter, _ in alike)
    turn = shared.rfind(ASSISTANT)
    if turn < 0:
        raise ValueError(
            f"there is no `prompt` column, and the responses do not begin with one dialogue up to {ASSISTANT!r}. "
            "Add a `prompt` column, or write both dialogues out from their first turn."
        )
    end = turn + len(ASSISTANT)
    return shared[:end], tuple(text[end:] for text in texts)


def _explicit(row: Row) -> Preference:
    return Preference(_text(row, "prompt"), _text(row, "chosen"), _texts(row, "rejected"), margin=_margin(row))


def _dialogue(row: Row) -> Preference:
    prompt, (chosen, *rejected) = split_dialogue((_text(row, "chosen"), *_texts(row, "rejected")))
    return Preference(prompt, chosen, tuple(rejected), margin=_margin(row))


def _demonstration(row: Row) -> Preference:
    return Preference(_text(row, "prompt"), _filled("completion", _text(row, "completion")), ())


def _labelled(row: Row) -> Preference:
    return _demonstration(row)._replace(desirable=_label(row.get("label")))


def _scored(row: Row) -> Preference:
    return _demonstration(row)._replace(scores=(_number("score", row.get("score")),))


def _ranking(row: Row) -> Preference:
    """Scored responses, the best first; those of one score stay in their order."""
    texts, scores = _texts(row, "completions"), row.get("scores")
    if not isinstance(scores, list | tuple) or len(scores) != len(texts):
        came = f"{len(scores)} numbers" if isinstance(scores, list | tuple) else f"of type {type(scores).__name__}"
        raise ValueError(f"`scores` is {came}, but {len(texts)} numbers were wanted, one for each of `completions`.")
    for i, text in enumerate(texts):
        if _filled(f"completions[{i}]", text) in texts[:i]:
            raise ValueError(f"`completions[{texts.index(text)}]` and `completions[{i}]` are the same.")
    numbers = [_number(f"scores[{i}]", score) for i, score in enumerate(scores)]
    order = sorted(range(len(texts)), key=lambda i: -numbers[i])
    chosen, *rejected = (texts[i] for i in order)
    return Preference(_text(row, "prompt"), chosen, tuple(rejected), scores=tuple(numbers[i] for i in order))


#: Columns that have to be there -> how such a row is read; the first that fits. `rejected` is a text or a list. Nothing
#: is rejected in the last two: they are demonstrations, for supervised learning alone. A `margin` beside a preference
#: is kept.
LAYOUTS: dict[tuple[str, ...], Callable[[Row], Preference]] = {
    ("prompt", "chosen", "rejected"): _explicit,
    ("chosen", "rejected"): _dialogue,
    ("prompt", "completions", "scores"): _ranking,
    ("prompt", "completion", "label"): _labelled,
    ("prompt", "completion", "score"): _scored,
    ("prompt", "completion"): _demonstration,
    ("messages",): _demonstration,
}


def _layout(columns: set[str], source: str) -> Callable[[Row], Preference]:
    for wanted, read in LAYOUTS.items():
        if columns.issuperset(wanted):
            return read
    missing = next((name for name in ("chosen", "rejected") if name not in columns), "prompt")
    wanted_text = " or ".join(f"({', '.join(layout)})" for layout in LAYOUTS)
    raise ValueError(
        f"{source} has the columns ({', '.join(sorted(columns))}), but {wanted_text} were wanted: "
        f"{checks.unknown_name('column', missing, columns)}"
    )


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if isinstance(value, str):
        return value
    if value is None:
        raise ValueError(f"`{name}` is missing.")
    remedy = " Apply the chat template first." if isinstance(value, list | dict) else ""
    raise ValueError(f"`{name}` is of type {type(value).__name__}, but text was wanted.{remedy}")


def _texts(row: Row, name: str) -> tuple[str, ...]:
    value = row.get(name)
    if not isinstance(value, list | tuple):
        return (_text(row, name),)
    if not value:
        raise ValueError(f"`{name}` is an empty list: at least one response was wanted.")
    return tuple(_text({f"{name}[{i}]": item}, f"{name}[{i}]") for i, item in enumerate(value))


#: Scores become float32.
_LARGEST = 3e38


def _label(value: Any) -> bool:
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (0, 1)):
        return bool(value)
    if value is None:
        raise ValueError("`label` is missing.")
    raise ValueError(f"`label` is {value!r}, but true or false, or 1 or 0, was wanted.")


def _margin(row: Row) -> float | None:
    """By how much the chosen response is better; what a column of this name holds beyond numbers is something else."""
    value: Any = row.get("margin")
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and abs(value) <= _LARGEST


def _number(name: str, value: Any) -> float:
    if value is None:
        raise ValueError(f"`{name}` is missing.")
    if not _is_number(value):
        raise ValueError(f"`{name}` is {value!r}, but a finite number was wanted.")
    return float(value)


def _checked(preference: Preference) -> Preference:
    for name, text in {"chosen": preference.chosen, **_named(preference.rejected)}.items():
        _filled(name, text)
        if name != "chosen" and text == preference.chosen:
            raise ValueError(f"`chosen` and `{name}` are the same: such a row prefers nothing.")
    return preference


def _filled(name: str, text: str) -> str:
    if not text.strip():
        raise ValueError(f"the `{name}` response is empty.")
    return text


def _named(rejected: tuple[str, ...]) -> dict[str, str]:
    return {"rejected" if len(rejected) == 1 else f"rejected[{i}]": text for i, text in enumerate(rejected)}
