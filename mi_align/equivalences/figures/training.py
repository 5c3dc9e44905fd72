"""Pictures of preference learning in miniature: how the chosen and the rejected response move under each loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mi_align.equivalences import studies, toys
from mi_align.equivalences.dynamics import History
from mi_align.equivalences.figures.style import COLOUR, GREY, INK, legend, level, panels, title
from mi_align.objectives import bradley_terry_loss, nca_loss

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_displacement", "draw_flow_field", "draw_gain_cap", "draw_late_decline"]

_NAMES = {"dpo": "DPO", "mio": "MIO (= pairwise NCA)", "bco_pair": "BCO"}
_STEPS = "gradient steps"
_RATIO = "log-ratio to the reference (nats)"


def draw_late_decline(curves: Mapping[str, History]) -> Figure:
    """Toy 34: the chosen log-ratio under each method, and where DPO's probability mass goes."""
    figure, (left, right) = panels(2)
    for name, history in curves.items():
        left.plot(history.step, history.log_ratio[:, 0], color=COLOUR[name], linewidth=2, label=_NAMES[name])
    left.set_xscale("log")
    _signed_log(left, (-6, -3, -1, -0.5, 0, 0.5, 1))
    left.set_ylim(-7.5, 1.3)
    level(left, float(np.log(2)), "ln 2, MIO's target if free to move")
    level(left, 0.414675, ".4147, the class maximum", at=0.55)
    legend(left, loc="lower left")
    title(
        left,
        "One feature, three responses:\nDPO peaks, then declines without bound; MIO settles",
        x=_STEPS,
        y="chosen: " + _RATIO,
    )

    shares = np.exp(curves["dpo"].log_policy)
    right.stackplot(curves["dpo"].step, shares.T, colors=[COLOUR["second"], COLOUR["third"], "#d0d0d0"], linewidth=0)
    for text, x, y in (("chosen", 60, 0.15), ("rejected", 8, 0.6), ("other", 20_000, 0.6)):
        right.text(x, y, text, color=INK, fontsize=10, ha="center")
    right.set_xscale("log")
    right.margins(0)
    title(right, "The same policy under DPO:\na third response takes the mass", x=_STEPS, y="probability under DPO")
    return figure


def _signed_log(axes: Axes, ticks: tuple[float, ...]) -> None:
    """A scale that is linear within ±0.3 nats and logarithmic far beyond, without a kink between."""
    axes.set_yscale("asinh", linear_width=0.3)
    axes.set_yticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])


def draw_displacement(collapse: Mapping[str, History], duplicates: Mapping[str, History]) -> Figure:
    """Chosen and rejected log-ratios on the two toys with shared features."""
    figure, (left, right) = panels(2)
    for axes, curves in ((left, collapse), (right, duplicates)):
        for name, history in curves.items():
            for response, line in ((0, "-"), (1, "--")):
                label = f"{_NAMES[name]}: {('chosen', 'rejected')[response]}"
                axes.plot(history.step, history.log_ratio[:, response], line, color=COLOUR[name], lw=2, label=label)
        axes.set_xscale("log")
        axes.axhline(0, color=GREY, linewidth=0.8)
    _signed_log(left, (-10, -3, -1, -0.5, 0, 0.5, 1))
    _signed_log(right, (-30, -10, -3, -1, 0, 0.3, 1))
    legend(left, loc="lower left")
    title(left, "Rejected = the chosen one exaggerated:\nDPO sinks both from step 1, MIO recovers", x=_STEPS, y=_RATIO)
    title(right, "Rejected = near-duplicates of the chosen one:\nDPO sinks both later, MIO holds", x=_STEPS, y=_RATIO)
    return figure


def draw_flow_field(*, chosen: tuple[float, float] = (-4, 4), rejected: tuple[float, float] = (-6, 2)) -> Figure:
    """Where gradient flow takes a pair's free implicit rewards (a, c) under DPO and under MIO."""
    figure, row = panels(2, height=4.4)
    a, c = np.linspace(*chosen, 41), np.linspace(*rejected, 41)
    fields = {"dpo": bradley_terry_loss, "mio": lambda x, y: nca_loss(x, y[None])}
    for axes, (name, loss) in zip(row, fields.items(), strict=True):
        da, dc = studies.descent_directions(loss, a, c)
        axes.streamplot(a, c, da, dc, color=COLOUR[name], linewidth=1, density=0.9, arrowsize=1)
        axes.plot(0, 0, "o", color=INK, markersize=6)
        axes.annotate("start", (0, 0), xytext=(6, 5), textcoords="offset points", fontsize=9, color=INK)
        axes.set(xlim=chosen, ylim=rejected)
    row[1].axvline(np.log(2), color=INK, linewidth=1.2, linestyle=(0, (1, 2)))
    row[1].annotate(
        "a = ln 2", (np.log(2), rejected[0]), xytext=(4, 6), textcoords="offset points", fontsize=9, color=INK
    )
    x, y = "chosen implicit reward a (nats)", "rejected implicit reward c (nats)"
    title(row[0], "DPO sees only a − c: always along (1, −1), without end", x=x, y=y)
    title(row[1], "MIO has a level of its own: a → ln 2 while c falls", x=x, y=y)
    return figure


def draw_gain_cap(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, reference: float) -> Figure:
    """The probability of a rare chosen response under tabular DPO and under MIO at several β."""
    figure, (axes,) = panels(1, width=7.0)
    colours = [COLOUR["dpo"], COLOUR["mio"], COLOUR["second"], COLOUR["bco_pair"]]
    for colour, (name, (step, probability)) in zip(colours, curves.items(), strict=True):
        axes.plot(step, probability, color=colour, linewidth=2, label=name)
    axes.set(xscale="log", yscale="log")
    for beta in (1.0, 0.5, 0.25):
        cap = reference * 2 ** (1 / beta)
        level(axes, cap, f"$2^{{1/β}}\\,π_{{ref}}$ at β = {beta:g}", at=0.76)
    legend(axes, loc="upper left")
    title(
        axes,
        "Negative control, tabular policy: MIO's gain is capped at $2^{1/β}$",
        x=_STEPS,
        y="probability of the chosen response",
    )
    return figure


def _both(toy: toys.Toy) -> Mapping[str, History]:
    return studies.learning_curves(toy, ("dpo", "mio"))


def late_decline() -> Figure:
    """`draw_late_decline` with its standard numbers."""
    return draw_late_decline(studies.learning_curves(toys.LATE_DECLINE, ("dpo", "mio", "bco_pair")))


def displacement() -> Figure:
    """`draw_displacement` with its standard numbers."""
    return draw_displacement(_both(toys.COLLAPSE), _both(toys.NEAR_DUPLICATES))


def flow_field() -> Figure:
    """`draw_flow_field` with its standard numbers."""
    return draw_flow_field()


def gain_cap() -> Figure:
    """`draw_gain_cap` with its standard numbers."""
    return draw_gain_cap(studies.gain_cap(reference=1e-4), reference=1e-4)
