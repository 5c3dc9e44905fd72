"""THE TABLE. A method is a row: which critic, which objective, how they meet, which regulariser, and whose defaults.

Where TRL (1.16) departs from a method's paper, the row under TRL's name keeps TRL's numbers and its `note` says so; the
paper's form is a row beside it. What TRL gets numerically wrong is not kept.
"""

from __future__ import annotations

from mi_align.methods.listed import LISTS, REWARDS, SINGLES
from mi_align.methods.method import Method, Part, Table
from mi_align.methods.reference_free import LIKELIHOODS, PAIRS
from mi_align.methods.referenced import LEVELS, MARGINS

__all__ = ["METHODS", "methods_table"]

METHODS = Table([*MARGINS, *LEVELS, *LISTS, *SINGLES, *PAIRS, *LIKELIHOODS, *REWARDS])


def methods_table(methods: Table = METHODS) -> str:
    """The table in Markdown: a row a method."""
    head = ["method", "loss", "defaults", "reference", "elsewhere", "source"]
    rows = [
        [f"`{m.name}`", _loss(m), _defaults(m), "yes" if m.needs_reference else "", _elsewhere(m), _source(m)]
        for m in methods.values()
    ]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _name(part: Part) -> str:
    """A function's name; a partial's is that of its function."""
    return getattr(getattr(part, "func", part), "__name__", type(part).__name__)


def _loss(method: Method) -> str:
    loss = f"`{_name(method.objective)}` of {_name(method.arrange).replace('_', ' ')} on `{_name(method.critic)}`"
    if method.weight is not None:
        loss = f"`{_name(method.weight)}` × {loss}"
    return loss if method.regulariser is None else f"{loss} + `{_name(method.regulariser)}`"


def _defaults(method: Method) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in method.defaults.items())


def _elsewhere(method: Method) -> str:
    return ", ".join(method.aliases)


def _source(method: Method) -> str:
    return f"{method.source}; {method.note}" if method.note else method.source
