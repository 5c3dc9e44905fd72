"""The GPU kernels of the log-probabilities, compiled for Hopper and Ampere by Triton itself, without a GPU.

    JAX_PLATFORMS=cpu python benchmarks/triton_aot.py --write      a minute on 2 cores; needs `pip install triton`

JAX lowers the kernels to Triton's IR, and on a machine with a GPU XLA compiles that with the Triton it was built with.
Here the `triton` package does, of another version, so that the figures are near what a device will see, not the same:
registers a thread, bytes a thread spills, shared memory a block, and which matrix instruction the products became.
Nothing is run.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jaxlib.triton
import triton
from jaxlib.mlir import ir
from triton.backends.compiler import GPUTarget

from mi_align.benchmark import harness
from mi_align.logprobs import pallas_gpu

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # as before 3.10; else it warns
CAPABILITIES = {"Hopper": (90, "NVIDIA H100"), "Ampere": (80, "NVIDIA A100")}
RESULTS = Path(__file__).parent / "results"
TOKENS = 8192
#: features, vocabulary, dtype, soft cap
HEADS = {
    "Llama-3-8B": (4096, 128256, "bfloat16", None),
    "Qwen2.5-0.5B": (896, 151936, "bfloat16", None),
    "GPT-2, float16": (768, 50257, "float16", None),
    "GPT-2, float32": (768, 50257, "float32", None),
    "Gemma-2-9B": (3584, 256000, "bfloat16", 30.0),
}


def lowered(head: tuple[int, int, str, float | None], device_kind: str) -> dict[str, Any]:
    """Forward and backward as StableHLO with the kernels inside."""
    D, V, dtype, soft_cap = head
    shape, options = jax.ShapeDtypeStruct, {"soft_cap": soft_cap, "device_kind": device_kind}
    arrays = shape((TOKENS, D), dtype), shape((V, D), dtype), shape((TOKENS,), "int32"), shape((TOKENS,), "float32")

    def forward(h: Any, v: Any, targets: Any, _: Any) -> Any:
        return pallas_gpu.forward(h, v, targets, **options)

    def backward(h: Any, v: Any, targets: Any, number: Any) -> Any:
        return pallas_gpu.backward(h, v, targets, None, *[number] * 7, **options)[:2]

    passes = {"forward": forward, "backward": backward}
    return {name: jax.jit(f).trace(*arrays).lower(lowering_platforms=("cuda",)) for name, f in passes.items()}


def operations(op: Any) -> Iterator[Any]:
    """All operations within one."""
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from operations(inner.operation)


def kernel_of(program: Any) -> str:
    """The text of the one Triton kernel in a lowered program."""
    calls = [op for op in operations(program.compiler_ir("stablehlo").operation) if op.name == "stablehlo.custom_call"]
    (config,) = [
        c.attributes["mhlo.backend_config"] for c in calls if "triton" in str(c.attributes["call_target_name"])
    ]
    context = ir.Context()
    jaxlib.triton.dialect.register_dialect(context)
    return str(ir.Module.parse(config["ir"].value_bytes, context))


def compile_with_triton(text: str, capability: int) -> dict[str, Any]:
    """What Triton and ptxas make of a kernel."""
    options = {"num_warps": pallas_gpu.WARPS, "num_stages": pallas_gpu.STAGES}
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ttir"), Path(folder, "kernel.cubin")
        source.write_text(text)
        start = time.perf_counter()
        kernel = triton.compile(str(source), target=GPUTarget("cuda", capability, 32), options=options)
        seconds = time.perf_counter() - start
        binary.write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", binary], capture_output=True, text=True, check=True)
    registers, stack = re.findall(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)[0]
    instruction = next((name for name in ("wgmma", "mma.sync", "fma") if name in kernel.asm["ptx"]), "none")
    return {
        "registers": int(registers),
        "spilled_bytes": int(stack),
        "shared_bytes": kernel.metadata.shared,
        "instruction": instruction,
        "compile_seconds": round(seconds, 2),
    }


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "device": lambda row: row["device"],
    "model": lambda row: row["model"],
    "pass": lambda row: row["pass"],
    "tiles: rows × vocabulary × features": lambda row: " × ".join(map(str, row["tiles"])),
    "registers": lambda row: str(row["registers"]),
    "spilled, bytes": lambda row: str(row["spilled_bytes"]),
    "shared, KiB": lambda row: f"{row['shared_bytes'] / 1024:.0f}",
    "products by": lambda row: row["instruction"],
    "compile, s": lambda row: f"{row['compile_seconds']:.1f}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results/triton-aot")
    given, rows = parser.parse_args(), []
    for device, (capability, kind) in CAPABILITIES.items():
        for model, head in HEADS.items():
            tiles = pallas_gpu.tiles_for(TOKENS, *head[:3], kind)
            for name, program in lowered(head, kind).items():
                row = {"device": device, "model": model, "pass": name, "tokens": TOKENS, "tiles": list(tiles)}
                rows.append(row | compile_with_triton(kernel_of(program), capability))
    table = harness.markdown(rows, COLUMNS)
    print(table)
    if given.write:
        head_line = f"triton {triton.__version__}, {TOKENS:,} tokens; nothing here was run on a GPU\n\n"
        print(harness.write("logprobs", rows, head_line + table, RESULTS / "triton-aot"))


if __name__ == "__main__":
    main()
