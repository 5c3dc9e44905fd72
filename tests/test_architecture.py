"""Who may import whom: docs/architecture.md, held over the syntax trees of all modules."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "mi_align"

_BASE = {"checks", "elementary", "numerics"}
_METHODS = {*_BASE, "objectives", "critics", "methods"}
_LEARNING = {*_METHODS, "logprobs", "models", "data", "training", "plugins"}
#: A room's own name need not be said. `cli` may import everything.
MAY_IMPORT: dict[str, set[str]] = {
    "checks": set(),
    "plugins": set(),
    "elementary": set(),
    "numerics": {"elementary"},
    "objectives": _BASE,
    "critics": _BASE,
    "methods": _METHODS,
    "estimation": _METHODS,
    "equivalences": {*_METHODS, "estimation", "plugins"},
    "logprobs": _BASE,
    "models": {*_BASE, "logprobs"},
    "data": {"checks"},
    "training": _LEARNING,
    "reproduction": {*_LEARNING, "equivalences", "estimation"},
    "benchmark": {*_METHODS, "logprobs", "equivalences", "plugins"},
    "cli": {*_LEARNING, "benchmark", "equivalences", "estimation", "reproduction"},
    "__main__": {"cli"},
}
#: What `import mi_align` gives, by the room it comes from.
TOP_LEVEL = {"METHODS": "methods", "Method": "methods", "Candidates": "critics"}
#: Rooms that need nothing but arrays, and the one file in them that is imported by name because it needs more.
LIGHT = {"checks", "elementary", "numerics", "objectives", "critics", "methods"}
EXCEPT = PACKAGE / "critics" / "networks.py"
LIGHT_PACKAGES = {"jax", "jaxtyping", "numpy"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(package, room) of everything that a module imports, inside functions too; the room is "" outside mi_align."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, *inside = name.split(".")
            if package == "mi_align":
                assert inside, f"{path}: imports the whole package"
                yield package, TOP_LEVEL.get(inside[0], inside[0])
            else:
                yield package, ""


def test_every_room_has_a_rule() -> None:
    assert {room(path) for path in MODULES} - {"__init__"} <= MAY_IMPORT.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_to_their_left_only(path: Path) -> None:
    here = room(path)
    allowed = _METHODS if here == "__init__" else MAY_IMPORT[here] | {here}
    came = {there for package, there in imports(path) if package == "mi_align"}
    assert came <= allowed, f"{here} may not import {sorted(came - allowed)}"


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) in LIGHT and p != EXCEPT], ids=lambda p: p.name)
def test_light_rooms_need_jax_and_nothing_heavy(path: Path) -> None:
    foreign = {package for package, _ in imports(path)} - {"mi_align"} - sys.stdlib_module_names
    assert foreign <= LIGHT_PACKAGES


def test_the_rules_have_no_circles() -> None:
    order = list(MAY_IMPORT)
    for here, others in MAY_IMPORT.items():
        assert all(order.index(other) <= order.index(here) for other in others)


def test_a_forbidden_import_is_noticed(tmp_path: Path) -> None:
    offender = tmp_path / "offender.py"
    offender.write_text(
        "def f():\n    from mi_align import Candidates, models\n    import mi_align.cli.main\n    import flax\n"
    )
    assert set(imports(offender)) == {
        ("mi_align", "critics"),
        ("mi_align", "models"),
        ("mi_align", "cli"),
        ("flax", ""),
    }


#: What `jnp.linalg` computes with array operations of its own; all else there is LAPACK's.
PLAIN_LINALG = {"cross", "diagonal", "matrix_norm", "matrix_transpose", "norm", "outer", "tensordot", "trace", "vecdot"}


def lapack_calls(source: str) -> set[str]:
    """Names taken from a `linalg` module that need LAPACK."""
    taken = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return {
        node.attr
        for node in taken
        if isinstance(node.value, ast.Attribute) and node.value.attr == "linalg" and node.attr not in PLAIN_LINALG
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_batch_waits_in_lapack_for_the_threads_that_it_occupies(path: Path) -> None:
    """See `equivalences/spectrum.py`: claims run side by side, and JAX 0.10's LAPACK calls can then wait for ever."""
    assert lapack_calls(path.read_text()) == set()


def test_a_lapack_call_is_noticed() -> None:
    assert lapack_calls("jnp.linalg.eigh(x); jax.scipy.linalg.solve(x, y); jnp.linalg.norm(x)") == {"eigh", "solve"}


def code_lines(node: ast.AST) -> int:
    """Lines that hold code: no docstrings, comments or blank lines."""
    lines = {line for part in ast.walk(node) if hasattr(part, "lineno") for line in (part.lineno, part.end_lineno)}
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    for part in ast.walk(node):
        if isinstance(part, documented) and ast.get_docstring(part):
            lines -= set(range(part.body[0].lineno, part.body[0].end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert code_lines(tree) <= 300
    assert {f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and code_lines(f) > 60} == set()
