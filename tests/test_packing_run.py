"""Whole runs whose examples are packed: the numbers of runs without packing, on meshes too, resumed bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mi_align.data import arithmetic_preferences, encode_preferences, load_tokenizer
from mi_align.training.arranging import arrangement
from mi_align.training.checkpoints import Stop
from mi_align.training.config import DataConfig, RunConfig
from mi_align.training.inputs import load_inputs
from mi_align.training.journal import OF_THE_MOMENT
from mi_align.training.run import run_training
from mi_align.training.settings import load


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected[0]}
        for p in arithmetic_preferences(21, negatives=1, seed=3)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def run(pairs: str, output: Path, *more: str, resume: bool = False, stop: Stop | None = None) -> list[dict]:
    """The lines of metrics of a short run."""
    few = ["steps=4", "batch=8", "save_every=2", "data.held_out=5", "optimiser.rate=0.01", "optimiser.name=sgd"]
    shape = "model.shape={width: 16, layers: 1, heads: 2}"
    config = load(RunConfig, None, [f"data.train={pairs}", f"output={output}", shape, *few, *more])
    run_training(config, load_inputs(config), resume=resume, stop=stop)
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_THE_MOMENT} for line in lines]


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_packed_run_has_the_numbers_of_one_that_is_not_and_resumes_bit_for_bit(pairs: str, tmp_path: Path) -> None:
    more = ["method=dpo", "micro_batches=2"]
    wanted = run(pairs, tmp_path / "none", *more)
    facts, *came = run(pairs, tmp_path / "shared", *more, "data.packing=shared")
    assert facts["packing/examples"] == 4
    assert 0.5 < facts["packing/fill"] <= 1
    # Before the first step every log-ratio is 0 to rounding, whose sign decides what accuracy counts.
    for mine, theirs in zip(came[2:], wanted[2:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=2e-6)
    stop = Stop()
    stop.requested = True  # after the first step
    parted = tmp_path / "parted"
    run(pairs, parted, *more, "data.packing=shared", stop=stop)
    assert run(pairs, parted, *more, "data.packing=shared", resume=True) == [facts, *came]
    for name in ("model.safetensors", "config.json"):
        assert (parted / "model" / name).read_bytes() == (tmp_path / "shared" / "model" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "mio", "simpo"])
@pytest.mark.parametrize("packing", ["plain", "shared"])
@pytest.mark.usefixtures("one_device")
def test_methods_run_packed(method: str, packing: str, pairs: str, tmp_path: Path) -> None:
    more = [f"method={method}", "reference=live"]
    wanted = run(pairs, tmp_path / "none", *more)
    _, *came = run(pairs, tmp_path / packing, *more, f"data.packing={packing}")
    for mine, theirs in zip(came[2:], wanted[2:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=2e-6)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() < 8, reason="8 devices")
def test_packs_are_spread_over_a_mesh(pairs: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    more = ["method=dpo", "data.packing=shared", "steps=2", "data.held_out=0"]
    facts, *spread = run(pairs, tmp_path / "mesh", *more, "data_parallel=2", "fsdp=2", "tensor=2")
    assert facts["packing/examples"] == 2
    request.getfixturevalue("one_device")
    _, *alone = run(pairs, tmp_path / "one", *more)
    for mine, theirs in zip(spread[1:], alone[1:], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4, abs=2e-6)


def test_every_batch_of_a_run_fits(pairs: str) -> None:
    data, _ = encode_preferences(arithmetic_preferences(21, negatives=2, seed=3), load_tokenizer("bytes"))
    config = RunConfig(data=DataConfig(train=pairs, packing="shared"), batch=8, micro_batches=2, steps=7)
    arrange = arrangement(config, data, data, steps=7, devices=2)
    assert arrange.packing is not None
    assert arrange.packing.examples == 2
    assert arrange.rules() == {"packing": [2, arrange.packing.rows, arrange.packing.length, True]}
    longest = np.flatnonzero(data.response_mask.any(axis=(0, 1)))[-1] + 1
    assert longest < arrange.packing.length < longest * 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch": 8, "micro_batches": 4}, r"`batch` is 8, but a multiple of 12 was wanted"),
        ({"batch": 6, "length": 4}, r"a row has 4 places, and a group is whole in one row"),
    ],
)
def test_what_cannot_be_packed_is_named_before_training(settings: dict, message: str, pairs: str) -> None:
    data, _ = encode_preferences(arithmetic_preferences(6, negatives=1, seed=3), load_tokenizer("bytes"))
    length = settings.pop("length", None)
    config = RunConfig(data=DataConfig(train=pairs, packing="shared", row_length=length), **settings)
    with pytest.raises(ValueError, match=message):
        arrangement(config, data, None, steps=2, devices=3)


def test_a_length_of_rows_needs_rows(pairs: str) -> None:
    with pytest.raises(ValueError, match="`row_length` is 64 and `packing` 'none'"):
        DataConfig(train=pairs, row_length=64)
