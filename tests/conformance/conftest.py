"""The fuzz's table: printed after a run, and written to `FUZZ.md` when it is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("FUZZ.md")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    rows = [cells for report in reports for key, cells in getattr(report, "user_properties", []) if key == "fuzz"]
    if not rows:
        return
    from tests.conformance.fuzz import SUBJECTS, page

    order = list(SUBJECTS)
    rows.sort(key=lambda cells: (order.index(cells[0]), cells[1]))
    terminalreporter.section("fuzz")
    for cells in rows:
        terminalreporter.write_line("  ".join(cells[:7]))
    if len(rows) == 2 * len(SUBJECTS):
        TABLE.write_text(page(rows))
