"""A user's own claims: a Python file with a tuple `CLAIMS`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from mi_align.equivalences.claim import Claim

__all__ = ["load_claims"]


def load_claims(path: Path) -> tuple[Claim, ...]:
    """The `CLAIMS` of a Python file, which may define objectives, critics and methods of its own for them.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file does not run, or holds no claims.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} to load claims from.")
    spec = importlib.util.spec_from_file_location(f"mi_align_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: its name should end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = _line_in(error, path)
        raise ValueError(f"{path}{line} failed while it was loaded: {type(error).__name__}: {error}") from error
    claims = getattr(module, "CLAIMS", None)
    if not isinstance(claims, Sequence) or not claims or not all(isinstance(claim, Claim) for claim in claims):
        raise ValueError(
            f"{path} has no claims: a non-empty tuple `CLAIMS` of `mi_align.equivalences.Claim` was wanted, "
            f"and {'nothing of that name' if claims is None else repr(claims)[:80]} was found."
        )
    return tuple(claims)


def _line_in(error: Exception, path: Path) -> str:
    """`:12` where the error came out of line 12 of the file."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line
