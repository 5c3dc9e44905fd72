"""Throughput of the objectives, beside a hand-written formula, torch, optax and rax, as a share of copy bandwidth.

    python benchmarks/objectives.py --write           10⁴ … 10⁸ scores, about 15 minutes on 2 cores, 20 GB at the end
    python benchmarks/objectives.py --quick           10⁴ and 10⁶ scores, no torch.compile
    python benchmarks/objectives.py --only nca_loss --sizes 1e7
    python benchmarks/objectives.py --write --resume  what an interrupted run has not measured yet

Bytes are the fewest that must move, four a number: `value` reads every input and writes a loss an example; `gradient`
(value and gradient of the mean loss) reads every input and writes a derivative for each that has one. A share of 1 is
as fast as a copy of as many bytes in the same runtime, timed between the others.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from objective_case import JAX, NUMPY, Case, Namespace, torch_namespace
from objective_cases import CASES, WIDE

from mi_align.benchmark import harness

RESULTS = Path(__file__).parent / "results"
GATE = 2e-5  # relative to 1 + |value|, in float32; the tests hold every objective to 4 ulp


def torch_modules() -> tuple[Any, Any] | None:
    """torch and its functional module, where installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch, torch.nn.functional


def arrays_for(case: Case, n: int) -> list[np.ndarray]:
    """Fresh inputs of about n floats."""
    return list(case.inputs(n, np.random.default_rng(n)))


def varied(case: Case, arrays: list[np.ndarray]) -> tuple[int, ...]:
    """Positions of the inputs that have a derivative."""
    return tuple(i for i in range(len(arrays)) if i not in case.held)


