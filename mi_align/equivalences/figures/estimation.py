"""Pictures of the bounds on mutual information: against the truth, their bias, and the chain of 16."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from mi_align.equivalences import gaussian_bounds, studies
from mi_align.equivalences.figures.style import COLOUR, GREY, INK, legend, level, panels, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_batch_bias", "draw_bounds", "draw_chain"]


def draw_bounds(estimates: gaussian_bounds.Estimates) -> Figure:
    """Left: estimators without a ceiling in the batch size. Right: those with one. Means and ±1 standard deviation."""
    figure, row = panels(2, height=4.4)
    truth, batch = estimates.information, estimates.batch
    capped = [name for name in estimates.values if name.startswith(("InfoNCE", "Jensen", "interpolated"))]
    free = [name for name in estimates.values if name not in capped]
    colours = (COLOUR["dpo"], COLOUR["mio"], COLOUR["bco_pair"])
    for axes, names in zip(row, (free, capped), strict=True):
        axes.plot(truth, truth, color=INK, linewidth=1, label="true value")
        for name, colour, line in zip(names, colours, ("-", "--", ":"), strict=True):
            mean, spread = estimates.values[name].mean(1), estimates.values[name].std(1)
            axes.fill_between(truth, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
            axes.plot(truth, mean, line, color=colour, linewidth=2, label=name)
        axes.set(xlim=(0, truth[-1]), ylim=(-1, truth[-1] + 2))
        level(axes, float(np.log(batch)), f"log N, N = {batch}", at=0.01)
    level(row[1], float(2 * np.log(2)), "2 log 2", at=0.87)
    level(row[1], float(np.log((batch - 1) / estimates.alpha)), "log (N − 1)/α", at=0.01)
    legend(row[0], loc="upper left")
    legend(row[1], loc="upper left", bbox_to_anchor=(0.0, 0.8))
    x, y = "true mutual information (nats)", "estimate with the exact critic (nats)"
    title(row[0], "No ceiling, but variance; SMILE is no bound", x=x, y=y)
    title(row[1], "Low variance, but a ceiling", x=x, y=y)
    return figure


def draw_batch_bias(bias: studies.BatchBias) -> Figure:
    """The upward bias of the batch Donsker–Varadhan value against the batch size."""
    figure, (axes,) = panels(1, width=6.5)
    axes.plot(bias.size, bias.predicted, color=GREY, linewidth=1.2, label="Var$(e^T)\\,/\\,(2nZ^2)$: slope −1")
    axes.plot(bias.size, bias.exact, "o", color=COLOUR["dpo"], markersize=6, label="exact, by enumerating all batches")
    axes.set(xscale="log", yscale="log")
    legend(axes, loc="upper right")
    title(
        axes,
        "The batch value of DV lies above DV: its bias falls as 1/n",
        x="n, marginal samples in a batch",
        y="E[DV of a batch] − DV (nats)",
    )
    return figure


def draw_chain(chain: studies.Chain) -> Figure:
    """What MIO, DV and DPO can each make of chosen and rejected responses that move apart."""
    figure, (axes,) = panels(1, width=6.5)
    rows = (
        (chain.dpo, "-", COLOUR["dpo"], "JSD(p⊗r ‖ r⊗p): log 2 − DPO's least loss"),
        (chain.donsker_varadhan, "--", COLOUR["bco_pair"], "KL(p ‖ m): DV's optimum"),
        (chain.jensen_shannon, ":", COLOUR["mio"], "2 JSD(p, m): ln 4 − MIO's least loss"),
    )
    for values, line, colour, label in rows:
        axes.plot(chain.separation, values, line, color=colour, linewidth=2.2, label=label)
    level(axes, float(np.log(2)), "log 2")
    axes.set_ylim(-0.02, 0.76)
    legend(axes, loc="lower right")
    title(
        axes,
        "2 JSD(p, m) ≤ KL(p ‖ m) ≤ JSD(p⊗r ‖ r⊗p) ≤ log 2",
        x="separation of the chosen law p and the rejected law r",
        y="information (nats)",
    )
    return figure


def bounds_against_truth() -> Figure:
    """`draw_bounds` of 32 batches at each true value: a third of what the experiment takes."""
    return draw_bounds(gaussian_bounds.estimate(jax.random.key(0), batches=32))


def batch_bias() -> Figure:
    """`draw_batch_bias` with its standard numbers."""
    return draw_batch_bias(studies.batch_bias())


def chain_of_bounds() -> Figure:
    """`draw_chain` with its standard numbers."""
    return draw_chain(studies.chain())
