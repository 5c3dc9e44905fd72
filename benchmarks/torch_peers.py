"""Peers in torch: what makes one ready to be timed beside JAX, and the ways on all logits and on a GPU."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mi_align.benchmark import harness
from mi_align.benchmark.program import Contender, Memory, Pass, Program, Skipped
from mi_align.benchmark.task import LOGPS, Task, logps_task, method_task
from mi_align.logprobs.cases import Case

#: An argument (weights or a mask, in torch) -> value, and gradients in hidden states and vocabulary; blocks.
Call = Callable[[Any], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class TorchWay:
    """One row.

    Attributes:
      name: of the row.
      build: (task, pass) -> what is timed.
      package: what has to be importable beside torch, if anything.
      refusal: task -> why it cannot be run here, if it cannot.
      compiled: whether its first call compiles.
      as_ours: (task, what came in NumPy) -> the same in the task's layout and scale, for the gate.
      tasks: names of those that it enters; token log-probabilities alone where nothing is said.
    """

    name: str
    build: Callable[[Task, Pass], Call]
    package: str | None = None
    refusal: Callable[[Task], str | None] = lambda task: None
    compiled: bool = False
    as_ours: Callable[[Task, tuple[np.ndarray, ...]], tuple[np.ndarray, ...]] = lambda task, came: came
    tasks: tuple[str, ...] = (LOGPS,)


def contender(way: TorchWay) -> Contender:
    """A row of the table."""
    return Contender(way.name, functools.partial(prepared, way), tasks=way.tasks)


def prepared(way: TorchWay, task: Task, which: Pass) -> Program:
    """A way ready to run, or why it is not."""
    need("torch", "make conformance")
    reason = way.refusal(task)
    if reason is not None:
        raise Skipped(reason)
    if way.package is not None:
        need(way.package, "make peers")
    import torch

    warnings.filterwarnings("ignore", "dynamo_pgo force disabled")  # as `logprobs.py` asks for
    torch._dynamo.reset()  # or it stops compiling after eight shapes, and runs eagerly
    memory = measured_memory(way, task, which)
    run = way.build(task, which)
    timed, probe = in_torch(task.argument), in_torch(task.probe)
    first, second = (seconds(lambda: run(timed)) for _ in range(2))

    def call(argument: Any) -> tuple[Any, ...]:
        if argument is task.argument:
            return run(timed)
        assert argument is task.probe
        return way.as_ours(task, tuple(map(in_numpy, run(probe))))

    return Program(call, first - second if way.compiled else None, memory)


def need(package: str, command: str) -> None:
    """Raise `Skipped` where a package is not there."""
    if importlib.util.find_spec(package) is None:
        raise Skipped(f"{package} is not installed here; `{command}` installs it")


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


def seconds(run: Callable[[], Any]) -> float:
    """Of one call; that of a first call holds the compilation."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def finished(*tensors: Any) -> tuple[Any, ...]:
    """The tensors, once they are there."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return tensors


# --- Memory ---------------------------------------------------------------------------------------------------------


def measured_memory(way: TorchWay, task: Task, which: Pass) -> Memory | None:
    """What one call needs: the allocator's peak on a GPU, the growth of a fresh process's resident set on Linux."""
    import torch

    if torch.cuda.is_available():
        run, argument = way.build(task, which), in_torch(task.argument)
        run(argument)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(argument)
        return Memory(torch.cuda.max_memory_allocated() - before, "device statistics")
    wanted = json.dumps([way.name, task.name, dataclasses.asdict(task.case), task.dtype, which])
    environment = {name: value for name, value in os.environ.items() if name not in harness.KEEP_MEMORY}
    environment["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)  # what is freed goes back to the system at once
    script = Path(__file__).with_name("logprobs.py")
    done = subprocess.run(
        [sys.executable, str(script), "--resident", wanted], env=environment, capture_output=True, text=True
    )
    said = done.stdout.split()
    return Memory(int(said[-1]), "resident set") if done.returncode == 0 and said else None


def print_resident(ways: tuple[TorchWay, ...], wanted: str) -> None:
    """By how much the resident set grows during a second call; in a process of its own, that gives memory back."""
    name, task_name, case, dtype, which = json.loads(wanted)
    case = Case(**case | {"tokens": tuple(case["tokens"])})
    task = logps_task(case, dtype) if task_name == LOGPS else method_task(task_name, case, dtype)
    (way,) = (way for way in ways if way.name == name)
    run, argument = way.build(task, which), in_torch(task.argument)
    run(argument)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    run(argument)
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    """Bytes of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


# --- Token log-probabilities ----------------------------------------------------------------------------------------


def all_logits(hidden: Any, vocabulary: Any, targets: Any, soft_cap: float | None) -> Any:
    """The plain way in torch."""
    import torch
    from torch.nn import functional

    logits = functional.linear(hidden, vocabulary)
    if soft_cap is not None:
        logits = soft_cap * torch.tanh(logits / soft_cap)
    return -functional.cross_entropy(logits.float(), targets, reduction="none")


def all_logits_compiled() -> Callable[..., Any]:
    """The same through inductor."""
    import torch

    return torch.compile(all_logits, dynamic=False)


def cut_cross_entropy() -> Callable[..., Any]:
    """Apple's kernel as it comes, which leaves out gradients below its threshold."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, vocabulary, targets, cap: (
        -linear_cross_entropy(hidden, vocabulary, targets, softcap=cap, reduction="none")
    )


def token_call(made: Callable[[], Callable[..., Any]], task: Task, which: Pass) -> Call:
    """Weighed log-probabilities, and the gradients of their sum."""
    import torch

    logps = made()
    hidden, vocabulary = (in_torch(x).requires_grad_(which == "gradient") for x in (task.hidden, task.vocabulary))
    targets, cap = in_torch(task.targets).long(), task.case.soft_cap

    def run(weights: Any) -> tuple[Any, ...]:
        values = logps(hidden, vocabulary, targets, cap) * weights
        slopes = torch.autograd.grad(values.sum(), (hidden, vocabulary)) if which == "gradient" else ()
        return finished(values.detach(), *slopes)

    return run


def without_gpu(task: Task) -> str | None:
    """Why a kernel of Triton's is not run here."""
    import torch

    return None if torch.cuda.is_available() else "needs a GPU"


TOKEN_WAYS = (
    TorchWay("torch", functools.partial(token_call, lambda: all_logits)),
    TorchWay("torch.compile", functools.partial(token_call, all_logits_compiled), compiled=True),
    TorchWay(
        "cut_cross_entropy",
        functools.partial(token_call, cut_cross_entropy),
        package="cut_cross_entropy",
        refusal=without_gpu,
        compiled=True,
    ),
)
