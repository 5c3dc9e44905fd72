"""Folders of weights: what is written is read back bit by bit, over devices too; what does not fit is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file, save_file

from mi_align.models import FAMILIES, Pretrained, hidden_states, init_decoder, load_pretrained, save_pretrained

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 4,
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
}
SOURCES: dict[str, dict[str, Any]] = {name: {"model_type": name, **SMALL} for name in FAMILIES}
SOURCES["gpt2"] = {"model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 32}
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 9))


def fresh(name: str, dtype: jnp.dtype = jnp.float32) -> Pretrained:
    source = SOURCES[name]
    config = FAMILIES[name].config(source)
    graphdef, params = init_decoder(config, jax.random.key(0), dtype)
    leaves, treedef = jax.tree.flatten(params)
    noisy = [x + jax.random.normal(jax.random.key(n), x.shape, x.dtype) / 8 for n, x in enumerate(leaves)]
    return Pretrained(graphdef, jax.tree.unflatten(treedef, noisy), config, source, Path("nowhere"))


def same(one: Any, other: Any) -> bool:
    pairs = zip(nnx.to_flat_state(one), nnx.to_flat_state(other), strict=True)
    return all(a[0] == b[0] and np.array_equal(a[1].get_value(), b[1].get_value()) for a, b in pairs)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shard_bytes", [pytest.param(10**9, marks=pytest.mark.slow), 3000])
def test_what_is_written_is_read_back_bit_by_bit(name: str, shard_bytes: int, tmp_path: Path) -> None:
    model = fresh(name)
    save_pretrained(model, tmp_path, shard_bytes=shard_bytes)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) == 1) == (shard_bytes > 3000) == (not (tmp_path / "model.safetensors.index.json").exists())
    back = load_pretrained(tmp_path)
    assert back.config == model.config and same(back.params, model.params)
    np.testing.assert_array_equal(
        hidden_states(back.graphdef, back.params, TOKENS), hidden_states(model.graphdef, model.params, TOKENS)
    )


def test_half_precision_is_kept_and_can_be_asked_for(tmp_path: Path) -> None:
    model = fresh("qwen3", jnp.bfloat16)
    save_pretrained(model, tmp_path)
    assert same(load_pretrained(tmp_path).params, model.params)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    wide = load_pretrained(tmp_path, dtype=jnp.float32)
    assert {x.dtype for x in jax.tree.leaves(wide.params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_each_device_reads_its_own_part(name: str, tmp_path: Path) -> None:
    model = fresh(name)
    save_pretrained(model, tmp_path)
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        spec = P(None, "fsdp", "tensor") if path.endswith("kernel") else P()
        return NamedSharding(mesh, spec)

    back = load_pretrained(tmp_path, sharding=sharding)
    assert same(back.params, model.params)
    spread = [x for x in jax.tree.leaves(back.params) if x.ndim == 3]
    assert spread and all(x.addressable_shards[0].data.size == x.size // 8 for x in spread)


def test_a_field_that_the_file_does_not_say_may_be_changed(tmp_path: Path) -> None:
    save_pretrained(fresh("llama"), tmp_path)
    assert load_pretrained(tmp_path, remat="layers").config.remat == "layers"


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    save_pretrained(fresh("llama"), tmp_path)
    weights, config = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())

    def refused(words: str, *, kept: dict | None = None, error: type = ValueError, **changes: Any) -> None:
        save_file(weights if kept is None else kept, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        with pytest.raises(error, match=words):
            load_pretrained(tmp_path)

    key = "model.layers.1.mlp.up_proj.weight"
    refused(f"lack {key}", kept={k: v for k, v in weights.items() if k != key})
    refused("hold beyond the family's extra.weight", kept=weights | {"extra.weight": np.zeros(3, np.float32)})
    refused(r"mlp.down_proj.weight has shape \[16, 24\], but \[16, 25\] was wanted", intermediate_size=25)
    refused("no model family .* called 'lama'. Did you mean 'llama'", model_type="lama")
    refused("no activation called 'relu2'", hidden_act="relu2")
    refused("no rotary scaling .* called 'yarn'", rope_scaling={"rope_type": "yarn", "factor": 2.0})
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors .*pytorch_model.bin"):
        load_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder \./nowhere"):
        load_pretrained("./nowhere")


def test_a_tied_head_in_the_file_and_buffers_are_passed_over(tmp_path: Path) -> None:
    model = fresh("gpt2")
    save_pretrained(model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    buffers = {"lm_head.weight": weights["transformer.wte.weight"], "transformer.h.0.attn.bias": np.ones((1, 1, 8, 8))}
    save_file(weights | buffers, tmp_path / "model.safetensors")
    assert same(load_pretrained(tmp_path).params, model.params)
