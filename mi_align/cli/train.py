"""`mi-align train`: a run from a YAML file, watched, stopped and resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from rich.console import Console

    from mi_align.training.config import RunConfig
    from mi_align.training.inputs import Inputs
    from mi_align.training.on_policy.inputs import OnPolicyInputs

__all__ = ["Reward", "Sft", "Train"]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all commands that train are told."""

    settings: Annotated[tuple[str, ...], tyro.conf.Positional]
    """A YAML file and overrides, or overrides alone: run.yaml batch=32 optimiser.rate=1e-4."""
    resume: bool = False
    """Go on from the last checkpoint in `output`: bit for bit as if the run had not been interrupted."""
    dry_run: bool = False
    """Read everything, print the settings, the counts and the memory that a compiled step needs, and train nothing."""
    several_hosts: bool = False
    """This is one process of several, each started with the same command: see docs/training.md."""

    def train(self, settings: tuple[str, ...]) -> int:
        """Load, train, tell."""
        return train(settings, resume=self.resume, dry_run=self.dry_run, several_hosts=self.several_hosts)


@dataclasses.dataclass(frozen=True)
class Train(_Run):
    """Train a language model by any method of the table.

    Settings come from a YAML file, and from `key.of.part=value` after it. Writes config.yaml, metrics.jsonl,
    checkpoints/, model/ and, where one is trained, adapter/ into `output`. Ctrl-C or SIGTERM ends the run after its
    step, with a checkpoint.
    """

    topology: str | None = None
    """With --dry-run: compile the step for these TPUs instead, v5e:4x4 say, which need not be there. Reads no weights
    and no data. Needs `pip install "jax[tpu]"`."""

    def run(self) -> int:
        """Train, or compile for devices that are not there."""
        if self.topology is None:
            return self.train(self.settings)
        if not self.dry_run:
            raise ValueError(
                "--topology names devices that are not there, where nothing can be trained: add --dry-run."
            )
        return ahead_of_time(self.settings, self.topology)


@dataclasses.dataclass(frozen=True)
class Sft(_Run):
    """Train a language model on demonstrations, or on the chosen responses of preferences: `train` with method=sft."""

    def run(self) -> int:
        """Train."""
        return self.train((*self.settings, "method=sft", "hyper={}"))


@dataclasses.dataclass(frozen=True)
class Reward(_Run):
    """Train a reward model on preferences: `train` with method=bradley_terry, or plackett_luce_reward if set."""

    def run(self) -> int:
        """Train."""
        return self.train(_for_rewards(self.settings))


def _for_rewards(settings: tuple[str, ...]) -> tuple[str, ...]:
    """The settings with a method that trains a reward model: that of the file or of an override, or else the usual one.

    Hyper-parameters of another method in the file go with that method; those after it were meant.
    """
    from mi_align.methods import METHODS
    from mi_align.training.inputs import method_of
    from mi_align.training.readers import reads_score

    rows = [name for name, row in METHODS.items() if reads_score(row)]
    file, after = _file_and_overrides(settings)
    others = (text for text in after if not text.startswith("method="))
    if file is None or _settings((file, *others)).method not in rows:
        beside = ("method=bradley_terry", *(() if file is None else ("hyper={}",)))
        settings = (*(() if file is None else (file,)), *beside, *after)
    config = _settings(settings)
    if not reads_score(method_of(config)):
        raise ValueError(
            f"`method` is {config.method!r}, which trains no reward model: {' or '.join(rows)} was wanted."
        )
    return settings


def train(settings: tuple[str, ...], *, resume: bool, dry_run: bool, several_hosts: bool = False) -> int:
    """What both commands do."""
    from rich.console import Console

    from mi_align.training import hosts
    from mi_align.training.checkpoints import stopping
    from mi_align.training.inputs import load_inputs
    from mi_align.training.run import run_training, total_steps

    config = _settings(settings)
    if several_hosts:
        hosts.connect()
    console = Console(highlight=False, soft_wrap=True, quiet=not hosts.is_first())
    inputs = load_inputs(config)
    steps = total_steps(config, len(inputs.train.tokens))
    _tell(console, config, inputs, steps)
    if dry_run:
        return _dry(console, config, inputs)
    _list_faults(config, inputs)
    with stopping() as stop, _watched(console, steps) as (report, tick):
        outcome = run_training(config, inputs, resume=resume, stop=stop, report=report, tick=tick)
    if outcome.exported is None:
        console.print(f"stopped at step {outcome.step} of {outcome.steps}; go on with --resume", markup=False)
    else:
        adapter = f", adapter: {outcome.exported.parent / 'adapter'}" if inputs.model.lora is not None else ""
        console.print(f"trained for {outcome.step} steps; model: {outcome.exported}{adapter}", markup=False)
    return 0


