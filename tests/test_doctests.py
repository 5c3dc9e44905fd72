"""The examples in docstrings print what they say, and every public objective's docstring has all its parts."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest

import mi_align
from mi_align import objectives

MODULES = [m.name for m in pkgutil.walk_packages(mi_align.__path__, "mi_align.")]
PARTS = ("Args:", "Returns:", "Raises:", "Gradient", "Equal to", "Source", ">>>")
#: A state, and what makes one.
NO_OBJECTIVES = {"MineState", "mine_init"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_what_they_say(name: str) -> None:
    with np.printoptions(precision=6):  # XLA's `round` divides, and how it rounds that differs between machines
        failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed


def test_there_are_examples() -> None:
    found = [test for name in MODULES for test in doctest.DocTestFinder().find(importlib.import_module(name))]
    assert sum(bool(test.examples) for test in found) >= 60


@pytest.mark.parametrize("name", sorted(set(objectives.__all__) - NO_OBJECTIVES))
def test_an_objectives_docstring_has_all_its_parts(name: str) -> None:
    text = getattr(objectives, name).__doc__
    assert [part for part in PARTS if part not in text] == []
