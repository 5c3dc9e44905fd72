"""tokamax's fused cross-entropy, in whatever way it chooses and in its own chunks; wants Python ≥ 3.12."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from typing import Any

from mi_align.benchmark.kernels import Kernel, Logps
from mi_align.benchmark.program import Contender, Pass, Program, Skipped, contender
from mi_align.benchmark.task import LOGPS, Task


def tokamax_logps(implementation: str | None) -> Logps:
    """Token log-probabilities by `tokamax.linear_softmax_cross_entropy_loss`, whose head is `[D, V]`."""

    def logps(hidden: Any, vocabulary: Any, targets: Any, where: Any = None, soft_cap: float | None = None) -> Any:
        import tokamax

        return -tokamax.linear_softmax_cross_entropy_loss(
            hidden, targets, vocabulary.T, reduction="none", implementation=implementation
        )

    return logps


def where_installed(prepare: Callable[[Task, Pass], Program]) -> Callable[[Task, Pass], Program]:
    """The same, with the reason where tokamax is not there."""

    def prepared(task: Task, which: Pass) -> Program:
        if importlib.util.find_spec("tokamax") is None:
            raise Skipped(
                "tokamax is not installed here; `make bench-tokamax PYTHON=python3.12` has an environment for it"
            )
        logging.getLogger("absl").setLevel(logging.ERROR)  # or it says for every shape that its tiles are not tuned
        return prepare(task, which)

    return prepared


def entered(kernel: Kernel) -> Contender:
    """A row of the table."""
    ready = contender(kernel)
    return Contender(kernel.name, where_installed(ready.prepare), tasks=(LOGPS,), recomputes=kernel.recomputes)


TOKAMAX = tuple(
    map(
        entered,
        (
            Kernel("tokamax", tokamax_logps(None), soft_cap=False),
            Kernel("tokamax_chunked", tokamax_logps("chunked_xla"), soft_cap=False, recomputes=True),
        ),
    )
)
