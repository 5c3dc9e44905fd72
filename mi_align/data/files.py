"""JSON files read line by line, so that a broken line is one faulty row and not the end of its file.

`datasets` reads a file of lines as a whole: one line that is no JSON, or one value of another type than those above it,
and nothing is read. Here each line stands for itself.
"""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

__all__ = ["LONGEST_LINE", "Rows", "files_of", "read_json"]

#: Bytes of the longest line that is taken for a row: a missing line break makes a file one line, which no text is.
LONGEST_LINE = 32 * 2**20


class Rows(NamedTuple):
    """What a file holds.

    Attributes:
      rows: a mapping from column to value for each row, or why there is none.
      columns: those of all rows together; none where no row could be read.
      numbers: what errors call the rows: the lines that they stand in.
    """

    rows: Sequence[Mapping[str, Any] | ValueError]
    columns: Iterable[str]
    numbers: Sequence[int]

    def first(self, limit: int) -> Rows:
        """The first so many."""
        size = range(min(limit, len(self.rows)))
        rows = self.rows.select(size) if hasattr(self.rows, "select") else self.rows[:limit]
        return Rows(rows, self.columns, self.numbers[:limit])


def files_of(path: Path, suffixes: Iterable[str]) -> list[Path]:
    """The path itself, or the files of a known kind in a folder and the folders in it, in the order of their names.

    Raises:
      ValueError: the folder has none.
    """
    if not path.is_dir() or (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return [path]
    found = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(tuple(suffixes)))
    if not found:
        raise ValueError(f"the folder {path} holds no file that ends in {', '.join(suffixes)}.")
    return found


def read_json(path: Path, limit: int | None = None) -> Rows:
    """A file of JSON lines, of which no more than the first `limit` are read, or of one JSON list of rows.

    Raises:
      ValueError: the file is a list that is no JSON as a whole, or is damaged as a gzip file.
    """
    try:
        with _opened(path) as file:
            begin = file.read(1)
            while begin.isspace():
                begin = file.read(1)
        if begin == b"[":
            return _list_of(path)
        with _opened(path) as file:
            numbered = list(itertools.islice(_lines(file), limit))
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None
    rows = [row for _, row in numbered]
    columns = dict.fromkeys(itertools.chain.from_iterable(row for row in rows if not isinstance(row, ValueError)))
    return Rows(rows, columns, [number for number, _ in numbered])


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")  # type: ignore[return-value]


def _lines(file: IO[bytes]) -> Iterator[tuple[int, Mapping[str, Any] | ValueError]]:
    """Every line that is not blank, with its number; one that is too long is passed over without being held."""
    for number in itertools.count(1):
        line = file.readline(LONGEST_LINE + 1)
        if not line:
            return
        size = len(line)
        if size > LONGEST_LINE:
            while not line.endswith(b"\n") and (line := file.readline(2**20)):
                size += len(line)
            yield number, _too_long(size)
        elif line.strip():
            yield number, _row(line)


def _too_long(size: int) -> ValueError:
    return ValueError(
        f"it is {size / 2**20:,.1f} MiB long, but a line of at most {LONGEST_LINE >> 20} MiB was wanted. Is a line "
        "break missing?"
    )


def _row(line: bytes) -> Mapping[str, Any] | ValueError:
    try:
        row = json.loads(line.strip().decode("utf-8").lstrip("\ufeff"))
    except UnicodeDecodeError as error:
        return ValueError(_not_utf8(error.object[error.start]))
    except json.JSONDecodeError as error:
        return ValueError(f"it is no JSON: {error.msg} at column {error.colno}.")
    except RecursionError:
        return ValueError("it is nested too deeply.")
    return row if isinstance(row, Mapping) else _no_row(row)


def _not_utf8(byte: int) -> str:
    return f"byte 0x{byte:02x} is not UTF-8. Convert the file, e.g. with `iconv -f latin1 -t utf-8`."


def _no_row(value: Any) -> ValueError:
    return ValueError(f"it is of type {type(value).__name__}, but a mapping from column to value was wanted.")


def _list_of(path: Path) -> Rows:
    """A file that is one list. It is JSON as a whole or not at all."""
    with _opened(path) as file:
        data = file.read()
    try:
        values = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path.name}, line {line}: {_not_utf8(data[error.start])}") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path.name} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}. A list is JSON as a "
            "whole or not at all; of a file with a row a line, `.jsonl`, single rows can be left out."
        ) from None
    rows = [value if isinstance(value, Mapping) else _no_row(value) for value in values]
    columns = dict.fromkeys(itertools.chain.from_iterable(row for row in rows if not isinstance(row, ValueError)))
    return Rows(rows, columns, range(1, len(rows) + 1))
