"""The benchmark's peers: rows that say why they were not run, what is handed to them, and what the gate says."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.benchmark import kernels
from mi_align.benchmark.measure import measure
from mi_align.benchmark.program import Contender, Program
from mi_align.benchmark.summary import summary
from mi_align.benchmark.task import LOGPS, Task, logps_task, method_task
from mi_align.logprobs.cases import Case

ROOT = Path(__file__).parents[1]
TINY = Case("own", 12, 53, (40,))


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Modules of `benchmarks/`, which import one another as scripts do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the peers' packages appear to be there, as empty ones or as those given; all others are missing."""

    def appear(**packages: object) -> None:
        for name, module in packages.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in packages else None)

    return appear


TORCH_WITHOUT_GPU = SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: False))


def rows(task: Task, *entered: Contender) -> list[dict]:
    return list(measure(task, entered, budget=0.0))


def reasons(task: Task, entered: tuple[Contender, ...]) -> dict[str, str]:
    came = rows(task, *(c for c in entered if c.enters(task.name)))
    assert {row["status"] for row in came} == {"skipped"}
    return {row["implementation"]: row["reason"] for row in came}


# --- Skipped rows ---------------------------------------------------------------------------------------------------


def test_a_peer_that_is_not_installed_says_what_installs_it(peers, installed) -> None:
    installed()
    entered = peers("logprobs").PEERS
    torch = "torch is not installed here; `make conformance` installs it"
    tokamax = "tokamax is not installed here; `make bench-tokamax PYTHON=python3.12` has an environment for it"
    assert reasons(logps_task(TINY, "float32"), entered) == {
        "torch": torch,
        "torch.compile": torch,
        "cut_cross_entropy": torch,
        "tokamax": tokamax,
        "tokamax_chunked": tokamax,
    }
    assert reasons(method_task("simpo", TINY, "float32"), entered) == {"liger": torch}
    installed(torch=TORCH_WITHOUT_GPU)
    assert reasons(method_task("simpo", TINY, "float32"), entered) == {
        "liger": "liger_kernel is not installed here; `make peers` installs it"
    }


def test_a_kernel_for_gpus_says_so_whether_or_not_it_is_installed(peers, installed) -> None:
    ways = peers("torch_peers")
    (way,) = (way for way in ways.TOKEN_WAYS if way.name == "cut_cross_entropy")
    for packages in ({}, {"cut_cross_entropy": SimpleNamespace()}):
        installed(torch=TORCH_WITHOUT_GPU, **packages)
        assert reasons(logps_task(TINY, "float32"), (ways.contender(way),)) == {"cut_cross_entropy": "needs a GPU"}


def test_liger_says_which_losses_it_cannot_compute(peers, installed) -> None:
    installed(torch=TORCH_WITHOUT_GPU, liger_kernel=SimpleNamespace())
    entered = (peers("torch_peers").contender(peers("liger_peers").LIGER),)
    assert "see dpo_reference_free" in reasons(method_task("dpo", TINY, "float32"), entered)["liger"]
    capped = method_task("orpo", Case("own", 12, 53, (40,), soft_cap=2.0), "float32")
    assert reasons(capped, entered) == {"liger": "these logits are capped at 2, and it takes no cap"}
    assert not entered[0].enters("mio") and not entered[0].enters(LOGPS)


def test_peers_are_chosen_by_name(peers) -> None:
    logprobs = peers("logprobs")
    assert logprobs.chosen_peers(None) == logprobs.PEERS
    assert [peer.name for peer in logprobs.chosen_peers("liger, torch")] == ["liger", "torch"]
    with pytest.raises(ValueError, match=r"no peer called 'liiger'\. Did you mean 'liger'"):
        logprobs.chosen_peers("liiger")


def test_the_page_names_every_peer(peers) -> None:
    page = (ROOT / "docs" / "benchmarking.md").read_text().split("## The rows")[1].split("## The columns")[0]
    assert all(f"`{peer.name}`" in page for peer in peers("logprobs").PEERS)


# --- What is handed over --------------------------------------------------------------------------------------------


def linear_softmax_cross_entropy_loss(x, labels, weights, *, reduction, implementation, padding: int = 0):
    """tokamax's function as its documentation has it; with columns of padding that it forgets to mask."""
    assert reduction == "none"
    logits = jnp.pad(x @ weights, ((0, 0), (0, padding if implementation == "chunked_xla" else 0)))
    chosen = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def test_tokamax_gets_its_layout_and_the_gate_catches_unmasked_padding(peers, installed) -> None:
    def with_padding(*arguments, **options):
        return linear_softmax_cross_entropy_loss(*arguments, **options, padding=11)

    installed(tokamax=SimpleNamespace(linear_softmax_cross_entropy_loss=with_padding))
    came = rows(logps_task(TINY, "float32"), *peers("tokamax_peers").TOKAMAX)
    status = {(row["implementation"], row["pass"]): row["status"] for row in came if row["implementation"]}
    assert status == {
        ("tokamax", "forward"): "right",
        ("tokamax", "gradient"): "right",
        ("tokamax_chunked", "forward"): "wrong",
        ("tokamax_chunked", "gradient"): "wrong",
    }


