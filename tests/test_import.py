"""`import mi_align` is light: what it loads, and how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"chex", "datasets", "flax", "latex2mathml", "matplotlib", "optax", "orbax", "rich", "torch", "tyro"}

#: CPU seconds, so that a busy machine does not decide.
MEASURE = """
import json, sys, time
import jax
start = time.process_time()
import mi_align
seconds = time.process_time() - start
print(json.dumps({"seconds": seconds, "modules": sorted(sys.modules), "version": mi_align.__version__}))
"""


def measured() -> dict:
    done = subprocess.run([sys.executable, "-c", MEASURE], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_import_takes_less_than_a_second_beyond_jax_and_loads_nothing_heavy() -> None:
    came = measured()
    loaded = {name.split(".")[0] for name in came["modules"]}
    assert not loaded & HEAVY, "heavy imports belong inside the rooms that need them"
    assert {"mi_align.methods", "mi_align.critics", "mi_align.objectives"} <= set(came["modules"])
    assert came["seconds"] < 1
    assert came["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
