"""The benchmark's arithmetic: work as XLA counts it, a gate that catches what is wrong, sizes of real models."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.benchmark import harness, kernels, roofline
from mi_align.benchmark.gate import FACTOR, Gate, exact_rows
from mi_align.benchmark.measure import measure
from mi_align.benchmark.program import PASSES, Contender, Memory, Program, Skipped, contender, measured_memory
from mi_align.benchmark.report import COLUMNS
from mi_align.benchmark.task import LOGPS, NEGATIVES, Task, chosen_methods, logps_task, method_task
from mi_align.logprobs import token_logps
from mi_align.logprobs.cases import CASES, MODELS, Case, case_named
from mi_align.methods import METHODS

TINY = Case("own", 12, 53, (40,))
CAPPED = Case("own", 12, 53, (40,), soft_cap=2.0)


def kernel(function, **options) -> kernels.Kernel:
    return kernels.Kernel("mine", function, losses=True, **options)


def spoilt(how):
    """The plain way with something done to its log-probabilities."""
    return lambda h, v, y, where=None, soft_cap=None: how(kernels.plain(h, v, y, where, soft_cap), h, v, y)


def rows(task: Task, *entered: Contender) -> list[dict]:
    return list(measure(task, entered, budget=0.0))


# --- Work -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("which", PASSES)
def test_operations_are_those_that_xla_counts_in_the_products(which, frozen) -> None:
    tokens, features, vocab = 96, 320, 208

    def logits(h, v):
        return jnp.einsum("nd,vd->nv", h, v)

    def forward(h, v):
        return logits(h, v)

    def gradient(h, v, slopes):
        made, pull = jax.vjp(lambda *x: logits(*x, *(() if not frozen else (v,))), *((h,) if frozen else (h, v)))
        return made, pull(slopes)

    shapes = [(tokens, features), (vocab, features), (tokens, vocab)][: 2 if which == "forward" else 3]
    compiled = jax.jit(forward if which == "forward" else gradient).lower(
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    )
    counted = compiled.compile().cost_analysis()["flops"]
    ours = roofline.least_flops(tokens, features, vocab, which, frozen=frozen)
    assert ours == 2 * tokens * features * vocab * {("forward", False): 1, ("forward", True): 1}.get(
        (which, frozen), 2 if frozen else 3
    )
    assert counted == pytest.approx(ours, rel=1e-3)  # beside the products there is nothing but index arithmetic


@pytest.mark.parametrize("which", PASSES)
def test_no_program_moves_fewer_bytes_than_the_least(which) -> None:
    task = logps_task(case_named("96x64x208"), "float32")
    h, v, y = task.hidden, task.vocabulary, task.targets

    def total(h, v):
        return kernels.plain(h, v, y).sum()

    function = total if which == "forward" else jax.value_and_grad(total, (0, 1))
    accessed = jax.jit(function).lower(h, v).compile().cost_analysis()["bytes accessed"]
    least = roofline.least_bytes(96, 64, 208, which, 4)
    assert least == {"forward": 4, "gradient": 8}[which] * (96 + 208) * 64 + 8 * 96
    assert least < accessed


# --- Truth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft_cap", [None, 1.5])
def test_the_float64_rows_agree_with_finite_differences(soft_cap) -> None:
    rng = np.random.default_rng(0)
    h, v, y = rng.normal(size=(3, 5)), rng.normal(size=(7, 5)), np.array([0, 6, 2])
    weights, entries = rng.normal(size=3), np.array([1, 2, 6])
    d_hidden, d_vocabulary = exact_rows(h, v, y, soft_cap).pull(weights, entries)

    def total(h, v):
        z = h @ v.T if soft_cap is None else soft_cap * np.tanh(h @ v.T / soft_cap)
        return float(weights @ (z[np.arange(3), y] - np.log(np.exp(z).sum(1))))

    assert float(weights @ exact_rows(h, v, y, soft_cap).logps) == pytest.approx(total(h, v), rel=1e-13)
    step = 1e-6
    for position in np.ndindex(*h.shape):
        moved = np.zeros_like(h)
        moved[position] = step
        slope = (total(h + moved, v) - total(h - moved, v)) / (2 * step)
        assert d_hidden[position] == pytest.approx(slope, abs=1e-8)
    for j, entry in enumerate(entries):
        moved = np.zeros_like(v)
        moved[entry, 3] = step
        slope = (total(h, v + moved) - total(h, v - moved)) / (2 * step)
        assert d_vocabulary[j, 3] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [(TINY, "bfloat16"), pytest.param(CAPPED, "float32", marks=pytest.mark.slow)],
    ids=["plain", "capped"],
)
def test_every_kernel_is_right_at_sizes_that_divide_nothing(case, dtype) -> None:
    entered = [contender(k) for k in kernels.chosen_kernels("")]
    came = rows(logps_task(case, dtype), *entered)
    assert {row["status"] for row in came} == {"right", "ceiling"}
    names = {row["implementation"] for row in came if row["pass"] == "gradient"} - {None}
    assert names == {c.name for c in entered}
    assert not {"frozen_head", "plain_frozen"} & {row["implementation"] for row in came if row["pass"] == "forward"}


WRONG = {
    "one position off by 1e-4": lambda logps, h, v, y: logps.at[0].add(1e-4 * jax.lax.stop_gradient(logps[0])),
    "NaN where nothing is asked": lambda logps, h, v, y: jnp.where(jnp.arange(len(logps)) == 20, jnp.nan, logps),
    "one row of the vocabulary left out": lambda logps, h, v, y: kernels.plain(h, v.at[-1].set(-9 * h[0]), y),
    "value right, gradient not": lambda logps, h, v, y: logps + 1e-3 * (logps - jax.lax.stop_gradient(logps)),
    "gradient in hidden only": lambda logps, h, v, y: kernels.plain(h, jax.lax.stop_gradient(v), y),
    "positions mixed up": lambda logps, h, v, y: jnp.roll(logps, 1),
}  # fmt: skip


@pytest.mark.parametrize("slip", WRONG)
def test_the_gate_catches(slip: str) -> None:
    mine = dataclasses.replace(contender(kernel(spoilt(WRONG[slip]))), passes=("gradient",))
    (row,) = rows(logps_task(TINY, "float32"), mine)
    assert row["status"] == "wrong"
    assert not {"seconds", "samples"} & row.keys(), "a wrong row is not timed"


def test_what_is_allowed_is_twice_the_plain_ways_own_error() -> None:
    task = logps_task(TINY, "bfloat16")
    gate = Gate(task)
    at = np.flatnonzero(task.probe)
    logps = np.asarray(kernels.plain(task.hidden, task.vocabulary, task.targets))[at].astype(np.float64)
    h, v = (np.asarray(x).astype(np.float64) for x in (task.hidden[at], task.vocabulary))
    z = h @ v.T
    truth = z[np.arange(len(at)), np.asarray(task.targets)[at]] - np.log(np.exp(z).sum(1))
    weights = np.asarray(task.probe, np.float64)[at]
    error = np.abs(weights * (logps - truth)).max() / np.abs(weights * truth).max()
    assert gate.allowed["value"] == pytest.approx(FACTOR * error, rel=1e-3)
    assert 1e-4 < error < 1e-1, "bfloat16 logits are coarse; ours, accumulated in float32, are not"
    verdict = gate.judge((token_logps(task.hidden, task.vocabulary, task.targets) * task.probe,))
    assert verdict.right and verdict.error < 0.01


def test_half_masked_counts_and_scores_half_of_the_positions() -> None:
    task = logps_task(case_named("4096x4x17"), "float32")
    kept = int(task.half.sum())
    assert 2048 <= kept <= 2048 + 60
    (half,) = kernels.chosen_kernels("half_masked")
    (row, _) = rows(task, dataclasses.replace(contender(half), passes=("forward",)))
    assert row["status"] == "right" and row["scored_tokens"] == kept
    assert row["flops"] == 2 * kept * 4 * 17


# --- Whole losses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param("dpo", marks=pytest.mark.slow), "mio"])
def test_losses_from_hidden_states_are_right_by_every_way(name: str) -> None:
    task = method_task(name, Case("own", 12, 53, (83,)), "float32")
    assert task.candidates == {"dpo": 2, "mio": 1 + NEGATIVES}[name]
    assert task.tokens == math.prod(task.targets.shape) <= 83
    entered = [contender(k) for k in kernels.chosen_kernels("") if k.losses]
    assert [c.name for c in entered] == ["chunked", "plain"]
    came = rows(task, *(dataclasses.replace(c, passes=("gradient",)) for c in entered))
    assert [row["status"] for row in came] == ["right", "right", "ceiling"]
    assert all(set(row["errors"]) == {"value", "hidden", "vocabulary", "elsewhere"} for row in came[:2])


def test_a_wrong_kernel_makes_a_wrong_loss() -> None:
    mine = contender(kernel(spoilt(lambda logps, h, v, y: logps - 1e-3 * jnp.abs(logps))))
    came = rows(method_task("dpo", TINY, "float32"), mine)
    assert {row["status"] for row in came} == {"wrong"}


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if not m.needs_reference][:6])
def test_methods_are_timed_or_say_why_not(name: str) -> None:
    try:
        chosen = chosen_methods(name)
    except ValueError as error:
        assert f"the method {name!r} cannot be timed on token log-probabilities alone" in str(error)
        assert METHODS[name].critic.__name__ != "log_probability"
    else:
        assert chosen == (name,)


def test_names_of_methods_are_checked() -> None:
    assert chosen_methods("none") == ()
    with pytest.raises(ValueError, match=r"no method called 'dpoo'\. Did you mean 'dpo'"):
        chosen_methods("dpoo")
    with pytest.raises(ValueError, match=r"'tdpo1' cannot be timed.*reference_kl"):
        chosen_methods("tdpo1")
    with pytest.raises(ValueError, match="7 tokens are too few for 4 prompts of 2 responses"):
        method_task("dpo", TINY.at(7), "float32")


# --- Rows -----------------------------------------------------------------------------------------------------------


def test_who_cannot_run_is_skipped_with_the_reason_and_the_others_go_on() -> None:
    def refuse(task: Task, which: str) -> Program:
        raise Skipped("no such library")

    def exhaust(task: Task, which: str) -> Program:
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    def break_down(task: Task, which: str) -> Program:
        raise RuntimeError("a bug")

    task = logps_task(TINY, "float32")
    plain = contender(kernel(kernels.plain))
    came = rows(task, Contender("absent", refuse), Contender("large", exhaust), plain)
    reasons = {row["implementation"]: row["reason"] for row in came if row["status"] == "skipped"}
    assert reasons == {"absent": "no such library", "large": "it ran out of memory"}
    assert sum(row["status"] == "right" for row in came) == 2
    with pytest.raises(RuntimeError, match="a bug"):
        rows(task, Contender("broken", break_down))


def test_a_program_larger_than_what_is_free_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mi_align.benchmark.program._free_bytes", lambda: 1000)
    came = rows(logps_task(TINY, "float32"), contender(kernel(kernels.plain)))
    assert [row["status"] for row in came] == ["skipped", "skipped"]
    assert "GiB are free" in came[0]["reason"]


@pytest.mark.parametrize(
    ("peak_after", "wanted"), [(900, Memory(800, "device statistics")), (500, Memory(7, "compiled program"))]
)
def test_memory_is_the_devices_where_a_call_raises_its_peak(
    peak_after: int, wanted: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = {"bytes_in_use": 100, "peak_bytes_in_use": 500}

    class Device:
        def memory_stats(self) -> dict[str, int]:
            return dict(statistics)

    monkeypatch.setattr(jax, "devices", lambda: [Device()])
    program = Program(lambda _: statistics.update(peak_bytes_in_use=peak_after), None, Memory(7, "compiled program"))
    assert measured_memory(program, None) == wanted


def test_rows_carry_consistent_numbers() -> None:
    task = logps_task(TINY, "float32")
    *timed, ceiling = [r for r in rows(task, contender(kernel(kernels.plain))) if r["pass"] == "gradient"]
    (row,) = timed
    assert row["task"] == LOGPS and row["tokens"] == 40
    assert row["seconds"] == harness.median(row["samples"]) and len(row["samples"]) >= 3
    assert row["spread"] == [min(row["samples"]), max(row["samples"])]
    assert row["flops"] == 6 * 40 * 12 * 53
    assert row["tokens_per_second"] == pytest.approx(40 / row["seconds"])
    assert row["share_of_products"] == pytest.approx(sum(ceiling["product_seconds"].values()) / row["seconds"])
    assert row["share_of_products"] == pytest.approx(row["flops_per_second"] / ceiling["flops_per_second"])
    assert row["share_of_copy"] == pytest.approx(row["bytes_per_second"] / ceiling["bytes_per_second"])
    assert row["memory_bytes"] >= 4 * 12 * (40 + 53), "the gradients at least"
    assert row["memory_source"] == "compiled program"


def test_candidates_are_timed_in_turn() -> None:
    seen: list[str] = []
    ticks: list[int] = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    samples = harness.seconds_of(calls, budget=0.0, warm_up=1, tick=ticks.append)
    assert "".join(seen) == "abc" * 4
    assert ticks == [1, 2, 3]
    assert [len(samples[name]) for name in "abc"] == [3, 3, 3]


# --- Shapes ---------------------------------------------------------------------------------------------------------


def test_shapes_of_real_models_are_there() -> None:
    known = {case.name: (case.features, case.vocab) for case in MODELS}
    assert known["llama-3-8b"] == (4096, 128_256)
    assert known["qwen2.5-0.5b"] == (896, 151_936)
    assert CASES["gemma-2-2b"].soft_cap == 30
    assert all({2_048, 65_536} <= set(case.tokens) for case in MODELS)


def test_the_page_explains_every_row_and_column() -> None:
    page = (Path(__file__).parents[1] / "docs" / "benchmarking.md").read_text()
    rows, columns = page.split("## The rows")[1].split("## The columns")
    assert all(f"`{name}`" in rows for name in kernels.kernels())
    explained = {
        name.strip() for cell in re.findall(r"^\| ([^|]+) \|", columns, re.MULTILINE) for name in cell.split(",")
    }
    assert set(COLUMNS) - {"implementation"} <= explained


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("llama", r"no shape called 'llama'. Did you mean"),
        ("gpt2:", "a number of tokens was wanted after the colon, such as gpt2:2048"),
        ("gpt2:many", "a number of tokens was wanted"),
        ("gpt2:0", "a number of tokens was wanted"),
        ("0x4x4", "of at least 1 were wanted"),
    ],
)
def test_a_shape_that_cannot_be_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        case_named(text)
