"""Two panels: every row under the machine's roofline, and what its speed costs in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mi_align.benchmark.measure import Row
from mi_align.benchmark.task import LOGPS
from mi_align.equivalences.figures.style import COLOUR, GREY, INK, level, panels, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]
_MARKERS = {"forward": "o", "gradient": "s"}
_PASSES = {"forward": "forward", "gradient": "forward and backward"}
_SHAPES = "oD^vPXs"
_PALETTE = (*COLOUR.values(), INK, "#F0E442", "#7a5195", "#a0522d", "#66a61e", GREY)


def draw(rows: Sequence[Row]) -> Figure:
    """The token log-probabilities of a run; whole losses are in the table only."""
    timed = [row for row in rows if row["status"] == "right" and row["task"] == LOGPS]
    timed = timed or [row for row in rows if row["status"] == "right"]
    ceilings = [row for row in rows if row["status"] == "ceiling" and row["task"] == timed[0]["task"]]
    names = list(dict.fromkeys(row["implementation"] for row in timed))
    colours = {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(names)}
    figure, (left, right) = panels(2, width=12.5, height=4.8)
    _roofline(left, timed, ceilings, colours)
    _memory(right, [row for row in timed if row["pass"] == "gradient" and row["memory_bytes"]], colours)
    handles = [_dot(colour, name) for name, colour in colours.items()]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _roofline(axes: Axes, rows: Sequence[Row], ceilings: Sequence[Row], colours: Mapping[str, str]) -> None:
    """FLOP/s over FLOP a byte, under the roofs of the run."""
    names = list(colours)
    most = max(row["flops"] / row["bytes"] for row in rows) * 2
    for roof in ceilings:
        ridge = roof["flops_per_second"] / roof["bytes_per_second"]
        xs = [min(ridge, most) / 4, ridge, max(most, 2 * ridge)]
        ys = [min(roof["flops_per_second"], x * roof["bytes_per_second"]) for x in xs]
        axes.plot(xs, ys, color=GREY, linewidth=1.2, linestyle="-" if roof["pass"] == "gradient" else ":")
    for row in rows:
        aside = 1.05 ** (names.index(row["implementation"]) - len(names) / 2)  # or they would hide one another
        axes.plot(
            row["flops"] / row["bytes"] * aside,
            row["flops_per_second"],
            _MARKERS[row["pass"]],
            color=colours[row["implementation"]],
            markersize=6,
            alpha=0.9,
        )
    axes.set_xscale("log")
    axes.tick_params(which="minor", labelsize=9, labelcolor=INK)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y / 1e9:g}")
    axes.yaxis.set_minor_formatter(lambda y, _: f"{y / 1e9:g}")
    handles = [_dot(INK, _PASSES[which], _MARKERS[which]) for which in _MARKERS]
    axes.legend(handles=handles, frameon=False, fontsize=9, labelcolor=INK, loc="lower right")
    title(
        axes,
        "Under the roofline: a copy, and products of the same\nshapes (dotted: forward; solid: with both gradients)",
        x="useful FLOP per byte that must move",
        y="useful GFLOP/s",
    )


def _memory(axes: Axes, rows: Sequence[Row], colours: Mapping[str, str]) -> None:
    """Share of the products' speed over memory, where the gradient is made too."""
    shapes = list(dict.fromkeys((row["shape"], row["tokens"]) for row in rows))
    for row in rows:
        mark = _SHAPES[shapes.index((row["shape"], row["tokens"])) % len(_SHAPES)]
        logits = 4 * row["tokens"] * row["vocabulary"]
        axes.plot(
            row["memory_bytes"] / logits,
            row["share_of_products"],
            mark,
            color=colours[row["implementation"]],
            markersize=7,
        )
    axes.set_xscale("log")
    axes.tick_params(which="minor", labelsize=9, labelcolor=INK)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.xaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")  # 0.2, 0.5, 1, 2, …
    axes.set_ylim(bottom=0)
    level(axes, 1.0, "the products alone", at=0.35)
    handles = [
        _dot(INK, f"{shape}, {tokens:,} tokens", _SHAPES[i % len(_SHAPES)]) for i, (shape, tokens) in enumerate(shapes)
    ]
    axes.legend(handles=handles, frameon=False, fontsize=9, labelcolor=INK, loc="lower left")
    title(
        axes,
        "What speed costs in memory:\nforward and backward",
        x="memory beyond the inputs, gradients included (all float32 logits = 1)",
        y="share of the products' speed",
    )


def _dot(colour: str, name: str, marker: str = "o") -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, linestyle="", label=name)
