"""What the recipes need of memory, compiled ahead of time for the TPUs that they are meant for.

    JAX_PLATFORMS=cpu python -m experiments.recipes.memory              all rows, minutes each; needs jax[tpu]
    JAX_PLATFORMS=cpu python -m experiments.recipes.memory llama-3-8b   the rows of one recipe, or of 8xH100

Writes memory.json and memory.md beside this file after each row; rows that were not asked for stay. Nothing is run,
and no weights are read: shapes/ has what of the models' `config.json` matters. GPUs have no compiler here: their row is
counted from shapes, which says what the state takes and nothing of temporaries.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from mi_align.benchmark import harness

HERE = Path(__file__).parent
GIB = 2**30
GPUS = "8xH100"


class Wanted(NamedTuple):
    """A recipe on devices: settings beside those of its file; `topology` None: 8 GPUs, counted."""

    recipe: str
    topology: str | None
    settings: tuple[str, ...] = ()


WANTED = (
    Wanted("mistral-7b", "v5e:4x4"),
    Wanted("llama-3-8b", "v5p:2x2x1"),
    Wanted("qwen2.5-7b", "v6e:4x4"),
    Wanted("mistral-7b", None, ("fsdp=8",)),
    Wanted("llama-3-8b", None, ("fsdp=8",)),
    Wanted("qwen2.5-7b", None, ("fsdp=8",)),
)


def row_of(wanted: Wanted) -> dict[str, Any]:
    """Compile, or count."""
    from mi_align.training.config import RunConfig
    from mi_align.training.settings import load
    from mi_align.training.topology import compile_step, devices_of, state_bytes

    shape = f"model.pretrained={HERE / 'shapes' / wanted.recipe}"
    config = load(RunConfig, HERE / f"{wanted.recipe}.yaml", (shape, *wanted.settings))
    row: dict[str, Any] = {
        "recipe": wanted.recipe,
        "topology": wanted.topology or GPUS,
        "fsdp": config.fsdp,
    }
    row |= {"batch": config.batch, "micro_batches": config.micro_batches}
    if wanted.topology is None:
        parameters, arguments = state_bytes(config)
        return row | {"parameters": parameters, "arguments": arguments / config.fsdp, "capacity": 80 * GIB}
    start = time.perf_counter()
    memory = compile_step(config, devices_of(wanted.topology))
    return row | memory._asdict() | {"fits": memory.fits, "compile_seconds": time.perf_counter() - start}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""

    def size(name: str) -> Any:
        return lambda row: f"{row[name] / GIB:.1f}" if row.get(name) is not None else "not known"

    fits = {True: "yes", False: "no", None: "not known"}
    return harness.markdown(
        rows,
        {
            "recipe": lambda row: row["recipe"],
            "devices": lambda row: row["topology"],
            "parameters": lambda row: f"{row['parameters']:,}",
            "fsdp": lambda row: str(row["fsdp"]),
            "examples a micro-batch": lambda row: str(row["batch"] // row["micro_batches"]),
            "arguments, GiB": size("arguments"),
            "temporaries, GiB": size("temporaries"),
            "a device has, GiB": size("capacity"),
            "fits": lambda row: fits[row.get("fits")] + (f": {row['refusal']}" if row.get("refusal") else ""),
        },
    )


def main() -> None:
    for wanted in WANTED:
        words = wanted.recipe, wanted.topology or GPUS
        if sys.argv[1:] and not any(word in words for word in sys.argv[1:]):
            continue
        row = row_of(wanted)
        print(row, flush=True)
        kept = json.loads((HERE / "memory.json").read_text())["rows"] if (HERE / "memory.json").exists() else []
        known = {(row["recipe"], row["topology"]): row for row in [*kept, row]}
        rows = [known[key] for w in WANTED if (key := (w.recipe, w.topology or GPUS)) in known]
        head = "A step of each recipe, a device; compiled for TPUs, counted from shapes for GPUs; nothing was run.\n\n"
        harness.write("memory", rows, head + table(rows), HERE)


if __name__ == "__main__":
    main()
