"""Small wrong changes to a formula: the mistakes that people make in losses.

Each operator looks at one syntax node and yields what could stand there instead. `mutants_of` applies every operator
at every place of a module, one at a time.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
from collections.abc import Callable, Iterator

Operator = Callable[[ast.AST], Iterator[tuple[ast.AST, str]]]

ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARISONS = {ast.Gt: ast.LtE, ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.LtE: ast.Gt, ast.Eq: ast.NotEq}
SYMMETRIC = {"isinstance", "logaddexp", "maximum", "minimum", "partial", "promote_types"}


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A module's source with one thing wrong, and where and what it is.

    Attributes:
      module: file inside the package, without its ending.
      line: of the change.
      change: before and after.
      source: the whole module, changed.
      touched: the changed function and those of the module that use it, whose tests are the likeliest to notice.
    """

    module: str
    line: int
    change: str
    source: str
    touched: frozenset[str]


def arithmetic(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """+ for −, × for ÷, and back."""
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right), "operator"


def constants(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """A number a little off."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        off = node.value + 1 if isinstance(node.value, int) else node.value * 1.01 + 0.01
        yield ast.Constant(off), "constant"


def signs(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """A minus dropped."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield node.operand, "minus dropped"


def comparisons(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """A comparison turned around."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators), "comparison"


def masks(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """A mask ignored: `fill(x, where, 0)` → `x`, `f(x, where)` → `f(x)`, `f(where=where)` → `f()`."""
    if not isinstance(node, ast.Call):
        return
    if _name(node.func) == "fill":
        yield node.args[0], "mask ignored"
    named = [k for k in node.keywords if k.arg and k.arg.startswith("where")]
    for keyword in named:
        yield ast.Call(node.func, node.args, [k for k in node.keywords if k is not keyword]), "mask ignored"
    if node.args and isinstance(node.args[-1], ast.Name) and node.args[-1].id.startswith("where"):
        yield ast.Call(node.func, node.args[:-1], node.keywords), "mask ignored"


def stopped(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """A gradient that should have been stopped flows."""
    if isinstance(node, ast.Call) and _name(node.func) == "stop_gradient":
        yield node.args[0], "stop_gradient removed"


def swaps(node: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """The first two arguments exchanged."""
    if isinstance(node, ast.Call) and len(node.args) == 2 and _name(node.func) not in SYMMETRIC:
        yield ast.Call(node.func, node.args[::-1], node.keywords), "arguments swapped"


OPERATORS: tuple[Operator, ...] = (arithmetic, constants, signs, comparisons, masks, stopped, swaps)


def mutants_of(module: str, source: str) -> Iterator[Mutant]:
    """Every mutant of a module's function bodies; docstrings, annotations, checks and defaults stay."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    places = [(node, function) for body, function in _bodies(tree) for node in ast.walk(body)]
    for place, function in places:
        for operator in OPERATORS:
            for replacement, what in operator(place):
                before, after = ast.unparse(place), ast.unparse(ast.fix_missing_locations(replacement))
                source = ast.unparse(_replaced(tree, place, replacement))
                within = f" in {ast.unparse(parents[place])}" if isinstance(place, ast.Constant) else ""
                line, change = getattr(place, "lineno", 0), f"{what}: {before}  →  {after}{within}"
                yield Mutant(module, line, change, source, _users(tree, function))


def _bodies(tree: ast.AST) -> Iterator[tuple[ast.stmt, ast.FunctionDef]]:
    """The statements that compute: not docstrings, not `checks.…(…)`, not raises, not nested definitions' headers."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and not _is_declaration(function):
            for statement in function.body:
                if not isinstance(statement, ast.FunctionDef) and not _only_checks(statement):
                    yield statement, function


def _users(tree: ast.AST, function: ast.FunctionDef) -> frozenset[str]:
    """The function, the one whose rule it is (`@f.defjvp`), and all functions that name any of them."""
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    found = {function.name} | {_name(d.value) for d in function.decorator_list if isinstance(d, ast.Attribute)}
    while new := {f.name for f in functions if found & _named(f)} - found:
        found |= new
    return frozenset(found - {"jax", "functools", ""})


def _named(function: ast.FunctionDef) -> set[str]:
    return {node.id for statement in function.body for node in ast.walk(statement) if isinstance(node, ast.Name)}


def _is_declaration(function: ast.FunctionDef) -> bool:
    return any(_name(d) == "overload" for d in function.decorator_list)


def _only_checks(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise):
        return True
    if isinstance(statement, ast.If):
        return all(_only_checks(s) for s in statement.body) and not statement.orelse
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    return isinstance(value, ast.Constant) or (
        isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and _name(value.func.value) == "checks"
    )


def _name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


class _Replace(ast.NodeTransformer):
    def __init__(self, place: ast.AST, replacement: ast.AST) -> None:
        self.place, self.replacement = place, replacement

    def visit(self, node: ast.AST) -> ast.AST:
        return self.replacement if node is self.place else self.generic_visit(node)


def _replaced(tree: ast.Module, place: ast.AST, replacement: ast.AST) -> ast.Module:
    """A copy of the tree with one node replaced: the copy keeps the identity of the two nodes alone."""
    keep = {id(place): place, id(replacement): replacement}
    duplicate = copy.deepcopy(tree, dict(keep))
    return ast.fix_missing_locations(_Replace(place, copy.deepcopy(replacement)).visit(duplicate))
