"""Sharding: the same numbers on every mesh, and each device holds its share."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from mi_align.data import ByteTokenizer, arithmetic_preferences, batch_indices, encode_preferences, take
from mi_align.methods import METHODS
from mi_align.models import DecoderConfig, fresh_llama, init_decoder, save_pretrained
from mi_align.training import init_state, preference_loss, scorer, summarise, train_step
from mi_align.training.config import RunConfig
from mi_align.training.inputs import load_inputs
from mi_align.training.program import build_program
from mi_align.training.settings import load
from mi_align.training.sharding import RULES, head_layout, make_mesh, place, shardings, spec_of

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="8 devices")

KINDS = {
    "grouped heads": DecoderConfig(vocab_size=258, width=32, layers=2, heads=4, kv_heads=2),
    "nothing divides": DecoderConfig(
        vocab_size=259,
        width=36,
        layers=1,
        heads=3,
        mlp_width=50,
        norm="layer",
        gated=False,
        activation="gelu_tanh",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        learned_positions=64,
    ),
}
CASES = [
    ("nothing divides", (2, 2, 2)),
    *(
        pytest.param("grouped heads", sizes, marks=pytest.mark.slow)
        for sizes in [(2, 2, 2), (2, 1, 1), (1, 1, 2), (1, 2, 2), (1, 8, 1)]
    ),
]
#: Not Adam: where a gradient is 0 but for rounding, as that of the keys' biases, its first step is the rounding's sign.
PLAIN = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.3, momentum=0.9))


@functools.cache
def data(count: int = 24):
    return encode_preferences(arithmetic_preferences(count, negatives=1, seed=1), ByteTokenizer())[0]


def trained(kind: str, mesh, *, optimiser=PLAIN, steps: int = 3, micro_batches: int = 1, size: int = 8):
    """Losses of some steps, the last state, the first margins and how often the step was compiled."""
    config = KINDS[kind]
    graphdef, params = init_decoder(config, jax.random.key(0))
    layout = None if mesh is None else head_layout(mesh, config.vocab_size, config.width)
    logps = scorer(graphdef, layout=layout)
    copy = jax.tree.map(jnp.copy, params)
    loss = preference_loss(logps, METHODS["dpo"].configure(beta=0.2), live=logps)
    step = train_step(loss, optimiser, micro_batches=micro_batches)
    state, out = init_state(params, optimiser, reference=copy), None
    if mesh is not None:
        out = (shardings(state, mesh), None)
        state = jax.device_put(state, out[0])
    program = jax.jit(step, donate_argnums=0, out_shardings=out)
    losses, first = [], None
    for n in range(steps):
        picked = batch_indices(3 * size, size, seed=0, step=n)
        state, metrics = program(state, place((take(data(3 * size), picked), None), mesh))
        numbers = summarise(metrics)
        first = numbers if first is None else first
        losses.append(numbers["loss"])
    return losses, state, first, program._cache_size()


@functools.cache
def on_one_device(kind: str):
    losses, state, *_ = trained(kind, None)
    return losses, [np.asarray(x) for x in jax.tree.leaves(state.params)]


@pytest.mark.parametrize(("kind", "sizes"), CASES)
def test_every_mesh_trains_alike(kind: str, sizes: tuple[int, int, int]) -> None:
    count = sizes[0] * sizes[1] * sizes[2]
    mesh = make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2], devices=jax.devices()[:count])
    losses, state, first, compiled = trained(kind, mesh)
    wanted, params = on_one_device(kind)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    assert len(set(wanted)) == 3, "it learns"
    for came, one in zip(jax.tree.leaves(state.params), params, strict=True):
        np.testing.assert_allclose(np.asarray(came), one, atol=1e-5)
    assert first["log_ratio/chosen"] == first["log_ratio/rejected"] == 0.0
    assert compiled == 1


def test_parameters_and_moments_lie_spread_over_the_devices() -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    _, state, *_ = trained("grouped heads", mesh, optimiser=optax.adamw(1e-2), steps=1)
    on_first = sum(
        shard.data.nbytes for x in jax.tree.leaves(state) for shard in x.addressable_shards if shard.device.id == 0
    )
    whole = sum(x.nbytes for x in jax.tree.leaves(state))
    assert on_first < 0.3 * whole  # a quarter, and the norms
    moments = state.opt_state[0].mu
    for moment, parameter in zip(jax.tree.leaves(moments), jax.tree.leaves(state.params), strict=True):
        assert moment.sharding.is_equivalent_to(parameter.sharding, parameter.ndim)
    kernel = state.params["blocks"]["attention"]["query"]["kernel"]
    assert kernel.sharding.spec == P(None, "fsdp", "tensor")


@pytest.mark.slow
def test_micro_batches_change_nothing_on_a_mesh() -> None:
    losses, *_ = trained("grouped heads", make_mesh(data=2, fsdp=2, tensor=2), micro_batches=2)
    np.testing.assert_allclose(losses, on_one_device("grouped heads")[0], rtol=1e-5)


@pytest.mark.parametrize(
    "sizes", [(2, 4), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in [(8, 1), (1, 8), (4, 2)])]
)
def test_many_micro_batches_over_many_devices_are_one_batch_on_one(sizes: tuple[int, int]) -> None:
    mesh = make_mesh(data=sizes[0], fsdp=sizes[1])
    losses, state, *_ = trained("nothing divides", mesh, micro_batches=8, size=64, steps=2)
    wanted, alone, *_ = trained("nothing divides", None, size=64, steps=2)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    for came, one in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(np.asarray(came), np.asarray(one), atol=1e-5)


def test_no_device_gets_the_whole_vocabulary() -> None:
    mesh = make_mesh(data=1, fsdp=1, tensor=8)
    config = DecoderConfig(vocab_size=264, width=32, layers=1, heads=8)
    graphdef, params = init_decoder(config, jax.random.key(0))
    logps = scorer(graphdef, layout=head_layout(mesh, config.vocab_size, config.width))
    batch = place(take(data(), np.arange(8)), mesh)
    slope = jax.jit(jax.grad(lambda p: logps(p, batch).sum()))
    text = slope.lower(jax.device_put(params, shardings(params, mesh))).compile().as_text()
    assert "f32[33,32]" in text, "a device's part of the vocabulary matrix"
    gathers = [
        line for line in text.splitlines() if "all-gather(" in line and "[264,32]" in line.split("all-gather(")[0]
    ]
    assert not gathers


def test_rules_leave_what_does_not_divide_and_may_be_others() -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    assert spec_of("embedding", (259, 32), mesh) == P(None, "fsdp")
    assert spec_of("opt_state.1.0.mu.blocks.feed_forward.down.kernel", (2, 48, 32), mesh) == P(None, "tensor", "fsdp")
    assert spec_of("blocks.attention_norm.scale", (2, 32), mesh) == P()
    assert spec_of("opt_state.0.v_row.blocks.attention.query.kernel", (2, 32), mesh) == P()
    assert spec_of("norm.scale", (32,), mesh, [(r"norm\.scale$", P("fsdp")), *RULES]) == P("fsdp")


def test_meshes_and_batches_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="data 3, fsdp 1, tensor 1, but 8 devices"):
        make_mesh(data=3)
    with pytest.raises(ValueError, match="data -1, fsdp -1"):
        make_mesh(fsdp=-1)
    with pytest.raises(ValueError, match="the batch has 6 examples, which the 8 devices along data and fsdp"):
        place(take(data(), np.arange(6)), make_mesh(data=4, fsdp=2))


def test_a_published_model_is_read_into_the_meshs_shardings(tmp_path):
    """No device ever holds all of a parameter that is spread, and the run's state is the only copy of it."""
    save_pretrained(
        fresh_llama(DecoderConfig(vocab_size=258, width=32, layers=2, heads=4), jax.random.key(0)), tmp_path / "base"
    )
    rows = [{"prompt": f"{n}+1=", "chosen": str(n + 1), "rejected": "?"} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"data.train={tmp_path}/pairs.jsonl",
        "data.tokenizer=bytes",
        "method=simpo",
        "fsdp=4",
        "tensor=2",
        "batch=8",
    ]
    config = load(RunConfig, None, [*settings, f"model.pretrained={tmp_path}/base", f"output={tmp_path}/run"])
    inputs = load_inputs(config)
    kernel = inputs.model.params["blocks"]["attention"]["query"]["kernel"].get_value()
    assert kernel.sharding.spec == P(None, "fsdp", "tensor")
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 32 // 4, 32 // 2)}
    program = build_program(config, inputs, 1, output=tmp_path)
    assert kernel.is_deleted()  # taken over
    moved = program.state.params["blocks"]["attention"]["query"]["kernel"].get_value()
    assert moved.sharding.spec == P(None, "fsdp", "tensor")
