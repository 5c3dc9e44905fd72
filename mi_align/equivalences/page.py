"""One self-contained HTML page: text, typeset formulas, tables and pictures, with nothing to fetch.

Formulas are MathML, which browsers typeset themselves; pictures are inlined as SVG data.
"""

from __future__ import annotations

import base64
import functools
import html
import importlib.resources
import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import latex2mathml.converter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Section", "figure", "formula", "paragraph", "table", "write_file", "write_page"]


class Section(NamedTuple):
    """A part of a page.

    Attributes:
      title: plain text.
      body: HTML, made with the functions of this module.
    """

    title: str
    body: str


@functools.lru_cache(maxsize=4096)
def formula(latex: str) -> str:
    """LaTeX, without dollar signs, as MathML on a line of its own.

    Raises:
      ValueError: the LaTeX could not be converted.
    """
    try:
        return f'<div class="formula">{latex2mathml.converter.convert(latex, display="block")}</div>'
    except Exception as error:
        raise ValueError(f"cannot typeset {latex!r}: {type(error).__name__}: {error}") from error


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{html.escape(text)}</p>"


def figure(drawn: Figure, caption: str) -> str:
    """A matplotlib figure, inlined, with its caption."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="svg", bbox_inches="tight")
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(caption)
    return f'<figure><img alt="{text}" src="data:image/svg+xml;base64,{data}"><figcaption>{text}</figcaption></figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML already; `kind` is a CSS class."""
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def write_page(path: Path, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write the page; it appears whole or not at all."""
    names = [f"section-{number}" for number, _ in enumerate(sections, 1)]
    links = "".join(f'<a href="#{n}">{html.escape(s.title)}</a>' for n, s in zip(names, sections, strict=True))
    parts = "".join(
        f'<section id="{n}"><h2>{html.escape(s.title)}</h2>{s.body}</section>'
        for n, s in zip(names, sections, strict=True)
    )
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_style()}</style></head>'
        f"<body><header><h1>{html.escape(title)}</h1>{lead}<nav>{links}</nav></header>"
        f"<main>{parts}</main></body></html>\n"
    )
    return write_file(path, page)


def _style() -> str:
    return importlib.resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")


def write_file(path: Path, text: str) -> Path:
    """Write a text file through a temporary one beside it, so that no reader ever sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
