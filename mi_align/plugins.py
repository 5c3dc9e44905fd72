"""A user's own Python file, loaded by its path; whatever goes wrong in it is one line that names file and line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["line_in", "load_module"]


def load_module(path: Path, what: str) -> ModuleType:
    """The module that a Python file makes.

    Args:
      path: the file.
      what: what is wanted from it, for the error: "claims".

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no Python file, or does not run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path} to load {what} from.")
    spec = importlib.util.spec_from_file_location(f"mi_align_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: its name should end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        line = line_in(error, path)
        raise ValueError(f"{path}{line} failed while it was loaded: {type(error).__name__}: {error}") from error
    return module


def line_in(error: BaseException, path: Path) -> str:
    """`:12` where the error came out of line 12 of the file."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    trace, line = error.__traceback__, ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = f":{trace.tb_lineno}"
        trace = trace.tb_next
    return line
