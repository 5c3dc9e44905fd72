"""Adapters beside those of `peft` (`make conformance` installs it): the same files, the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from mi_align.models import (
    LoraConfig,
    Pretrained,
    fresh_adapter,
    hidden_states,
    load_adapter,
    load_pretrained,
    merge_adapter,
    save_adapter,
    save_pretrained,
    vocabulary_matrix,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"attention_bias": True}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}),
}
#: Some matrices, all of them, and GPT-2's own, whose `c_attn` is three of ours and whose `c_proj` are two.
CASES = [
    ("llama", LoraConfig(rank=3, alpha=7, targets=("q_proj", "v_proj"))),
    ("qwen2", LoraConfig(rank=5, alpha=2.5)),
    ("qwen3", LoraConfig(rank=4, alpha=3, rslora=True, targets=("o_proj", "gate_proj", "up_proj", "down_proj"))),
    ("gpt2", LoraConfig(rank=3, alpha=5)),
    ("gpt2", LoraConfig(rank=3, alpha=5, rslora=True, targets=("c_attn", "mlp.c_proj"))),
]
every_case = pytest.mark.parametrize(("name", "lora"), CASES)
TOKENS = np.random.default_rng(0).integers(3, 97, (2, 19))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Randomly drawn models of theirs."""
    made = {}
    for name, (kind, changes) in MODELS.items():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**(SMALL | changes)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        made[name] = tmp_path_factory.mktemp("model")
        model.save_pretrained(made[name])
    return made


def base_of_theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def theirs_say(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.tensor(TOKENS)).logits.numpy()


def ours_say(model: Pretrained) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        hidden = hidden_states(model.graphdef, model.params, TOKENS)
        return np.asarray(hidden @ vocabulary_matrix(model.graphdef, model.params).T)


def drawn(folder: Path, lora: LoraConfig) -> Pretrained:
    """A model of ours with an adapter whose B is not 0."""
    model = fresh_adapter(load_pretrained(folder), lora, jax.random.key(1))
    flat = nnx.to_flat_state(model.params)
    rng = np.random.default_rng(2)
    moved = [
        (key, leaf.replace(0.3 * rng.standard_normal(leaf.get_value().shape, np.float32)) if key[-1] == "b" else leaf)
        for key, leaf in flat
    ]
    return model._replace(params=nnx.from_flat_state(moved))


def assert_close(came: np.ndarray, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(came, wanted, rtol=0, atol=1e-5 * float(np.abs(wanted).max()))


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}


@every_case
def test_an_adapter_of_ours_is_loaded_by_theirs(name: str, lora: LoraConfig, folders: dict, tmp_path: Path) -> None:
    ours = drawn(folders[name], lora)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(base_of_theirs(folders[name]), tmp_path)
    said = ours_say(ours)
    assert_close(said, theirs_say(theirs))
    assert np.abs(said - theirs_say(base_of_theirs(folders[name]))).max() > 0.1, "the adapter acts"


@every_case
def test_what_is_merged_and_exported_is_theirs_too(name: str, lora: LoraConfig, folders: dict, tmp_path: Path) -> None:
    ours = drawn(folders[name], lora)
    save_pretrained(ours, tmp_path)
    said = ours_say(ours)
    assert_close(theirs_say(base_of_theirs(tmp_path)), said)
    graphdef, params = merge_adapter(ours.graphdef, ours.params)
    assert graphdef == load_pretrained(folders[name]).graphdef
    assert_close(ours_say(ours._replace(graphdef=graphdef, params=params, lora=None)), said)


@every_case
def test_an_adapter_of_theirs_is_loaded_by_ours(name: str, lora: LoraConfig, folders: dict, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.rslora,
        target_modules=lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets),
        init_lora_weights=False,
        fan_in_fan_out=name == "gpt2",
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(base_of_theirs(folders[name]), config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_adapter(load_pretrained(folders[name]), tmp_path / "theirs")
    assert (ours.lora.rank, ours.lora.scale) == (lora.rank, lora.scale)
    assert_close(ours_say(ours), theirs_say(theirs))
    save_adapter(ours, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(base_of_theirs(folders[name]), tmp_path / "ours")
    first, second = (peft.get_peft_model_state_dict(model) for model in (theirs, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@every_case
def test_a_round_trip_is_bitwise(name: str, lora: LoraConfig, folders: dict, tmp_path: Path) -> None:
    ours = drawn(folders[name], lora)
    save_adapter(ours, tmp_path / "first")
    back = load_adapter(load_pretrained(folders[name]), tmp_path / "first")
    assert back.graphdef == ours.graphdef
    for (key, came), (_, wanted) in zip(*(nnx.to_flat_state(m.params) for m in (back, ours)), strict=True):
        np.testing.assert_array_equal(came.get_value(), wanted.get_value(), str(key))
    save_adapter(back, tmp_path / "second")
    assert files(tmp_path / "first") == files(tmp_path / "second")


def test_every_setting_that_is_written_is_one_of_theirs(folders: dict, tmp_path: Path) -> None:
    save_adapter(drawn(folders["gpt2"], LoraConfig(rank=2, targets=("c_attn",))), tmp_path, base="owner/name")
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    read = peft.PeftConfig.from_pretrained(tmp_path)
    assert told.keys() <= read.to_dict().keys()
    assert (read.base_model_name_or_path, read.rank_pattern) == ("owner/name", {"c_attn": 6})
