"""The ledger: every claim, by its number."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from mi_align import checks
from mi_align.equivalences import claims as _claims
from mi_align.equivalences.claim import Claim

__all__ = ["CHAPTERS", "LEDGER", "chapter", "first_of_each_number", "join", "order", "select"]

#: The ledger's sections, by the last number in each.
CHAPTERS: Mapping[float, str] = MappingProxyType(
    {
        12: "Variational bounds on mutual information",
        30: "Preference losses",
        34: "Likelihood displacement",
        42: "Policy gradients as contrasts; what the base model allows",
        44: "Estimators of the KL divergence",
        51: "More of the same family",
        math.inf: "Claims of your own",
    }
)


def order(identifier: str) -> tuple[int, str]:
    """Sorts `2a` before `10a`; a user's own ids, which need no number, come last."""
    number = re.match(r"\d+", identifier)
    return (int(number.group()), identifier) if number else (10**9, identifier)


def chapter(identifier: str) -> str:
    """The title of the section that a claim stands in."""
    number = order(identifier)[0]
    return next(title for last, title in CHAPTERS.items() if number <= last)


def join(*groups: Iterable[Claim]) -> Mapping[str, Claim]:
    """Claims by id, in the ledger's order.

    Raises:
      ValueError: two claims share an id.
    """
    found: dict[str, Claim] = {}
    for claim in (claim for group in groups for claim in group):
        if claim.id in found:
            raise ValueError(f"two claims are called {claim.id!r}: {found[claim.id].title!r} and {claim.title!r}")
        found[claim.id] = claim
    return MappingProxyType({identifier: found[identifier] for identifier in sorted(found, key=order)})


def select(ledger: Mapping[str, Claim], wanted: str) -> Mapping[str, Claim]:
    """The claims named in a comma-separated list; `13` means 13a, 13b, ….

    Raises:
      ValueError: the list names nothing, or the ledger has no such claim (the nearest is named).
    """
    chosen: dict[str, Claim] = {}
    names = [name for name in (part.strip() for part in wanted.split(",")) if name]
    if not names:
        raise ValueError(f"`claims` is {wanted!r}, but numbers were wanted, such as 13,21,39. Leave it out for all.")
    for name in names:
        pattern = re.escape(name) + ("[a-z]*" if name.isdigit() else "")
        matching = {identifier: claim for identifier, claim in ledger.items() if re.fullmatch(pattern, identifier)}
        if not matching:
            raise checks.unknown_name("claim", name, ledger)
        chosen |= matching
    return MappingProxyType({identifier: ledger[identifier] for identifier in ledger if identifier in chosen})


def first_of_each_number(ledger: Mapping[str, Claim]) -> Mapping[str, Claim]:
    """1a, 2a, …: a look at the whole in a fifth of the time."""
    firsts: dict[int, str] = {}
    for identifier in sorted(ledger, key=order):
        firsts.setdefault(order(identifier)[0], identifier)
    return MappingProxyType({identifier: ledger[identifier] for identifier in firsts.values()})


def _collected() -> Mapping[str, Claim]:
    """The claims of every module in `claims/`: a new module joins by being there."""
    names = sorted(module.name for module in pkgutil.iter_modules(_claims.__path__))
    modules = [importlib.import_module(f"{_claims.__name__}.{name}") for name in names]
    return join(*(module.CLAIMS for module in modules if hasattr(module, "CLAIMS")))


#: Every claim of the library.
LEDGER: Mapping[str, Claim] = _collected()
