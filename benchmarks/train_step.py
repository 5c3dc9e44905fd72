"""One whole step of DPO beside TRL's trainer and a step written by hand in torch, from the same weights.

    make bench-train-step                                 an environment with TRL, then everything; half a quiet hour
    make bench-train-step ARGS=--quick                    one round on one thread, nothing kept; 10 minutes
    python benchmarks/train_step.py --only cached trl     contenders whose name holds one of the words

A Llama of 19.5 million parameters, 8 pairs of 64 tokens of prompt and 192 of response, float32, AdamW, clipping. Before
anything is timed, the log-probabilities, the gradient and the losses of the first two steps have to agree with those
of the step written by hand; gradients are compared parameter by parameter, read back by the loader of weights. Each
measurement is a process of its own, and contenders take turns. Time is of processes whose allocator keeps what is
freed, as in all benchmarks here; memory, by how much the resident set grows during a step after the first, of others
whose allocator gives it back at once. The last table is of a run's loop around the step.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train_step_case import CASE, CONTENDERS, STEPS, Evidence, Probe, make_data, make_model, slug
from mi_align.benchmark.harness import KEEP_MEMORY

RESULTS = Path(__file__).parent / "results"
#: Every freed block goes back to the system at once, so that the resident set is what is in use.
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
#: What a process can be asked for: times, memory, evidence for the gates, the machine's products, a run's loop.
TIME, MEMORY, EVIDENCE, PRODUCTS, LOOP = "time", "memory", "evidence", "products", "loop"


def work(name: str, threads: int, folder: Path, purpose: str) -> None:
    """Be one process: make a contender's steps, print what they took or keep what they computed."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    if purpose in (PRODUCTS, LOOP):
        from benchmarks.train_step_loop import overhead, products

        print(json.dumps(overhead(CONTENDERS[name], folder) if purpose == LOOP else products(threads)))
        return
    row, probe = CONTENDERS[name], Probe()
    if row.maker == "ours":
        from benchmarks.train_step_ours import run
    elif row.maker == "torch":
        from benchmarks.train_step_torch import run
    else:
        from benchmarks.train_step_trl import run
    found: Evidence | None = run(row, folder, threads, probe, evidence=purpose == EVIDENCE)
    if found is not None:
        np.savez(folder / f"{slug(name)}.npz", losses=found.losses, logps=found.logps)
    print(json.dumps(probe.samples()))


def start(name: str, threads: int, folder: Path, purpose: str) -> Any:
    """One process, on as many cores as it has threads."""
    memory = KEEP_MEMORY if purpose in (TIME, PRODUCTS, LOOP) else GIVE_BACK
    environment = {**os.environ, **memory, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if threads == 1:
        environment["XLA_FLAGS"] = ONE_THREAD
    given = ["--worker", name, "--threads", str(threads), "--folder", str(folder), "--purpose", purpose]
    done = subprocess.run([sys.executable, __file__, *given], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed ({purpose}):\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def judged(names: Sequence[str], folder: Path) -> dict[str, dict[str, float]]:
    """The distances of every contender; one that is wrong ends the program."""
    from benchmarks.train_step_gate import JUDGE, check, distances

    for name in dict.fromkeys([JUDGE, *names]):
        start(name, len(os.sched_getaffinity(0)), folder, EVIDENCE)
    found = {}
    for name in names:
        found[name] = distances(name, folder)
        print(name, {key: float(f"{value:.2e}") for key, value in found[name].items()}, flush=True)
        check(name, found[name])
    return found


def measured(
    names: Sequence[str], folder: Path, rounds: int, threads: Sequence[int]
) -> dict[tuple[str, int], dict[str, list[float]]]:
    """Samples by contender and number of threads; contenders take turns, and so do the machine's products."""
    samples: dict[tuple[str, int], dict[str, list[float]]] = {}
    for n in range(rounds):
        for count in threads:
            keep(samples, ("products", count), start("", count, folder, PRODUCTS), "gflops")
            for name in names:
                began = time.perf_counter()
                keep(samples, (name, count), start(name, count, folder, TIME), "cpu_seconds", "wall_seconds")
                if n == 0:
                    keep(samples, (name, count), start(name, count, folder, MEMORY), "memory_bytes")
                last = ", ".join(f"{key} {values[-1]:.4g}" for key, values in samples[name, count].items())
                took = time.perf_counter() - began
                print(f"round {n + 1}, {count} threads, {name}: {last} ({took:.0f} s)", flush=True)
    return samples


def keep(
    samples: dict[tuple[str, int], dict[str, list[float]]], key: tuple[str, int], came: dict[str, Any], *fields: str
) -> None:
    """Put some of what came beside earlier samples."""
    mine = samples.setdefault(key, {})
    for field in fields:
        mine[field] = mine.get(field, []) + came[field]


def main() -> None:
    """Judge, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="words, of which a contender's name holds one")
    parser.add_argument("--rounds", type=int, default=5, help=f"processes a contender; each times {STEPS - 1} steps")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="how many, each for itself")
    parser.add_argument("--quick", action="store_true", help="one round on one thread")
    parser.add_argument("--no-gate", action="store_true", help="time without comparing the numbers first")
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results")
    parser.add_argument("--note", default="", help="a sentence above the tables, such as what else was running")
    for internal in ("--worker", "--folder", "--purpose"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker is not None:
        work(given.worker, given.threads[0], Path(given.folder), given.purpose)
        return
    rounds, threads = (1, [1]) if given.quick else (given.rounds, given.threads)
    names = [name for name in CONTENDERS if not given.only or any(word in name for word in given.only)]
    from benchmarks import train_step_report as report

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder / "model")
        make_data(folder / "data.npz")
        gates = {} if given.no_gate else judged(names, folder)
        rows = report.rows_of(measured(names, folder, rounds, threads))
        keep_results(given, rows, gates, {})  # before the loop, so that nothing stops the rows any more
        mine = [name for name in names if CONTENDERS[name].maker == "ours"]
        loop = start(mine[0], 1, folder, LOOP) if mine else {}
    print(keep_results(given, rows, gates, loop))


def keep_results(
    given: argparse.Namespace, rows: list[dict[str, Any]], gates: dict[str, dict[str, float]], loop: dict[str, Any]
) -> str:
    """The tables, which are written with the numbers where that was asked for."""
    from benchmarks import train_step_report as report
    from mi_align.benchmark import harness

    text = report.tables(rows, gates, loop, given.note)
    if given.write and not given.quick:
        more = {"case": CASE._asdict(), "gates": gates, "loop": loop, "note": given.note}
        harness.write("train-step", rows, text, RESULTS / harness.device_name(), **more)
    return text


if __name__ == "__main__":
    main()
