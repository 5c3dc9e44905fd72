"""Adapters: W + s A B by another way, nothing of the base copied or moved, and files that say what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from mi_align.models import (
    DecoderConfig,
    LoraConfig,
    Pretrained,
    add_adapter,
    cast,
    fresh_adapter,
    fresh_llama,
    generate,
    hidden_states,
    init_adapter,
    is_adapter,
    load_adapter,
    load_pretrained,
    matrices,
    merge_adapter,
    save_adapter,
    save_pretrained,
)
from mi_align.models.families import FAMILIES
from mi_align.models.lora import adapter_of
from mi_align.training import join, partition

CONFIG = DecoderConfig(vocab_size=41, width=24, layers=2, heads=4, kv_heads=2, mlp_width=40)
TOKENS = np.random.default_rng(0).integers(0, 41, (3, 11))
NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def base() -> Pretrained:
    return fresh_llama(CONFIG, jax.random.key(0))


LORA = LoraConfig(rank=3, alpha=4.5)


def adapted(lora: LoraConfig = LORA, *, model: Pretrained | None = None) -> Pretrained:
    """A model with an adapter whose B is not 0."""
    model = fresh_adapter(base() if model is None else model, lora, jax.random.key(1))
    rng = np.random.default_rng(2)
    moved = [
        (key, leaf.replace(jnp.asarray(0.2 * rng.standard_normal(leaf.get_value().shape), jnp.float32)))
        if key[-1] == "b"
        else (key, leaf)
        for key, leaf in nnx.to_flat_state(model.params)
    ]
    return model._replace(params=nnx.from_flat_state(moved))


def states(model: Pretrained) -> np.ndarray:
    with jax.default_matmul_precision("highest"):
        return np.asarray(hidden_states(model.graphdef, model.params, TOKENS))


def by_hand(model: Pretrained, scale: float) -> Pretrained:
    """The same function without an adapter: W + s A B in float64, matrix by matrix and layer by layer."""
    plain = base()
    added = {}
    for path, (a, b) in adapter_of(model.params).items():
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        added[f"{path}.kernel"] = scale * np.stack([x @ y for x, y in zip(a, b, strict=True)])
    moved = [
        (key, leaf.replace(jnp.asarray(leaf.get_value() + added.get(".".join(key), 0), jnp.float32)))
        for key, leaf in nnx.to_flat_state(plain.params)
    ]
    return plain._replace(params=nnx.from_flat_state(moved))


@pytest.mark.parametrize(
    ("lora", "scale"),
    [
        (LoraConfig(rank=3, alpha=4.5), 1.5),
        (LoraConfig(rank=4, alpha=3, rslora=True), 1.5),
        *((LoraConfig(rank=2, alpha=3, targets=(name,)), 1.5) for name in ("k_proj", "down_proj")),
    ],
    ids=str,
)
def test_an_adapter_is_its_product_added_to_the_matrices_that_are_named(lora: LoraConfig, scale: float) -> None:
    model = adapted(lora)
    assert len(adapter_of(model.params)) == (1 if lora.targets[0] in NAMES else 7)
    wanted = states(by_hand(model, scale))
    np.testing.assert_allclose(states(model), wanted, atol=1e-5)
    merged = merge_adapter(model.graphdef, model.params)
    assert merged[0] == base().graphdef
    np.testing.assert_allclose(states(base()._replace(graphdef=merged[0], params=merged[1])), wanted, atol=1e-5)
    assert np.abs(states(base()) - wanted).max() > 1e-2


def test_a_fresh_adapter_changes_no_bit_and_copies_nothing() -> None:
    model = base()
    fresh = fresh_adapter(model, LoraConfig(rank=3), jax.random.key(1))
    np.testing.assert_array_equal(states(fresh), states(model))
    ours, theirs = (dict(nnx.to_flat_state(m.params)) for m in (fresh, model))
    assert all(ours[key].get_value() is theirs[key].get_value() for key in theirs)
    assert all(is_adapter(".".join(key)) for key in ours.keys() - theirs.keys())
    a, b = adapter_of(fresh.params)["blocks.feed_forward.down"]
    assert (a.shape, b.shape) == ((2, 40, 3), (2, 3, 24))
    assert not b.any() and 0.9 < float(jnp.abs(a).max()) * 40**0.5 <= 1
    assert np.unique(a).size == a.size, "layers are drawn apart"


def test_the_gradient_of_an_adapter_is_that_of_its_matrix_through_the_other_factor() -> None:
    model = adapted(LoraConfig(rank=3, alpha=4.5, targets=("k_proj",)))
    mine, frozen = partition(model.params, is_adapter)
    weight = jnp.asarray(np.random.default_rng(4).standard_normal((*TOKENS.shape, 24)), jnp.float32)

    def value(params, graphdef=model.graphdef):
        return jnp.sum(weight * hidden_states(graphdef, params, TOKENS))

    with jax.default_matmul_precision("highest"):
        slope = jax.grad(lambda p: value(join(p, frozen)))(mine)["blocks"]["attention"]["key"]["lora"]
        plain = by_hand(model, 1.5)
        whole = jax.grad(value)(plain.params, plain.graphdef)["blocks"]["attention"]["key"]["kernel"][...]
    a, b = adapter_of(model.params)["blocks.attention.key"]
    scale = float(jnp.abs(whole).max())
    np.testing.assert_allclose(slope["a"][...], 1.5 * np.einsum("lio,lro->lir", whole, b), atol=1e-5 * scale)
    np.testing.assert_allclose(slope["b"][...], 1.5 * np.einsum("lir,lio->lro", a, whole), atol=1e-5 * scale)


def test_a_training_step_holds_no_gradient_of_a_frozen_matrix() -> None:
    model = fresh_adapter(base(), LoraConfig(rank=3), jax.random.key(1))
    mine, frozen = partition(model.params, is_adapter)

    def loss(p, frozen):
        return jnp.sum(hidden_states(model.graphdef, join(p, frozen), TOKENS) ** 2)

    text = str(jax.make_jaxpr(jax.grad(loss))(mine, frozen))
    products = {shape for shape in ("f32[24,40]", "f32[40,24]", "f32[2,24,40]") if f":{shape} = dot_general" in text}
    assert not products and ":f32[24,3] = dot_general" in text.replace("f32[3,24]", "f32[24,3]")


def test_adapters_in_float32_beside_half_precision_compute_in_half_and_merge_once_rounded() -> None:
    half = base()._replace(params=cast(base().params, jnp.bfloat16))
    model = adapted(model=half)
    came = hidden_states(model.graphdef, model.params, TOKENS)
    assert came.dtype == jnp.bfloat16
    assert {x.dtype.name for f in adapter_of(model.params).values() for x in f} == {"float32"}
    merged = merge_adapter(model.graphdef, model.params)[1]["blocks"]["attention"]["out"]["kernel"][...]
    a, b = (np.asarray(x, np.float64) for x in adapter_of(model.params)["blocks.attention.out"])
    kernel = np.asarray(half.params["blocks"]["attention"]["out"]["kernel"][...], np.float64)
    wanted = kernel + 1.5 * np.einsum("lir,lro->lio", a, b)
    error = np.abs(np.asarray(merged, np.float64) - wanted)
    assert merged.dtype == jnp.bfloat16
    assert np.all(error <= 2.0**-8 * np.abs(wanted) + 1e-6), "half a unit in bfloat16's last place"


def test_sampling_goes_through_the_adapter() -> None:
    model, prompts, lengths = adapted(), np.array([[3, 4, 5], [6, 0, 0]]), np.array([3, 1])
    graphdef, params = merge_adapter(model.graphdef, model.params)
    with jax.default_matmul_precision("highest"):
        came, wanted = (
            generate(g, p, prompts, lengths, jax.random.key(0), max_new=9, temperature=0.0)
            for g, p in ((model.graphdef, model.params), (graphdef, params))
        )
    np.testing.assert_array_equal(came.tokens, wanted.tokens)
    np.testing.assert_allclose(came.logps, wanted.logps, atol=1e-5)


def test_targets_mean_matrices_by_the_names_of_their_family() -> None:
    def paths(family: str, *targets: str) -> list[str]:
        return [path.removeprefix("blocks.") for path in matrices(FAMILIES[family].weights, targets)]

    assert paths("qwen3", "v_proj", "q_proj") == ["attention.query", "attention.value"]
    assert paths("llama", "mlp.down_proj", "o_proj") == ["attention.out", "feed_forward.down"]
    assert paths("gpt2", "c_attn") == ["attention.query", "attention.key", "attention.value"]
    assert paths("gpt2", "c_proj") == ["attention.out", "feed_forward.down"]
    assert paths("gpt2", "mlp.c_proj", "c_fc") == ["feed_forward.up", "feed_forward.down"]
    assert len(paths("gemma2", "all-linear")) == 7
    assert [paths("mistral", name) for name in NAMES] == [
        *([f"attention.{name}"] for name in ("query", "key", "value", "out")),
        *([f"feed_forward.{name}"] for name in ("gate", "up", "down")),
    ]
    with pytest.raises(ValueError, match=r"holds 'proj', but .* down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj"):
        paths("llama", "q_proj", "proj")
    with pytest.raises(ValueError, match="holds 'q_proj', but this model's matrices are called c_attn, c_fc, c_proj"):
        paths("gpt2", "q_proj")


def test_numbers_that_make_no_adapter_are_named() -> None:
    for words, changes in (
        ("`rank` is 0", {"rank": 0}),
        ("`alpha` is 0", {"alpha": 0}),
        ("`targets`", {"targets": ()}),
    ):
        with pytest.raises(ValueError, match=words):
            LoraConfig(**changes)
    model = base()
    wide = fresh_llama(DecoderConfig(vocab_size=41), jax.random.key(0))
    wrong = init_adapter(wide.params, ["blocks.attention.out"], 2, jax.random.key(0))
    with pytest.raises(ValueError, match=r"blocks.attention.out has shapes \[2, 64, 2\] and \[2, 2, 64\], but \[2, 24"):
        add_adapter(model.graphdef, model.params, wrong, scale=1.0)


def test_files_come_back_bit_by_bit_and_a_merged_folder_is_the_adapted_model(tmp_path: Path) -> None:
    model = adapted(LoraConfig(rank=3, alpha=4.5, targets=("q_proj", "down_proj")))
    save_adapter(model, tmp_path / "adapter")
    back = load_adapter(base(), tmp_path / "adapter")
    assert (back.graphdef, back.lora) == (model.graphdef, model.lora)
    for (key, came), (_, wanted) in zip(*(nnx.to_flat_state(m.params) for m in (back, model)), strict=True):
        np.testing.assert_array_equal(came.get_value(), wanted.get_value(), str(key))
    save_pretrained(model, tmp_path / "model")
    np.testing.assert_allclose(states(load_pretrained(tmp_path / "model")), states(model), atol=1e-5)
    with pytest.raises(ValueError, match="has an adapter already"):
        load_adapter(back, tmp_path / "adapter")
    with pytest.raises(ValueError, match="no adapter to save"):
        save_adapter(base(), tmp_path / "none")


def test_adapters_that_do_not_fit_are_named(tmp_path: Path) -> None:
    save_adapter(adapted(LoraConfig(rank=3, alpha=4.5, targets=("q_proj", "down_proj"))), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    weights = load_file(tmp_path / "adapter_model.safetensors")

    def refused(words: str, *, kept: dict | None = None, **changes: object) -> None:
        save_file(weights if kept is None else kept, tmp_path / "adapter_model.safetensors")
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(ValueError, match=words):
            load_adapter(base(), tmp_path)

    key = "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"
    refused(f"lacks {key}", kept={k: v for k, v in weights.items() if k != key})
    head = "base_model.model.lm_head.lora_A.weight"
    refused(f"holds {head}", kept=weights | {head: np.zeros((3, 24), np.float32)})
    refused("holds nothing", kept={})
    refused("'LOHA' adapter, but 'LORA'", peft_type="LOHA")
    refused("use_dora = True", use_dora=True)
    refused("init_lora_weights = 'pissa'", init_lora_weights="pissa")
    refused("modules_to_save = ", modules_to_save=["lm_head"])
    refused("scales 'q_proj' .* otherwise", alpha_pattern={"q_proj": 9})
    refused("has rank 3, but 2", r=2)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no adapter_model.safetensors"):
        load_adapter(base(), tmp_path)
