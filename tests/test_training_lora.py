"""Runs that train an adapter: its own reference, resumed bit for bit, exported twice, the same on every mesh."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mi_align.cli.main import main
from mi_align.data import ByteTokenizer, arithmetic_preferences, batch_indices, encode_preferences, take
from mi_align.methods import METHODS
from mi_align.models import (
    DecoderConfig,
    LoraConfig,
    fresh_adapter,
    fresh_llama,
    hidden_states,
    is_adapter,
    load_adapter,
    load_pretrained,
    save_pretrained,
)
from mi_align.training import init_state, partition, preference_loss, scorer, summarise
from mi_align.training import train_step as make_step
from mi_align.training.checkpoints import Checkpoints, Stop
from mi_align.training.config import RunConfig
from mi_align.training.inputs import load_inputs
from mi_align.training.journal import OF_THE_MOMENT
from mi_align.training.run import run_training
from mi_align.training.settings import from_mapping, load, to_mapping
from mi_align.training.sharding import head_layout, make_mesh, place, shardings
from mi_align.training.trained import compiled_step

SHAPE = DecoderConfig(vocab_size=258, width=16, layers=1, heads=2)
TOKENS = np.arange(2 * 7).reshape(2, 7) + 60


@functools.cache
def preferences():
    return arithmetic_preferences(40, negatives=1, seed=3)


@pytest.fixture
def world(tmp_path: Path, one_device: None) -> Path:
    """A folder with a base and data, on one device."""
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected[0]} for p in preferences()]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_pretrained(fresh_llama(SHAPE, jax.random.key(7)), tmp_path / "base")
    return tmp_path


def settings(world: Path, output: str, *more: str) -> list[str]:
    few = ["steps=4", "batch=8", "save_every=2", "data.held_out=5", "optimiser.rate=0.01", "data.tokenizer=bytes"]
    where = [f"data.train={world / 'pairs.jsonl'}", f"output={world / output}", f"model.pretrained={world / 'base'}"]
    return [*where, *few, *([] if any("adapter" in m for m in more) else ["model.lora.rank=2"]), *more]


def run(arguments: list[str], *, resume: bool = False, stop: Stop | None = None):
    config = load(RunConfig, None, arguments)
    return run_training(config, load_inputs(config), resume=resume, stop=stop)


def metrics(output: Path) -> list[dict]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in OF_THE_MOMENT} for line in lines]


def states(model) -> np.ndarray:
    return np.asarray(hidden_states(model.graphdef, model.params, TOKENS))


@pytest.mark.parametrize(
    ("method", "reference"),
    [
        ("dpo", "live"),
        *(pytest.param(*c, marks=pytest.mark.slow) for c in [("mio", "live"), ("mio", "cached"), ("sft", "cached")]),
    ],
)
def test_a_run_of_an_adapter_resumes_bit_for_bit_and_is_exported_twice(
    method: str, reference: str, world: Path
) -> None:
    more = [f"method={method}", f"reference={reference}"]
    whole, parted = world / "whole", world / "parted"
    assert run(settings(world, "whole", *more)).exported == whole / "model"
    stop = Stop()
    stop.requested = True  # after the first step
    assert run(settings(world, "parted", *more), stop=stop).exported is None
    assert run(settings(world, "parted", *more), resume=True).step == 4
    assert metrics(parted) == metrics(whole)
    if reference == "live":
        before, first, second, *_ = metrics(whole)
        for name in ("log_ratio/chosen", "log_ratio/rejected", "rewards/margins"):
            assert before[f"eval/{name}"] == first[name] == 0.0 != second[name]
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors", "adapter/adapter_config.json"):
        assert (parted / name).read_bytes() == (whole / name).read_bytes(), name
    base = load_pretrained(world / "base")
    adapted, merged = load_adapter(base, whole / "adapter"), load_pretrained(whole / "model")
    np.testing.assert_allclose(states(merged), states(adapted), atol=1e-5)
    assert np.abs(states(merged) - states(base)).max() > 1e-3
    assert merged.config == base.config
    for name in ("embedding", "norm.scale"):
        kept, was = (functools.reduce(lambda x, n: x[n], name.split("."), m.params)[...] for m in (merged, base))
        np.testing.assert_array_equal(kept, was)


def test_checkpoints_hold_what_moves_and_know_the_base_that_they_belong_to(world: Path) -> None:
    run(settings(world, "run", "reference=live", "optimiser.clip=null"))
    with Checkpoints(world / "run" / "checkpoints") as checkpoints:
        held = {name: int(np.prod(x.shape)) for name, x in checkpoints._manager.item_metadata(4)["state"].items()}
    assert not [name for name in held if ".lora." not in name and not name.endswith(("step", "count"))]
    size = 2 * (4 * (16 + 16) + 3 * (16 + 48))  # rank · (in + out) of four and of three matrices
    parts = {part: sum(n for name, n in held.items() if name.startswith(part)) for part in ("params", "reference")}
    assert parts == {"params": size, "reference": size}
    assert sum(held.values()) - 4 * size < 5, "two moments, and counters"
    save_pretrained(fresh_llama(SHAPE, jax.random.key(8)), world / "base")
    with pytest.raises(ValueError, match=r"checkpoints/4 was written beside other frozen parameters"):
        run(settings(world, "run", "reference=live", "optimiser.clip=null"), resume=True)


def test_a_step_copies_no_part_of_the_base(world: Path) -> None:
    model = fresh_adapter(load_pretrained(world / "base"), LoraConfig(rank=2), jax.random.key(0))
    mine, frozen = partition(model.params, is_adapter)
    logps = scorer(model.graphdef)
    loss = preference_loss(logps, METHODS["dpo"].configure(beta=0.2), live=logps)
    state = init_state(jax.tree.map(jnp.copy, mine), optax.adamw(1e-2), reference=jax.tree.map(jnp.copy, mine))
    state = state._replace(frozen=frozen)
    step = compiled_step(make_step(loss, optax.adamw(1e-2)), state, None)
    batch = encode_preferences(preferences()[:8], ByteTokenizer())[0], None
    after, _ = step(state, batch)
    table = model.params["embedding"].get_value()
    assert after.frozen["embedding"].get_value() is table and not table.is_deleted()
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.opt_state)))
    moved = sum(x.nbytes for x in jax.tree.leaves(after._replace(frozen=None)))
    used = step.lower(after, batch).compile().memory_analysis()
    assert used.output_size_in_bytes < moved + 2**10, "the base is no output of a step"


def test_training_goes_on_from_an_adapter_whose_policy_is_then_the_reference(world: Path) -> None:
    run(settings(world, "first", "method=sft"))
    more = ["method=dpo", "reference=live", f"model.adapter={world / 'first' / 'adapter'}", "steps=1"]
    run(settings(world, "second", *more))
    first, second = metrics(world / "first")[-1], metrics(world / "second")
    assert second[0]["eval/log_ratio/chosen"] == second[1]["rewards/margins"] == 0.0
    data = encode_preferences(preferences()[-5:], ByteTokenizer())[0]
    tokens = data.response_mask[:, 0].sum()
    assert second[0]["eval/logp/chosen"] * 5 / tokens == pytest.approx(-first["eval/loss"], rel=1e-5)
    told = json.loads((world / "second" / "adapter" / "adapter_config.json").read_text())
    assert (told["r"], told["base_model_name_or_path"]) == (2, str(world / "base"))


@pytest.mark.slow
def test_a_reference_that_follows_is_the_adapter_as_it_was(world: Path) -> None:
    run(settings(world, "run", "reference=live", "follow_every=1"))
    assert [m["log_ratio/chosen"] for m in metrics(world / "run") if "log_ratio/chosen" in m] == [0.0] * 4


def test_commands_say_what_is_trained_and_sample_through_an_adapter(world: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["train", *settings(world, "run", "method=sft"), "--dry-run"]) == 0
    assert "sft: 8,144 parameters (640 trained, 7,504 frozen)" in " ".join(capsys.readouterr().out.split())
    assert main(["train", *settings(world, "run", "method=sft")]) == 0
    assert f"adapter: {world / 'run' / 'adapter'}" in capsys.readouterr().out
    said = []
    for where in (["base", "--adapter", str(world / "run" / "adapter")], ["run/model"], ["base"]):
        model, *rest = where
        sampling = ["--prompts", "1+2=", "--temperature", "0", "--max-new", "6", "--json", "--tokenizer", "bytes"]
        assert main(["generate", "--model", str(world / model), *rest, *sampling]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert said[0]["response"] == said[1]["response"]
    assert said[0]["logp"] == pytest.approx(said[1]["logp"], abs=1e-4) != said[2]["logp"]


def test_settings_that_contradict_each_other_are_named(world: Path, capsys: pytest.CaptureFixture) -> None:
    config = load(RunConfig, None, settings(world, "x", "model.lora.targets=[q_proj, c_fc]", "model.lora.rslora=true"))
    assert config.model.lora == LoraConfig(rank=2, alpha=32, targets=("q_proj", "c_fc"), rslora=True)
    assert from_mapping(RunConfig, to_mapping(config)) == config

    def refused(message: str, *more: str) -> None:
        assert main(["train", *settings(world, "x", *more)]) == 2
        assert message in capsys.readouterr().err

    refused("model: `trained` and `lora` are given, but one of them", "model.trained=[blocks]")
    refused("model: `lora` and `adapter` are given", "model.lora.rank=2", "model.adapter=somewhere")
    refused("model.lora: `rank` is 0", "model.lora.rank=0")
    refused("no setting in `model.lora` called 'rnk'. Did you mean 'rank'", "model.lora={rnk: 3}")
    refused("`targets` holds 'qproj', but this model's matrices are called down_proj", "model.lora.targets=[qproj]")
    refused("somewhere has no adapter_config.json", "model.adapter=somewhere")


KINDS = {
    "grouped heads": DecoderConfig(vocab_size=258, width=32, layers=2, heads=4, kv_heads=2, mlp_width=48),
    "nothing divides": DecoderConfig(vocab_size=259, width=36, layers=1, heads=3, mlp_width=50, tied_head=False),
}


def trained(kind: str, mesh):
    """Losses of three steps of DPO by an adapter whose B is not 0, the last state and the first margin."""
    config = KINDS[kind]
    model = fresh_adapter(fresh_llama(config, jax.random.key(0)), LoraConfig(rank=4, alpha=8), jax.random.key(1))
    params, frozen = partition(model.params, is_adapter)
    params = jax.tree.map(lambda x: x + 0.05, params)
    logps = scorer(model.graphdef, layout=None if mesh is None else head_layout(mesh, config.vocab_size, config.width))
    loss = preference_loss(logps, METHODS["dpo"].configure(beta=0.2), live=logps)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.3, momentum=0.9))
    state = init_state(params, optimiser, frozen=frozen, reference=jax.tree.map(jnp.copy, params))
    if mesh is not None:
        state = jax.device_put(state, shardings(state, mesh))
    step = compiled_step(make_step(loss, optimiser), state, mesh)
    data = encode_preferences(preferences(), ByteTokenizer())[0]
    losses, first = [], None
    for n in range(3):
        state, came = step(state, place((take(data, batch_indices(40, 8, seed=0, step=n)), None), mesh))
        numbers = summarise(came)
        first = numbers if first is None else first
        losses.append(numbers["loss"])
    return losses, state, first, step.program._cache_size()


@pytest.mark.skipif(jax.device_count() < 8, reason="8 devices")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["grouped heads", "nothing divides"])
def test_eight_devices_train_an_adapter_as_one_does(kind: str) -> None:
    wanted, alone, *_ = trained(kind, None)
    losses, state, first, compiled = trained(kind, make_mesh(data=2, fsdp=2, tensor=2))
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert len(set(wanted)) == 3, "it learns"
    assert first["log_ratio/chosen"] == first["log_ratio/rejected"] == 0.0
    assert compiled == 1
    for came, one in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(np.asarray(came), np.asarray(one), atol=1e-5)
    if kind == "grouped heads":
        lora = state.params["blocks"]["feed_forward"]
        assert lora["up"]["lora"]["a"].get_value().sharding.spec == P(None, "fsdp", None)
        assert lora["up"]["lora"]["b"].get_value().sharding.spec == P(None, None, "tensor")
        assert lora["down"]["lora"]["a"].get_value().sharding.spec == P(None, "tensor", None)
        assert lora["down"]["lora"]["b"].get_value().sharding.spec == P(None, None, "fsdp")
