"""A step of DPO on real pairs: candidates padded (packing: none), packed (plain), and with each prompt once (shared).

    python benchmarks/packing.py --data DIR --write        both data sets, about 10 minutes on 2 cores
    python benchmarks/packing.py --data DIR --sets gsm8k --batch 8

DIR holds `hh_harmless_base_test.jsonl.gz` (anthropics/hh-rlhf) and `gsm8k_pairs.jsonl` (pairs of example solutions of
openai/grade-school-math); only the lengths of their texts matter. A useful token is one of a prompt, counted once an
example, or of a response. Every layout is cut to the same limits and steps over the same batches, the layouts in turn;
before anything is timed, their log-probabilities are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from mi_align.benchmark import harness
from mi_align.data import ByteTokenizer, PreferenceBatch, batch_indices, encode_preferences, load_preferences, take
from mi_align.data.packing import pack, plan_packing
from mi_align.methods import METHODS
from mi_align.models import DecoderConfig, count_parameters, init_decoder
from mi_align.training import init_state, preference_loss, scorer, train_step

RESULTS = Path(__file__).parent / "results"
SETS = {"hh": "hh_harmless_base_test.jsonl.gz", "gsm8k": "gsm8k_pairs.jsonl"}
GATE = 2e-5  # nats a token, in float32
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "pairs": lambda r: r["data"],
    "packing": lambda r: r["packing"],
    "rows × places": lambda r: f"{r['rows']} × {r['length']}",
    "of them useful": lambda r: f"{r['fill']:.0%}",
    "step": lambda r: f"{r['time']:.3g} s",
    "× none": lambda r: f"{r['ratio']:.2f}",
    "useful tokens/s": lambda r: f"{r['useful_per_second']:,.0f}",
    "largest difference": lambda r: f"{r['error']:.1e}",
}


def useful(batch: PreferenceBatch) -> int:
    """Tokens that no layout can do without: prompts once, and all responses."""
    rows = pack(batch, plan_packing([(batch, np.arange(len(batch.tokens))[None])], shared=True))
    return int((rows.group > 0).sum())


def layouts(data: PreferenceBatch, steps: int, size: int) -> dict[str, Callable[[PreferenceBatch], Any]]:
    """How each makes a batch; its rows have room for the fullest of `steps` batches."""
    indices = np.stack([batch_indices(len(data.tokens), size, seed=0, step=n) for n in range(steps)])
    plans = {name: plan_packing([(data, indices)], shared=name == "shared") for name in ("plain", "shared")}
    return {"none": lambda batch: batch} | {
        name: lambda batch, plan=plan: pack(batch, plan) for name, plan in plans.items()
    }


def rows_of(name: str, data: PreferenceBatch, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a layout."""
    config = DecoderConfig(vocab_size=258, width=args.width, layers=args.layers, heads=4)
    graphdef, params = init_decoder(config, jax.random.key(0))
    logps = scorer(graphdef)
    program = jax.jit(logps)
    optimiser = optax.adamw(1e-4)
    step = jax.jit(train_step(preference_loss(logps, METHODS["dpo"].configure(beta=0.1)), optimiser))
    state = init_state(params, optimiser)
    taken = [take(data, batch_indices(len(data.tokens), args.batch, seed=0, step=n)) for n in range(args.steps)]
    reference = [np.asarray(program(params, batch)) for batch in taken]
    runs, facts = {}, {}
    for layout, arrange in layouts(data, args.steps, args.batch).items():
        batches = [arrange(batch) for batch in taken]
        error = max(
            float(np.abs(program(params, batch) - there).max()) for batch, there in zip(batches, reference, strict=True)
        )
        if error > GATE:
            raise SystemExit(f"{layout} of {name} is {error} nats off: more than {GATE}.")

        def run(batches: list[Any] = batches) -> None:
            for scored in zip(batches, reference, strict=True):
                jax.block_until_ready(step(state, scored))

        runs[layout] = run
        facts[layout] = {
            "places": batches[0].tokens.size,
            "rows": batches[0].tokens.size // batches[0].tokens.shape[-1],
        }
        facts[layout] |= {"length": batches[0].tokens.shape[-1], "error": error}
    samples = harness.seconds_of(runs, budget=args.budget, warm_up=1)
    times = {layout: harness.median(seconds) / args.steps for layout, seconds in samples.items()}
    tokens = sum(useful(batch) for batch in taken) / args.steps
    return [
        {
            "data": name,
            "packing": layout,
            "parameters": count_parameters(params),
            "batch": args.batch,
            "time": times[layout],
            "ratio": times["none"] / times[layout],
            "useful_per_second": tokens / times[layout],
            "fill": tokens / facts[layout]["places"],
            **facts[layout],
            "samples": [seconds / args.steps for seconds in samples[layout]],
        }
        for layout in runs
    ]


def main() -> None:
    """Read, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--sets", default=",".join(SETS), help="which of them (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="pairs a step")
    parser.add_argument("--steps", type=int, default=3, help="different batches")
    parser.add_argument("--limit", type=int, default=512, help="pairs read")
    parser.add_argument("--max-prompt", type=int, default=512, help="most tokens of a prompt")
    parser.add_argument("--max-response", type=int, default=512, help="most tokens of a response")
    parser.add_argument("--width", type=int, default=128, help="features of the model")
    parser.add_argument("--layers", type=int, default=4, help="its layers")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of samples of the slowest layout")
    parser.add_argument("--write", action="store_true", help="write packing.json and packing.md")
    parser.add_argument("--note", default="", help="a sentence above the table, such as what else was running")
    args = parser.parse_args()
    rows = []
    for name in args.sets.split(","):
        preferences = load_preferences(str(args.data / SETS[name]), limit=args.limit, on_fault=lambda fault: None)
        data, _ = encode_preferences(
            preferences, ByteTokenizer(), max_prompt=args.max_prompt, max_response=args.max_response
        )
        rows += rows_of(name, data, args)
    table = harness.markdown(rows, COLUMNS)
    about = f"A step of DPO on {args.batch} pairs, {rows[0]['parameters']:,} parameters, as bytes. {args.note}".strip()
    print(f"{about}\n\n{table}")
    if args.write:
        harness.write("packing", rows, f"{about}\n\n{table}", RESULTS / harness.device_name())


if __name__ == "__main__":
    main()