def jax_runs(f: Callable[..., Any], case: Case, arrays: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """Value, and where something has a derivative value with gradient, as blocking calls."""
    inputs, free = [jnp.asarray(a) for a in arrays], varied(case, arrays)
    value = jax.jit(f)
    runs = {"value": lambda: jax.block_until_ready(value(*inputs))}
    if free:
        gradient = jax.jit(jax.value_and_grad(lambda *x: f(*x).mean(), argnums=free))
        runs["gradient"] = lambda: jax.block_until_ready(gradient(*inputs))
    return runs


def torch_runs(torch: Any, f: Callable[..., Any], case: Case, arrays: list[np.ndarray]) -> dict[str, Callable[[], Any]]:
    """The same in torch."""
    free = varied(case, arrays)
    frozen = [torch.from_numpy(a) for a in arrays]
    given = [torch.from_numpy(a).requires_grad_(i in free) for i, a in enumerate(arrays)]
    leaves = [given[i] for i in free]

    def value() -> Any:
        with torch.no_grad():
            return f(*frozen)

    def gradient() -> Any:
        loss = f(*given).mean()
        return loss.detach(), torch.autograd.grad(loss, leaves)

    return {"value": value, "gradient": gradient} if free else {"value": value}


def copy_run(n: int) -> Callable[[], Any]:
    """A copy that reads and writes n floats in all, in the same runtime and with a fresh output, as the losses have."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal(max(n // 2, 1), np.float32))
    scaled = jax.jit(lambda x: x * 1.5)
    return lambda: jax.block_until_ready(scaled(x))


def replaying() -> tuple[Namespace, Callable[[], None]]:
    """NumPy, in which what a formula holds constant stays what it was in the first call; and how a call begins."""
    kept: list[Any] = []
    place = iter(())

    def hold(x: Any) -> Any:
        found = next(place, None)
        if found is None:
            kept.append(x)
        return x if found is None else found

    def begin() -> None:
        nonlocal place
        place = iter(tuple(kept))

    return dataclasses.replace(NUMPY, hold=hold), begin


def is_right(case: Case, runs: dict[str, Callable[[], Any]], arrays: list[np.ndarray]) -> bool:
    """Whether value and gradient agree with the float64 formula; derivatives are spot-checked by differences."""
    exact = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays]
    numpy, begin = replaying()

    def formula(given: list[np.ndarray]) -> np.ndarray:
        begin()
        return np.asarray(case.formula(numpy, *given))

    wanted = formula(exact)
    came = np.asarray(runs["value"]())
    if not np.all(np.abs(came.reshape(wanted.shape) - wanted) <= GATE * (1 + np.abs(wanted))):
        return False
    if "gradient" not in runs:
        return True
    mean, gradients = runs["gradient"]()
    step = 1e-4
    if abs(float(mean) - wanted.mean()) > GATE * (1 + abs(wanted.mean())):
        return False
    for position, gradient in zip(varied(case, arrays), gradients, strict=True):
        index = tuple(np.unravel_index(exact[position].size // 3, exact[position].shape))
        up, down = [[a.copy() for a in exact] for _ in range(2)]
        up[position][index] += step
        down[position][index] -= step
        slope = (formula(up) - formula(down)).sum() / (2 * step)  # entry by entry first: sums would cancel
        if abs(float(np.asarray(gradient)[index]) * wanted.size - slope) > 1e-4 * (1 + abs(slope)):
            return False
    return True


def candidates_for(case: Case, arrays: list[np.ndarray], *, compile_torch: bool) -> dict[str, dict[str, Any]]:
    """Every implementation of a case: ours first."""
    by_hand = functools.partial(case.formula, JAX)
    runs = {"mi_align": jax_runs(case.ours, case, arrays), "by hand": jax_runs(by_hand, case, arrays)}
    runs |= {name: jax_runs(peer, case, arrays) for name, peer in case.peers.items()}
    modules = torch_modules()
    if modules:
        formula = case.torch(*modules) if case.torch else functools.partial(case.formula, torch_namespace())
        runs["torch"] = torch_runs(modules[0], formula, case, arrays)
        if compile_torch:
            modules[0]._dynamo.reset()  # or it stops compiling after eight shapes of one formula, and runs eagerly
            runs["torch.compile"] = torch_runs(modules[0], modules[0].compile(formula, dynamic=False), case, arrays)
    return runs


def measure(case: Case, n: int, *, budget: float, compile_torch: bool) -> list[dict[str, Any]]:
    """One row for each implementation and pass of a case at one size."""
    small = arrays_for(case, min(n, 16_384))
    right = {
        name: is_right(case, runs, small) for name, runs in candidates_for(case, small, compile_torch=False).items()
    }
    arrays = arrays_for(case, n)
    runs = candidates_for(case, arrays, compile_torch=compile_torch)
    read = sum(a.size for a in arrays)
    rows = []
    for which in runs["mi_align"]:
        free = sum(arrays[i].size for i in varied(case, arrays))
        written = np.size(np.asarray(runs["mi_align"]["value"]())) if which == "value" else free
        copied = copy_run(read + written)
        samples = harness.seconds_of({"copy": copied, **{k: r[which] for k, r in runs.items()}}, budget=budget)
        copy = harness.median(samples["copy"])
        for name in runs:
            took = harness.median(samples[name])
            rows.append(
                {
                    "objective": case.name,
                    "size": n,
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


def measured_before(folder: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run, if there was one."""
    path = folder / "objectives.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def main() -> None:
    """Parse, measure, write and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", help="numbers of scores (default 1e4 1e5 1e6 1e7 1e8)")
    parser.add_argument("--only", default="", help="only objectives whose name contains this")
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for the slowest candidate of each row")
    parser.add_argument("--quick", action="store_true", help="10⁴ and 10⁶ scores, no torch.compile")
    parser.add_argument("--write", action="store_true", help="write results/<device>/objectives.json and .md")
    parser.add_argument("--output", type=Path, help="write into this folder instead")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are written there already")
    options = parser.parse_args()
    sizes = options.sizes or ([1e4, 1e6] if options.quick else [1e4, 1e5, 1e6, 1e7, 1e8])
    work = [(case, int(n)) for n in sizes for case in CASES if n <= case.largest]
    work += [(WIDE, 64_000_000)] if max(sizes) >= 6.4e7 else []
    work = [(case, n) for case, n in work if options.only in case.name]
    if not work:
        parser.error(f"no objective's name contains {options.only!r}; there are: {', '.join(c.name for c in CASES)}")
    folder = options.output or (RESULTS / harness.device_name() if options.write else None)
    rows = measured_before(folder) if options.resume and folder else []
    known = {(row["objective"], row["size"]) for row in rows}
    for case, n in work:
        if (case.name, n) in known:
            continue
        print(f"{case.name} at {n:,} scores", flush=True)
        rows += measure(case, n, budget=options.budget, compile_torch=not options.quick)
        jax.clear_caches()
        if folder:  # after each, so that an interruption loses one row
            harness.write("objectives", rows, show(rows), folder)
    print(f"written: {folder}" if folder else "not written; --write keeps the results", show(rows), sep="\n\n")


if __name__ == "__main__":
    harness.keep_freed_memory()
    main()
