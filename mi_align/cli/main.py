"""`mi-align COMMAND …`: finds the command, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import gc
import importlib.metadata
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from mi_align.cli.bench import Bench
from mi_align.cli.evaluate import Evaluate
from mi_align.cli.export import Export
from mi_align.cli.generate import Generate
from mi_align.cli.plot import Plot
from mi_align.cli.reproduce import Reproduce
from mi_align.cli.train import Reward, Sft, Train
from mi_align.cli.verify import Verify

__all__ = ["COMMANDS", "main"]

#: A command is a frozen dataclass of options in a file of its own, with `run() -> exit code`, and a line here.
COMMANDS: dict[str, Callable[..., Any]] = {
    "verify": Verify,
    "reproduce": Reproduce,
    "bench": Bench,
    "train": Train,
    "sft": Sft,
    "reward": Reward,
    "evaluate": Evaluate,
    "export": Export,
    "generate": Generate,
    "plot": Plot,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
      0 where everything held, 1 where something did not, 2 for wrong usage or input, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        print(f"mi-align {importlib.metadata.version('mi-align')}")
        return 0
    try:
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="mi-align",
            description="RLHF, DPO and contrastive learning as one thing: certified, and trained. --version: which.",
            args=_flags_first(given),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as stopped:  # --help, or usage that tyro has explained
        return int(stopped.code or 0)
    try:
        return int(command.run())
    except (ValueError, TypeError, OSError, ModuleNotFoundError) as error:
        print(f"mi-align: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"mi-align: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mi-align: interrupted.", file=sys.stderr)
        return 130


def _flags_first(given: list[str]) -> list[str]:
    """`train run.yaml --resume method=mio`: flags may stand between settings, of which tyro wants an unbroken row."""
    if given[:1] not in (["train"], ["sft"], ["reward"]):
        return given
    return [given[0], *sorted(given[1:], key=lambda text: not text.startswith("-"))]


def run() -> None:
    """The `mi-align` program."""
    if sys.argv[1:2] == ["bench"]:
        from mi_align.benchmark.harness import keep_freed_memory

        keep_freed_memory()
    gc.set_threshold(100_000, 50, 50)  # traces are many objects that live on; to look at them all often costs a fifth
    sys.exit(main())
