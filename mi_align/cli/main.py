"""`mi-align COMMAND …`: finds the command, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import gc
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from mi_align.cli.bench import Bench
from mi_align.cli.reproduce import Reproduce
from mi_align.cli.verify import Verify

__all__ = ["COMMANDS", "main"]

#: A command is a frozen dataclass of options in a file of its own, with `run() -> exit code`, and a line here.
COMMANDS: dict[str, Callable[..., Any]] = {
    "verify": Verify,
    "reproduce": Reproduce,
    "bench": Bench,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
      0 where everything held, 1 where something did not, 2 for wrong usage or input, 130 after Ctrl-C.
    """
    given = sys.argv[1:] if arguments is None else arguments
    if list(given) == ["--version"]:
        print(f"mi-align {importlib.metadata.version('mi-align')}")
        return 0
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="mi-align",
            description="RLHF, DPO and contrastive learning as one thing: certified, and trained. --version: which.",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as stopped:  # --help, or usage that tyro has explained
        return int(stopped.code or 0)
    try:
        return int(command.run())
    except (ValueError, TypeError, OSError) as error:
        print(f"mi-align: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mi-align: interrupted.", file=sys.stderr)
        return 130


def run() -> None:
    """The `mi-align` program."""
    if sys.argv[1:2] == ["bench"]:
        from mi_align.benchmark.harness import keep_freed_memory

        keep_freed_memory()
    gc.set_threshold(100_000, 50, 50)  # traces are many objects that live on; to look at them all often costs a fifth
    sys.exit(main())
