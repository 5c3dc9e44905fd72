"""Where metrics go: lines of JSON always, other places by name."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from mi_align.numerics import Mean
from mi_align.training.journal import SINKS, Journal


def ignored(step: int, numbers: dict[str, float]) -> None:
    """Nobody watches."""


def read(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_every_place_gets_every_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple] = []

    class Recorder:
        def __init__(self, folder, settings):
            seen.append(("opened", folder, settings["method"]))

        def write(self, step, numbers):
            seen.append((step, dict(numbers)))

        def close(self):
            seen.append(("closed",))

    monkeypatch.setitem(SINKS, "tensorboard", Recorder)
    shown = []
    with Journal(
        tmp_path, lambda *line: shown.append(line), sinks=["tensorboard"], settings={"method": "dpo"}
    ) as lines:
        lines.begin(4)
        began = lines._since
        metrics = {"loss": Mean(jnp.float32(3), jnp.float32(4))}
        lines.step(6, metrics, rate=jnp.float32(0.5), tokens=300, flops=6e9, ended=began + 3.0)
        lines.write(6, {"eval/loss": 0.25})
        lines.write(6, {})  # nothing to say, no line
    first = {"loss": 0.75, "learning_rate": 0.5, "seconds_per_step": 1.5, "tokens_per_second": 200.0}
    first["flops"] = 4e9
    assert read(tmp_path) == [{"step": 6, **first}, {"step": 6, "eval/loss": 0.25}]
    assert shown == [(6, first), (6, {"eval/loss": 0.25})]
    assert seen == [("opened", tmp_path, "dpo"), (6, first), (6, {"eval/loss": 0.25}), ("closed",)]
    assert lines.last == first | {"eval/loss": 0.25}


def test_a_loss_that_is_no_number_is_written_and_ends_the_run(tmp_path: Path) -> None:
    with (
        Journal(tmp_path, ignored, settings={}) as lines,
        pytest.raises(FloatingPointError, match=r"the loss is nan at step 2. Lower `optimiser.rate`"),
    ):
        lines.write(2, {"loss": math.nan, "other": 1.0})
    assert read(tmp_path) == [{"step": 2, "loss": None, "other": 1.0}]


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "tensorboardX"), ("wandb", "wandb")])
def test_a_package_that_is_not_installed_is_named(
    name: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=rf"`log_to` names '{name}', .* pip install 'mi-align\[{name}\]'"):
        Journal(tmp_path, ignored, sinks=[name], settings={})
