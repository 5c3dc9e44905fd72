"""One whole step of DPO beside TRL's trainer and a step written by hand in torch, from the same weights.

    make bench-train-step                                 an environment with TRL, then everything; 10 quiet minutes
    python benchmarks/train_step.py --only cached trl     contenders whose name holds one of the words

A Llama of 19.5 million parameters, 8 pairs of 64 tokens of prompt and 192 of response, float32, AdamW, clipping. Before
anything is timed, the loss of the first two steps, the log-probabilities and the gradient have to agree with those of
the step written by hand; gradients are compared parameter by parameter, read back by the loader of weights. Each
measurement is a process of its own, and contenders take turns: processor seconds are of the process, and memory is by
how much its resident set grows during a step after the first, so that both are the step's alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.train_step_case import CASE, STEPS, Evidence, Probe, make_data, make_model

RESULTS = Path(__file__).parent / "results"
CONTENDERS = (
    "ours, cached reference",
    "ours, live reference",
    "ours, cached, exact start",
    "ours, live, exact start",
    "torch by hand, cached reference",
    "torch by hand, live reference",
    "TRL as shipped",
    "TRL, precomputed reference",
)
BASIS, JUDGE = "TRL as shipped", "torch by hand, live reference"
MIB = 2**20
#: Every freed block goes back to the system at once, so that the resident set is what is in use.
GIVE_BACK = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
#: What the gates allow: nats of the mean loss at the first two steps, nats a sequence, 1 − cosine of the gradients.
ALLOWED = {"first_loss": 1e-6, "second_loss": 1e-4, "logps": 1e-3, "gradient": 1e-6}


def work(name: str, threads: int, folder: Path, *, evidence: bool) -> None:
    """Be one contender: run its steps, print what they took or keep what they computed."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    if name.startswith("ours"):
        from benchmarks.train_step_ours import run
    else:
        from benchmarks.train_step_torch import run
    probe = Probe()
    found: Evidence | None = run(name, folder, threads, probe, evidence=evidence)
    if found is not None:
        np.savez(folder / f"{slug(name)}.npz", losses=found.losses, logps=found.logps)
    print(json.dumps(probe.samples()))


def slug(name: str) -> str:
    """The name of a file."""
    return name.replace(", ", "-").replace(" ", "-")


def start(name: str, threads: int, folder: Path, *flags: str) -> dict[str, Any]:
    """One contender in a process of its own."""
    environment = {**os.environ, **GIVE_BACK, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    command = [sys.executable, __file__, "--worker", name, "--threads", str(threads), "--folder", str(folder), *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def distances(name: str, folder: Path) -> dict[str, float]:
    """How far a contender's numbers are from the step written by hand."""
    from mi_align.models import load_pretrained

    mine, judge = (np.load(folder / f"{slug(n)}.npz") for n in (name, JUDGE))
    losses, logps = np.abs(mine["losses"] - judge["losses"]), np.abs(mine["logps"] - judge["logps"])
    trees = [flat(load_pretrained(folder / f"gradient-{slug(n)}").params) for n in (name, JUDGE)]
    cosine = trees[0] @ trees[1] / np.sqrt((trees[0] @ trees[0]) * (trees[1] @ trees[1]))
    return {
        "first_loss": float(losses[0]),
        "second_loss": float(losses[1]),
        "logps": float(logps.max()),
        "gradient": float(1 - cosine),
    }


def flat(params: Any) -> np.ndarray:
    """All numbers of a tree, in float64."""
    import jax

    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(params)])


def judged(names: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """The distances of every contender; one that is wrong ends the program."""
    for name in dict.fromkeys([JUDGE, *names]):
        start(name, 2, folder, "--evidence")
    found = {}
    for name in names:
        found[name] = distances(name, folder)
        print(name, found[name], flush=True)
        wrong = {key: value for key, value in found[name].items() if not value <= ALLOWED[key]}
        if wrong:
            raise SystemExit(f"{name} is WRONG, and nothing was timed: {wrong}, where {ALLOWED} are allowed.")
    return found


def measured(names: list[str], folder: Path, rounds: int) -> dict[tuple[str, int], list[dict[str, float]]]:
    """Samples by contender and number of threads; contenders take turns."""
    samples: dict[tuple[str, int], list[dict[str, float]]] = {}
    for n in range(rounds):
        for threads in (1, 2):
            for name in names:
                began = time.perf_counter()
                samples.setdefault((name, threads), []).extend(start(name, threads, folder)["steps"])
                last = samples[name, threads][-1]
                print(
                    f"round {n + 1}, {threads} threads, {name}: {last} ({time.perf_counter() - began:.0f} s)",
                    flush=True,
                )
    return samples


def rows_of(samples: dict[tuple[str, int], list[dict[str, float]]]) -> list[dict[str, Any]]:
    """Medians, and ratios to TRL as shipped on as many threads."""
    rows = []
    for (name, threads), steps in samples.items():
        row: dict[str, Any] = {"contender": name, "threads": threads, "samples": steps}
        for key in ("cpu_seconds", "wall_seconds", "memory_bytes"):
            row[key] = float(np.median([step[key] for step in steps]))
            if basis := samples.get((BASIS, threads)):
                row[f"{key}_ratio"] = row[key] / float(np.median([step[key] for step in basis]))
        rows.append(row)
    return sorted(rows, key=lambda row: (row["threads"], CONTENDERS.index(row["contender"])))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    from mi_align.benchmark import harness

    def ratio(key: str) -> Any:
        return lambda row: f"{row[f'{key}_ratio']:.2f}" if f"{key}_ratio" in row else ""

    return harness.markdown(
        rows,
        {
            "threads": lambda row: str(row["threads"]),
            "step": lambda row: row["contender"],
            "CPU s": lambda row: f"{row['cpu_seconds']:.2f}",
            "× TRL's CPU": ratio("cpu_seconds"),
            "wall s": lambda row: f"{row['wall_seconds']:.2f}",
            "× TRL's wall": ratio("wall_seconds"),
            "memory, MiB": lambda row: f"{row['memory_bytes'] / MIB:,.0f}",
            "× TRL's memory": ratio("memory_bytes"),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="words, of which a contender's name holds one")
    parser.add_argument("--rounds", type=int, default=3, help=f"processes a contender; each times {STEPS - 1} steps")
    parser.add_argument("--no-gate", action="store_true", help="time without comparing the numbers first")
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results")
    for internal in ("--worker", "--folder"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--evidence", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        return work(given.worker, given.threads, Path(given.folder), evidence=given.evidence)
    names = [name for name in CONTENDERS if not given.only or any(word in name for word in given.only)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_model(folder / "model")
        make_data(folder / "data.npz")
        gates = {} if given.no_gate else judged(names, folder)
        rows = rows_of(measured(names, folder, given.rounds))
    print(table(rows))
    if given.write:
        from mi_align.benchmark import harness

        more = {"case": CASE._asdict(), "gates": gates, "allowed": ALLOWED}
        harness.write("train-step", rows, table(rows), RESULTS / harness.device_name(), **more)
    return None


if __name__ == "__main__":
    main()
