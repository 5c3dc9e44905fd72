"""Estimates from samples of what cannot be computed: the chance that one of k answers is right."""

from mi_align.estimation.pass_at_k import pass_at_k

__all__ = ["pass_at_k"]
