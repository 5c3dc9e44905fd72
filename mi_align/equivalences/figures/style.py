"""The house style of a picture: one palette, one way to make axes, nothing global.

Figures are made without pyplot, so that drawing one changes no state and needs no display; matplotlib is imported only
when one is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOUR", "GREY", "INK", "legend", "level", "panels", "title"]

INK = "#222222"
GREY = "#8a8a8a"

#: Okabe and Ito's palette, told apart with every common colour vision; one colour means one thing in all pictures.
COLOUR = {
    "dpo": "#D55E00",
    "mio": "#0072B2",
    "bco_pair": "#009E73",
    "first": "#E69F00",
    "second": "#56B4E9",
    "third": "#CC79A7",
}

_TEXT, _SMALL = 10, 9


def panels(columns: int = 1, *, width: float = 9.0, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure with a row of plain axes; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    row = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.tick_params(labelsize=_SMALL, color=GREY, labelcolor=INK)
        axes.grid(True, color="#e6e6e6", linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, row


def title(axes: Axes, text: str, *, x: str, y: str) -> None:
    """What the panel shows, and what its axes measure, with units."""
    axes.set_title(text, loc="left", fontsize=_TEXT, color=INK)
    axes.set_xlabel(x, fontsize=_TEXT, color=INK)
    axes.set_ylabel(y, fontsize=_TEXT, color=INK)


def level(axes: Axes, y: float, text: str, *, at: float = 0.01, above: bool = True) -> None:
    """A thin horizontal line at a value that theory names; `at` is where its label starts, as a share of the width."""
    axes.axhline(y, color=INK, linewidth=0.8, linestyle=(0, (1, 2)))
    axes.annotate(
        text,
        (at, y),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 2 if above else -2),
        textcoords="offset points",
        va="bottom" if above else "top",
        fontsize=_SMALL,
        color=INK,
    )


def legend(axes: Axes, **where: Any) -> None:
    """The legend, without a frame."""
    axes.legend(frameon=False, fontsize=_SMALL, labelcolor=INK, **where)
