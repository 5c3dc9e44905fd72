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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

__all__ = [
    "device_name",
    "environment",
    "keep_freed_memory",
    "markdown",
    "median",
    "origin",
    "seconds_of",
    "write",
]

_ROOT = Path(__file__).resolve().parents[2]

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


def seconds_of(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    budget: float = 1.0,
    warm_up: int = 2,
    tick: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Wall-clock samples of each candidate, taken in turn until the slowest has run for about `budget` seconds.

    Args:
      candidates: blocking calls by name.
      budget: seconds for the slowest; three rounds are run in any case, and 200 at most.
      warm_up: untimed calls of each before the first round.
      tick: told the number of rounds after each.
    """
    for run in candidates.values():  # compile, page in, warm up
        for _ in range(warm_up):
            run()
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    slowest, rounds = 0.0, 0
    while candidates and (rounds < 3 or slowest < budget) and rounds < 200:
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            samples[name].append(time.perf_counter() - start)
        slowest, rounds = max(sum(times) for times in samples.values()), rounds + 1
        if tick is not None:
            tick(rounds)
    return samples


def median(samples: Sequence[float]) -> float:
    """The median, which a few interruptions do not move."""
    return statistics.median(samples)


def device_name() -> str:
    """What this machine's figures are filed under: `cpu-2-cores`, `nvidia-h100-80gb-hbm3`."""
    device = jax.devices()[0]
    name = f"cpu-{os.cpu_count()}-cores" if device.platform == "cpu" else device.device_kind
    return name.lower().replace(" ", "-").replace("/", "-")


def _processor() -> str:
    """The processor's model name, where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment() -> dict[str, Any]:
    """Where and with what a measurement was made."""
    versions = {}
    for package in ("mi-align", "jax", "jaxlib", "optax", "rax", "torch", "liger-kernel", "tokamax", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _git("rev-parse", "--short", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    }


def _git(*arguments: str) -> str:
    """What git says of the checkout that this package is run from; "" where it was installed without one."""
    if not (_ROOT / ".git").exists():
        return ""
    done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def origin(where: Mapping[str, Any]) -> str:
    """`environment()` as one line."""
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    dirty = ", with uncommitted changes" if where["dirty"] else ""
    commit = f"; commit {where['commit']}{dirty}" if where["commit"] else ""
    return f"{where['processor']}, {where['cores']} cores, {where['device']}; {versions}{commit}"


def write(name: str, rows: Sequence[Mapping[str, Any]], table: str, folder: Path, **more: Any) -> Path:
    """Keep the rows and where they come from as JSON, and the table as Markdown, in `folder`.

    Args:
      name: of both files, without its ending.
      rows: what was measured.
      table: of them.
      folder: is made if need be.
      **more: what else the JSON should hold.
    """
    path = folder / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    where = environment()
    path.write_text(json.dumps({"environment": where, "rows": list(rows), **more}, indent=1) + "\n")
    path.with_suffix(".md").write_text(f"{origin(where)}\n\n{table}\n")
    return path


def markdown(rows: Sequence[Any], columns: Mapping[str, Callable[[Any], str]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(show(row) for show in columns.values()) + " |" for row in rows]
    return "\n".join(lines)
