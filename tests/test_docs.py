"""The pages: their code runs and prints what it says, their links lead somewhere, their generated parts are fresh."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

from docs import generate
from mi_align.equivalences.ledger import LEDGER
from mi_align.methods import METHODS

ROOT = generate.ROOT
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
REMEDY = "run `make readme`"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def by_hand(page: Path) -> str:
    """A page without its generated parts: what they show is tested where it comes from."""
    return re.sub(r"<!-- (\S+):begin -->.*?<!-- \1:end -->", "", page.read_text(), flags=re.DOTALL)


def code_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", by_hand(page), re.MULTILINE | re.DOTALL)


def promised(block: str) -> list[str]:
    """The comments at the ends of the lines that print."""
    return re.findall(r"^\s*(?:print|show)\(.*\)  # (.+)$", block, re.MULTILINE)


@pytest.mark.parametrize("page", [page for page in PAGES if code_blocks(page)], ids=name)
def test_the_code_of_a_page_runs_from_top_to_bottom_and_prints_its_comments(page: Path) -> None:
    names: dict[str, object] = {"__name__": "page"}
    for block in code_blocks(page):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), np.printoptions():
            exec(compile(block, name(page), "exec"), names)
        assert said.getvalue().splitlines() == promised(block)


def test_the_pages_that_should_have_code_have_it() -> None:
    assert {name(page) for page in PAGES if any(map(promised, code_blocks(page)))} >= {
        "README.md",
        "docs/benchmarking.md",
        "docs/choosing.md",
        "docs/extending.md",
        "docs/logprobs.md",
        "docs/models.md",
    }


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings in links."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)\s#:]*)(?:#([^)\s]+))?\)", prose):
        linked = page.parent / target if target else page
        assert linked.exists(), f"{name(page)} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{name(page)} links to {target}#{anchor}"


FRESH = [
    (page, section)
    for page, sections in generate.SECTIONS.items()
    for section in sections
    if section != "one-pair"  # test_one_pair.py, which runs the tour
]


@pytest.mark.parametrize(("page", "section"), FRESH)
def test_the_generated_parts_are_fresh(page: str, section: str) -> None:
    text = (ROOT / page).read_text()
    new = generate.refreshed(text, {section: generate.SECTIONS[page][section]})
    assert new == text, f"{page} is out of date: {REMEDY}"


def test_a_stale_part_is_made_anew_and_the_text_around_it_kept() -> None:
    text = "above\n<!-- part:begin -->\nold\n<!-- part:end -->\nbelow\n"
    assert generate.refreshed(text, {"part": lambda: "new\n"}) == text.replace("old", "new")
    with pytest.raises(SystemExit, match=r"part:begin.*not found"):
        generate.refreshed("<!-- part:end -->", {"part": lambda: ""})


def test_the_ledger_page_has_every_claim_once_in_rows_of_six_cells() -> None:
    rows = [line for line in generate.ledger_tables().splitlines() if re.match(r"\| \d", line)]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    assert [row[0].strip() for row in cells] == list(LEDGER)
    assert all(len(row) == 6 for row in cells)
    for row in cells:
        formula = row[2].strip()
        assert formula[0] == formula[-1] == "$" and not set("|*<$") & set(formula[1:-1])
        assert not re.search(r"\\[|{},;!]", formula), "Markdown would take the backslash away"


def test_every_make_target_and_method_that_a_page_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = by_hand(page)
        named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
        assert named <= targets, f"{name(page)} names {named - targets}"
    rows = re.findall(r"^\| [^|]+ \| ([^|]+) \| [^|]+ \|$", by_hand(ROOT / "docs" / "choosing.md"), re.MULTILINE)
    from mi_align import objectives

    named = {word for row in rows for word in re.findall(r"`([a-z_0-9]+)`", row)}
    assert len(named) > 20
    assert all(word in METHODS or hasattr(objectives, word) for word in named), named
