"""What every benchmark shares: honest timing, the machine's own ceilings, and results that can be compared later.

Candidates of one row are timed in turn, round after round, in one process, so that a noisy machine is noisy for all of
them; the median is reported, the samples are kept. Nothing is timed before its numbers were found right.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

RESULTS = Path(__file__).parent / "results"

#: glibc gives large freed blocks back to the system, and every fresh output then costs page faults: a copy of 40 MB
#: took 18 ms instead of 2. These keep the blocks, for every candidate alike: arithmetic and memory are what is timed.
KEEP_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TOP_PAD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
}


def keep_freed_memory() -> None:
    """Start this program again with an allocator that keeps what is freed. Call it first; does nothing off Linux."""
    if sys.platform == "linux" and not KEEP_MEMORY.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_MEMORY})


def seconds_of(candidates: Mapping[str, Callable[[], Any]], *, budget: float = 1.0) -> dict[str, list[float]]:
    """Wall-clock samples of each candidate, taken in turn until each has run for about `budget` seconds."""
    for run in candidates.values():  # compile, page in, warm up
        run()
        run()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    slowest = 0.0
    while not samples or slowest < budget or min(map(len, samples.values())) < 3:
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - start)
        slowest = max(sum(times) for times in samples.values())
        if min(map(len, samples.values())) >= 200:
            break
    return samples


def median(samples: list[float]) -> float:
    """The median, which a few interruptions do not move."""
    return statistics.median(samples)


def results_folder() -> Path:
    """Where this machine's figures are kept: `results/cpu-2-cores`, `results/nvidia-h100-80gb-hbm3`."""
    device = jax.devices()[0]
    name = f"cpu-{os.cpu_count()}-cores" if device.platform == "cpu" else device.device_kind
    return RESULTS / name.lower().replace(" ", "-").replace("/", "-")


def processor() -> str:
    """The processor's model name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Where and with what a measurement was made."""
    versions = {}
    for package in ("jax", "jaxlib", "optax", "rax", "torch", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "device": jax.devices()[0].device_kind,
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)
    return done.stdout.strip()


def write(name: str, rows: list[dict[str, Any]], table: str, folder: Path) -> Path:
    """Keep the rows and where they come from as JSON, and the table as Markdown, in `folder`."""
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    where = environment()
    path.write_text(json.dumps({"environment": where, "rows": rows}, indent=1) + "\n")
    dirty = ", with uncommitted changes" if where["dirty"] else ""
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    head = (
        f"{where['processor']}, {where['cores']} cores, {where['device']}; {versions}; commit {where['commit']}{dirty}"
    )
    path.with_suffix(".md").write_text(f"{head}\n\n{table}\n")
    return path


def markdown(rows: list[dict[str, Any]], columns: Mapping[str, Callable[[dict[str, Any]], str]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(show(row) for show in columns.values()) + " |" for row in rows]
    return "\n".join(lines)
