"""A whole run: score the reference, make steps, evaluate, keep checkpoints, write metrics, export the model."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from mi_align.training.building import program_of
from mi_align.training.checkpoints import Best, Checkpoints, Stop
from mi_align.training.config import RunConfig
from mi_align.training.exporting import export_model
from mi_align.training.hosts import agree, is_first, wait_for_all
from mi_align.training.inputs import Inputs, total_steps
from mi_align.training.journal import Journal, Report
from mi_align.training.metrics import merge, summarise
from mi_align.training.on_policy.inputs import OnPolicyInputs
from mi_align.training.parts import join
from mi_align.training.program import Program
from mi_align.training.settings import to_mapping
from mi_align.training.state import TrainState
from mi_align.training.trained import restored, without_frozen

__all__ = ["Outcome", "Report", "run_training", "total_steps"]


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      step: how many steps have been made, in this run and those it resumed.
      steps: how many were wanted.
      exported: the folder of the trained model; None if the run was stopped before.
      last: the last numbers.
    """

    step: int
    steps: int
    exported: Path | None
    last: dict[str, float]


def run_training(
    config: RunConfig,
    inputs: Inputs | OnPolicyInputs,
    *,
    resume: bool = False,
    stop: Stop | None = None,
    report: Report = lambda step, numbers: None,
    tick: Callable[[float], None] = lambda share: None,
) -> Outcome:
    """Train, and leave everything in `config.output`.

    `config.yaml` has the settings, `metrics.jsonl` a line each time metrics are due, `checkpoints/` whole states,
    `model/` at the end the trained model as `transformers` opens it, and `adapter/`, where one was trained, that alone.

    Args:
      config: the settings.
      inputs: from `load_inputs`.
      resume: go on from the last checkpoint in `config.output`; what comes is bit for bit what would have come.
      stop: asks the run to end after the step it is in, with a checkpoint (`stopping`).
      report: is told each line of metrics.
      tick: is told which share of the reference has been scored.

    Raises:
      FileExistsError: `config.output` holds another run, and `resume` is off.
      FileNotFoundError: `resume` is on, and there is no checkpoint.
      FloatingPointError: the loss is not finite.
    """
    output = Path(config.output)
    checkpoints_folder = output / "checkpoints"
    if not resume and (output / "metrics.jsonl").exists():
        raise FileExistsError(f"{output} holds a run already. Pass --resume to go on with it, or another `output`.")
    if resume and not checkpoints_folder.is_dir():
        raise FileNotFoundError(f"{output} has no checkpoint to resume from.")
    if config.keep_best and inputs.evaluation is None and config.best_by.startswith("eval/"):
        raise ValueError(
            f"`keep_best` looks at {config.best_by!r}, but there is no data to evaluate. Set `data.held_out` or "
            "`data.evaluation`."
        )
    wait_for_all("looked at the folder")  # before the first host writes into it
    if is_first():
        output.mkdir(parents=True, exist_ok=True)
        _write_settings(output, config)
    steps = total_steps(config, len(inputs.train.tokens))
    program = program_of(config, inputs, steps, output=output, tick=tick)
    stop = Stop() if stop is None else stop
    best = Best(config.keep_best, config.best_by, highest=config.best_is == "highest")
    with Checkpoints(checkpoints_folder, keep=config.keep, best=best) as checkpoints:
        state = program.state
        if resume:
            state = restored(checkpoints, state, program.frozen_hash)
            if is_first():
                _forget_after(output / "metrics.jsonl", int(state.step))
        with Journal(output, report, sinks=config.log_to, settings=to_mapping(config)) as journal:
            state = _steps(config, program, state, steps, checkpoints, journal, stop)
    done = int(state.step)
    exported = None
    if done >= steps:
        exported = export_model(
            inputs.model,
            join(state.params, state.frozen),
            inputs.tokenizer,
            output / "model",
            adapter=output / "adapter",
            base=config.model.pretrained,
        )
    return Outcome(done, steps, exported, journal.last)


def _steps(
    config: RunConfig,
    program: Program,
    state: TrainState,
    steps: int,
    checkpoints: Checkpoints,
    journal: Journal,
    stop: Stop,
) -> TrainState:
    """Steps until all are made or the run is asked to end. Numbers are fetched one step late, so that nothing waits."""
    first = int(state.step)
    waiting: Callable[[], None] = _nothing
    journal.begin(first)
    if first == 0:
        journal.write(0, program.facts)
        journal.write(0, _evaluated(program, state))
    for n in range(first, steps):
        batch, done = program.batch(state, n), n + 1
        state, metrics = program.step(state, batch)
        waiting()
        waiting = _nothing
        if done % config.log_every == 0 or done == steps:
            about = {"rate": program.rate(n), "tokens": batch[0].tokens.size, "ended": time.perf_counter()}
            about["flops"] = program.flops(batch[0])
            waiting = functools.partial(journal.step, done, metrics, **about)
        ends = done == steps or (done % program.together == 0 and _asked_to_end(stop, done))
        evaluates = done == steps or _due(done, config.evaluate_every)
        saves = ends or _due(done, config.save_every) or (evaluates and config.keep_best > 0)
        if evaluates or saves:  # before a state is kept, its loss has been looked at
            waiting()
            waiting = _nothing
        numbers: dict[str, float] = {}
        if evaluates:
            numbers = _evaluated(program, state)
            journal.write(done, numbers)
        if saves:
            kept_with_it = {"settings": to_mapping(config), "frozen": program.frozen_hash}
            checkpoints.save(without_frozen(state), kept_with_it, numbers)
        if ends:
            break
    return state


def _nothing() -> None:
    """What waits to be written at first."""


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _asked_to_end(stop: Stop, done: int) -> bool:
    """Several hosts ask each other now and then, not after each step: they wait for their devices to do so."""
    return agree(stop.requested) if done % 8 == 0 or jax.process_count() == 1 else False


def _evaluated(program: Program, state: TrainState) -> dict[str, float]:
    """The metrics of the whole evaluation data, `eval/` before their names."""
    parts = list(program.evaluated(state))
    if not parts:
        return {}
    return {f"eval/{name}": value for name, value in summarise(functools.reduce(merge, parts)).items()}


def _write_settings(output: Path, config: RunConfig) -> None:
    import yaml

    (output / "config.yaml").write_text(yaml.safe_dump(to_mapping(config), sort_keys=False), encoding="utf-8")


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that are made again: a run that was killed wrote some after its last checkpoint."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")
