"""`mi-align reproduce`: the ledger, a real language model, the paper's dynamics, one report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from mi_align.reproduction import Results
    from mi_align.reproduction.learner import Tick

__all__ = ["Reproduce"]


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Certify every equivalence on random numbers and on a real language model, and reproduce the paper's dynamics.

    Writes report.html and report.json. Exit code 0 only if everything holds.
    """

    data: str | None = None
    """Preferences: a .jsonl, .jsonl.gz, .json or .parquet file, or a Hugging Face hub id. Default: generated sums."""
    quick: bool = False
    """One claim of every number, fewer samples, steps and seeds, a smaller model: about a minute on 2 cores."""
    output: Path = Path("report")
    """The folder of the report."""
    seed: int = 0
    """Of everything."""

    def run(self) -> int:
        """Read, certify, train, write."""
        from rich.console import Console

        from mi_align import reproduction
        from mi_align.cli.verify import certify_with_progress
        from mi_align.equivalences.ledger import LEDGER, first_of_each_number

        start = time.perf_counter()
        self.output.mkdir(parents=True, exist_ok=True)  # fails now, not after minutes of work
        console = Console(highlight=False, soft_wrap=True)
        plan = reproduction.QUICK if self.quick else reproduction.FULL
        plan = plan if self.data is None else plan.for_text()
        inputs = reproduction.load_inputs(self.data, plan, seed=self.seed)
        console.print(f"{len(inputs.preferences):,} preferences: {inputs.source}")
        if inputs.faults:
            console.print(f"{len(inputs.faults):,} rows left out, the first: {inputs.faults[0]}", markup=False)
        claims, samples = (first_of_each_number(LEDGER), 4096) if self.quick else (LEDGER, 1_000_000)
        certify = functools.partial(certify_with_progress, claims, samples=samples, dtype="float64", seed=self.seed)
        results = reproduction.reproduce(
            inputs, plan, certify_ledger=certify, seed=self.seed, stage=functools.partial(_stage, console)
        )
        with _stage(console, "report"):
            paths = reproduction.write_report(self.output, results, pictures=not self.quick)
        _print_summary(console, results)
        console.print(*(f"written: {path}" for path in paths), sep="\n", markup=False)
        verdict = "[green]everything holds[/]" if results.passed else "[red]not everything holds[/]"
        console.print(f"{verdict}; {time.perf_counter() - start:.0f} s")
        return 0 if results.passed else 1


@contextlib.contextmanager
def _stage(console: Console, title: str) -> Iterator[Tick]:
    """A bar while a part runs, and a line with its seconds when it is done."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    start = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)
    console.print(f"[green]✓[/] {title:48}{time.perf_counter() - start:6.1f} s")


def _print_summary(console: Console, results: Results) -> None:
    """The table of relative differences, and what was found."""
    from rich.table import Table

    differences = Table("", "on the language model", "dtype", "loss", "gradient", "allowed", "twin", box=None)
    for c in results.model:
        measured = ("–" if x is None else f"{x:.1e}" for x in (c.value, c.gradient))
        twin = "–" if c.twin_error is None else f"{c.twin_error:.1e}"
        differences.add_row(_mark(c.passed), f"{c.id} {c.title}", c.dtype, *measured, f"{c.tolerance:.0e}", twin)
    console.print(differences)
    for finding in (finding for part in results.findings.values() for finding in part):
        console.print(f"{_mark(finding.holds)} {finding.what}: {finding.seen} (expected: {finding.expected})")


def _mark(holds: bool | None) -> str:
    return {True: "[green]✓[/]", False: "[red]✗[/]", None: "·"}[holds]
