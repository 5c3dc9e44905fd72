"""The mutation run runs: `make mutants` is too long for every day, so that nobody would see it broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_one_mutant_is_run_in_a_process_of_its_own_and_killed() -> None:
    command = [sys.executable, "-m", "tests.mutation", "--module", "objectives/kl", "--sample", "1", "--workers", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mutants run, 1 killed, 0 survived" in done.stdout


def test_an_unknown_module_is_refused() -> None:
    command = [sys.executable, "-m", "tests.mutation", "--module", "nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "no module's name contains 'nowhere'" in done.stderr
