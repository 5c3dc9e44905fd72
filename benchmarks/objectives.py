"""Throughput of the objectives, beside a hand-written formula, torch, optax and rax, as a share of copy bandwidth.

    python benchmarks/objectives.py --write           10⁴ … 10⁸ scores, about 15 minutes on 2 cores, 20 GB at the end
    python benchmarks/objectives.py --quick           10⁴ and 10⁶ scores, no torch.compile
    python benchmarks/objectives.py --only nca_loss --sizes 1e7

Bytes are the fewest that must move: `value` reads every score and writes one loss an example; `gradient` (value and
gradient of the mean loss) reads every score and writes as many derivatives. A share of 1 means as fast as a copy of as
many bytes in the same runtime, timed between the others.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from objective_cases import CASES, WIDE, Case

from mi_align.benchmark import harness

RESULTS = Path(__file__).parent / "results"
GATE = 2e-5  # relative to 1 + |value|, in float32; the tests hold every objective to 4 ulp


def torch_modules() -> tuple[Any, Any] | None:
    """torch and its functional module, where installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch, torch.nn.functional


def scores_for(case: Case, n: int) -> list[np.ndarray]:
    """Fresh float32 scores on the scale of implicit rewards."""
    rng = np.random.default_rng(n)
    return [3 * rng.standard_normal(shape, np.float32) for shape in case.shapes(n)]


