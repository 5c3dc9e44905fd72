"""`mi-align export`: the model of a run's checkpoint, as a folder that `transformers` opens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["Export"]


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the model of a checkpoint, and its tokenizer, as `transformers` opens them; of an adapter, that as well.

    Works while the run goes on. What was frozen in it is read again from where the run read it.
    """

    run_folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run's `output`."""
    step: int | None = None
    """Of the checkpoint. Default: the last one."""
    best: bool = False
    """Take the best checkpoint by the run's `best_by`, where it has `keep_best`."""
    to: Path | None = None
    """The folder of the model. Default: RUN/exports/STEP."""

    def run(self) -> int:
        """Read, write, tell."""
        from mi_align.training.exporting import export_checkpoint

        came = export_checkpoint(self.run_folder, step=self.step, best=self.best, folder=self.to)
        adapter = "" if came.adapter is None else f", adapter: {came.adapter}"
        print(f"step {came.step}; model: {came.folder}{adapter}")
        return 0
