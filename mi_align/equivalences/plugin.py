"""A user's own claims: a Python file with a tuple `CLAIMS`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mi_align.equivalences.claim import Claim
from mi_align.plugins import load_module

__all__ = ["load_claims"]


def load_claims(path: Path) -> tuple[Claim, ...]:
    """The `CLAIMS` of a Python file, which may define objectives, critics and methods of its own for them.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file does not run, or holds no claims.
    """
    claims = getattr(load_module(path, "claims"), "CLAIMS", None)
    if not isinstance(claims, Sequence) or not claims or not all(isinstance(claim, Claim) for claim in claims):
        raise ValueError(
            f"{path} has no claims: a non-empty tuple `CLAIMS` of `mi_align.equivalences.Claim` was wanted, "
            f"and {'nothing of that name' if claims is None else repr(claims)[:80]} was found."
        )
    return tuple(claims)
