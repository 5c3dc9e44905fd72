"""Pictures of the language model's dynamics, in the house style."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from mi_align.equivalences.figures.style import COLOUR, GREY, INK, legend, level, panels, title
from mi_align.reproduction.curves import Curves
from mi_align.reproduction.plan import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_controls", "draw_curves"]

_RATIO = "log-ratio to the reference (nats)"


def draw_curves(curves: Mapping[str, Curves], plan: Plan) -> Figure:
    """Chosen and rejected log-ratios over steps: means over seeds, and bands from the least to the greatest seed."""
    figure, (left, right) = panels(2)
    beta = {"dpo": plan.beta, "mio": plan.mio_beta}
    for name, curve in curves.items():
        for axes, values in ((left, curve.chosen), (right, curve.rejected)):
            smooth = curve.smooth(values)
            step = np.arange(1, smooth.shape[-1] + 1)
            axes.fill_between(step, smooth.min(0), smooth.max(0), color=COLOUR[name], alpha=0.18, linewidth=0)
            axes.plot(step, smooth.mean(0), color=COLOUR[name], lw=2, label=f"{name.upper()}, β = {beta[name]:g}")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.axhline(0, color=GREY, linewidth=0.8)
    level(left, float(np.log(2) / plan.mio_beta), "ln 2/β: MIO's target")
    legend(left, loc="lower left")
    title(left, "Chosen: declines late under DPO, settles under MIO", x="Adam steps", y="chosen: " + _RATIO)
    title(right, "Rejected: falls under both, less under MIO", x="Adam steps", y="rejected: " + _RATIO)
    return figure


def draw_controls(curves: Mapping[str, Curves], plan: Plan) -> Figure:
    """Left: each chosen response's probability before and after. Right: what pulls it up, if it must be sampled."""
    figure, (left, right) = panels(2)
    for name in ("dpo", "mio"):
        curve = curves[name]
        left.plot(
            np.exp(curve.reference.ravel()),
            np.exp(curve.final.ravel()),
            "o",
            color=COLOUR[name],
            markersize=3.5,
            alpha=0.6,
            label=f"after {name.upper()}",
        )
    before = np.exp(np.sort(curves["mio"].reference.ravel()))
    left.plot(before, before, color=GREY, linewidth=1, label="unchanged")
    capped = np.minimum(1, before * 2 ** (1 / plan.mio_beta))
    left.plot(before, capped, "--", color=INK, linewidth=1, label=f"{2 ** (1 / plan.mio_beta):g} times as probable")
    left.set(xscale="log", yscale="log", ylim=(1e-9, 2))
    legend(left, loc="lower left")
    title(
        left,
        "MIO's gain is capped at $2^{1/β}$:\nit unlocks nothing that was improbable",
        x="probability of the chosen response before",
        y="after training",
    )

    # Ledger 45 and 20: pulls of a given pair at the start. Ledger 26: of a positive that has to be drawn, at T = 0.
    rows = (
        ("DPO, a given pair", np.full_like(before, 0.5), "-", COLOUR["dpo"]),
        ("MIO, a given pair", np.full_like(before, 0.25), "-", COLOUR["mio"]),
        ("Donsker–Varadhan, sampled", before, "o", COLOUR["dpo"]),
        ("Jensen–Shannon, sampled", before / 2, "s", COLOUR["mio"]),
    )
    for label, pull, mark, colour in rows:
        right.plot(before, pull, mark, color=colour, markersize=3.5, linewidth=2, label=label)
    right.set(xscale="log", yscale="log")
    legend(right, loc="lower right")
    title(
        right,
        "A positive that has to be sampled starves\nunder Jensen–Shannon too",
        x="probability that the model samples it",
        y="pull on the chosen response's critic value",
    )
    return figure
