"""Steps compiled for devices that are not there, counts of operations, and dtypes of computation."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.data import ByteTokenizer, arithmetic_preferences, encode_preferences
from mi_align.models import DecoderConfig, abstract_decoder, count_parameters, init_decoder, published_config
from mi_align.training import scorer
from mi_align.training.config import RunConfig
from mi_align.training.devices import CHIPS, batch_flops, token_flops, utilisation
from mi_align.training.settings import load
from mi_align.training.topology import StepMemory, compile_step, devices_of, state_bytes, told

SHAPE = "model.shape={width: 32, layers: 2, heads: 4}"
needs_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs jax[tpu]")


def config_of(*changes):
    return load(RunConfig, None, ("data.train=none", "data.max_prompt=24", "data.max_response=40", SHAPE, *changes))


def test_a_model_of_a_folder_has_published_numbers_of_parameters_without_weights():
    published = {"llama-3-8b": 8_030_261_248, "mistral-7b": 7_241_732_096, "qwen2.5-7b": 7_615_616_512}
    for name, wanted in published.items():
        _, params = abstract_decoder(published_config(f"experiments/recipes/shapes/{name}"), jnp.bfloat16)
        assert count_parameters(params) == wanted
        assert all(isinstance(x, jax.ShapeDtypeStruct) and x.dtype == jnp.bfloat16 for x in jax.tree.leaves(params))


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*config\.json"):
        published_config(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_flops_of_a_token_are_those_that_the_compiler_counts(tied):
    """Products alone, of one unrolled forward pass: XLA counts norms and softmax too, a few percent."""
    config = DecoderConfig(vocab_size=512, width=256, layers=2, heads=4, tied_head=tied)
    graphdef, params = init_decoder(config, jax.random.key(0))

    def logits(params, tokens):
        import flax.nnx as nnx

        model = nnx.merge(graphdef, params)
        return model(tokens) @ model.vocabulary.T

    tokens = jnp.zeros((2, 64), jnp.int32)
    counted = jax.jit(logits).lower(params, tokens).cost_analysis()["flops"]
    mine = tokens.size * token_flops(config, count_parameters(params), 64)
    assert mine < counted < 1.06 * mine


def test_a_live_reference_is_one_forward_pass_more():
    config = DecoderConfig(vocab_size=258, width=32)
    batch, _ = encode_preferences(arithmetic_preferences(4, negatives=1, seed=0), ByteTokenizer())
    without, live = (batch_flops(config, 10_000, batch, live=live) for live in (False, True))
    assert 3 * live == 4 * without
    assert without == 3 * batch.tokens.size * token_flops(config, 10_000, batch.tokens.shape[-1])


def test_utilisation_is_of_all_devices_and_left_out_where_the_peak_is_unknown():
    chip = CHIPS["TPU v6 lite"]
    assert utilisation(chip.flops * 3, 2.0, "TPU v6 lite", 6)["mfu"] == pytest.approx(0.25)
    assert utilisation(1e9, 2.0, "cpu", 1) == {"flops": 5e8}


@pytest.mark.slow
def test_computing_in_half_precision_is_casting_the_parameters():
    graphdef, params = init_decoder(DecoderConfig(vocab_size=258, width=32), jax.random.key(0))
    batch, _ = encode_preferences(arithmetic_preferences(2, negatives=1, seed=0), ByteTokenizer())
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    logps = scorer(graphdef, compute_dtype="bfloat16")
    np.testing.assert_array_equal(jax.jit(logps)(params, batch), jax.jit(scorer(graphdef))(half, batch))
    slopes = jax.tree.leaves(jax.grad(lambda p: logps(p, batch).sum())(params))
    assert {x.dtype for x in slopes} == {jnp.dtype("float32")}


def test_state_is_counted_in_bytes():
    """Parameters and two moments in float32, beside two counters and the batch's nothing."""
    parameters, taken = state_bytes(config_of("optimiser.clip=null", "optimiser.schedule=constant"))
    assert 12 * parameters <= taken <= 12 * parameters + 64


def test_what_does_not_fit_comes_with_a_remedy():
    memory = StepMemory(8_000_000_000, 4, "TPU v5 lite", 24 * 2**30, 2**30, 16 * 2**30)
    assert memory.fits is False
    assert "raise `fsdp`" in told(memory, config_of())
    assert "more devices" in told(memory, config_of("fsdp=4"))
    near = memory._replace(arguments=10 * 2**30, temporaries=8 * 2**30)
    said = told(near, config_of("fsdp=4", "model.remat=layers"))
    assert "raise `micro_batches`" in said and "remat" not in said
    assert "it fits" in told(near._replace(temporaries=2**30), config_of())
    assert near._replace(capacity=None).fits is None


def test_without_the_compiler_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"jax\[tpu\]"):
        devices_of("v5e:2x2")


@needs_compiler
def test_a_step_is_compiled_for_tpus_that_are_not_there():
    devices = devices_of("v5e:2x2")
    memory = compile_step(config_of("fsdp=2", "tensor=2", "batch=8"), devices)
    alone = compile_step(config_of("batch=8"), devices)
    assert memory.devices == 4 and memory.fits
    assert memory.parameters == alone.parameters
    assert memory.arguments < 0.5 * alone.arguments  # spread over four, but for what does not divide


@needs_compiler
def test_an_unknown_topology_is_named():
    with pytest.raises(ValueError, match=r"`topology` is 'v5e:7x1000'"):
        devices_of("v5e:7x1000")


@pytest.mark.parametrize(
    "changes",
    [
        ("method=sft",),
        ("method=kto", "reference=live"),
        pytest.param(("method=infonca", "reference=cached"), marks=pytest.mark.slow),
        ("method=dpo", "reference=live", "model.lora={rank: 2, alpha: 4}"),
    ],
    ids=lambda changes: changes[0],
)
def test_the_step_that_is_compiled_ahead_of_time_is_of_the_methods_own_batch(changes):
    memory = compile_step(config_of("batch=2", *changes), jax.devices()[:1])
    assert memory.temporaries is not None


def test_of_an_adapter_the_optimiser_alone_is_counted_for_what_is_trained():
    whole, lora = (state_bytes(config_of(*c)) for c in ((), ("model.lora={rank: 1}",)))
    assert lora[0] > whole[0]  # the adapter comes on top
    assert lora[1] < 0.5 * whole[1]
