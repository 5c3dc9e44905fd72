"""Writes pairs of sums, a right and a wrong answer each, as the file that the recipes for a CPU read.

python -m experiments.recipes.arithmetic runs/arithmetic/pairs.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mi_align.data import arithmetic_preferences

PAIRS = 4096


def main() -> None:
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = arithmetic_preferences(PAIRS, negatives=1, seed=0)
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected[0]} for p in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{len(rows):,} pairs: {path}")


if __name__ == "__main__":
    main()
