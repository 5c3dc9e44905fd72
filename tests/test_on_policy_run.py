"""Whole runs on the policy's own responses: they learn what is rewarded, reach RLHF's optimum, stop and go on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.models import load_pretrained
from mi_align.training.checkpoints import Stop
from mi_align.training.config import RunConfig
from mi_align.training.inputs import load_inputs
from mi_align.training.journal import OF_THE_MOMENT
from mi_align.training.run import run_training
from mi_align.training.settings import load


@pytest.fixture(autouse=True, scope="module")
def _compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A run that goes on compiles what it compiled before: kept on disk, the tests take a fifth of the time."""
    from jax.experimental.compilation_cache import compilation_cache

    names = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for wanted in (names, before):
        for name, value in wanted.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if wanted is names:
            yield


SHAPE = "model.shape={width: 16, layers: 1, heads: 2}"
REWARDS = """
import numpy as np

def says_a(prompts, responses):
    return np.array([float(response.startswith("a")) for response in responses])

def nothing(prompts, responses):
    return np.zeros(len(responses))

def length(prompts, responses):
    return np.array([1.0 + len(response) for response in responses])

def answer(prompts, responses, rows):
    return [len(set(row["answer"]) & set(response)) for response, row in zip(responses, rows, strict=True)]
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"{n}+{n}=", "answer": str(2 * n)} for n in range(3, 15)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "one.jsonl").write_text('{"prompt": ""}\n')
    return tmp_path


def settings(place: Path, output: str, *more: str, reward: str = "length", data: str = "prompts") -> list[str]:
    few = ["steps=4", "batch=4", "optimiser.rate=0.01", "on_policy.samples=4", "on_policy.max_new_tokens=5"]
    own = [
        f"data.train={place}/{data}.jsonl",
        f"output={place / output}",
        f"on_policy.reward={place}/rewards.py:{reward}",
    ]
    return [SHAPE, *own, *few, *more]


def run(arguments: list[str], *, resume: bool = False, stop: Stop | None = None) -> Any:
    config = load(RunConfig, None, arguments)
    return run_training(config, load_inputs(config), resume=resume, stop=stop)


def metrics(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_THE_MOMENT} for line in lines]


LIVE = "reference=live"
CLIPS = "hyper={clip_low: 1.e-9, clip_high: 1.e-9}"  # any ratio but 1 is clipped
KINDS = {
    "grpo": ["on_policy.inner_steps=2", LIVE, "on_policy.kl_weight=0.1", "on_policy.kl=k3_in_loss", CLIPS],
    "dpo": ["on_policy.inner_steps=2", LIVE, "hyper.beta=0.5"],
    "ppo": ["on_policy.inner_steps=2", LIVE, "on_policy.kl_weight=0.1", "micro_batches=2"],
    "mio": [LIVE],
    "plackett_luce_dpo": [LIVE],
    "nca_reward": [LIVE],
    "simpo": [],
    "aot": [LIVE],
    **{name: ["data.held_out=2"] for name in ("reinforce", "rloo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo")},
}


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("method", ["grpo", *(pytest.param(x, marks=pytest.mark.slow) for x in ("dpo", "ppo", "rloo"))])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(method: str, place: Path) -> None:
    more = [f"method={method}", *KINDS[method]]
    run(settings(place, "whole", *more))
    stop = Stop()
    stop.requested = True
    inner = load(RunConfig, None, settings(place, "parted", *more)).on_policy.inner_steps
    first = run(settings(place, "parted", *more), stop=stop)
    assert (first.step, first.exported) == (inner, None)  # not in the middle of a rollout
    assert run(settings(place, "parted", *more), resume=True).step == 4
    assert metrics(place / "parted") == metrics(place / "whole")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (place / "parted/model" / name).read_bytes() == (place / "whole/model" / name).read_bytes(), name


@pytest.mark.usefixtures("one_device")
@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_every_method_makes_steps(method: str, place: Path) -> None:
    run(settings(place, "run", f"method={method}", *KINDS[method]))
    told = metrics(place / "run")[-1]
    wanted = {"loss", "grad_norm", "reward/mean", "reward/std", "reward/no_spread", "entropy", "response/length"}
    assert wanted <= {*told} | ({*metrics(place / "run")[-2]} if "data.held_out=2" in KINDS[method] else set())
    assert all(value is not None and np.isfinite(value) for line in metrics(place / "run") for value in line.values())


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_first_step_on_a_rollout_has_ratios_of_exactly_one(parts: int, place: Path) -> None:
    run(settings(place, "run", "method=grpo", *KINDS["grpo"], f"micro_batches={parts}"))
    first, second, third, fourth = metrics(place / "run")
    assert first["clip_fraction"] == third["clip_fraction"] == 0.0
    assert min(second["clip_fraction"], fourth["clip_fraction"]) > 0.3
    assert first["kl"] == second["kl"] == 0.0  # of the policy that drew, which is the reference still
    assert third["kl"] != 0.0
    assert first["reward/mean"] == second["reward/mean"] != third["reward/mean"]


def first_letter(folder: Path | None, arguments: list[str]) -> np.ndarray:
    """The law of the first token of a response to nothing: of the model of a folder, or of the one that began."""
    config = load(RunConfig, None, arguments)
    model = load_pretrained(folder) if folder else load_inputs(config).model
    from mi_align.models import hidden_states, vocabulary_matrix

    hidden = hidden_states(model.graphdef, model.params, jnp.array([[257]]))[0, 0]
    return np.asarray(jax.nn.softmax(vocabulary_matrix(model.graphdef, model.params) @ hidden), np.float64)


def tilted(reference: np.ndarray, beta: float) -> np.ndarray:
    """π* ∝ π_ref e^{r/β}: the maximum of E[r] − β KL(π ‖ π_ref)."""
    law = reference * np.exp((np.arange(len(reference)) == ord("a")) / beta)
    return law / law.sum()


def reversed_tilt(reference: np.ndarray, beta: float) -> np.ndarray:
    """The maximum of E[r] − β KL(π_ref ‖ π): π = β π_ref / (λ − r), λ found by bisection."""
    r = (np.arange(len(reference)) == ord("a")).astype(float)
    low, high = 1.0, 1.0 + beta
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if (beta * reference / (middle - r)).sum() > 1 else (low, middle)
    return beta * reference / (high - r)


BETA = 0.18
ONE_TOKEN = ["on_policy.max_new_tokens=1", "on_policy.samples=64", "batch=6", "steps=240", "optimiser.rate=0.02"]
ONE_TOKEN += [LIVE, f"on_policy.kl_weight={BETA}", "log_every=40", "optimiser.warmup=0.02", "on_policy.advantage=batch"]


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize(
    ("kl", "optimum", "other"),
    [
        pytest.param("k1_in_reward", tilted, reversed_tilt, marks=pytest.mark.slow),
        pytest.param("k2_in_loss", tilted, reversed_tilt, marks=pytest.mark.slow),
        pytest.param("k3_in_loss", reversed_tilt, tilted, marks=pytest.mark.slow),
    ],
)
def test_the_optimum_of_rlhf_is_reached(kl: str, optimum: Any, other: Any, place: Path) -> None:
    """The penalty's place says which divergence it is: k₁ in the reward and k₂ in the loss are KL(π ‖ π_ref)."""
    arguments = settings(
        place, "run", "method=reinforce", *ONE_TOKEN, f"on_policy.kl={kl}", reward="says_a", data="one"
    )
    reference = first_letter(None, arguments)
    run(arguments)
    law = first_letter(place / "run/model", arguments)
    a = ord("a")
    assert reference[a] < 0.02
    assert law[a] == pytest.approx(optimum(reference, BETA)[a], abs=0.05)
    for twin in (optimum(reference, 2 * BETA), other(reference, BETA)):  # beyond twice what is allowed
        assert abs(law[a] - twin[a]) > 0.1
    others = np.delete(law / law.sum(), a), np.delete(optimum(reference, BETA), a)
    assert np.abs(others[0] - others[1]).sum() < 0.1
    told = metrics(place / "run")
    assert abs(told[-1]["reward/mean"] - law[a]) < 0.15  # of 384 draws; it began below 0.02


@pytest.mark.usefixtures("one_device")
def test_without_a_reward_nothing_is_learnt(place: Path) -> None:
    arguments = settings(place, "run", "method=grpo", *KINDS["grpo"], reward="nothing")
    begun = load_inputs(load(RunConfig, None, arguments)).model.params
    begun = [np.asarray(x) for x in jax.tree.leaves(begun)]
    run(arguments)
    ended = jax.tree.leaves(load_pretrained(place / "run/model").params)
    assert all(np.array_equal(x, y) for x, y in zip(begun, ended, strict=True))
    assert {line["grad_norm"] for line in metrics(place / "run")} == {0.0}
    assert {line["reward/no_spread"] for line in metrics(place / "run")} == {1.0}
