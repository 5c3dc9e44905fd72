"""Every experiment's short run comes to the numbers in its header."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import index
from experiments._command import misses

NAMES = sorted(index())
HEADINGS = ("Claim", "Source", "Command", "Hardware", "Minutes", "Expected", "Refuted by")
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", NAMES)
def test_the_short_run_comes_to_the_expected_numbers(name: str) -> None:
    experiment = importlib.import_module(f"experiments.{name}")
    result = experiment.run(experiment.Config.short())
    assert result.numbers and not misses(result.numbers, experiment.EXPECTED)
    assert experiment.plot(result).axes


@pytest.mark.parametrize("name", NAMES)
def test_the_header_says_all_that_a_reader_needs(name: str) -> None:
    tree = ast.parse((ROOT / "experiments" / f"{name}.py").read_text())
    header = ast.get_docstring(tree) or ""
    lines = header.splitlines()
    assert all(any(line.startswith(heading) for line in lines) for heading in HEADINGS)
    assert f"python -m experiments.{name} [--short]" in header
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    others = {module for module in imported if module.startswith("experiments.")} - {"experiments._command"}
    assert not others, "experiments do not import each other"
    assert not any(
        part.startswith("_")
        for module in imported - {"__future__", "experiments._command"}
        for part in module.split(".")
    )


def test_a_number_that_is_off_is_reported() -> None:
    expected = {"near": (1.0, 0.1), "exact": (3.0, 0.0)}
    assert not misses({"near": 1.05, "exact": 3.0}, expected)
    assert list(misses({"near": 1.2, "exact": 3.0}, expected)) == ["near"]
    assert list(misses({"near": float("nan")}, expected)) == ["near"]


def test_the_command_prints_its_numbers_and_saves_its_figure(tmp_path: Path) -> None:
    figure = tmp_path / "figures" / "chain.png"
    command = [sys.executable, "-m", "experiments.chain_of_bounds", "--short", "--output", str(figure)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert "largest JSD(p⊗r‖r⊗p) − log 2" in output
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_command_fails_when_a_number_is_off(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    experiment = importlib.import_module("experiments.chain_of_bounds")
    command = importlib.import_module("experiments._command").command
    monkeypatch.setattr(sys, "argv", ["chain_of_bounds", "--short"])
    wrong = {name: (value + 1, tolerance) for name, (value, tolerance) in experiment.EXPECTED.items()}
    with pytest.raises(SystemExit, match="was expected"):
        command(experiment.__doc__, experiment.Config, experiment.run, experiment.plot, wrong)
    assert "expected" in capsys.readouterr().out


def test_the_index_lists_every_experiment_by_its_claim() -> None:
    output = subprocess.run(
        [sys.executable, "-m", "experiments"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    assert all(f"python -m experiments.{name}" in output for name in NAMES)
    assert len(NAMES) == 10
