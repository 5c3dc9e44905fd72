"""The benchmark's peers in torch agree with float64 as far as its gate asks, Liger's whole losses included."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from mi_align.benchmark.measure import measure
from mi_align.benchmark.task import LOGPS, logps_task, method_task
from mi_align.logprobs.cases import Case

torch = pytest.importorskip("torch")
ROOT = Path(__file__).parents[2]
TINY = Case("own", 12, 53, (83,))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eagerly, and without the process in which memory is measured."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(importlib.import_module("torch_peers"), "measured_memory", lambda *_: None)


@pytest.mark.parametrize("name", [LOGPS, "dpo_reference_free", "orpo", "simpo"])
def test_peers_are_right(name: str) -> None:
    if name != LOGPS:
        pytest.importorskip("liger_kernel", reason="`make peers` installs it")
    task = logps_task(TINY, "float32") if name == LOGPS else method_task(name, TINY, "float32")
    peers = importlib.import_module("logprobs").chosen_peers("torch,torch.compile,liger")
    entered = [peer for peer in peers if peer.enters(name)]
    came = [row for row in measure(task, entered, budget=0.0) if row["implementation"]]
    assert len(came) == 2 * len(entered) > 0
    assert {row["status"] for row in came} == {"right"}, came