def jax_runs(f: Callable[..., Any], arrays: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """Value, and value with gradient, as blocking calls."""
    inputs = [jnp.asarray(a) for a in arrays]
    value = jax.jit(f)
    gradient = jax.jit(jax.value_and_grad(lambda *x: f(*x).mean(), argnums=tuple(range(len(inputs)))))
    return {
        "value": lambda: jax.block_until_ready(value(*inputs)),
        "gradient": lambda: jax.block_until_ready(gradient(*inputs)),
    }


def torch_runs(torch: Any, f: Callable[..., Any], arrays: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """The same in torch."""
    frozen = [torch.from_numpy(a) for a in arrays]
    leaves = [torch.from_numpy(a).requires_grad_() for a in arrays]

    def value() -> Any:
        with torch.no_grad():
            return f(*frozen)

    def gradient() -> Any:
        loss = f(*leaves).mean()
        return loss.detach(), torch.autograd.grad(loss, leaves)

    return {"value": value, "gradient": gradient}


def copy_run(n: int) -> Callable[[], Any]:
    """A copy that reads and writes n floats in all, in the same runtime and with a fresh output, as the losses have."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(max(n // 2, 1), np.float32))
    scaled = jax.jit(lambda x: x * 1.5)
    return lambda: jax.block_until_ready(scaled(x))


def is_right(case: Case, runs: dict[str, Callable[[], Any]], arrays: list[np.ndarray]) -> bool:
    """Whether value and gradient agree with the float64 formula; derivatives are spot-checked by differences."""
    exact = [a.astype(np.float64) for a in arrays]
    wanted = case.reference(*exact)
    came = np.asarray(runs["value"]())
    if not np.all(np.abs(came.reshape(np.shape(wanted)) - wanted) <= GATE * (1 + np.abs(wanted))):
        return False
    mean, gradients = runs["gradient"]()
    size, step = max(np.size(wanted), 1), 1e-4
    if abs(float(mean) - wanted.mean()) > GATE * (1 + abs(wanted.mean())):
        return False
    for position, gradient in enumerate(gradients):
        index = tuple(np.unravel_index(exact[position].size // 3, exact[position].shape))
        up, down = [[a.copy() for a in exact] for _ in range(2)]
        up[position][index] += step
        down[position][index] -= step
        slope = (case.reference(*up).sum() - case.reference(*down).sum()) / (2 * step)
        if abs(float(np.asarray(gradient)[index]) * size - slope) > 1e-4 * (1 + abs(slope)):
            return False
    return True


def candidates_for(case: Case, arrays: list[np.ndarray], *, compile_torch: bool) -> dict[str, dict[str, Any]]:
    """Every implementation of a case: ours first."""
    runs = {"mi_align": jax_runs(case.ours, arrays), "by hand": jax_runs(case.by_hand, arrays)}
    runs |= {name: jax_runs(peer, arrays) for name, peer in case.peers.items()}
    modules = torch_modules()
    if modules and case.torch:
        formula = case.torch(*modules)
        runs["torch"] = torch_runs(modules[0], formula, arrays)
        if compile_torch:
            modules[0]._dynamo.reset()  # or it stops compiling after eight shapes of one formula, and runs eagerly
            runs["torch.compile"] = torch_runs(modules[0], modules[0].compile(formula, dynamic=False), arrays)
    return runs


def measure(case: Case, n: int, *, budget: float, compile_torch: bool) -> list[dict[str, Any]]:
    """One row for each implementation and pass of a case at one size."""
    small = scores_for(case, min(n, 16_384))
    right = {
        name: is_right(case, runs, small) for name, runs in candidates_for(case, small, compile_torch=False).items()
    }
    arrays = scores_for(case, n)
    runs = candidates_for(case, arrays, compile_torch=compile_torch)
    read = sum(a.size for a in arrays)
    rows = []
    for which in ("value", "gradient"):
        written = np.size(np.asarray(runs["mi_align"]["value"]())) if which == "value" else read
        copied = copy_run(read + written)
        samples = harness.seconds_of({"copy": copied, **{k: r[which] for k, r in runs.items()}}, budget=budget)
        copy = harness.median(samples["copy"])
        for name in runs:
            took = harness.median(samples[name])
            rows.append(
                {
                    "objective": case.name,
                    "scores": read,
                    "pass": which,
                    "implementation": name,
                    "right": right.get(name, right.get("torch", False)),
                    "seconds": took,
                    "spread": [min(samples[name]), max(samples[name])],
                    "scores_per_second": read / took,
                    "gigabytes_per_second": 4 * (read + written) / took / 1e9,
                    "copy_gigabytes_per_second": 4 * (read + written) / copy / 1e9,
                    "share_of_copy": copy / took,
                    "elementwise": case.elementwise,
                }
            )
    return rows


def show(rows: list[dict[str, Any]]) -> str:
    """One line a case and pass: our share of copy bandwidth, and how many times faster we are than each peer."""
    names = list(dict.fromkeys(r["implementation"] for r in rows))
    groups: dict[tuple[str, int, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["objective"], row["scores"], row["pass"]), {})[row["implementation"]] = row
    lines = []
    for (objective, scores, which), group in groups.items():
        ours = group["mi_align"]
        line = {"objective": objective, "scores": f"10^{math.log10(scores):.2g}", "pass": which}
        line["M scores/s"] = f"{ours['scores_per_second'] / 1e6:,.0f}"
        line["GB/s"] = f"{ours['gigabytes_per_second']:.1f}"
        line["of copy"] = f"{ours['share_of_copy']:.0%}" if ours["right"] else "WRONG"
        for name in names[1:]:
            peer = group.get(name)
            line[f"× {name}"] = "" if peer is None else _ratio(ours, peer)
        lines.append(line)
    return harness.markdown(lines, {column: lambda r, c=column: r[c] for column in lines[0]})


def _ratio(ours: dict[str, Any], peer: dict[str, Any]) -> str:
    return f"{peer['seconds'] / ours['seconds']:.2f}" + ("" if peer["right"] else " (WRONG)")


def main() -> None:
    """Parse, measure, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", help="numbers of scores (default 1e4 1e5 1e6 1e7 1e8)")
    parser.add_argument("--only", default="", help="only objectives whose name contains this")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for the slowest candidate of each row")
    parser.add_argument("--quick", action="store_true", help="10⁴ and 10⁶ scores, no torch.compile")
    parser.add_argument("--write", action="store_true", help="write results/<device>/objectives.json and .md")
    parser.add_argument("--output", type=Path, help="write into this folder instead")
    options = parser.parse_args()
    sizes = options.sizes or ([1e4, 1e6] if options.quick else [1e4, 1e5, 1e6, 1e7, 1e8])
    work = [(case, int(n)) for n in sizes for case in CASES if case.elementwise or n < 6.4e7]
    work += [(WIDE, 64_000_000)] if max(sizes) >= 6.4e7 else []
    work = [(case, n) for case, n in work if options.only in case.name]
    if not work:
        parser.error(f"no objective's name contains {options.only!r}; there are: {', '.join(c.name for c in CASES)}")
    folder = options.output or (RESULTS / harness.device_name() if options.write else None)
    rows: list[dict[str, Any]] = []
    for case, n in work:
        print(f"{case.name} at {n:,} scores", flush=True)
        rows += measure(case, n, budget=options.budget, compile_torch=not options.quick)
        jax.clear_caches()
        if folder:  # after each, so that an interruption loses one row
            harness.write("objectives", rows, show(rows), folder)
    print(f"written: {folder}" if folder else "not written; --write keeps the results", show(rows), sep="\n\n")


if __name__ == "__main__":
    harness.keep_freed_memory()
    main()
