"""The short tables that the README shows, made from the results that are kept: one device after the other."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mi_align.benchmark.harness import markdown
from mi_align.benchmark.measure import Row
from mi_align.benchmark.task import LOGPS

__all__ = ["summary"]

#: Rows that are in the full table only.
_LEFT_OUT = ("reference", "checkpoint")
#: The rows of one task and pass, by way.
Ways = Mapping[str, Row]


def summary(results: Path) -> str:
    """Markdown of every device that has `logprobs.json`, with its `tokamax.json` and `preference-losses.json`.

    Args:
      results: the folder of the devices' folders.
    """
    return "\n".join(_device(folder) for folder in sorted(results.iterdir()) if _timed(folder / "logprobs.json"))


def _device(folder: Path) -> str:
    """Each file's table under a line that says what was timed where."""
    parts = [_tokens(folder / "logprobs.json", against="torch.compile")]
    for name, make in (("tokamax", _beside_tokamax), ("preference-losses", _losses)):
        if _timed(folder / f"{name}.json"):
            parts.append(make(folder / f"{name}.json"))
    return "\n".join(parts)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {"rows": []}


def _timed(path: Path) -> bool:
    """Whether both passes were run: compilers alone leave no such rows, and an interrupted run leaves one pass."""
    return any(row.get("status") == "right" and row["pass"] == "gradient" for row in _read(path)["rows"])


def _beside_tokamax(path: Path) -> str:
    return _tokens(path, against="plain")


def _tokens(path: Path, *, against: str) -> str:
    """The first shape's token log-probabilities, forward and backward."""
    record = _read(path)
    rows = [row for row in record["rows"] if row["task"] == LOGPS and row["pass"] == "gradient"]
    rows = [row for row in rows if _place(row) == _place(rows[0]) and _whole(row)]
    measure = _seconds(rows, against)
    columns: dict[str, Callable[[Row], str]] = {
        "log π, forward and backward": lambda row: f"`{row['implementation']}`",
        "of the products' speed": lambda row: f"{row['share_of_products']:.0%}" if _right(row) else _why_not(row),
        f"× `{against}`": lambda row: _ratio(measure, row),
        "memory": _memory,
    }
    return f"{_head(record, rows[0], path)}\n\n{markdown(rows, columns)}\n"


def _losses(path: Path) -> str:
    """Whole losses, one a line: ours, and beside it every peer that was run."""
    record = _read(path)
    rows = [row for row in record["rows"] if row["task"] != LOGPS and row["pass"] == "gradient" and _whole(row)]
    by_task: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["shape"] == rows[0]["shape"]:
            by_task.setdefault(row["task"], {})[row["implementation"]] = row
    names = list(dict.fromkeys(name for ways in by_task.values() for name in ways))
    columns: dict[str, Callable[[tuple[str, Ways]], str]] = {"loss, forward and backward": lambda line: f"`{line[0]}`"}
    columns |= {f"`{name}`, × plain JAX": functools.partial(_beside_plain, name) for name in names if name != "plain"}
    columns |= {f"memory, `{name}`": functools.partial(_memory_of, name) for name in names}
    return f"{_head(record, rows[0], path)}\n\n{markdown(list(by_task.items()), columns)}\n"


def _beside_plain(name: str, line: tuple[str, Ways]) -> str:
    ways = line[1]
    if name not in ways:
        return ""
    return _ratio(_seconds(list(ways.values()), "plain"), ways[name]) or _why_not(ways[name])


def _memory_of(name: str, line: tuple[str, Ways]) -> str:
    return _memory(line[1][name]) if name in line[1] else ""


def _place(row: Row) -> tuple[Any, ...]:
    return row["shape"], row["tokens"], row["dtype"]


def _right(row: Row) -> bool:
    return row["status"] == "right"


def _whole(row: Row) -> bool:
    """Whether a row is a way of doing all of the work, and was run or refused by the gate."""
    part = row.get("frozen") or row.get("scored_tokens", row["tokens"]) != row["tokens"]
    return row["status"] in ("right", "wrong") and not part and row["implementation"] not in _LEFT_OUT


def _seconds(rows: Sequence[Row], name: str) -> float | None:
    return next((row["seconds"] for row in rows if row["implementation"] == name and _right(row)), None)


def _ratio(seconds: float | None, row: Row) -> str:
    """Above 1 is faster."""
    return "" if seconds is None or not _right(row) else f"{seconds / row['seconds']:.2f}"


def _why_not(row: Row) -> str:
    return "WRONG" if row["status"] == "wrong" else ""


def _memory(row: Row) -> str:
    return f"{row['memory_bytes'] / 2**20:,.0f} MiB" if row.get("memory_bytes") is not None else ""


def _head(record: Mapping[str, Any], row: Row, path: Path) -> str:
    where = record["environment"]
    packages = ("jax", "torch", "liger-kernel", "tokamax")
    versions = ", ".join(f"{name} {where['versions'][name]}" for name in packages if name in where["versions"])
    page = "/".join(("benchmarks", "results", path.parent.name, path.with_suffix(".md").name))
    sizes = f"T = {row['tokens']:,}, D = {row['features']:,}, V = {row['vocabulary']:,}, {row['dtype']}"
    return (
        f"{where['processor']}, {where['cores']} cores, {where['device']}: {sizes}; {versions} ([every row]({page})):"
    )
