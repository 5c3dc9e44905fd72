"""`mi-align plot`: the curves of runs, side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

__all__ = ["Plot"]

#: Panels, of those for which there are numbers.
_PANELS = (
    "loss",
    "rewards/margins",
    "rewards/accuracies",
    "log_ratio/chosen",
    "log_ratio/rejected",
    "mi/info_nce",
    "mi/donsker_varadhan",
    "mi/jensen_shannon",
    "grad_norm",
)


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw the metrics of one run, or of several side by side: lines for training, dots for evaluation."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Folders that `train` has left."""
    output: Path | None = None
    """The picture. Default: metrics.png in the first folder."""
    metrics: str = ""
    """Comma-separated names. Default: loss, rewards, log-ratios, bounds on information, gradient norm."""

    def run(self) -> int:
        """Read, draw, say where."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        read = {str(run): _read(run) for run in self.runs}
        there = {name for lines in read.values() for line in lines for name in line}
        asked = [name.strip() for name in self.metrics.split(",") if name.strip()]
        _check(asked, there)
        names = asked or [name for name in _PANELS if name in there or f"eval/{name}" in there]
        columns = min(3, len(names))
        rows = -(-len(names) // columns)
        figure = Figure(figsize=(4.2 * columns, 2.8 * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for place, name in enumerate(names, start=1):
            axes = figure.add_subplot(rows, columns, place)
            axes.set_title(name, fontsize=9)
            axes.set_xlabel("step", fontsize=8)
            axes.tick_params(labelsize=8)
            for number, (run, lines) in enumerate(read.items()):
                colour = f"C{number}"
                axes.plot(*_series(lines, name), color=colour, lw=1.2, label=run)
                axes.plot(*_series(lines, f"eval/{name}"), "o", color=colour, ms=4)
            if place == 1:
                axes.legend(fontsize=7)
        output = self.output or self.runs[0] / "metrics.png"
        figure.savefig(output, dpi=130)
        print(f"written: {output}")
        return 0


def _read(run: Path) -> list[Mapping[str, Any]]:
    path = run / "metrics.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{run} has no metrics.jsonl. The `output` folder of `mi-align train` was wanted.")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _check(asked: Sequence[str], there: set[str]) -> None:
    from mi_align import checks

    for name in asked:
        if name not in there and f"eval/{name}" not in there:
            raise checks.unknown_name("metric in these runs", name, there)


def _series(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]
