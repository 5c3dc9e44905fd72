"""The rows as files: `logprobs.json` for machines, `logprobs.md` and `logprobs.png` for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mi_align.benchmark import harness
from mi_align.benchmark.measure import Row
from mi_align.benchmark.picture import draw

__all__ = ["COLUMNS", "by_task", "line", "record", "sizes", "tables", "write"]

#: Version of the JSON's layout.
SCHEMA = 1


def _seconds(x: float) -> str:
    """`1.52 s`, `15.2 ms`, `152 µs`."""
    unit, scale = next(((u, s) for u, s in (("s", 1.0), ("ms", 1e-3)) if x >= s), ("µs", 1e-6))
    return f"{x / scale:.3g} {unit}"


def _rate(x: float, unit: str) -> str:
    """`12.3 G…`: three digits and a power of a thousand."""
    power = min(5, max(0, int(math.log10(max(x, 1.0)) // 3)))
    return f"{x / 1000**power:.3g} {' kMGTP'[power].strip()}{unit}"


def _percent(x: float | None) -> str:
    return "" if x is None else f"{x:.0%}"


def _shown(show: Callable[[Row], str]) -> Callable[[Row], str]:
    """Of rows that were timed; what a row does not have is left open."""
    return lambda row: show(row) if row["status"] == "right" else ""


def _what(row: Row) -> str:
    if row["status"] == "right":
        return _seconds(row["seconds"])
    return "WRONG" if row["status"] == "wrong" else f"skipped: {row['reason']}"


def _error(row: Row) -> str:
    """The worst error over what is allowed."""
    if "errors" not in row:
        return ""
    over = [_over(row["errors"][name], allowed) for name, allowed in row["allowed"].items()]
    return f"{max(over):.2g}"


def _over(error: float | str, allowed: float) -> float:
    return float(error) / allowed if allowed else (math.inf if float(error) else 0.0)


#: What the table shows of a row; `docs/benchmarking.md` says what it means.
COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "implementation": lambda row: str(row["implementation"]),
    "pass": lambda row: row["pass"],
    "time": _what,
    "min … max": _shown(lambda row: " … ".join(_seconds(x) for x in row["spread"])),
    "× plain": _shown(lambda row: "" if row["against_plain"] is None else f"{row['against_plain']:.2f}"),
    "tokens/s": _shown(lambda row: _rate(row["tokens_per_second"], "")),
    "FLOP/s": _shown(lambda row: _rate(row["flops_per_second"], "")),
    "of products": _shown(lambda row: f"{row['share_of_products']:.0%}"),
    "recomputing": _shown(lambda row: _percent(row["share_of_products_recomputing"])),
    "B/s": _shown(lambda row: _rate(row["bytes_per_second"], "")),
    "of copy": _shown(lambda row: f"{row['share_of_copy']:.1%}"),
    "memory": _shown(lambda row: "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:,.1f} MiB"),
    "compile": _shown(lambda row: "" if row["compile_seconds"] is None else f"{row['compile_seconds']:.1f} s"),
    "error": _error,
}


def compared(rows: Sequence[Row]) -> list[Row]:
    """The rows, with plain JAX's time over their own at the same task and pass; None where it was not timed."""
    plain = {_place(row): row["seconds"] for row in rows if row["implementation"] == "plain" and "seconds" in row}
    return [
        row | {"against_plain": plain[_place(row)] / row["seconds"] if _place(row) in plain else None}
        if row["status"] == "right"
        else row
        for row in rows
    ]


def _place(row: Row) -> tuple[Any, ...]:
    return sizes(row), row["pass"]


def sizes(row: Row) -> tuple[Any, ...]:
    """What tells tasks apart."""
    return tuple(row[name] for name in ("task", "shape", "tokens", "features", "vocabulary", "dtype", "candidates"))


def by_task(rows: Sequence[Row]) -> dict[tuple[Any, ...], list[Row]]:
    """Rows of each task, without the ceilings, in the order in which they came."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row["status"] != "ceiling":
            groups.setdefault(sizes(row), []).append(row)
    return groups


def tables(rows: Sequence[Row]) -> str:
    """A Markdown table for each task, under a line with its ceilings."""
    parts = []
    for place, group in by_task(compared(rows)).items():
        ceilings = [row for row in rows if row["status"] == "ceiling" and sizes(row) == place]
        parts.append(f"## {title(group[0])}\n\n{_ceilings(ceilings)}\n\n{harness.markdown(group, COLUMNS)}")
    return "\n\n".join(parts)


def title(row: Row) -> str:
    """`dpo at toy: 2048 tokens × 512 × 32768, float32`."""
    responses = f", {row['candidates']} responses a prompt" if row["candidates"] else ""
    capped = f", soft cap {row['soft_cap']:g}" if row["soft_cap"] else ""
    return (
        f"{row['task']} at {row['shape']}: {row['tokens']:,} tokens × {row['features']:,} × {row['vocabulary']:,}, "
        f"{row['dtype']}{responses}{capped}"
    )


def _ceilings(rows: Sequence[Row]) -> str:
    lines = [
        f"{row['pass']}: products alone {_seconds(sum(row['product_seconds'].values()))} "
        f"({', '.join(f'{name} {_seconds(s)}' for name, s in row['product_seconds'].items())}), "
        f"{_rate(row['flops_per_second'], 'FLOP/s')}; copy {_rate(row['bytes_per_second'], 'B/s')}."
        for row in rows
    ]
    return "  \n".join(lines) or "Nothing was timed."


def line(row: Row) -> str:
    """A row as it comes, for the terminal: plain text, one line."""
    head = f"{row['task']:12.12} {row['shape']:12.12} {row['implementation'] or 'products':16} {row['pass']:8}"
    if row["status"] == "ceiling":
        took = _seconds(sum(row["product_seconds"].values()))
        return f"{head} {took:>9}  {_rate(row['flops_per_second'], 'FLOP/s'):>12}"
    if row["status"] != "right":
        worst = f"  {_error(row)} times the error allowed" if row["status"] == "wrong" else ""
        return f"{head} {_what(row):>9}{worst}"
    memory = "" if row["memory_bytes"] is None else f"{row['memory_bytes'] / 2**20:9,.1f} MiB"
    return (
        f"{head} {_what(row):>9}  {_rate(row['flops_per_second'], 'FLOP/s'):>12} "
        f"{row['share_of_products']:5.0%} of products  {_rate(row['tokens_per_second'], 'tok/s'):>12} {memory:>13}"
    )


def record(rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """Everything about a run, as JSON's types."""
    return {"environment": harness.environment(), "rows": compared(rows), **_summary(rows, seconds)}


def _summary(rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    return {"schema": SCHEMA, "seconds": round(seconds, 1), "wrong": sum(row["status"] == "wrong" for row in rows)}


def write(
    folder: Path, rows: Sequence[Row], seconds: float, *, name: str = "logprobs", picture: bool = True
) -> list[Path]:
    """Write the three files into a folder, made if need be; the picture only where something was timed."""
    path = harness.write(name, compared(rows), tables(rows), folder, **_summary(rows, seconds))
    written = [path, path.with_suffix(".md")]
    if picture and any(row["status"] == "right" for row in rows):
        written.append(path.with_suffix(".png"))
        draw(compared(rows)).savefig(written[-1], dpi=150)
    return written
