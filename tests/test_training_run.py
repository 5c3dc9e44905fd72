"""Whole runs as a user makes them: trained, killed, resumed, drawn, exported, opened again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.cli.main import main
from mi_align.data import ByteTokenizer, arithmetic_preferences, encode_preferences, load_tokenizer
from mi_align.models import load_pretrained, response_logps
from mi_align.training.checkpoints import Checkpoints, Stop
from mi_align.training.config import RunConfig
from mi_align.training.inputs import load_inputs
from mi_align.training.journal import OF_THE_MOMENT
from mi_align.training.run import run_training
from mi_align.training.settings import load

pytestmark = pytest.mark.usefixtures("one_device")

SHAPE = "model.shape={width: 16, layers: 1, heads: 2}"


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected[0]}
        for p in arithmetic_preferences(40, negatives=1, seed=3)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def settings(pairs: str, output: Path, *more: str) -> list[str]:
    few = ["steps=6", "batch=8", "save_every=2", "data.held_out=5", "optimiser.rate=0.01", "data_parallel=1"]
    return [f"data.train={pairs}", f"output={output}", SHAPE, *few, *more]


def run(arguments: list[str], *, resume: bool = False, stop: Stop | None = None):
    config = load(RunConfig, None, arguments)
    return run_training(config, load_inputs(config), resume=resume, stop=stop)


def metrics(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_THE_MOMENT} for line in lines]


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        ("dpo", "cached"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("mio", "live"), ("sft", "cached"), ("kto", "cached"), ("tdpo2", "live")]
        ),
    ],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(method: str, reference: str, pairs: str, tmp_path: Path) -> None:
    more = [f"method={method}", f"reference={reference}"]
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    assert run(settings(pairs, whole, *more)).exported == whole / "model"
    stop = Stop()
    stop.requested = True  # after the first step
    first = run(settings(pairs, parted, *more), stop=stop)
    assert (first.step, first.exported) == (1, None)
    assert run(settings(pairs, parted, *more), resume=True).step == 6
    assert metrics(parted) == metrics(whole)
    assert len(metrics(whole)) == 8  # six steps, and evaluation before and after
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (parted / "model" / name).read_bytes() == (whole / "model" / name).read_bytes(), name


@pytest.mark.slow
def test_batches_cut_to_buckets_give_the_losses_of_whole_ones_and_go_on_bit_for_bit(pairs: str, tmp_path: Path) -> None:
    live = "reference=live"  # whose first margins are 0 whatever the length, so that the shares of wins are ½
    buckets = "data.buckets=[9, 10]"
    whole, parted, uncut = (tmp_path / name for name in ("whole", "parted", "uncut"))
    run(settings(pairs, whole, buckets, live))
    stop = Stop()
    stop.requested = True
    assert run(settings(pairs, parted, buckets, live), stop=stop).step == 1
    run(settings(pairs, parted, buckets, live), resume=True)
    assert metrics(parted) == metrics(whole)
    run(settings(pairs, uncut, "data.buckets=[10000]", live))  # the same order, and nothing cut
    for came, wanted in zip(metrics(whole), metrics(uncut), strict=True):
        assert came == pytest.approx(wanted, rel=2e-3, abs=2e-4)


@pytest.mark.slow
def test_evaluation_and_the_cached_reference_are_cut_to_buckets_and_their_numbers_stay(
    pairs: str, tmp_path: Path
) -> None:
    from mi_align.training import reference_cache

    seen: list[tuple[int, ...]] = []
    fetch = reference_cache.fetch
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_cache, "fetch", lambda x: seen.append(np.shape(x)) or fetch(x))
        for name, buckets in (("cut", "[9, 10]"), ("whole", "null")):
            run(settings(pairs, tmp_path / name, f"data.buckets={buckets}", "steps=1", "optimiser.rate=1e-9"))
    lengths = {shape[-1] for shape in seen if len(shape) == 3 and shape[1] == 2}
    assert len(lengths) > 1, "the reference was scored at the whole length alone"
    cut, whole = ([m for m in metrics(tmp_path / name) if "eval/loss" in m] for name in ("cut", "whole"))
    ties = {"eval/accuracy", "eval/rewards/accuracies"}  # of margins that are 0 but for rounding
    for came, wanted in zip(cut, whole, strict=True):
        assert {k: v for k, v in came.items() if k not in ties} == pytest.approx(
            {k: v for k, v in wanted.items() if k not in ties}, abs=1e-6, rel=1e-5
        )


@pytest.mark.slow
def test_a_cached_reference_is_a_live_one_but_for_rounding(pairs: str, tmp_path: Path) -> None:
    for reference in ("cached", "live"):
        run(settings(pairs, tmp_path / reference, "method=dpo", f"reference={reference}", "steps=1"))
    cached, live = (metrics(tmp_path / name)[1] for name in ("cached", "live"))
    assert live["log_ratio/chosen"] == live["log_ratio/rejected"] == 0.0
    won = {"accuracy", "rewards/accuracies"}  # by a margin of rounding, where it should be a tie
    assert {k: v for k, v in cached.items() if k not in won} == pytest.approx(
        {k: v for k, v in live.items() if k not in won}, abs=3e-7, rel=1e-6
    )
    assert live["loss"] == pytest.approx(np.log(2), rel=1e-6)


def test_the_cache_is_read_where_nothing_has_changed_and_only_there(
    pairs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[int] = []
    from mi_align.training import reference_cache

    score_all = reference_cache.score_all
    monkeypatch.setattr(reference_cache, "score_all", lambda *a, **k: scored.append(1) or score_all(*a, **k))
    output = tmp_path / "run"
    run(settings(pairs, output, "steps=2", "data.held_out=0"))
    assert len(scored) == 1
    run(settings(pairs, output, "steps=2", "data.held_out=0"), resume=True)
    assert len(scored) == 1
    run(settings(pairs, output, "steps=2", "data.held_out=0", "data.max_response=2"), resume=True)
    assert len(scored) == 2
    (file, *_) = sorted((output / "reference").glob("*.npy"))
    file.write_bytes(file.read_bytes()[:-8])
    for arguments in (["steps=2"], ["steps=2", "data.max_response=2"]):
        run(settings(pairs, output, "data.held_out=0", *arguments), resume=True)
    assert len(scored) == 3


def test_what_was_trained_is_what_is_exported(pairs: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(settings(pairs, output, "method=sft"))
    model = load_pretrained(output / "model")
    with Checkpoints(output / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [4, 6]
    batch, _ = encode_preferences(arithmetic_preferences(40, negatives=1, seed=3)[-5:], ByteTokenizer())
    tokens, mask = jnp.asarray(batch.tokens[:, :1]), jnp.asarray(batch.response_mask[:, :1])
    loss = -response_logps(model.graphdef, model.params, tokens, mask).sum() / mask.sum()
    assert float(loss) == pytest.approx(metrics(output)[-1]["eval/loss"], rel=1e-5)
    text = "3+4= é日"
    assert load_tokenizer(output / "model").encode(text).tolist() == ByteTokenizer().encode(text).tolist()
    tokenizer = load_tokenizer(output / "model")
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.vocab_size) == (256, 257, 258)


def test_frozen_parameters_and_references_that_follow(pairs: str, tmp_path: Path) -> None:
    frozen = settings(pairs, tmp_path / "a", "model.trained=[blocks.attention.]")
    run(frozen)
    begun = load_inputs(load(RunConfig, None, frozen)).model.params
    ended = load_pretrained(tmp_path / "a" / "model").params
    np.testing.assert_array_equal(ended["embedding"][...], begun["embedding"][...])
    before, after = (x["blocks"]["attention"]["query"]["kernel"][...] for x in (begun, ended))
    assert not np.array_equal(before, after)
    run(settings(pairs, tmp_path / "b", "reference=live", "follow_every=1", "method=dpo"))
    ratios = [line["log_ratio/chosen"] for line in metrics(tmp_path / "b") if "log_ratio/chosen" in line]
    assert ratios == [0.0] * 6, "a reference that is synchronised at every step is the policy"


def test_a_process_that_is_terminated_saves_and_exits_with_0(pairs: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    arguments = settings(pairs, output, "steps=100000", "save_every=0", "data_parallel=8")
    command = [sys.executable, "-m", "mi_align", "train", *arguments]
    cheaply = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=0"}
    process = subprocess.Popen(command, env=os.environ | cheaply, stdout=subprocess.PIPE, text=True)
    lines, end = output / "metrics.jsonl", time.time() + 120
    while time.time() < end and not (lines.exists() and len(lines.read_text().splitlines()) > 3):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "go on with --resume" in said
    with Checkpoints(output / "checkpoints") as checkpoints:
        assert checkpoints.steps() == [metrics(output)[-1]["step"]]


def test_what_cannot_be_run_is_named(pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(message: str, *more: str, code: int = 2) -> None:
        assert main(["train", *settings(pairs, tmp_path / "x", *more)]) == code
        assert message in capsys.readouterr().err

    refused("no method called 'dpoo'. Did you mean 'dpo'", "method=dpoo")
    refused("hyper-parameter of 'dpo' called 'bta'. Did you mean 'beta'", "hyper.bta=1")
    refused("'tdpo1' reads KL(π_ref ‖ π) over the whole vocabulary", "method=tdpo1")
    refused("'exo' reads a score of each response", "method=exo")
    refused("this loss couples the examples of a batch", "method=kto", "micro_batches=2")
    refused("setting in `model.shape` called 'widht'. Did you mean 'width'", "model.shape.widht=3")
    refused("no parameter's path begins so", "model.trained=[nothing]")
    refused("`held_out` is 40, but a number from 0 to 39", "data.held_out=40")
    refused("there is no folder nowhere/at/all", "model={pretrained: nowhere/at/all}", "data.tokenizer=bytes")
    refused("the loss is nan", "optimiser={rate: 1.0e+30, clip: null, schedule: constant, warmup: 0}", code=1)
    refused("holds a run already. Pass --resume")
    assert main(["train", *settings(pairs, tmp_path / "y"), "--resume"]) == 2
    assert "has no checkpoint to resume from" in capsys.readouterr().err


def test_bad_rows_are_listed_and_a_run_is_drawn_and_sampled(
    pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with open(pairs, "a") as file:
        file.write(json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": ""}) + "\n")
    output = tmp_path / "run"
    assert main(["train", *settings(pairs, output, "steps=2")]) == 2
    assert "pairs.jsonl, row 41: the `rejected` response is empty" in capsys.readouterr().err
    assert main(["train", *settings(pairs, output, "steps=2"), "data.on_bad_row=skip"]) == 0
    assert "1 rows left out" in capsys.readouterr().out
    assert (output / "bad_rows.txt").read_text() == "pairs.jsonl, row 41: the `rejected` response is empty.\n"
    assert main(["plot", str(output)]) == 0
    assert (output / "metrics.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", str(output), "--metrics", "los"]) == 2
    assert "Did you mean 'loss'" in capsys.readouterr().err
    sampling = ["--samples", "3", "--max-new", "4", "--json"]
    assert main(["generate", "--model", str(output / "model"), "--prompts", "1+2=", "10+20=", *sampling]) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["prompt"] for line in said] == ["1+2="] * 3 + ["10+20="] * 3
    assert all(line["logp"] < 0 for line in said)


def test_a_dry_run_says_what_a_step_needs_and_writes_nothing(
    pairs: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["train", *settings(pairs, tmp_path / "x"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "MiB of parameters, optimiser and batch" in said and "method: dpo" in said
    assert not (tmp_path / "x").exists()
    assert jax.device_count() == 8
