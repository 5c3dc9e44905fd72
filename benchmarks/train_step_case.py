"""What the benchmark of a step is about: shape, data, weights, and how a step is watched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["CASE", "STEPS", "Case", "Evidence", "Probe", "make_data", "make_model"]

#: Steps of a process; the first compiles and is not counted.
STEPS = 3


class Case(NamedTuple):
    """Sizes of the model and its batch, and the numbers of the method and of the optimiser."""

    vocabulary: int = 32_000
    width: int = 256
    layers: int = 4
    heads: int = 4
    mlp_width: int = 688
    pairs: int = 8
    prompt: int = 64
    response: int = 192
    beta: float = 0.1
    rate: float = 1e-5
    clip: float = 1.0


CASE = Case()


class Evidence(NamedTuple):
    """What the gates look at: the loss of each step, and log π of `[pairs, chosen or rejected]` before the first."""

    losses: np.ndarray
    logps: np.ndarray


def make_model(folder: Path) -> None:
    """A fresh Llama in a Hugging Face folder."""
    import jax

    from mi_align.models import DecoderConfig, fresh_llama, save_pretrained

    shape = DecoderConfig(
        vocab_size=CASE.vocabulary,
        width=CASE.width,
        layers=CASE.layers,
        heads=CASE.heads,
        mlp_width=CASE.mlp_width,
        tied_head=False,
    )
    save_pretrained(fresh_llama(shape, jax.random.key(0)), folder)


def make_data(path: Path) -> None:
    """Random tokens `[pairs, 2, prompt + response]`; the two of a pair share their prompt, no two their first token."""
    drawn = np.random.default_rng(0).integers(3, CASE.vocabulary, (CASE.pairs, 2, CASE.prompt + CASE.response))
    drawn[:, 1, : CASE.prompt] = drawn[:, 0, : CASE.prompt]
    drawn[:, 1, CASE.prompt] = 3 + (drawn[:, 0, CASE.prompt] - 2) % (CASE.vocabulary - 3)
    np.savez(path, tokens=drawn.astype(np.int32))


class Probe:
    """Processor seconds, seconds by the wall and growth of the resident set of each step."""

    def __init__(self) -> None:
        self._steps: list[dict[str, float]] = []
        self._before: tuple[float, float, int] = (0.0, 0.0, 0)

    def begin(self) -> None:
        """A step begins."""
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        self._before = time.process_time(), time.perf_counter(), resident("VmRSS")

    def end(self) -> None:
        """It has ended, and all that it computed is there."""
        cpu, wall, memory = self._before
        now = time.process_time(), time.perf_counter()
        grown = resident("VmHWM") - memory
        self._steps.append({"cpu_seconds": now[0] - cpu, "wall_seconds": now[1] - wall, "memory_bytes": grown})

    def samples(self) -> dict[str, Any]:
        """All steps but the first."""
        return {"steps": self._steps[1:]}


def resident(field: str) -> int:
    """Bytes of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
