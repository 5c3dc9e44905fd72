"""Lists the experiments: name and claim, from their headers."""

from __future__ import annotations

import ast
from pathlib import Path


def index() -> dict[str, str]:
    """Each experiment's first line, by name, without importing it."""
    files = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_"))
    return {path.stem: (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0] for path in files}


if __name__ == "__main__":
    for name, claim in index().items():
        print(f"python -m experiments.{name:22} {claim}")
