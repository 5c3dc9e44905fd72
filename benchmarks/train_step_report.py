"""What was measured of a step, as rows and tables: medians, minima, ratios, shares of the machine's own products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.train_step_case import CASE, CONTENDERS, MIB
from benchmarks.train_step_gate import ALLOWED
from mi_align.benchmark import harness

__all__ = ["rows_of", "step_gflop", "tables"]

BASIS = "TRL as shipped, live reference"
Samples = dict[tuple[str, int], dict[str, list[float]]]


def step_gflop(*, live: bool) -> float:
    """10⁹ operations of a step's products that nobody can do without: each thrice, and once for a live reference.

    Matrices at every token, the head at the responses', attention over all pairs of a row's tokens.
    """
    sequences = 2 * CASE.pairs
    tokens = sequences * (CASE.prompt + CASE.response - 1)
    block = 4 * CASE.width**2 + 3 * CASE.width * CASE.mlp_width
    attention = 4 * tokens * (CASE.prompt + CASE.response - 1) * CASE.width
    head = 2 * sequences * CASE.response * CASE.width * CASE.vocabulary
    forward = CASE.layers * (2 * block * tokens + attention) + head
    return (4 if live else 3) * forward / 1e9


def rows_of(samples: Samples) -> list[dict[str, Any]]:
    """Medians, minima, ratios of medians to TRL as shipped on as many threads, and shares of the products' speed."""
    rows = []
    for (name, threads), mine in samples.items():
        if name not in CONTENDERS:
            continue
        contender, basis = CONTENDERS[name], samples.get((BASIS, threads))
        row: dict[str, Any] = {**contender._asdict(), "threads": threads, "samples": mine}
        for key, values in mine.items():
            row[key], row[f"{key}_least"] = float(np.median(values)), float(np.min(values))
            if basis and key in basis:
                row[f"{key}_ratio"] = row[key] / float(np.median(basis[key]))
        row["gflop"] = step_gflop(live=contender.live)
        row["ceiling_gflops"] = max(samples["products", threads]["gflops"])
        row["of_products"] = row["gflop"] / row["cpu_seconds_least"] / row["ceiling_gflops"]
        rows.append(row)
    order = list(CONTENDERS)
    return sorted(rows, key=lambda row: (row["threads"], order.index(row["name"])))


def tables(rows: list[dict[str, Any]], gates: dict[str, dict[str, float]], loop: dict[str, Any], note: str) -> str:
    """Everything in Markdown."""

    def ratio(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: f"{row[f'{key}_ratio']:.2f}" if f"{key}_ratio" in row else ""

    timed = harness.markdown(
        rows,
        {
            "threads": lambda row: str(row["threads"]),
            "step": lambda row: row["name"],
            "CPU s, median": lambda row: f"{row['cpu_seconds']:.2f}",
            "least": lambda row: f"{row['cpu_seconds_least']:.2f}",
            "× TRL as shipped": ratio("cpu_seconds"),
            "wall s, median": lambda row: f"{row['wall_seconds']:.2f}",
            "memory, MiB": lambda row: f"+{row['memory_bytes'] / MIB:,.0f}",
            "× TRL's memory": ratio("memory_bytes"),
            "of the products' speed": lambda row: f"{row['of_products']:.0%}",
        },
    )
    names = dict.fromkeys(row["name"] for row in rows)
    about = "\n".join(f"- {name}: {CONTENDERS[name].about}." for name in names)
    parts = [note, timed, _counted(rows), f"What the rows are:\n\n{about}", _judged(gates), _looped(loop)]
    return "\n\n".join(part for part in parts if part)


def _counted(rows: list[dict[str, Any]]) -> str:
    speeds = {row["threads"]: row["ceiling_gflops"] for row in rows}
    said = ", ".join(f"{speed:.0f} GFLOP a CPU second with {threads}" for threads, speed in speeds.items())
    return (
        f"A step's products are {step_gflop(live=False):.0f} GFLOP with a cached reference and "
        f"{step_gflop(live=True):.0f} with a live one; the machine made square ones of 2,048 at {said} threads."
    )


def _judged(gates: dict[str, dict[str, float]]) -> str:
    if not gates:
        return ""
    columns: dict[str, Callable[[tuple[str, dict[str, float]]], str]] = {"step": lambda item: item[0]}
    for key, limit in ALLOWED.items():
        columns[f"{key.replace('_', ' ')}, ≤ {limit:.0e}"] = lambda item, key=key: f"{item[1][key]:.1e}"
    moved = min(found["moved"] for found in gates.values())
    head = (
        "Differences to the step written by hand. The first loss is log 2 for all, whatever is wrong; the update moves "
        f"the second by {moved:.2f} nats or more. Log-probabilities of TRL are those that its own first pass gave.\n\n"
    )
    return head + harness.markdown(list(gates.items()), columns)


def _looped(loop: dict[str, Any]) -> str:
    if not loop:
        return ""
    return (
        f"A run's loop (data, metrics, journal at every step) takes {1e3 * loop['loop_seconds']:.1f} ms of CPU a step, "
        f"{loop['share']:.2%} of the {loop['step_seconds']:.2f} s of the step itself; a whole run took "
        f"{loop['run_seconds']:.2f} s a step."
    )
