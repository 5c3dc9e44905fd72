"""What the benchmark of a step is about: shape, data, weights, and how a step is watched."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = [
    "CASE",
    "CONTENDERS",
    "MIB",
    "STEPS",
    "Case",
    "Contender",
    "Evidence",
    "Probe",
    "make_data",
    "make_model",
    "slug",
]

#: Steps of a process; the first compiles and is not counted.
STEPS = 3
MIB = 2**20


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


class Contender(NamedTuple):
    """One row: who makes the step, and how.

    Attributes:
      name: of the row.
      maker: "ours", "torch" (by hand) or "trl".
      live: whether the reference is scored in the step; otherwise it was, before.
      about: what else there is to know of the row, for the tables.
      parts: ours: how many micro-batches.
      memory_budget: ours: bytes of logits that are kept, a micro-batch; None: the default, one tile's.
      patched: TRL: not as shipped, but as fast as it was found to go here.
    """

    name: str
    maker: str
    live: bool
    about: str
    parts: int = 1
    memory_budget: int | None = None
    patched: bool = False


_KEPT = "2 micro-batches, logits kept (`model.memory_budget`)"
_LITTLE = "4 micro-batches, no logits kept"
_DEFAULT = "as a run does by default: one batch, no logits kept"
_HAND = "all logits at once, prompts scored too"
_SHIPPED = "gradient checkpointing, prompts scored too, tiles of 4,096 × 32,768"
_PATCHED = "no checkpointing, responses scored alone, tiles of 1,024 × 4,096, patched in"
CONTENDERS = {
    row.name: row
    for row in (
        Contender("ours, cached reference", "ours", False, _KEPT, 2, memory_budget=1 << 30),
        Contender("ours, live reference", "ours", True, _KEPT, 2, memory_budget=1 << 30),
        Contender("ours in little memory, cached reference", "ours", False, _LITTLE, 4),
        Contender("ours in little memory, live reference", "ours", True, _LITTLE, 4),
        Contender("ours by default, cached reference", "ours", False, _DEFAULT),
        Contender("ours by default, live reference", "ours", True, _DEFAULT),
        Contender("torch by hand, cached reference", "torch", False, _HAND),
        Contender("torch by hand, live reference", "torch", True, _HAND),
        Contender("TRL as shipped, cached reference", "trl", False, _SHIPPED),
        Contender("TRL as shipped, live reference", "trl", True, _SHIPPED),
        Contender("TRL at its best, cached reference", "trl", False, _PATCHED, patched=True),
        Contender("TRL at its best, live reference", "trl", True, _PATCHED, patched=True),
    )
}


def slug(name: str) -> str:
    """The name of a file."""
    return name.replace(", ", "-").replace(" ", "-")


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

    def samples(self) -> dict[str, list[float]]:
        """All steps but the first, by what was measured."""
        return {key: [step[key] for step in self._steps[1:]] for key in self._steps[0]}


def resident(field: str) -> int:
    """Bytes of one line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))
