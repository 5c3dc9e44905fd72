"""Refresh what the pages have generated between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

python docs/generate.py            write the pages
python docs/generate.py --check    change nothing; fail if a page is out of date

The picture comes from `python -m experiments.late_decline --output docs/images/late_decline.png`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from mi_align.benchmark.summary import summary
from mi_align.equivalences import Claim
from mi_align.equivalences.ledger import CHAPTERS, LEDGER, chapter
from mi_align.methods import methods_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TOUR = ROOT / "examples" / "one_pair.py"


def one_pair(printed: str | None = None) -> str:
    """The guided tour without its printing, and what it prints (or `printed`, where it has run already)."""
    if printed is None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(TOUR), run_name="__main__")
        printed = said.getvalue()
    return f"```python\n{excerpt(TOUR.read_text())}\n```\n\nIt prints\n\n```\n{printed.rstrip()}\n```\n"


def excerpt(script: str) -> str:
    """A script's imports and calls; its docstring, its helpers and its `show` lines are left out."""
    lines = script.splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    walk = lines[next(i for i, line in enumerate(lines) if line.startswith("# text → data")) :]
    calls = "\n".join(line for line in walk if not line.startswith("show("))
    return "\n".join(imports) + "\n\n" + calls.strip()


def ledger_tables(claims: Iterable[Claim] = tuple(LEDGER.values())) -> str:
    """Every claim, in a table for each section of the theory."""
    head = ["", "claim", "statement", "kind", "the twin's slip", "source"]
    claims, parts = list(claims), []
    for letter, title in zip("ABCDEFG", CHAPTERS.values(), strict=True):
        rows = [
            [c.id, _plain(c.title), _latex(c.statement), str(c.kind), _plain(c.slip), _plain(c.source)]
            for c in claims
            if chapter(c.id) == title
        ]
        if rows:
            table = "\n".join(map(_row, [head, ["---"] * len(head), *rows]))
            parts.append(f"## {letter}. {title}\n\n{table}\n")
    return "\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Text in which Markdown sees no markup and a table no border."""
    return re.sub(r"([|*$<\\])", r"\\\1", text)


#: LaTeX that Markdown would take for itself -> the same in letters: borders of tables, escapes, emphasis.
_IN_LETTERS = {
    r"\|": r"\Vert ",
    "|": r"\vert ",
    r"\{": r"\lbrace ",
    r"\}": r"\rbrace ",
    r"\,": r"\thinspace ",
    r"\;": r"\thickspace ",
    r"\!": r"\negthinspace ",
    "*": r"\ast ",
    "<": r"\lt ",
}


def _latex(statement: str) -> str:
    """A formula that a renderer of Markdown hands on as it is."""
    escape = "|".join(map(re.escape, _IN_LETTERS))
    return f"${re.sub(escape, lambda found: _IN_LETTERS[found.group()], statement)}$"


#: Page -> its generated sections, and what makes them.
SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"one-pair": one_pair, "speed": lambda: summary(RESULTS)},
    "docs/methods.md": {"methods": methods_table},
    "docs/ledger.md": {"ledger": ledger_tables},
}


def refreshed(text: str, sections: dict[str, Callable[[], str]]) -> str:
    """A page with its generated sections made anew."""
    for name, make in sections.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, opened, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (opened and closed):
            raise SystemExit(f"docs/generate.py: `{begin.strip()}` … `{end}` was not found in the page")
        text = before + begin + make() + end + after
    return text


def main() -> int:
    """Refresh or check every page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is out of date")
    check = parser.parse_args().check
    stale = []
    for name, sections in SECTIONS.items():
        page = ROOT / name
        text = page.read_text()
        new = refreshed(text, sections)
        if new != text:
            stale.append(name)
            if not check:
                page.write_text(new)
    for name in stale:
        print(f"{name} is out of date: run `make readme`" if check else f"{name} refreshed")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
