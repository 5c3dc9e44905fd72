"""What a run does around its step, and how fast the machine multiplies."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_step_case import CASE, STEPS, Contender
from benchmarks.train_step_ours import examples
from mi_align.data import PreferenceBatch, load_tokenizer
from mi_align.methods import METHODS
from mi_align.models import load_pretrained
from mi_align.training import run as runs
from mi_align.training.config import DataConfig, ModelConfig, OptimiserConfig, RunConfig
from mi_align.training.inputs import Inputs
from mi_align.training.program import build_program

__all__ = ["overhead", "products"]

#: Steps of a run whose step costs nothing: of its loop alone.
_MANY = 200


def overhead(row: Contender, folder: Path) -> dict[str, float]:
    """CPU seconds a step of the bare step, of a whole run, and of a run whose step is made once and then given again.

    The difference of the first two is in the noise; the third is the loop alone: drawing and taking the batch, fetching
    metrics, writing a line of the journal at every step.
    """
    bare = _bare(row, folder)
    whole = _run(row, folder, steps=2 * STEPS, free=False)
    alone = _run(row, folder, steps=_MANY, free=True)
    return {"step_seconds": bare, "run_seconds": whole, "loop_seconds": alone, "share": alone / bare}


def products(threads: int) -> dict[str, list[float]]:
    """10⁹ operations a CPU second in square products of 2,048, float32, of the best of a few."""
    side = 2048
    x = jnp.asarray(np.random.default_rng(0).standard_normal((side, side), np.float32))
    dot = jax.jit(lambda x: x @ x)
    dot(x).block_until_ready()
    seconds = []
    for _ in range(8):
        began = time.process_time()
        dot(x).block_until_ready()
        seconds.append(time.process_time() - began)
    return {"gflops": [2 * side**3 / min(seconds) / 1e9]}


def _bare(row: Contender, folder: Path) -> float:
    config, inputs = _given(row, folder, steps=STEPS)
    program = build_program(config, inputs, STEPS, output=Path(config.output))
    state, batch = program.state, program.batch(program.state, 0)
    seconds = []
    for _ in range(2 * STEPS):
        began = time.process_time()
        state, metrics = program.step(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.process_time() - began)
    return min(seconds[1:])


def _run(row: Contender, folder: Path, *, steps: int, free: bool) -> float:
    """CPU seconds between lines of the journal: the least of a whole run, the mean where the step is free."""
    config, inputs = _given(row, folder, steps=steps)
    stamps: list[float] = []
    build = runs.program_of
    runs.program_of = (lambda *a, **k: _free(build(*a, **k))) if free else build  # type: ignore[assignment]
    try:
        runs.run_training(config, inputs, report=lambda step, numbers: stamps.append(time.process_time()))
    finally:
        runs.program_of = build  # type: ignore[assignment]
    each = np.diff(stamps)[2:-1]  # without the compilation, and without the last checkpoint
    return float(each.mean() if free else each.min())


def _free(program: Any) -> Any:
    """The program with a step that is made once."""
    made: list[Any] = []

    def step(state: Any, batch: Any) -> Any:
        if not made:
            made.append(jax.block_until_ready(program.step(state, batch)))
        return made[0]

    return dataclasses.replace(program, step=step)


def _given(row: Contender, folder: Path, *, steps: int) -> tuple[RunConfig, Inputs]:
    """A run of the case's size over eight times its data."""
    batch = examples(folder)
    data = PreferenceBatch(*(np.concatenate([x] * 8) if x is not None else None for x in batch))
    config = RunConfig(
        data=DataConfig(train="made up"),
        model=ModelConfig(memory_budget=row.memory_budget),
        hyper={"beta": CASE.beta},
        optimiser=OptimiserConfig(rate=CASE.rate, schedule="constant", warmup=0.0, clip=CASE.clip),
        output=str(folder / f"run-{time.time_ns()}"),
        steps=steps,
        batch=CASE.pairs,
        micro_batches=row.parts,
        reference="live" if row.live else "cached",
    )
    inputs = Inputs(
        model=load_pretrained(folder / "model"),
        tokenizer=load_tokenizer("bytes"),
        tokenizer_name="bytes",
        train=data,
        evaluation=None,
        counts=(),
        method=METHODS["dpo"].configure(beta=CASE.beta),
        faults=(),
    )
    return config, inputs
