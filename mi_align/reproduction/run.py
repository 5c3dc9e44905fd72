"""Everything that `mi-align reproduce` computes, part by part; printing and drawing are others' business."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeVar

from mi_align.equivalences import Certificate
from mi_align.equivalences.language_model import ModelCertificate, certify_model
from mi_align.reproduction.curve_findings import control_findings, curve_findings
from mi_align.reproduction.curves import Curves, compared_methods, train_over_seeds
from mi_align.reproduction.finding import Finding
from mi_align.reproduction.inputs import Inputs
from mi_align.reproduction.learner import Learner, Tick, learn, setting
from mi_align.reproduction.plan import Plan
from mi_align.reproduction.toys import ToyRuns, run_toys, toy_findings

__all__ = ["Results", "Stage", "reproduce"]

R = TypeVar("R")
#: A title -> a context around one part of the work, which hands out the function to report progress with.
Stage = Callable[[str], AbstractContextManager[Tick]]


class Results(NamedTuple):
    """All that was computed.

    Attributes:
      inputs: what the language model learnt.
      plan: how much was trained.
      seed: of the whole run.
      ledger: certificates of the ledger's claims.
      model: certificates of the claims on the language model.
      learner: the language model after supervised training.
      toys: trajectories of the enumerable policies.
      curves: the language model's, by method.
      findings: by part: what was expected, and what was seen.
      seconds: by part.
    """

    inputs: Inputs
    plan: Plan
    seed: int
    ledger: Sequence[Certificate]
    model: Sequence[ModelCertificate]
    learner: Learner
    toys: ToyRuns
    curves: Mapping[str, Curves]
    findings: Mapping[str, Sequence[Finding]]
    seconds: Mapping[str, float]

    @property
    def passed(self) -> bool:
        """Whether every claim holds, every twin fails, and nothing that is judged came out otherwise."""
        certified = all(c.passed for c in self.ledger) and all(c.passed for c in self.model)
        return certified and all(f.holds is not False for part in self.findings.values() for f in part)


@contextlib.contextmanager
def _silent(title: str) -> Iterator[Tick]:
    yield lambda share: None


def reproduce(
    inputs: Inputs,
    plan: Plan,
    *,
    certify_ledger: Callable[[], Sequence[Certificate]],
    seed: int = 0,
    stage: Stage = _silent,
) -> Results:
    """Certify the ledger, certify the language model, run the dynamics, look at the negative controls.

    Args:
      inputs: from `load_inputs`.
      plan: `FULL` or `QUICK`, `for_text()` where the data is text.
      certify_ledger: certifies the ledger, in whatever way shows its progress best.
      seed: the same seed gives the same numbers on the same machine.
      stage: shows the progress of a part.
    """
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def part(title: str) -> Iterator[Tick]:
        start = time.perf_counter()
        with stage(title) as tick:
            yield tick
        seconds[title] = time.perf_counter() - start

    start = time.perf_counter()
    ledger = certify_ledger()
    seconds["the ledger"] = time.perf_counter() - start
    with part("language model: supervised training") as tick:
        learner = learn(inputs.preferences, plan, seed=seed, tick=tick)
    with part("language model: certificates") as tick:
        model = _certify(learner, inputs, plan, tick)
    with part(f"language model: DPO and MIO over {plan.seeds} seeds") as tick:
        curves = _train(learner, plan, seed, tick)
    with part("enumerable policies"):
        toys = run_toys()
    findings = {
        "toys": toy_findings(toys),
        "language model": curve_findings(curves, plan, judged=inputs.generated),
        "controls": control_findings(curves, plan, ledger, judged=inputs.generated),
    }
    return Results(inputs, plan, seed, ledger, model, learner, toys, curves, findings, seconds)


def _certify(learner: Learner, inputs: Inputs, plan: Plan, tick: Tick) -> list[ModelCertificate]:
    """In both precisions at once. The routes need a program each; float64 sees all that float32 would."""
    everything = setting(learner, inputs.preferences, plan)
    parts = [(dataclasses.replace(everything, routes={}), "float32"), (everything, "float64")]
    found = _side_by_side([functools.partial(certify_model, part, dtype=dtype) for part, dtype in parts])
    tick(1.0)
    return [certificate for certificates in found for certificate in certificates]


def _train(learner: Learner, plan: Plan, seed: int, tick: Tick) -> dict[str, Curves]:
    """Every compared method, at once."""
    methods = compared_methods(plan)
    shares = dict.fromkeys(methods, 0.0)

    def report(name: str, share: float) -> None:
        shares[name] = share
        tick(sum(shares.values()) / len(shares))

    runs = [
        functools.partial(train_over_seeds, learner, method, plan, seed=seed, tick=functools.partial(report, name))
        for name, method in methods.items()
    ]
    return dict(zip(methods, _side_by_side(runs), strict=True))


def _side_by_side(tasks: Sequence[Callable[[], R]]) -> list[R]:
    """Run tasks in threads: one compiles, which takes one core, while another does."""
    with concurrent.futures.ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]
