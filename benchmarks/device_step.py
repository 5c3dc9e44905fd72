"""A whole step of DPO on whatever accelerator JAX finds: seconds, tokens a second, MFU, memory.

    python benchmarks/device_step.py                      models of 0.5B and 1.5B parameters; a toy one on a CPU
    python benchmarks/device_step.py --models qwen2.5-0.5b --attention xla cudnn --write

Fresh parameters in float32, computed in bfloat16, a live reference, AdamW, clipping. MFU is of the operations that the
model's definition needs (`mi_align.training.devices`), padding included, over the peak of its kind of device.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mi_align.benchmark import harness
from mi_align.data import PreferenceBatch
from mi_align.methods import METHODS
from mi_align.models import DecoderConfig, count_parameters, init_decoder
from mi_align.training import ROUNDED, init_state, preference_loss, scorer, summarise, train_step
from mi_align.training.config import OptimiserConfig
from mi_align.training.devices import batch_flops, utilisation
from mi_align.training.optimiser import make_optimiser

_QWEN: dict[str, Any] = {"vocab_size": 151_936, "kv_heads": 2, "qkv_bias": True, "rope_base": 1e6}
#: Shapes of published models, and a toy; with each, pairs and tokens of a sequence.
MODELS: dict[str, tuple[dict[str, Any], int, int]] = {
    "toy": ({"vocab_size": 4096, "width": 128, "layers": 2, "heads": 2}, 4, 128),
    "qwen2.5-0.5b": (_QWEN | {"width": 896, "layers": 24, "heads": 14, "mlp_width": 4864}, 8, 1024),
    "qwen2.5-1.5b": (_QWEN | {"width": 1536, "layers": 28, "heads": 12, "mlp_width": 8960}, 4, 1024),
}


def measured(name: str, attention: Any, remat: Any, budget: float) -> dict[str, Any]:
    """One row."""
    shape, pairs, time = MODELS[name]
    config = DecoderConfig(**shape, remat=remat, attention=attention)
    row: dict[str, Any] = {"model": name, "attention": attention, "remat": remat, "pairs": pairs, "time": time}
    try:
        step, state, batch, parameters = _compiled(config, pairs, time)
        seconds, loss = _seconds(step, state, batch, budget)
    except (RuntimeError, ValueError) as problem:
        return row | {"refused": f"{type(problem).__name__}: {str(problem).splitlines()[0][:160]}"}
    device = jax.devices()[0]
    flops = batch_flops(config, parameters, batch, live=True)
    row |= {"loss": loss, "peak": (device.memory_stats() or {}).get("peak_bytes_in_use")}
    row |= {"parameters": parameters, "seconds": seconds, "tokens_per_second": batch.tokens.size / seconds}
    return row | utilisation(flops, seconds, device.device_kind, 1)


def _compiled(config: DecoderConfig, pairs: int, time: int) -> tuple[Any, Any, PreferenceBatch, int]:
    graphdef, params = init_decoder(config, jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab_size, (pairs, 2, time))
    responses = np.broadcast_to(np.arange(time) >= time // 2, tokens.shape)
    batch = PreferenceBatch(tokens, responses, np.ones((pairs, 2), bool))
    logps = scorer(graphdef, compute_dtype="bfloat16")
    optimiser = make_optimiser(OptimiserConfig(rate=1e-6, schedule="constant", warmup=0.0, clip=1.0), 100)
    step = train_step(preference_loss(logps, METHODS["dpo"], live=logps), optimiser)
    step = jax.jit(step, donate_argnums=0, compiler_options=ROUNDED)
    parameters = count_parameters(params)
    reference = jax.tree.map(jnp.copy, params)
    return step, init_state(params, optimiser, reference=reference), batch, parameters


def _seconds(step: Any, state: Any, batch: PreferenceBatch, budget: float) -> tuple[float, float]:
    """The median of a step's seconds, and the first loss, which is log 2 but for rounding."""
    held = [state]
    first = {}

    def run() -> None:
        held[0], metrics = step(held[0], (batch, None))
        jax.block_until_ready(held[0])
        first.setdefault("loss", summarise(metrics)["loss"])

    samples = harness.seconds_of({"step": run}, budget=budget)["step"]
    return harness.median(samples), first["loss"]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""

    def cell(key: str, form: str, scale: float = 1) -> Any:
        return lambda row: form.format(row[key] * scale) if row.get(key) else ""

    return harness.markdown(
        rows,
        {
            "model": lambda row: row["model"],
            "attention": lambda row: row["attention"],
            "made again": lambda row: row["remat"],
            "pairs × tokens": lambda row: f"{row['pairs']} × {row['time']}",
            "ms a step": cell("seconds", "{:,.1f}", 1e3),
            "tokens/s": cell("tokens_per_second", "{:,.0f}"),
            "MFU": cell("mfu", "{:.1%}"),
            "peak, GiB": cell("peak", "{:.1f}", 2**-30),
            "first loss": lambda row: f"{row['loss']:.4f}" if "loss" in row else row["refused"],
        },
    )


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all but the toy; on a CPU the toy")
    parser.add_argument("--attention", nargs="+", default=["auto"], help="kernels, each for itself")
    parser.add_argument("--remat", nargs="+", default=["dots", "layers"], help="what is made again, each for itself")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of steps a row")
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results")
    parser.add_argument("--output", type=Path, help="the folder to keep them in")
    told = parser.parse_args()
    on_cpu = jax.default_backend() == "cpu"
    names = told.models or (["toy"] if on_cpu else [name for name in MODELS if name != "toy"])
    rows = []
    for name in names:
        for attention, remat in itertools.product(told.attention, told.remat):
            rows.append(measured(name, attention, remat, told.budget))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(f"\n{table(rows)}")
    if told.write:
        folder = told.output or Path(__file__).parent / "results" / harness.device_name()
        print(f"written: {harness.write('step', rows, table(rows), folder)}")


if __name__ == "__main__":
    main()
