"""Where preferences come from: a local file or a data set of the Hugging Face hub, read with `datasets`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mi_align.data.files import Rows, files_of, read_json
from mi_align.data.formats import read_rows
from mi_align.data.messages import Chat
from mi_align.data.preference import Preference
from mi_align.data.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["SUFFIXES", "load_preferences", "load_prompts"]

#: What a local file may end in -> how it is read: "json" here, line by line, what else by a builder of `datasets`.
SUFFIXES = {
    ".jsonl": "json",
    ".jsonl.gz": "json",
    ".json": "json",
    ".json.gz": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load_preferences(
    source: str | os.PathLike[str],
    *,
    split: str = "train",
    limit: int | None = None,
    streaming: bool = False,
    chat: Chat | None = None,
    on_fault: Callable[[str], None] | None = None,
) -> list[Preference]:
    """Preferences from a file or from the hub; `formats.LAYOUTS` has the layouts that are recognised by their columns.

    Args:
      source: a path that ends in one of `SUFFIXES`, a folder of such files, whose rows follow one another in the order
        of their names, a folder that `datasets` saved, or a hub id such as `"Anthropic/hh-rlhf"`.
      split: which split of a hub data set; a local file is one split.
      limit: take the first so many rows only.
      streaming: fetch no more of the data than these rows, instead of the whole data set first.
      chat: how lists of messages become text (`HubTokenizer.chat`), for tables that hold such.
      on_fault: is told of each faulty row, which is then left out; by default the first one raises.

    Returns:
      The preferences, in the order of the rows.

    Raises:
      FileNotFoundError: no such file, and no hub id either.
      ValueError: a row or the whole file is not what was wanted; the message has the file and the row. Or `streaming`
        is without a `limit`.
      ConnectionError: the hub was not reached, or has no such data set.
    """
    how: dict[str, Any] = {"split": split, "limit": limit, "streaming": streaming, "chat": chat, "on_fault": on_fault}
    return _load(source, read_rows, "preference", **how)


def load_prompts(
    source: str | os.PathLike[str],
    *,
    split: str = "train",
    limit: int | None = None,
    streaming: bool = False,
    chat: Chat | None = None,
    on_fault: Callable[[str], None] | None = None,
) -> list[Prompt]:
    """The prompts of the same sources, with their rows; all that a row needs is a prompt.

    Args, errors and order are those of `load_preferences`.
    """
    how: dict[str, Any] = {"split": split, "limit": limit, "streaming": streaming, "chat": chat, "on_fault": on_fault}
    return _load(source, read_prompts, "prompt", **how)


def _load(
    source: str | os.PathLike[str],
    reader: Callable[..., list[Any]],
    what: str,
    *,
    split: str,
    limit: int | None,
    streaming: bool,
    chat: Chat | None,
    on_fault: Callable[[str], None] | None,
) -> list[Any]:
    """What `reader` makes of the rows of all parts of a source."""
    if streaming and limit is None:
        raise ValueError("`streaming` fetches no more than is used, but `limit` does not say how many rows are.")
    path = Path(source)
    if path.exists():
        parts = [
            (_name(file, path), functools.partial(_read_file, file, streaming)) for file in files_of(path, SUFFIXES)
        ]
    elif _HUB_ID.fullmatch(str(source)) and not str(source).endswith(tuple(SUFFIXES)):
        parts = [(f"{source} ({split})", functools.partial(_read_hub, str(source), split, streaming))]
    else:
        raise FileNotFoundError(
            f"there is no file {str(source)!r}. A path to an existing {', '.join(SUFFIXES)} file, to a folder of such, "
            "or a hub id `owner/name` was wanted."
        )
    found: list[Any] = []
    faults: list[str] = []

    def leave_out(fault: str) -> None:
        faults.append(fault)
        if on_fault is not None:
            on_fault(fault)

    left = limit
    for name, read in parts:
        if left == 0:
            break
        rows = read(left)
        kept = rows if left is None else rows.first(left)
        left = None if left is None else left - len(kept.rows)
        found += reader(
            kept.rows,
            kept.columns,
            source=name,
            chat=chat,
            on_fault=on_fault and leave_out,
            numbers=kept.numbers,
            least=0,
        )
    if not found:
        first = f" The first of {len(faults)} faults: {faults[0]}" if faults else ""
        raise ValueError(f"{path.name or source} has no usable row. At least one {what} was wanted.{first}")
    return found


def _name(file: Path, source: Path) -> str:
    """What errors call a file: of a folder, with its place in it."""
    return file.name if file == source else str(file.relative_to(source.parent))


def _read_file(path: Path, streaming: bool, limit: int | None) -> Rows:
    kind = next((kind for suffix, kind in SUFFIXES.items() if path.name.endswith(suffix)), None)
    if kind is None and path.is_dir():
        return _read_saved(path)
    if kind is None or not path.is_file():
        raise ValueError(f"{path.name} is no file of a known kind: one that ends in {', '.join(SUFFIXES)} was wanted.")
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} is empty. At least one preference was wanted.")
    if kind == "json":
        return read_json(path, limit)
    import datasets

    with _quiet():
        try:
            found = datasets.load_dataset(kind, data_files=str(path), split="train", streaming=streaming)
            return _of_stream(found, limit) if streaming else _of_table(found)
        except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
            raise ValueError(f"{path.name} could not be read as {kind}: {error.__cause__ or error}") from error


def _read_saved(path: Path) -> Rows:
    """A folder that `datasets.Dataset.save_to_disk` wrote."""
    import datasets

    with _quiet():
        saved = datasets.load_from_disk(str(path))
    if isinstance(saved, datasets.DatasetDict):
        raise ValueError(f"{path.name} holds the splits {', '.join(saved)}. Name the folder of one of them.")
    return _of_table(saved)


def _of_table(table: Dataset) -> Rows:
    return Rows(table, table.column_names, range(1, len(table) + 1))


def _of_stream(stream: IterableDataset, limit: int | None) -> Rows:
    """The first rows, of which a shard or two is fetched."""
    rows = list(itertools.islice(stream, limit))
    columns = dict.fromkeys(itertools.chain.from_iterable(rows))
    return Rows(rows, columns, range(1, len(rows) + 1))


def _read_hub(name: str, split: str, streaming: bool, limit: int | None) -> Rows:
    import datasets

    with _quiet():
        try:
            found = datasets.load_dataset(name, split=split, streaming=streaming)
            return _of_stream(found, limit) if streaming else _of_table(found)
        except (ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
            raise ConnectionError(
                f"the data set {name!r} was not reached on the Hugging Face hub ({error}). Check the name and the "
                "network, or give the path of a local file."
            ) from error


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
