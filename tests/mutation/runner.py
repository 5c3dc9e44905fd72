"""Change the formulas one by one and see whether the tests notice.

    make mutants                                      a sample of 200 mutants over all modules, about an hour and a half
    make mutants ARGS="--module pairwise"             every mutant of one module
    make mutants ARGS="--sample 50 --seed 1"

Each mutant runs in a forked process that imports the changed module in place of the real one and stops at the first
failing test. A mutant that no test notices *survives*: either the tests are too weak, or the changed code does nothing.
Survivors that were looked into are listed, with the reason, in `explained.txt`; any other survivor fails the run, and
so does a reason given for code that is there no more.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib.abc
import importlib.util
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.mutation.operators import Mutant, mutants_of

ROOT = Path(__file__).resolve().parents[2]
EXPLAINED = Path(__file__).with_name("explained.txt")

_TRUTH = "tests/conformance/test_truth.py"
_TRL = "tests/conformance/test_trl_formulas.py"
_VARIATIONAL = "tests/test_variational.py"
_POLICY_GRADIENT = "tests/test_policy_gradient.py"

_EDGES = "tests/test_objective_edges.py"

_REWARDED = ("policy_gradient", "group", "ratio", "advantages", "kl")

#: Which tests answer for which module; pytest stops at the first that fails, so the likeliest come first.
TESTS = {
    "elementary": [_TRUTH, _VARIATIONAL, _POLICY_GRADIENT, "tests/test_critics.py", _EDGES],
    "numerics": [_TRUTH, _VARIATIONAL, _POLICY_GRADIENT, _EDGES],
    **{f"objectives/{name}": [_TRUTH, _TRL, _EDGES] for name in ("pairwise", "anchored", "order", "unpaired")},
    **{f"objectives/{name}": [_TRUTH, _TRL, _EDGES] for name in ("contrastive", "generalised", "ranking", "weighted")},
    **{f"objectives/{name}": [_VARIATIONAL, _TRUTH, _EDGES] for name in ("variational", "mine", "baselines")},
    **{f"objectives/{name}": [_POLICY_GRADIENT, _TRUTH, _EDGES] for name in _REWARDED},
    "critics/policy": ["tests/test_critics.py", _TRL, "tests/test_methods.py", _EDGES],
    "estimation/pass_at_k": ["tests/test_pass_at_k.py"],
}


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from the mutant's source."""

    def __init__(self, mutant: Mutant) -> None:
        self.name = "mi_align." + mutant.module.replace("/", ".")
        self.source = mutant.source

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != self.name:
            return None
        origin = str(ROOT / (name.replace(".", "/") + ".py"))
        return importlib.util.spec_from_file_location(name, origin, loader=self)

    def create_module(self, spec: object) -> None:
        return None

    def exec_module(self, module: object) -> None:
        exec(compile(self.source, module.__spec__.origin, "exec"), module.__dict__)


class _LikeliestFirst:
    """Tests that name a touched function run before the others, so that most mutants fall within seconds."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items.sort(key=lambda item: not any(name in item.nodeid for name in self.names))


#: pytest's exit code -> whether the mutant survived. A module that cannot be imported any more is noticed too: 2, 4.
_VERDICTS = {0: True, 1: False, 2: False}


def survives(mutant: Mutant) -> bool:
    """Whether the tests pass with the mutant in place. Runs in a process of its own."""
    import pytest

    sys.meta_path.insert(0, _Changed(mutant))
    os.chdir(ROOT)
    arguments = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "--no-header", "--tb=no"]
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        code = pytest.main([*arguments, *TESTS[mutant.module]], plugins=[_LikeliestFirst(mutant.touched)])
    if code not in _VERDICTS:
        raise RuntimeError(f"pytest ended with {code!r} for {mutant.module}: it could not run {TESTS[mutant.module]}.")
    return _VERDICTS[code]


def collect(only: str) -> list[Mutant]:
    """All mutants of the modules whose name contains `only`."""
    found = []
    for module in TESTS:
        path = ROOT / "mi_align" / f"{module}.py"
        if only in module:
            found += list(mutants_of(module, path.read_text()))
    return found


def explanations() -> dict[str, str]:
    """Survivor -> why no test can or need notice it. Each must still be a mutant, or its line is out of date."""
    blocks = [block.splitlines() for block in EXPLAINED.read_text().split("\n\n") if not block.startswith("#")]
    reasons = {lines[0]: " ".join(line.strip() for line in lines[1:]) for lines in blocks if lines}
    stale = set(reasons) - {f"{m.module}: {m.change}" for m in collect("")}
    if stale:
        raise SystemExit(f"{EXPLAINED.name} explains what is no mutant any more; delete: {sorted(stale)}")
    return reasons


def judge(mutants: list[Mutant], workers: int) -> list[Mutant]:
    """Run them, a line each; returns the survivors."""
    survivors = []
    start = time.time()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        waiting = {pool.submit(survives, mutant): mutant for mutant in mutants}
        for count, done in enumerate(concurrent.futures.as_completed(waiting), 1):
            mutant = waiting[done]
            alive = done.result()
            verdict = "SURVIVED" if alive else "killed"
            where = f"{mutant.module}.py:{mutant.line}"
            print(
                f"{count}/{len(mutants)} {time.time() - start:5.0f} s  {verdict:8}  {where}  {mutant.change}",
                flush=True,
            )
            if alive:
                survivors.append(mutant)
    return survivors


def main() -> int:
    """Parse, run, compare with what is explained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--module", default="", help="only modules whose name contains this")
    parser.add_argument(
        "--sample", type=int, default=None, help="so many mutants, drawn at random (default 200; all of one module)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    mutants = collect(options.module)
    if not mutants:
        parser.error(f"no module's name contains {options.module!r}; there are: {', '.join(TESTS)}")
    sample = options.sample or (len(mutants) if options.module else 200)
    chosen = random.Random(options.seed).sample(mutants, min(sample, len(mutants)))
    reasons = explanations()
    survivors = judge(chosen, options.workers)
    unexplained = [m for m in survivors if f"{m.module}: {m.change}" not in reasons]
    print(
        f"{len(chosen)} of {len(mutants)} mutants run, {len(chosen) - len(survivors)} killed, {len(survivors)} survived"
    )
    for mutant in unexplained:
        print(f"not explained: {mutant.module}: {mutant.change}")
    return 1 if unexplained else 0
