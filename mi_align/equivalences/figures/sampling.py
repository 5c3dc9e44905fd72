"""Pictures of what sampling and starvation do: pulls, steps to solve, the RLHF optimum, pass@k."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import numpy as np

from mi_align.equivalences import studies
from mi_align.equivalences.figures.style import COLOUR, GREY, INK, legend, level, panels, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["draw_optimum", "draw_pass_at_k", "draw_starvation"]


def draw_starvation(pulls: studies.Pulls, answers: tuple[int, ...], steps: np.ndarray) -> Figure:
    """Left: the pull on the chosen response as the rejected one falls. Right: policy-gradient steps against 1/ε."""
    figure, (left, right) = panels(2)
    for curve, level_of_chosen, line in zip(range(len(pulls.chosen)), pulls.chosen, ("-", "--", ":"), strict=True):
        for name, values in (("dpo", pulls.dpo), ("mio", pulls.mio)):
            label = f"{name.upper()}, a = {float(level_of_chosen):g}".replace("-", "−")
            left.plot(pulls.rejected, values[curve], line, color=COLOUR[name], linewidth=2, label=label)
    level(left, 0.25, "¼: MIO's least pull while a ≤ 0", at=0.04)
    left.set_ylim(-0.03, 1.03)
    legend(left, loc="lower left", bbox_to_anchor=(0.0, 0.34))
    title(
        left,
        "DPO lets go of the chosen response once c is low",
        x="rejected implicit reward c (nats)",
        y="pull on the chosen reward, −∂ℓ/∂a",
    )

    right.plot(answers, steps, "o", color=COLOUR["dpo"], markersize=7, label="exact policy gradient, rate 1")
    right.plot(answers, answers, color=GREY, linewidth=1, label="slope 1")
    for x, y in zip(answers, steps, strict=True):
        right.annotate(f"{y:,}", (x, y), xytext=(7, -9), textcoords="offset points", fontsize=9, color=INK)
    right.set(xscale="log", yscale="log")
    right.set_xlim(None, answers[-1] * 5)
    legend(right, loc="upper left")
    title(
        right,
        "A correct answer of probability ε takes about 1/ε steps",
        x="1/ε (number of equally likely answers)",
        y="steps until it has probability ½",
    )
    return figure


def draw_optimum(optimum: studies.Optimum) -> Figure:
    """Distance of DPO's policy from the RLHF optimum, by Newton's method and by gradient descent."""
    figure, (left, right) = panels(2)
    colours, lines = (COLOUR["first"], COLOUR["mio"], COLOUR["bco_pair"]), ("-", "--", ":")
    for (law, newton), colour, line in zip(optimum.newton.items(), colours, lines, strict=True):
        left.plot(np.maximum(newton, 1e-17), line, marker="o", markersize=4, color=colour, lw=2, label=law)
        right.plot(optimum.step, optimum.descent[law], line, color=colour, linewidth=2, label=law)
    for axes in (left, right):
        axes.set_yscale("log")
    level(left, 1e-8, "$10^{-8}$", at=0.9)
    right.set_xscale("log")
    legend(left, loc="lower left", handlelength=1.3)
    y = "total variation to π* ∝ $π_{ref}\\,e^{r/β}$"
    title(left, "DPO's minimiser is the RLHF optimum π*", x="Newton steps on DPO's population loss", y=y)
    title(right, "Any law of pairs leads there; it sets the speed", x="gradient steps on the same loss", y=y)
    return figure


def draw_pass_at_k(curves: studies.PassAtK) -> Figure:
    """Average pass@k of a base model, of an over-trained one, and of the KL-regularised optimum."""
    figure, (axes,) = panels(1, width=7.0)
    axes.plot(curves.k, curves.base, color=INK, linewidth=2, label="base model")
    axes.plot(curves.k, curves.regularised, "--", color=COLOUR["mio"], linewidth=2, label="KL-regularised optimum")
    axes.plot(
        curves.k, curves.collapsed, ":", color=COLOUR["dpo"], linewidth=2.5, label="sharper, but 30% of prompts lost"
    )
    crossing = int(np.argmax(curves.base > curves.collapsed))
    axes.axvline(curves.k[crossing], color=GREY, linewidth=0.8)
    axes.annotate(
        f"base overtakes\nat k ≈ {curves.k[crossing]:.0f}",
        (curves.k[crossing], 0.3),
        xytext=(5, 0),
        textcoords="offset points",
        fontsize=9,
        color=INK,
    )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    legend(axes, loc="upper left")
    title(
        axes,
        "Constructed example: curves cross where prompts are given up,\nnot under the KL-regularised optimum",
        x="k, samples per prompt",
        y="mean pass@k",
    )
    return figure


def starvation() -> Figure:
    """`draw_starvation` with its standard numbers."""
    answers = (10, 100, 1000, 10_000)
    return draw_starvation(studies.chosen_pulls(), answers, studies.solving_times(answers))


def rlhf_optimum_by_dpo() -> Figure:
    """`draw_optimum` with its standard numbers."""
    return draw_optimum(studies.optimum_reached(jax.random.key(0)))


def pass_at_k() -> Figure:
    """`draw_pass_at_k` with its standard numbers."""
    return draw_pass_at_k(studies.pass_at_k())