def test_liger_gets_the_chosen_responses_first(peers) -> None:
    liger = peers("liger_peers")
    hidden = np.arange(3 * 2 * 4 * 5).reshape(3, 2, 4, 5)
    stacked = liger.chosen_first(hidden)
    assert stacked.shape == (6, 4, 5)
    assert (stacked[:3] == hidden[:, 0]).all() and (stacked[3:] == hidden[:, 1]).all()
    assert (liger.by_prompt(stacked) == hidden).all()


def judged(task: Task, scale: float) -> dict:
    """The row of a contender that gives the sum of the losses times `scale`, and their gradients."""

    @jax.jit
    def total(hidden, vocabulary, mask):
        return jnp.sum(task.outcome(kernels.plain(hidden, vocabulary, task.targets), mask))

    def run(mask):
        value, slopes = jax.value_and_grad(total, (0, 1))(task.hidden, task.vocabulary, mask)
        return scale * value, *slopes

    mine = Contender("sum", lambda task, which: Program(run), passes=("gradient",))
    return rows(task, mine)[0]


def test_the_gate_takes_the_sum_of_the_losses_for_their_values() -> None:
    task = method_task("dpo_reference_free", TINY, "float32")
    assert judged(task, 1.0)["status"] == "right"
    slip = judged(task, 1 + 1e-4)
    assert slip["status"] == "wrong"
    assert slip["errors"]["value"] == pytest.approx(1e-4, rel=0.1)


# --- The README's tables --------------------------------------------------------------------------------------------


def row(task: str, name: str, status: str = "right", **more: object) -> dict:
    sizes = {"shape": "toy", "tokens": 20, "features": 5, "vocabulary": 3000, "dtype": "float32", "candidates": None}
    measured = {"scored_tokens": 20, "frozen": False, "seconds": 2.0, "share_of_products": 0.5, "memory_bytes": 3 << 20}
    numbers = measured if status == "right" else {"reason": "needs a GPU"}
    return {"task": task, "implementation": name, "pass": "gradient", "status": status, **sizes, **numbers, **more}


def keep(folder: Path, name: str, *kept: dict) -> None:
    folder.mkdir(exist_ok=True)
    where = {"processor": "Abacus", "cores": 2, "device": "cpu", "versions": {"jax": "0.10.2", "numpy": "2.4"}}
    (folder / f"{name}.json").write_text(json.dumps({"environment": where, "rows": kept}))


def test_the_summary_shows_whole_ways_of_the_first_shape_beside_compiled_torch(tmp_path: Path) -> None:
    keep(tmp_path / "tpu-aot", "logprobs", {"model": "GPT-2"})  # a compiler's figures: nothing ran
    keep(
        tmp_path / "cpu",
        "logprobs",
        row(LOGPS, "chunked", **{"pass": "forward"}, share_of_products=0.9),
        row(LOGPS, "chunked"),
        row(LOGPS, "frozen_head", frozen=True),
        row(LOGPS, "half_masked", scored_tokens=10),
        row(LOGPS, "reference"),
        row(LOGPS, "cut_cross_entropy", "skipped"),
        row(LOGPS, "torch.compile", seconds=1.5, memory_bytes=None),
        row(LOGPS, "bad", "wrong"),
        row(LOGPS, "chunked", shape="other", share_of_products=0.1),
        row("dpo", "chunked", share_of_products=0.2),
    )
    head, _, *table = summary(tmp_path).rstrip().split("\n")
    assert head == (
        "Abacus, 2 cores, cpu: T = 20, D = 5, V = 3,000, float32; jax 0.10.2 "
        "([every row](benchmarks/results/cpu/logprobs.md)):"
    )
    assert table == [
        "| log π, forward and backward | of the products' speed | × `torch.compile` | memory |",
        "|---|---|---|---|",
        "| `chunked` | 50% | 0.75 | 3 MiB |",
        "| `torch.compile` | 50% | 1.00 |  |",
        "| `bad` | WRONG |  |  |",
    ]


def test_the_summary_sets_whole_losses_side_by_side(tmp_path: Path) -> None:
    keep(tmp_path / "cpu", "logprobs", row(LOGPS, "chunked"))
    keep(tmp_path / "interrupted", "logprobs", row(LOGPS, "chunked", **{"pass": "forward"}))
    keep(tmp_path / "cpu", "tokamax", row(LOGPS, "plain", seconds=6.0), row(LOGPS, "tokamax", seconds=4.0))
    keep(
        tmp_path / "cpu",
        "preference-losses",
        row(LOGPS, "chunked"),
        row("dpo", "chunked"),
        row("dpo", "plain", seconds=3.0, memory_bytes=1 << 30),
        row("dpo", "liger", "skipped"),
        row("simpo", "liger", seconds=4.0),
        row("simpo", "plain", seconds=3.0),
        row("orpo", "liger", "wrong"),
    )
    text = summary(tmp_path)
    assert "interrupted" not in text
    assert "\n| `tokamax` | 50% | 1.50 | 3 MiB |\n" in text
    assert text.rstrip().split("\n")[-5:] == [
        "| loss, forward and backward | `chunked`, × plain JAX | `liger`, × plain JAX "
        "| memory, `chunked` | memory, `plain` | memory, `liger` |",
        "|---|---|---|---|---|---|",
        "| `dpo` | 1.50 |  | 3 MiB | 1,024 MiB |  |",
        "| `simpo` |  | 0.75 |  | 3 MiB | 3 MiB |",
        "| `orpo` |  | WRONG |  |  |  |",
    ]
