"""Throughput of token log-probabilities and whole preference losses: `mi-align bench`, and torch in the same process.

    python benchmarks/logprobs.py --write                       the toy shape, float32, about 10 minutes on 2 cores
    python benchmarks/logprobs.py --write --shapes gpt2:2048    what `mi-align bench --help` lists
    python benchmarks/logprobs.py --quick

torch's rows are what one writes there: all logits by `F.linear`, `F.cross_entropy` on them, eagerly and compiled. Their
memory is the growth of a process's resident set on a CPU, in a process of its own, and the allocator's peak on a GPU.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from mi_align.benchmark import harness
from mi_align.benchmark.program import Contender, Memory, Pass, Program, Skipped
from mi_align.benchmark.task import Task, logps_task
from mi_align.cli.bench import Bench, bench
from mi_align.logprobs.cases import Case

RESULTS = Path(__file__).parent / "results"


@dataclasses.dataclass(frozen=True)
class Options(Bench):
    """`mi-align bench` with torch beside it."""

    write: bool = False
    """Write into benchmarks/results/<device>/."""


def torch_logps(hidden: Any, vocabulary: Any, targets: Any, soft_cap: float | None) -> Any:
    """The plain way in torch."""
    import torch
    from torch.nn import functional

    logits = functional.linear(hidden, vocabulary)
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    return -functional.cross_entropy(logits.float(), targets, reduction="none")


def in_torch(x: Any) -> Any:
    """The same numbers in torch, on a GPU where there is one."""
    import torch

    array = np.array(x)
    if array.dtype.name == "bfloat16":
        tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        tensor = torch.from_numpy(array)
    return tensor.cuda() if torch.cuda.is_available() else tensor


def in_numpy(x: Any) -> np.ndarray:
    """Back again, in float32 at least."""
    return (x.float() if x.dtype.itemsize < 4 else x).cpu().numpy()


def torch_call(task: Task, which: Pass, *, compiled: bool) -> Callable[[Any], tuple[Any, ...]]:
    """The pass of a task as a function of its weights, which blocks; tensors come back as they are."""
    import torch

    logps = torch.compile(torch_logps, dynamic=False) if compiled else torch_logps
    hidden, vocabulary = (in_torch(x).requires_grad_(which == "gradient") for x in (task.hidden, task.vocabulary))
    targets, cap = in_torch(task.targets).long(), task.case.soft_cap

    def run(weights: Any) -> tuple[Any, ...]:
        values = logps(hidden, vocabulary, targets, cap) * weights
        slopes = torch.autograd.grad(values.sum(), (hidden, vocabulary)) if which == "gradient" else ()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return (values.detach(), *slopes)

    return run


def prepared(task: Task, which: Pass, *, compiled: bool) -> Program:
    """torch's plain way, eager or compiled."""
    if importlib.util.find_spec("torch") is None:
        raise Skipped("torch is not installed here; `make conformance` makes an environment that has it")
    import torch

    torch._dynamo.reset()  # or it stops compiling after eight shapes, and runs eagerly
    memory = measured_in_torch(task, which, compiled=compiled)
    run = torch_call(task, which, compiled=compiled)
    timed, probe = in_torch(task.argument), in_torch(task.probe)
    known = {id(task.argument): timed, id(task.probe): probe}

    first, second = (seconds(lambda: run(timed)) for _ in range(2))

    def call(argument: Any) -> tuple[Any, ...]:
        came = run(known[id(argument)])
        return came if argument is task.argument else tuple(map(in_numpy, came))

    return Program(call, first - second if compiled else None, memory)


def seconds(run: Callable[[], Any]) -> float:
    """Of one call; that of a first call holds the compilation."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measured_in_torch(task: Task, which: Pass, *, compiled: bool) -> Memory | None:
    """What one call needs: the allocator's peak on a GPU, the growth of a fresh process's resident set on Linux."""
    import torch

    if torch.cuda.is_available():
        run, weights = torch_call(task, which, compiled=compiled), in_torch(task.argument)
        run(weights)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(weights)
        return Memory(torch.cuda.max_memory_allocated() - before, "device statistics")
    wanted = json.dumps([dataclasses.asdict(task.case), task.dtype, which, compiled])
    environment = {name: value for name, value in os.environ.items() if name not in harness.KEEP_MEMORY}
    environment["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)  # what is freed goes back to the system at once
    done = subprocess.run(
        [sys.executable, __file__, "--resident", wanted], env=environment, capture_output=True, text=True
    )
    return (
        Memory(int(done.stdout.split()[-1]), "resident set") if done.returncode == 0 and done.stdout.strip() else None
    )


def print_resident(wanted: str) -> None:
    """By how much the resident set grows during a second call; in a process of its own, that gives memory back."""
    case, dtype, which, compiled = json.loads(wanted)
    task = logps_task(Case(**case | {"tokens": tuple(case["tokens"])}), dtype)
    run, weights = torch_call(task, which, compiled=compiled), in_torch(task.argument)
    run(weights)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    run(weights)
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    """Bytes of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


PEERS = (
    Contender("torch", lambda task, which: prepared(task, which, compiled=False)),
    Contender("torch.compile", lambda task, which: prepared(task, which, compiled=True)),
)


def main() -> int:
    """Measure beside torch, and write where asked to."""
    options = tyro.cli(Options, config=(tyro.conf.FlagCreatePairsOff,))
    if options.write and options.output is None:
        options = dataclasses.replace(options, output=RESULTS / harness.device_name())
    try:
        return bench(options, PEERS)
    except (ValueError, OSError) as error:
        print(f"logprobs.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    if sys.argv[1:2] == ["--resident"]:
        print_resident(sys.argv[2])
    else:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # or a second compilation is a look-up
        harness.keep_freed_memory()
        sys.exit(main())
