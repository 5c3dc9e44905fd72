"""Reproduction: what `mi-align reproduce` does, from the ledger to one report."""

from mi_align.reproduction.inputs import Inputs, load_inputs
from mi_align.reproduction.plan import FULL, QUICK, Plan
from mi_align.reproduction.report import write_report
from mi_align.reproduction.run import Results, reproduce

__all__ = ["FULL", "QUICK", "Inputs", "Plan", "Results", "load_inputs", "reproduce", "write_report"]
