"""Which preferences the language model learns: a user's own, or generated sums."""

from __future__ import annotations

from typing import NamedTuple

from mi_align.data import Preference, arithmetic_preferences, load_preferences
from mi_align.reproduction.plan import Plan

__all__ = ["Inputs", "load_inputs"]


class Inputs(NamedTuple):
    """What is learnt.

    Attributes:
      source: where it comes from, in words.
      preferences: at least as many as a seed needs.
      faults: rows that were left out, each with file, number and reason.
      generated: whether it is the generated arithmetic, for which the outcome is known.
    """

    source: str
    preferences: list[Preference]
    faults: list[str]
    generated: bool


def load_inputs(data: str | None, plan: Plan, *, seed: int = 0) -> Inputs:
    """Read `data`, a path or a hub id; without it generate sums, which needs neither file nor network.

    Raises:
      ValueError: fewer preferences than the plan needs, or a file that cannot be read.
      FileNotFoundError, ConnectionError: as from `load_preferences`.
    """
    if data is None:
        sums = arithmetic_preferences(plan.supervised_examples, negatives=plan.certificate_negatives, seed=seed)
        return Inputs("generated sums of two-digit numbers", sums, [], True)
    faults: list[str] = []
    preferences = load_preferences(data, limit=plan.supervised_examples, on_fault=faults.append)
    needed = max(plan.pairs, plan.certificate_prompts)
    if len(preferences) < needed:
        raise ValueError(f"{data} has {len(preferences)} usable preferences, but at least {needed} were wanted.")
    return Inputs(data, preferences, faults, False)
