"""`mi-align reward`, `evaluate` and `export` as a user runs them, on what runs have left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.cli.main import main
from mi_align.cli.train import _file_and_overrides, _for_rewards
from mi_align.data import (
    ByteTokenizer,
    arithmetic_preferences,
    encode_preferences,
    load_preferences,
    save_byte_tokenizer,
)
from mi_align.models import (
    DecoderConfig,
    fresh_llama,
    hidden_states,
    load_adapter,
    load_pretrained,
    response_logps,
    save_pretrained,
    vocabulary_matrix,
)
from mi_align.training.config import DataConfig, ModelConfig, RunConfig
from mi_align.training.evaluation import evaluate
from mi_align.training.rewards import load_reward
from mi_align.training.settings import load

pytestmark = pytest.mark.usefixtures("one_device")

FEW = ["steps=6", "batch=8", "save_every=2", "keep=3", "evaluate_every=2", "data.held_out=11", "optimiser.rate=0.01"]
REWARD = {"rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy to begin from, data, and two runs: DPO and a reward model."""
    place = tmp_path_factory.mktemp("place")
    rows = [
        {"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected[0]}
        for p in arithmetic_preferences(40, negatives=1, seed=3)
    ]
    for name, part in {"pairs": rows, "held_out": rows[-11:]}.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    shape = DecoderConfig(vocab_size=258, width=16, layers=1, heads=2)
    save_pretrained(fresh_llama(shape, jax.random.key(5)), place / "base")
    save_byte_tokenizer(place / "base")
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: devices)
        common = [f"data.train={place / 'pairs.jsonl'}", f"model.pretrained={place / 'base'}", *FEW]
        best = ["keep_best=1", "best_by=eval/loss"]
        entropy = "evaluate_entropy=true"  # one test compares it with the formula, the others with the run
        assert main(["train", *common, "method=dpo", f"output={place / 'dpo'}", *best, entropy]) == 0
        assert main(["reward", *common, f"output={place / 'reward'}"]) == 0
    return place


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def evaluation_of(run: Path, step: int) -> dict[str, float]:
    """The numbers of the run's own evaluation after a step."""
    found = next(line for line in lines(run) if line["step"] == step and "eval/loss" in line)
    return {name.removeprefix("eval/"): value for name, value in found.items() if name != "step"}


