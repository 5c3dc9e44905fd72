"""A contender made ready to run: compiled, with what that took in seconds and takes in memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mi_align.benchmark.kernels import Kernel
from mi_align.benchmark.task import LOGPS, Task

__all__ = ["PASSES", "Contender", "Memory", "Pass", "Program", "Skipped", "contender", "measured_memory"]

Pass = Literal["forward", "gradient"]
PASSES: tuple[Pass, ...] = ("forward", "gradient")


class Skipped(Exception):
    """A contender cannot be run here; the message says why."""


class Memory(NamedTuple):
    """Bytes beyond the inputs that a call needs, its outputs included, and who says so."""

    bytes: int
    source: str


class Program(NamedTuple):
    """Ready to run.

    Attributes:
      run: argument -> (value, gradients…), once they are there.
      compile_seconds: None where nothing is compiled.
      memory: None where nobody knows.
    """

    run: Callable[[Any], tuple[Any, ...]]
    compile_seconds: float | None = None
    memory: Memory | None = None


@dataclasses.dataclass(frozen=True)
class Contender:
    """One row of the table, whatever runs it.

    Attributes:
      name: of the row.
      prepare: (task, pass) -> Program; may raise `Skipped`.
      frozen: whether it makes the gradient in the hidden states only.
      half: whether it scores half of the positions.
      losses: whether it is also timed under whole preference losses.
      tasks: names of the tasks that it enters, where that is not all of them.
      passes: which are timed.
      recomputes: whether its backward pass makes the logits again.
    """

    name: str
    prepare: Callable[[Task, Pass], Program]
    frozen: bool = False
    half: bool = False
    losses: bool = False
    tasks: tuple[str, ...] | None = None
    passes: tuple[Pass, ...] = PASSES
    recomputes: bool = False

    def enters(self, task: str) -> bool:
        """Whether it is timed on a task of this name."""
        return (task == LOGPS or self.losses) if self.tasks is None else task in self.tasks


def contender(kernel: Kernel) -> Contender:
    """A kernel in JAX, compiled by XLA."""
    return Contender(
        kernel.name,
        lambda task, which: _compiled(kernel, task, which),
        frozen=kernel.frozen,
        half=kernel.half,
        losses=kernel.losses,
        passes=("gradient",) if kernel.gradient_only else PASSES,
        recomputes=kernel.recomputes,
    )


def _compiled(kernel: Kernel, task: Task, which: Pass) -> Program:
    cap = task.case.soft_cap
    if cap is not None and not kernel.soft_cap:
        raise Skipped(f"these logits are capped at {cap:g}, and it takes no cap")

    def values(hidden: Any, vocabulary: Any, targets: Any, half: Any, argument: Any) -> Any:
        where = argument if task.masked else half
        out = task.outcome(kernel.logps(hidden, vocabulary, targets, where, cap), argument)
        return jnp.sum(out), out

    def forward(*inputs: Any) -> tuple[Any, ...]:
        return (values(*inputs)[1],)

    def gradient(*inputs: Any) -> tuple[Any, ...]:
        slopes, out = jax.grad(values, (0,) if kernel.frozen else (0, 1), has_aux=True)(*inputs)
        return out, *slopes

    inputs = (task.hidden, task.vocabulary, task.targets, task.half if kernel.half else None)
    start = time.perf_counter()
    compiled = jax.jit(forward if which == "forward" else gradient).lower(*inputs, task.argument).compile()
    seconds = time.perf_counter() - start
    memory, free = _analysed(compiled), _free_bytes()
    if memory is not None and free is not None and memory.bytes > free:
        raise Skipped(f"it needs {memory.bytes / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free")
    return Program(lambda argument: jax.block_until_ready(compiled(*inputs, argument)), seconds, memory)


def _analysed(compiled: jax.stages.Compiled) -> Memory | None:
    """What the compiled program says that it allocates."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return None
    needed = analysis.temp_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(needed, "compiled program")


def _free_bytes() -> int | None:
    """Memory that JAX's device has left; None where neither the device nor the system tells."""
    statistics = jax.devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), None)


def measured_memory(program: Program, argument: Any) -> Memory | None:
    """What one call needs: by the device's statistics where it raises their peak, else as the program says."""
    before = jax.devices()[0].memory_stats()
    if not before or "peak_bytes_in_use" not in before:
        return program.memory
    program.run(argument)
    peak = (jax.devices()[0].memory_stats() or before)["peak_bytes_in_use"]
    if peak <= before["peak_bytes_in_use"]:
        return program.memory
    return Memory(peak - before["bytes_in_use"], "device statistics")
