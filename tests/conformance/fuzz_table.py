"""The fuzz's table: printed after a run and written to `FUZZ.md`, where a later run of some rows refreshes these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("FUZZ.md")

Cells = list[str]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A hook of `tests/conftest.py`: under xdist the process that sums up collects nothing, and loads no other."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    fresh = [cells for report in reports for key, cells in getattr(report, "user_properties", []) if key == "fuzz"]
    if not fresh:
        return
    from tests.conformance.fuzz import SUBJECTS, page

    subjects = list(SUBJECTS)
    terminalreporter.section("fuzz")
    for cells in in_order(fresh, subjects):
        terminalreporter.write_line("  ".join(cells[:7]))
    TABLE.write_text(page(in_order(merged(known_rows(TABLE), fresh), subjects)))


def in_order(rows: list[Cells], subjects: list[str]) -> list[Cells]:
    return sorted((r for r in rows if r[0] in subjects), key=lambda cells: (subjects.index(cells[0]), cells[1]))


def merged(old: list[Cells], fresh: list[Cells]) -> list[Cells]:
    return list({tuple(cells[:2]): cells for cells in (*old, *fresh)}.values())


def known_rows(table: Path) -> list[Cells]:
    """The rows of a page that was written before: figures from its first table, places from its second."""
    lines = table.read_text().splitlines() if table.exists() else []
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "---" not in line]
    figures = [c for c in cells if len(c) == 7 and c[0] != "function"]
    places = {tuple(c[:2]): [place.strip("`") for place in c[2:]] for c in cells if len(c) == 4 and c[0] != "function"}
    return [[*c, *places[tuple(c[:2])]] for c in figures if tuple(c[:2]) in places]
