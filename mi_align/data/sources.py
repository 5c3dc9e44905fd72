"""Where preferences come from: a local file or a data set of the Hugging Face hub, read with `datasets`."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mi_align.data.formats import Chat, read_rows
from mi_align.data.preference import Preference

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["SUFFIXES", "load_preferences"]

#: What a local file may end in -> the builder of `datasets` that reads it.
SUFFIXES = {".jsonl": "json", ".jsonl.gz": "json", ".json": "json", ".json.gz": "json", ".parquet": "parquet"}

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load_preferences(
    source: str | os.PathLike[str],
    *,
    split: str = "train",
    limit: int | None = None,
    chat: Chat | None = None,
    on_fault: Callable[[str], None] | None = None,
) -> list[Preference]:
    """Preferences from a file or from the hub; `formats.LAYOUTS` has the layouts that are recognised by their columns.

    Args:
      source: a path that ends in one of `SUFFIXES`, or a hub id such as `"Anthropic/hh-rlhf"`.
      split: which split of a hub data set; a local file is one split.
      limit: read the first so many rows only.
      chat: how lists of messages become text (`HubTokenizer.chat`), for tables that hold such.
      on_fault: is told of each faulty row, which is then left out; by default the first one raises.

    Returns:
      The preferences, in the order of the rows.

    Raises:
      FileNotFoundError: no such file, and no hub id either.
      ValueError: a row or the whole file is not what was wanted; the message has the file and the row.
      ConnectionError: the hub was not reached, or has no such data set.
    """
    path = Path(source)
    if path.exists():
        table, name = _read_file(path), path.name
    elif _HUB_ID.fullmatch(str(source)) and not str(source).endswith(tuple(SUFFIXES)):
        table, name = _read_hub(str(source), split), f"{source} ({split})"
    else:
        raise FileNotFoundError(
            f"there is no file {str(source)!r}. A path to an existing {', '.join(SUFFIXES)} file or a hub id "
            "`owner/name` was wanted."
        )
    rows = table if limit is None else table.select(range(min(limit, len(table))))
    return read_rows(rows, table.column_names, source=name, chat=chat, on_fault=on_fault)


def _read_file(path: Path) -> Dataset:
    builder = next((kind for suffix, kind in SUFFIXES.items() if path.name.endswith(suffix)), None)
    if builder is None or not path.is_file():
        raise ValueError(f"{path.name} is no file of a known kind: one that ends in {', '.join(SUFFIXES)} was wanted.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} is empty. At least one preference was wanted.")
    if builder == "json":
        _check_utf8(path)
    import datasets

    with _quiet():
        try:
            return datasets.load_dataset(builder, data_files=str(path), split="train")
        except datasets.exceptions.DatasetGenerationError as error:
            raise ValueError(f"{path.name} could not be read as {builder}: {error.__cause__ or error}") from error


def _read_hub(name: str, split: str) -> Dataset:
    import datasets

    with _quiet():
        try:
            return datasets.load_dataset(name, split=split)
        except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
            raise ConnectionError(
                f"the data set {name!r} was not reached on the Hugging Face hub ({error}). Check the name and the "
                "network, or give the path of a local file."
            ) from error


def _check_utf8(path: Path) -> None:
    """`datasets` lets broken bytes through; they would surface much later, as a row that cannot be read."""
    opener = gzip.open if path.name.endswith(".gz") else open
    unit = "row" if ".jsonl" in path.name else "line"
    with opener(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path.name}, {unit} {number}: byte 0x{line[error.start]:02x} is not UTF-8. Convert the file, "
                    "e.g. with `iconv -f latin1 -t utf-8`."
                ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without `datasets`' own progress bars and error lines: the caller shows progress, and says what was wrong."""
    import datasets

    bars, verbosity = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()