def ahead_of_time(settings: tuple[str, ...], topology: str) -> int:
    """Compile a run's step for devices that are not there; 1 where it does not fit."""
    from mi_align.training.topology import compile_step, devices_of, told

    config = _settings(settings)
    if config.on_policy is not None:
        raise ValueError("--topology compiles steps on responses of the data. Leave `on_policy` out, or --topology.")
    memory = compile_step(config, devices_of(topology))
    print(told(memory, config))
    return int(memory.fits is False)


def _settings(settings: tuple[str, ...]) -> RunConfig:
    from mi_align.training.config import RunConfig
    from mi_align.training.settings import load

    return load(RunConfig, *_file_and_overrides(settings))


def _file_and_overrides(settings: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    file = settings[0] if settings and "=" not in settings[0] else None
    return file, settings[1:] if file else settings


def _tell(console: Console, config: RunConfig, inputs: Inputs | OnPolicyInputs, steps: int) -> None:
    from mi_align.models import count_parameters
    from mi_align.training.trained import parts_of

    shape = inputs.train.tokens.shape
    trained, frozen = map(count_parameters, parts_of(config.model, inputs.model))
    parts = f" ({trained:,} trained, {frozen:,} frozen)" if frozen else ""
    held_out = 0 if inputs.evaluation is None else len(inputs.evaluation.tokens)
    own = config.on_policy
    each = (
        f"{shape[1]} candidates of up to {shape[2]} tokens"
        if own is None
        else f"{own.samples} responses of up to {own.max_new_tokens} tokens to each of up to {shape[1]}, rewarded by "
        f"{own.reward}"
    )
    say = [
        f"{config.method}: {trained + frozen:,} parameters{parts}, {shape[0]:,} examples to train on and "
        f"{held_out:,} to evaluate, {each}, {steps:,} steps of {config.batch}"
    ]
    console.print(*say, *about_data(inputs), sep="\n", markup=False)


def about_data(inputs: Inputs | OnPolicyInputs) -> list[str]:
    """What became of the data, in lines: what was cut, what else was done, and what was left out."""
    say = []
    for name in ("truncated_prompts", "truncated_responses", "indistinct", "merged"):
        number = sum(getattr(counts, name) for counts in inputs.counts)
        say += [f"{name.replace('_', ' ')}: {number:,}"] if number else []
    say += inputs.notes
    if inputs.faults:
        say.append(f"{len(inputs.faults):,} rows left out, the first: {inputs.faults[0]}")
    return say


def _list_faults(config: RunConfig, inputs: Inputs | OnPolicyInputs) -> None:
    """Every row that was left out, in a file: nothing is dropped silently."""
    from mi_align.training.hosts import is_first

    if inputs.faults and is_first():
        Path(config.output).mkdir(parents=True, exist_ok=True)
        (Path(config.output) / "bad_rows.txt").write_text("\n".join(inputs.faults) + "\n", encoding="utf-8")


def _dry(console: Console, config: RunConfig, inputs: Inputs | OnPolicyInputs) -> int:
    import yaml

    from mi_align.training.building import memory_of_step
    from mi_align.training.settings import to_mapping

    console.print(yaml.safe_dump(to_mapping(config), sort_keys=False), markup=False)
    console.print(memory_of_step(config, inputs), markup=False)
    return 0


@contextlib.contextmanager
def _watched(
    console: Console, steps: int
) -> Iterator[tuple[Callable[[int, dict[str, float]], None], Callable[[float], None]]]:
    """A line of metrics as they come, and a bar with what is left where there is a terminal."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    told = 0.0
    with Progress(
        *columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task("training", total=steps)

        def report(step: int, numbers: dict[str, float]) -> None:
            nonlocal told
            bar.update(task, completed=step)
            now = time.monotonic()
            if now - told > 1 or step in (0, steps) or any(name.startswith("eval/") for name in numbers):
                told = now
                bar.print(_line(step, numbers))

        yield report, lambda share: bar.update(task, description=f"reference {share:.0%}" if share < 1 else "training")


#: What a line shows, in this order, of what there is.
_SHOWN = (
    "loss",
    "reward/mean",
    "reward/no_spread",
    "kl",
    "entropy",
    "response/length",
    "rewards/accuracies",
    "rewards/margins",
    "log_ratio/chosen",
    "mi/info_nce",
    "grad_norm",
    "tokens_per_second",
    "packing/rows",
    "packing/length",
    "packing/fill",
)


def _line(step: int, numbers: dict[str, float]) -> str:
    prefix = "eval/" if any(name.startswith("eval/") for name in numbers) else ""
    parts = [f"{name} {numbers[prefix + name]:,.4g}" for name in _SHOWN if prefix + name in numbers]
    return f"step {step:6}  {'evaluation  ' if prefix else ''}{'  '.join(parts)}"
