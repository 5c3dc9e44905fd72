"""Metrics as they come: a line of JSON each, always; TensorBoard and Weights & Biases where they are asked for."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from mi_align.training.devices import utilisation
from mi_align.training.hosts import is_first
from mi_align.training.metrics import Metrics, summarise

__all__ = ["OF_THE_MOMENT", "SINKS", "Journal", "Report", "Sink"]

#: Numbers that depend on how fast the machine was, and so differ between runs that are otherwise the same.
OF_THE_MOMENT = ("seconds_per_step", "tokens_per_second", "flops", "mfu")

#: (step, numbers by name) -> shown; called for every line of metrics.
Report = Callable[[int, dict[str, float]], None]


class Sink(Protocol):
    """Where numbers go."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers by name, all finite."""

    def close(self) -> None:
        """Nothing more comes."""


class _Lines:
    """`metrics.jsonl`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._file = (folder / "metrics.jsonl").open("a", encoding="utf-8")

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        # JSON has no NaN: a number that is none is written as null.
        clean = {name: value if np.isfinite(value) else None for name, value in numbers.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    """Event files in the run's `tensorboard/`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        writer = _imported("tensorboardX", "tensorboard").SummaryWriter
        self._writer = writer(str(folder / "tensorboard"))

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of the project that `WANDB_PROJECT` names; resumed by the name of the run's folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        name = folder.absolute().name
        self._run = _imported("wandb", "wandb").init(
            name=name, dir=str(folder), config=dict(settings), id=_identifier(folder), resume="allow"
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


#: By the names that `log_to` takes: (the run's folder, its settings) -> a sink.
SINKS: dict[str, Callable[[Path, Mapping[str, Any]], Sink]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
}


class Journal:
    """The metrics of one run; use it in a `with` block, so that all is written."""

    def __init__(self, folder: Path, report: Report, *, sinks: Sequence[str] = (), settings: Mapping[str, Any]) -> None:
        """Go on with the folder's lines. With several hosts the first one writes, and all of them look at the loss.

        Args:
          folder: of the run.
          report: is told each line.
          sinks: names in `SINKS`, beside `metrics.jsonl`.
          settings: of the run, for those that show them.

        Raises:
          ModuleNotFoundError: a sink's package is not installed.
        """
        self.last: dict[str, float] = {}
        self._report = report
        self._since, self._step = time.perf_counter(), 0
        makers = (*(SINKS[name] for name in sinks), _Lines) if is_first() else ()
        self._sinks = [make(folder, settings) for make in makers]

    def __enter__(self) -> Journal:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close what is written to."""
        for sink in self._sinks:
            sink.close()

    def begin(self, step: int) -> None:
        """The clock starts."""
        self._since, self._step = time.perf_counter(), step

    def step(self, step: int, metrics: Metrics, *, rate: Any, tokens: int, flops: float, ended: float) -> None:
        """Metrics of a step that `ended`, by `time.perf_counter`; its batch had `tokens` and took the model's `flops`.

        Raises:
          FloatingPointError: the loss is not finite.
        """
        each = (ended - self._since) / max(step - self._step, 1)
        about = {"learning_rate": float(rate), "seconds_per_step": each, "tokens_per_second": tokens / each}
        about |= utilisation(flops, each, jax.devices()[0].device_kind, jax.device_count())
        self._since, self._step = ended, step
        self.write(step, summarise(metrics) | about)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """One line; nothing where there are no numbers.

        Raises:
          FloatingPointError: the loss is not finite.
        """
        if not numbers:
            return
        self.last |= numbers
        for sink in self._sinks:
            sink.write(step, numbers)
        self._report(step, numbers)
        if not np.isfinite(numbers.get("loss", 0.0)):
            raise FloatingPointError(
                f"the loss is {numbers['loss']} at step {step}. Lower `optimiser.rate`, or look at the data of this "
                "step; the last checkpoint is as it was."
            )


def _imported(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"`log_to` names {extra!r}, but {module} is not installed: pip install 'mi-align[{extra}]'."
        ) from error


def _identifier(folder: Path) -> str:
    """The run's name at Weights & Biases, the same after --resume: kept in its folder."""
    kept = folder / "wandb_id"
    if not kept.exists():
        kept.write_text(np.random.default_rng().bytes(6).hex(), encoding="utf-8")
    return kept.read_text(encoding="utf-8")
