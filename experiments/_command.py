"""What every experiment's command line does: run, print the numbers beside the expected ones, draw."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["command", "misses"]

Expected = Mapping[str, tuple[float, float]]


def misses(numbers: Mapping[str, float], expected: Expected) -> dict[str, str]:
    """The numbers that are further from what was expected than their tolerance, each with a line that says so."""
    return {
        name: f"{name} = {value:.6g}, but {expected[name][0]:g} ± {expected[name][1]:g} was expected"
        for name, value in numbers.items()
        if not abs(value - expected[name][0]) <= expected[name][1]
    }


def command(doc: str, config: Any, run: Callable[[Any], Any], plot: Callable[[Any], Any], expected: Expected) -> None:
    """Run an experiment from the command line; exits with 1 if a number is off."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a few seconds; the numbers that need no long run")
    parser.add_argument("--output", type=Path, help="where to save the figure (PNG, SVG, PDF)")
    arguments = parser.parse_args()
    start = time.perf_counter()
    result = run(config.short() if arguments.short else config())
    for name, value in result.numbers.items():
        print(f"{name:34} {value:14.6g}   expected {expected[name][0]:g} ± {expected[name][1]:g}")
    print(f"{time.perf_counter() - start:.1f} s")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        plot(result).savefig(arguments.output, dpi=160)
        print(f"figure in {arguments.output}")
    wrong = misses(result.numbers, expected)
    if wrong:
        sys.exit("\n".join(wrong.values()))