def evaluated(capsys: pytest.CaptureFixture, *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *arguments, "--batch", "8", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def assert_same_numbers(came: dict[str, Any], wanted: dict[str, float]) -> None:
    assert set(came) - {"model", "data", "method", "examples"} == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(came[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


def leaves(folder: Path) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(load_pretrained(folder).params)]


# --- evaluate


def test_an_evaluation_says_what_the_run_said_of_the_same_data(place: Path, capsys: pytest.CaptureFixture) -> None:
    data = ["--data", str(place / "held_out.jsonl")]
    dpo = evaluated(capsys, "--model", str(place / "dpo" / "model"), "--reference", str(place / "base"), *data)
    assert (dpo["method"], dpo["examples"]) == ("dpo", 11)
    assert_same_numbers(dpo, evaluation_of(place / "dpo", 6))
    reward = evaluated(capsys, "--model", str(place / "reward" / "model"), *data)
    assert reward["method"] == "bradley_terry" and set(reward) >= REWARD
    assert_same_numbers(reward, evaluation_of(place / "reward", 6))


def test_examples_are_written_one_by_one(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, file = str(place / "held_out.jsonl"), tmp_path / "examples.jsonl"
    arguments = ["--model", str(place / "dpo" / "model"), "--reference", str(place / "base"), "--data", data]
    whole = evaluated(capsys, *arguments, "--output", str(file), "--hyper", "beta=0.7")
    examples = [json.loads(line) for line in file.read_text().splitlines()]
    preferences = load_preferences(data)
    texts = [(p.prompt, p.chosen, *p.rejected) for p in preferences]
    assert [(e["prompt"], *e["responses"]) for e in examples] == texts
    # From outside of what evaluates: log π of whole responses, and DPO's formula.
    batch, _ = encode_preferences(preferences, ByteTokenizer())

    def whole_logps(folder: Path) -> np.ndarray:
        model = load_pretrained(folder)
        logps = jax.jit(response_logps, static_argnums=0)
        return np.asarray(jnp.sum(logps(model.graphdef, model.params, batch.tokens, batch.response_mask), axis=-1))

    logps = {"policy": whole_logps(place / "dpo" / "model"), "base": whole_logps(place / "base")}
    ratio = logps["policy"].astype(np.float64) - logps["base"]
    np.testing.assert_allclose([e["logp"] for e in examples], logps["policy"], rtol=1e-5)
    np.testing.assert_allclose([e["log_ratio"] for e in examples], ratio, rtol=0, atol=2e-4)
    loss = np.log1p(np.exp(-0.7 * (ratio[:, 0] - ratio[:, 1])))
    np.testing.assert_allclose([e["loss"] for e in examples], loss, rtol=1e-4)
    np.testing.assert_allclose(whole["loss"], loss.mean(), rtol=1e-4)
    settings = RunConfig(
        data=DataConfig(train=data, buckets="powers"), model=ModelConfig(pretrained=str(place / "base")), method="sft"
    )
    in_order = [(e["prompt"], *e["responses"]) for e in evaluate(settings).examples]
    assert in_order == [text[:2] for text in texts], "buckets sort nothing here"
    supervised = evaluated(capsys, "--model", str(place / "base"), "--data", data, "--output", str(file))
    examples = [json.loads(line) for line in file.read_text().splitlines()]
    tokens = batch.response_mask[:, 0].sum(axis=-1)
    np.testing.assert_allclose([e["loss"] for e in examples], -logps["base"][:, 0] / tokens, rtol=1e-5)
    np.testing.assert_allclose(supervised["loss"], -logps["base"][:, 0].sum() / tokens.sum(), rtol=1e-5)
    np.testing.assert_allclose(supervised["entropy"], entropy_of(place / "base", batch), rtol=1e-5)


def entropy_of(folder: Path, batch: Any) -> float:
    """−Σ p log p of the next token in float64, mean over the tokens of the chosen responses."""
    model = load_pretrained(folder)
    hidden = hidden_states(model.graphdef, model.params, batch.tokens[:, 0, :-1])
    logits = np.asarray(hidden, np.float64) @ np.asarray(vocabulary_matrix(model.graphdef, model.params), np.float64).T
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return -np.sum(p * np.log(p), axis=-1)[batch.response_mask[:, 0, 1:]].mean()


def test_a_reward_of_an_example_is_what_the_function_gives(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model, file = place / "reward" / "model", tmp_path / "examples.jsonl"
    evaluated(capsys, "--model", str(model), "--data", str(place / "held_out.jsonl"), "--output", str(file))
    examples = [json.loads(line) for line in file.read_text().splitlines()]
    reward = load_reward(model)
    for which in (0, 1):
        came = reward([e["prompt"] for e in examples], [e["responses"][which] for e in examples])
        np.testing.assert_allclose(came, [e["rewards"][which] for e in examples], rtol=1e-4, atol=1e-6)


def test_what_cannot_be_evaluated_is_named(place: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(message: str, *arguments: str) -> None:
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err

    data = ["--data", str(place / "held_out.jsonl")]
    base, reward = str(place / "base"), str(place / "reward" / "model")
    wanted = "'dpo' compares with a reference policy, and none is given. Name it by --reference"
    refused(wanted, "--model", base, *data, "--method", "dpo")
    refused("is no reward model. Train one with `mi-align reward`", "--model", base, *data, "--method", "bradley_terry")
    refused("is a reward model, but 'simpo' reads log-probabilities", "--model", reward, *data, "--method", "simpo")
    refused("'sft' compares with no reference policy", "--model", base, *data, "--method", "sft", "--reference", base)
    refused("no method called 'dpoo'. Did you mean 'dpo'", "--model", base, *data, "--method", "dpoo")
    refused("--hyper has 'beta', but name=value", "--model", base, *data, "--method", "simpo", "--hyper", "beta")
    refused("have different tokenizers", "--model", base, *data, "--reference", reward)
    refused("for --output", "--model", base, *data, "--output", "nowhere/at/all.jsonl")
    refused("there is no nowhere/at/all", "--model", "nowhere/at/all", *data)


# --- export


def test_a_checkpoint_is_exported_as_it_was(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = place / "dpo"
    assert main(["export", str(run), "--to", str(tmp_path / "last")]) == 0
    assert capsys.readouterr().out == f"step 6; model: {tmp_path / 'last'}\n"
    assert all(map(np.array_equal, leaves(tmp_path / "last"), leaves(run / "model")))
    assert main(["export", str(run), "--step", "4", "--to", str(tmp_path / "four")]) == 0
    assert not all(map(np.array_equal, leaves(tmp_path / "four"), leaves(run / "model")))
    arguments = ["--reference", str(place / "base"), "--data", str(place / "held_out.jsonl")]
    assert_same_numbers(evaluated(capsys, "--model", str(tmp_path / "four"), *arguments), evaluation_of(run, 4))
    best = min(
        (line for line in lines(run) if "eval/loss" in line and line["step"]), key=lambda line: line["eval/loss"]
    )
    assert main(["export", str(run), "--best", "--to", str(tmp_path / "best")]) == 0
    assert capsys.readouterr().out.startswith(f"step {best['step']};")


def test_a_reward_model_is_exported_as_it_was(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(place / "reward"), "--step", "2", "--to", str(tmp_path / "two")]) == 0
    came = evaluated(capsys, "--model", str(tmp_path / "two"), "--data", str(place / "held_out.jsonl"))
    assert_same_numbers(came, evaluation_of(place / "reward", 2))


@pytest.mark.slow
def test_a_reward_models_adapter_is_exported(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "lora"
    common = [f"data.train={place / 'pairs.jsonl'}", f"model.pretrained={place / 'base'}", *FEW, f"output={run}"]
    assert main(["reward", *common, "model.lora={rank: 2, alpha: 4, targets: [q_proj, v_proj]}"]) == 0
    assert main(["export", str(run)]) == 0
    for ours, theirs in ((run / "exports" / "6", run / "model"), (run / "exports" / "6" / "adapter", run / "adapter")):
        name = "adapter_model.safetensors" if ours.name == "adapter" else "model.safetensors"
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    # An adapter of another base of the same shape opens, and its head comes along.
    other, data = str(place / "reward" / "model"), str(place / "held_out.jsonl")
    adapted = evaluated(capsys, "--model", other, "--adapter", str(run / "adapter"), "--data", data)
    assert set(adapted) >= REWARD
    head = load_adapter(load_pretrained(other), run / "adapter").params["score"].get_value()
    np.testing.assert_array_equal(head, load_pretrained(run / "model").params["score"].get_value())
    _refuse_another_base(run, place, tmp_path, capsys)


def _refuse_another_base(run: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config, base = (run / "config.yaml").read_text(), load_pretrained(place / "base")
    save_pretrained(base._replace(params=jax.tree.map(lambda x: x + 1, base.params)), tmp_path / "base")
    save_byte_tokenizer(tmp_path / "base")
    wrong = {
        "was written beside other frozen parameters": config.replace(str(place / "base"), str(tmp_path / "base")),
        "is that of another run": config.replace("rank: 2", "rank: 3"),
    }
    for message, settings in wrong.items():
        (run / "config.yaml").write_text(settings)
        assert main(["export", str(run), "--to", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err


def test_what_cannot_be_exported_is_named(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(message: str, *arguments: str) -> None:
        assert main(["export", *arguments]) == 2
        assert message in capsys.readouterr().err

    run = str(place / "dpo")
    refused("has no config.yaml: the `output` of a `mi-align train` was wanted", str(tmp_path))
    refused("has checkpoints of steps 2, 4, 6, but none of step 5", run, "--step", "5")
    refused("step 4 and the best one are both asked for", run, "--step", "4", "--best")
    refused("`keep_best` is 0", str(place / "reward"), "--best")
    refused("holds a model already. Name another folder by --to", run, "--to", str(place / "base"))
    other = shutil.copytree(run, tmp_path / "other")
    settings = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(settings.replace("trained: []", "trained: [norm]"))
    refused("is that of another run", str(other))
    shutil.rmtree(other / "checkpoints")
    refused("has no checkpoint yet", str(other))


# --- reward


def test_the_reward_command_trains_reward_models_alone(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    first, last = (evaluation_of(place / "reward", step) for step in (0, 6))
    assert last["loss"] != first["loss"] and set(last) >= REWARD and not any(n.startswith("log") for n in last)
    file = tmp_path / "dpo.yaml"
    data = f"data: {{train: {place / 'pairs.jsonl'}}}\nmodel: {{pretrained: {place / 'base'}}}\n"
    file.write_text(f"method: dpo\nhyper: {{beta: 0.2}}\noutput: {tmp_path / 'x'}\n{data}")

    def meant(*more: str) -> tuple[str, dict[str, float]]:
        config = load(RunConfig, *_file_and_overrides(_for_rewards((str(file), *more))))
        return config.method, dict(config.hyper)

    assert meant() == ("bradley_terry", {}), "the file's method and its β are another's"
    assert meant("hyper.centring_weight=0.01") == ("bradley_terry", {"centring_weight": 0.01})
    assert meant("method=plackett_luce_reward") == ("plackett_luce_reward", {})
    for settings, message in {
        "method=dpo": "'dpo', which trains no reward model: bradley_terry or plackett_luce_reward was wanted",
        "hyper.beta=1": "no hyper-parameter of 'bradley_terry' called 'beta'",
    }.items():
        assert main(["reward", str(file), settings]) == 2
        assert message in capsys.readouterr().err
    file.write_text(f"method: plackett_luce_reward\nhyper: {{top_k: 1}}\noutput: {tmp_path / 'x'}\n{data}")
    assert meant() == ("plackett_luce_reward", {"top_k": 1})
    assert main(["train", str(file), "method=simpo", "hyper={}", f"model.pretrained={place / 'reward' / 'model'}"]) == 2
    assert "is a reward model, which predicts no tokens, but 'simpo' reads" in capsys.readouterr().err


@pytest.mark.slow
def test_training_goes_on_from_a_reward_models_folder(place: Path, tmp_path: Path) -> None:
    begun = [f"data.train={place / 'pairs.jsonl'}", f"model.pretrained={place / 'reward' / 'model'}", *FEW, "steps=1"]
    assert main(["reward", *begun, f"output={tmp_path / 'on'}", "evaluate_every=0"]) == 0
    np.testing.assert_allclose(
        evaluation_of(tmp_path / "on", 0)["loss"], evaluation_of(place / "reward", 6)["loss"], rtol=1e-5
    )
