"""`mi-align bench`: the throughput of loss kernels and whole preference losses."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mi_align.benchmark.measure import Row
    from mi_align.benchmark.program import Contender
    from mi_align.benchmark.task import Task

__all__ = ["Bench", "bench"]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Time token log-probabilities and whole preference losses, every way, beside the machine's own limits.

    Every way is compared with float64 first: a wrong one says WRONG and is not timed. Exit code 1 if there is one.
    """

    kernel: str | None = None
    """Your own, FILE.py:FUNCTION, a function (hidden [N, D], vocabulary [V, D], targets [N]) -> logps [N]."""
    shapes: str = ""
    """Comma-separated: toy, small, gpt2, llama-3-8b, llama-3-8b:2048, 2048x512x32768 (tokens, features, vocabulary)."""
    methods: str = "dpo,mio,infonce_dpo,orpo,simpo,kto"
    """Comma-separated preference losses; "none" for token log-probabilities alone."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of hidden states and vocabulary. Default: float32 on a CPU, bfloat16 elsewhere."""
    implementations: str = ""
    """Comma-separated ways: chunked, reference, memory_budget, frozen_head, half_masked, plain, plain_frozen,
    checkpoint, optax; pallas_gpu or pallas_tpu on such a device. Default: all."""
    output: Path | None = None
    """Write logprobs.json, logprobs.md and logprobs.png into this folder."""
    json: bool = False
    """Print the results as JSON, and nothing else."""
    quick: bool = False
    """A tiny shape, one preference loss, fewer repetitions: under 40 s on 2 cores."""
    budget: float = 3.0
    """Seconds of samples of the slowest way in each pass; three rounds are run in any case."""
    seed: int = 0
    """Of the random inputs."""

    def run(self) -> int:
        """Measure, print, write."""
        return bench(self)


def bench(options: Bench, peers: Sequence[Contender] = (), *, name: str = "logprobs") -> int:
    """What the command does, with further contenders and files of another name where they are given."""
    from mi_align.benchmark import report

    start = time.perf_counter()
    tasks, contenders = _work(options, peers)
    if options.output is not None:
        options.output.mkdir(parents=True, exist_ok=True)  # fails now, not after minutes of work
    budget = min(options.budget, 0.2) if options.quick else options.budget
    rows: list[Row] = []
    for row in _with_progress(tasks, contenders, budget=budget, quiet=options.json):
        rows.append(row)
        if options.output is not None and row["status"] == "ceiling":  # the last of a pass: no interruption loses it
            report.write(options.output, rows, time.perf_counter() - start, name=name, picture=False)
    seconds = time.perf_counter() - start
    wrong = [row for row in rows if row["status"] == "wrong"]
    if options.json:
        print(json.dumps(report.record(rows, seconds), indent=1, allow_nan=False))
    else:
        print(_summary(rows, wrong, seconds))
    if options.output is not None:
        paths = report.write(options.output, rows, seconds, name=name)
        print(*(f"written: {path}" for path in paths), sep="\n", file=sys.stderr if options.json else sys.stdout)
    return 1 if wrong else 0


def _work(options: Bench, peers: Sequence[Contender]) -> tuple[list[Task], list[Contender]]:
    """What is computed, and by whom; everything that can be wrong with the options is found here."""
    import jax

    from mi_align.benchmark.kernels import chosen_kernels, load_kernel
    from mi_align.benchmark.program import contender
    from mi_align.benchmark.task import chosen_methods, logps_task, method_task
    from mi_align.logprobs.cases import case_named

    if not options.budget > 0:
        raise ValueError(f"`budget` is {options.budget}, but a number of seconds > 0 was wanted.")
    on_cpu = jax.default_backend() == "cpu"
    dtype = options.dtype or ("float32" if on_cpu else "bfloat16")
    shapes = options.shapes or ("tiny" if options.quick else "toy" if on_cpu else "llama-3-8b,qwen2.5-0.5b")
    cases = [case_named(shape.strip()) for shape in shapes.split(",") if shape.strip()]
    methods = chosen_methods("dpo" if options.quick and options.methods == Bench.methods else options.methods)
    kernels = chosen_kernels(options.implementations)
    if options.kernel is not None:
        kernels = (load_kernel(options.kernel, cases[0], dtype), *kernels)
    tasks = [
        task
        for case in cases
        for task in (
            logps_task(case, dtype, seed=options.seed),
            *(method_task(name, case, dtype, seed=options.seed) for name in methods),
        )
    ]
    return tasks, [*map(contender, kernels), *peers]


def _with_progress(
    tasks: Iterable[Task], contenders: Sequence[Contender], *, budget: float, quiet: bool
) -> Iterator[Row]:
    """The rows, a line each as they come and a bar below; plain lines where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mi_align.benchmark.measure import measure
    from mi_align.benchmark.report import line

    tasks = list(tasks)
    console = Console(quiet=quiet, highlight=False, soft_wrap=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        shown = bar.add_task("", total=len(tasks))
        for task in tasks:
            entered = [c for c in contenders if c.enters(task.name)]
            for row in measure(task, entered, budget=budget, say=lambda text: bar.update(shown, description=text)):
                console.print(line(row), markup=False) if not quiet else None
                yield row
            bar.advance(shown)


def _summary(rows: Sequence[Row], wrong: Sequence[Row], seconds: float) -> str:
    """One line on what came of it, and one on each wrong row."""
    timed = sum(row["status"] == "right" for row in rows)
    skipped = sum(row["status"] == "skipped" for row in rows)
    lines = [
        f"WRONG: {row['implementation']}, {row['task']} at {row['shape']}, {row['pass']}: "
        + ", ".join(
            f"{name} off by {_number(e)} (allowed {row['allowed'][name]:.1e})" for name, e in row["errors"].items()
        )
        for row in wrong
    ]
    return "\n".join([*lines, f"{timed} rows timed, {len(wrong)} wrong, {skipped} skipped; {seconds:.0f} s"])


def _number(error: float | str) -> str:
    return error if isinstance(error, str) else f"{error:.1e}"
