"""Every public objective as it is benchmarked."""

from __future__ import annotations

import objective_list_cases
import objective_pair_cases
import objective_reward_cases
from objective_list_cases import WIDE

from mi_align import objectives

__all__ = ["CASES", "NO_OBJECTIVES", "WIDE"]

#: Public names that are no functions of scores.
NO_OBJECTIVES = frozenset({"MineState", "mine_init"})

CASES = (
    *objective_pair_cases.CASES,
    *objective_list_cases.LISTS,
    *objective_list_cases.BOUNDS,
    *objective_reward_cases.CASES,
)

missing = set(objectives.__all__) - NO_OBJECTIVES - {case.objective for case in CASES}
if missing:
    raise LookupError(f"no case times {sorted(missing)}. Add one, or say in NO_OBJECTIVES that it is no objective.")
