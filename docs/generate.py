"""Refresh what the pages have generated between `<!-- NAME:begin -->` and `<!-- NAME:end -->`.

python docs/generate.py            write the pages
python docs/generate.py --check    change nothing; fail if a page is out of date
"""

from __future__ import annotations

import argparse
import contextlib
import io
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

from mi_align.methods import methods_table

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "examples" / "one_pair.py"


def tour() -> str:
    """What the guided tour prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(TOUR), run_name="__main__")
    return f"```\n{said.getvalue().rstrip()}\n```\n"


#: Page -> its generated sections, and what makes them.
SECTIONS: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"methods": methods_table} | ({"one-pair": tour} if TOUR.exists() else {}),
}


def refreshed(text: str, sections: dict[str, Callable[[], str]]) -> str:
    """A page with its generated sections made anew; sections that it has no markers for are left out."""
    for name, make in sections.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if begin in text:
            before, _, rest = text.partition(begin)
            _, found, after = rest.partition(end)
            if not found:
                raise SystemExit(f"docs/generate.py: `{begin.strip()}` is never ended by `{end}`")
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
