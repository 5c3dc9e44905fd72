"""The TPU kernels of the log-probabilities, compiled ahead of time for v5e, v5p and v6e, with what they need of memory.

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 python benchmarks/tpu_aot.py --write      about 10 minutes on 2 cores
    … python benchmarks/tpu_aot.py --only v5e GPT-2                                  rows whose name holds every word

No TPU is needed, only its compiler: `pip install "jax[tpu]"`. What Mosaic refuses (a block of the wrong shape, more
vector memory than there is) fails here as it would on the device. Nothing is timed but the compiler.

Each row is one program for one device: `forward`, `backward`, or `plain`, value and gradients of the same logits as XLA
makes them whole, for comparison (for v5e only, and not in float32, over which XLA takes minutes). Bytes are the
compiler's own analysis of main memory: arguments and outputs cannot be avoided, `temp` is what the way adds. A program
that needs more than the device has is a row too, with what XLA says.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mi_align.benchmark import harness
from mi_align.logprobs import pallas_tpu
from mi_align.logprobs._pallas_common import contract, logits_of

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
RESULTS = Path(__file__).parent / "results"
TOKENS = 8192
MIB, GIB = 2**20, 2**30


class Model(NamedTuple):
    """A head: features, vocabulary, soft cap, dtype."""

    features: int
    vocabulary: int
    soft_cap: float | None = None
    dtype: str = "bfloat16"


MODELS = {
    "GPT-2": Model(768, 50257),
    "GPT-2, float32": Model(768, 50257, dtype="float32"),
    "Qwen2.5-0.5B": Model(896, 151936),
    "Mistral-7B": Model(4096, 32000),
    "Gemma-2-9B": Model(3584, 256000, soft_cap=30.0),
    "Llama-3-8B": Model(4096, 128256),
    "Llama-2-13B": Model(5120, 32000),
}


def programs(model: Model, device_kind: str) -> dict[str, Callable[..., Any]]:
    """What is compiled, each a function of hidden, vocabulary, targets, a number a token, and the number of rows."""
    options = {"soft_cap": model.soft_cap, "device_kind": device_kind}

    def forward(h: Any, v: Any, targets: Any, number: Any, rows: Any) -> Any:
        return pallas_tpu.forward(h, v, targets, rows=rows, **options)

    def backward(h: Any, v: Any, targets: Any, number: Any, rows: Any) -> Any:
        return pallas_tpu.backward(h, v, targets, None, *[number] * 7, rows=rows, **options)[:2]

    def plain(h: Any, v: Any, targets: Any, number: Any, rows: Any) -> Any:
        def total(h: Any, v: Any) -> Any:
            logits = logits_of(contract(h, v, (1, 1)), None, 1.0, model.soft_cap)
            chosen = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
            return jnp.vdot(number, chosen - jax.nn.logsumexp(logits, axis=1))

        return jax.value_and_grad(total, (0, 1))(h, v)

    return {"forward": forward, "backward": backward, "plain": plain}


def row_of(name: str, model: Model, chip: str, pass_: str) -> dict[str, Any]:
    """Compile one program for one device."""
    topology = topologies.get_topology_desc(TOPOLOGIES[chip], "tpu")
    device = topology.devices[0]
    one = NamedSharding(Mesh(np.array([device]), ("device",)), PartitionSpec())
    shapes = [
        ((TOKENS, model.features), model.dtype),
        ((model.vocabulary, model.features), model.dtype),
        ((TOKENS,), "int32"),
        ((TOKENS,), "float32"),
        ((), "int32"),
    ]
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=one) for shape, dtype in shapes]
    row: dict[str, Any] = {"model": name, **model._asdict(), "tokens": TOKENS, "chip": chip, "pass": pass_}
    row["tiles"] = tiles_of(pass_, model, device.device_kind)
    lowered = jax.jit(programs(model, device.device_kind)[pass_]).lower(*arguments)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as problem:
        return {**row, "refused": reason(str(problem))}
    analysis = compiled.memory_analysis()
    fields = ("argument", "output", "temp", "generated_code")
    sizes = {f"{field}_bytes": getattr(analysis, f"{field}_size_in_bytes") for field in fields}
    return {**row, "compile_seconds": round(time.perf_counter() - start, 2), **sizes}


def tiles_of(pass_: str, model: Model, device_kind: str) -> list[list[Any]]:
    """The tiles of each kernel: whose gradient it makes, rows, vocabulary, features, bytes of vector memory."""
    if pass_ == "plain":
        return []
    alone = pallas_tpu.CHIPS[device_kind].alone
    kernels = [None] if pass_ == "forward" else ["both"] if alone else ["rows", "vocabulary"]
    rows = []
    for own in kernels:
        tiles = pallas_tpu.tiles_for(TOKENS, model.features, model.vocabulary, model.dtype, device_kind, own=own)
        rows.append([own, *tiles, pallas_tpu.memory(tiles, model.features, model.dtype, own)])
    return rows


def reason(text: str) -> str:
    """The compiler's sentence on what it lacks, without its advice."""
    found = re.search(r"Used [\d.]+\w? of [\d.]+\w? \w+|Ran out of memory[^.]*\.", text)
    return found.group(0) if found else text[:200]


def mib(row: dict[str, Any], field: str) -> str:
    """A size for the table."""
    return f"{row[field] / MIB:,.1f}" if field in row else "-"


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "chip": lambda row: row["chip"],
    "model": lambda row: row["model"],
    "D × V": lambda row: f"{row['features']} × {row['vocabulary']:,}",
    "program": lambda row: row["pass"],
    "tiles: rows × vocabulary × features": lambda row: ", ".join("{} × {} × {}".format(*t[1:4]) for t in row["tiles"]),
    "vector memory, MiB": lambda row: ", ".join(f"{t[4] / MIB:.1f}" for t in row["tiles"]),
    "arguments, MiB": lambda row: mib(row, "argument_bytes"),
    "outputs, MiB": lambda row: mib(row, "output_bytes"),
    "temp, MiB": lambda row: row.get("refused") or mib(row, "temp_bytes"),
    "code, MiB": lambda row: mib(row, "generated_code_bytes"),
    "compile, s": lambda row: f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else "-",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="words that a row's name must hold, e.g. v5e forward")
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results/tpu-aot")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for chip in TOPOLOGIES:
        for name, model in MODELS.items():
            for pass_ in ("forward", "backward", *(["plain"] if chip == "v5e" and model.dtype == "bfloat16" else [])):
                if all(word in f"{chip} {name} {pass_}" for word in given.only):
                    rows.append(row_of(name, model, chip, pass_))
                    print({key: value for key, value in rows[-1].items() if key not in model._asdict()}, flush=True)
        table = harness.markdown(rows, COLUMNS)
        if given.write:  # after each chip: the whole takes a while
            head = (
                f"{TOKENS:,} tokens; libtpu {importlib.metadata.version('libtpu')}; nothing here was run on a TPU\n\n"
            )
            harness.write("logprobs", rows, head + table, RESULTS / "tpu-aot")
    print(table)


if __name__ == "__main__":
    main()
