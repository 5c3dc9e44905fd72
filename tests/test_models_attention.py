"""Every kernel attends as the formula does: values and gradients, windows, caps, shared heads, over devices too."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mi_align.logprobs import Layout
from mi_align.models import DecoderConfig, init_decoder
from mi_align.models.attention import attend, attention_of, kernel_of
from mi_align.models.functional import hidden_states, response_logps
from mi_align.training.sharding import make_mesh

#: A program that runs once need not be optimised by LLVM.
QUICK = {"xla_backend_optimization_level": 0}
#: Of numbers near 1; accelerators multiply float32 in passes of bfloat16 or TF32.
CLOSE = 2e-6 if jax.default_backend() == "cpu" else 2e-2
BATCH, TIME, HEADS, SHARED, WIDTH = 2, 130, 4, 2, 16


def config(**changes) -> DecoderConfig:
    shape = {"vocab_size": 50, "width": HEADS * WIDTH, "layers": 2, "heads": HEADS, "kv_heads": SHARED}
    return DecoderConfig(**shape | changes)


def formula(query, key, value, *, scale, window=None, cap=None):
    """Attention as it is written down, in float64."""
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    key, value = (np.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    scores = np.einsum("bthw,bshw->bhts", query, key) * scale
    scores = scores if cap is None else cap * np.tanh(scores / cap)
    behind = np.arange(query.shape[1])[:, None] - np.arange(query.shape[1])
    seen = (behind >= 0) & (behind < (window or np.inf))
    weights = np.where(seen, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return np.einsum("bhts,bshw->bthw", weights / weights.sum(-1, keepdims=True), value)


@pytest.fixture
def drawn(rng: np.random.Generator):
    sizes = [(BATCH, TIME, HEADS, WIDTH), *((BATCH, TIME, SHARED, WIDTH),) * 2]
    return [jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes]


def splash(shape: DecoderConfig, layout: Layout | None = None):
    attention = attention_of(shape, "splash", layout)
    return lambda *qkv, windowed=False: attention(*qkv, None, windowed=jnp.asarray(windowed))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, {}),
        ({"window": 7}, {"window": 7}),
        ({"attention_soft_cap": 2.0, "attention_scale": 0.5}, {"cap": 2.0, "scale": 0.5}),
    ],
    ids=["causal", "window", "cap and scale"],
)
def test_splash_is_the_formula(changes, told, drawn) -> None:
    wanted = formula(*drawn, **{"scale": WIDTH**-0.5} | told)
    np.testing.assert_allclose(splash(config(**changes))(*drawn), wanted, atol=CLOSE)
    for other in ({"scale": 0.26}, {"window": 8 if told.get("window") else 129}, {"cap": 2.1}):
        off = formula(*drawn, **{"scale": WIDTH**-0.5} | told | other)
        assert np.abs(off - wanted).max() > 1e-4  # the formula, perturbed, would be seen


def test_layers_that_differ_in_their_windows_share_a_program(drawn) -> None:
    both = jax.jit(splash(config(window=7, windowed=(True, False))))
    for windowed, window in ((True, 7), (False, None)):
        wanted = formula(*drawn, scale=WIDTH**-0.5, window=window)
        np.testing.assert_allclose(both(*drawn, windowed=windowed), wanted, atol=CLOSE)


def test_gradients_of_splash_are_those_of_xla(drawn) -> None:
    weights = jnp.cos(jnp.arange(BATCH * TIME * HEADS * WIDTH).reshape(BATCH, TIME, HEADS, WIDTH))
    with jax.enable_x64(True):
        wide = [x.astype(jnp.float64) for x in drawn]
        wanted = jax.grad(lambda *qkv: jnp.sum(weights * attend(*qkv, None, scale=0.25)), (0, 1, 2))(*wide)
        wanted = [np.asarray(x) for x in wanted]
    came = jax.jit(jax.grad(lambda *qkv: jnp.sum(weights * splash(config())(*qkv)), (0, 1, 2)), compiler_options=QUICK)(
        *drawn
    )
    for x, y in zip(came, wanted, strict=True):
        np.testing.assert_allclose(x, y, atol=CLOSE * np.abs(y).max())


@pytest.mark.parametrize("axes", [{"data": 2, "tensor": 2}, {"fsdp": 2, "tensor": 4}], ids=str)
def test_each_device_attends_for_its_own_examples_and_heads(axes: dict[str, int], drawn) -> None:
    sizes = {"data": 1, "fsdp": 1, "tensor": 1} | axes
    if jax.device_count() < int(np.prod(list(sizes.values()))):
        pytest.skip("needs more devices")
    mesh = make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))])
    layout = Layout(mesh, ("data", "fsdp"), P("tensor", "fsdp"))
    program = jax.jit(splash(config(), layout)).lower(*drawn).compile()
    np.testing.assert_allclose(program(*drawn), formula(*drawn, scale=WIDTH**-0.5), atol=CLOSE)
    assert "all-gather" not in program.as_text()


@pytest.mark.slow
def test_a_decoder_reads_the_same_by_either_kernel(rng: np.random.Generator) -> None:
    changes = {"window": 9, "windowed": (True, False)}
    graphdef, params = init_decoder(config(attention="xla", **changes), jax.random.key(0))
    other, _ = init_decoder(config(attention="splash", remat="layers", **changes), jax.random.key(0))
    tokens = jnp.asarray(rng.integers(0, 50, (2, 40)))
    mask = jnp.asarray(np.arange(40) >= np.array([[10], [20]]))

    def loss(graphdef, params):
        return response_logps(graphdef, params, tokens, mask).sum()

    value, slope = jax.jit(jax.value_and_grad(lambda p: loss(graphdef, p)), compiler_options=QUICK)(params)
    came, steep = jax.jit(jax.value_and_grad(lambda p: loss(other, p)), compiler_options=QUICK)(params)
    assert float(came) == pytest.approx(float(value), rel=CLOSE)
    for x, y in zip(jax.tree.leaves(steep), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(x, y, atol=5 * CLOSE * float(jnp.abs(y).max()))


def test_the_platform_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    shape, half = config(head_features=64), jnp.dtype(jnp.bfloat16)
    wanted = {"cpu": ("xla", "xla"), "gpu": ("cudnn", "xla"), "tpu": ("splash", "splash")}
    for platform, (in_half, in_full) in wanted.items():
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        assert kernel_of(shape, half, None, masked=False) == in_half
        assert kernel_of(shape, jnp.dtype(jnp.float32), None, masked=False) == in_full
        assert kernel_of(shape, half, None, masked=True) == "xla"
        assert kernel_of(shape, jnp.dtype(jnp.float64), None, masked=False) == "xla"
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for capped_or_wide in ({"attention_soft_cap": 50.0}, {"head_features": 256}):
        assert kernel_of(config(**capped_or_wide), half, None, masked=False) == "xla"


def test_a_kernel_that_cannot_is_refused() -> None:
    half = jnp.dtype(jnp.bfloat16)
    with pytest.raises(ValueError, match=r"'cudnn', which knows neither float32 .*compute_dtype: bfloat16"):
        kernel_of(config(attention="cudnn"), jnp.dtype(jnp.float32), None, masked=False)
    with pytest.raises(ValueError, match="'cudnn', which knows neither"):
        kernel_of(config(attention="cudnn", attention_soft_cap=9.0), half, None, masked=False)
    with pytest.raises(ValueError, match="'splash', which knows no float64"):
        kernel_of(config(attention="splash"), jnp.dtype(jnp.float64), None, masked=False)
    assert kernel_of(config(attention="cudnn"), half, None, masked=False) == "cudnn"


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 7])
def test_cudnn_is_the_formula(window: int | None, drawn) -> None:
    shape = dataclasses.replace(config(window=window), attention="cudnn")
    half = [x.astype(jnp.bfloat16) for x in drawn]

    def values(*qkv):
        return attention_of(shape, "cudnn", None)(*qkv, None, windowed=jnp.asarray(window is not None))

    def by_mask(*qkv):
        behind = jnp.arange(TIME)[:, None] - jnp.arange(TIME)
        seen = (behind >= 0) & (behind < (window or TIME))
        return attend(*qkv, seen[None], scale=WIDTH**-0.5, by_hand=True)

    wanted = formula(*half, scale=WIDTH**-0.5, window=window)
    np.testing.assert_allclose(values(*half).astype(jnp.float32), wanted, atol=2e-2)
    weights = jnp.cos(jnp.arange(BATCH * TIME * HEADS * WIDTH).reshape(BATCH, TIME, HEADS, WIDTH))
    came, wanted = (
        jax.grad(lambda *qkv, f=f: jnp.sum(weights * f(*qkv)), (0, 1, 2))(*given)
        for f, given in ((values, half), (by_mask, [x.astype(jnp.float32) for x in half]))
    )
    for x, y in zip(came, wanted, strict=True):
        np.testing.assert_allclose(x.astype(jnp.float32), y, atol=2e-2 * np.abs(y).max())


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU")
@pytest.mark.parametrize("time", [40, 41])
def test_cudnn_learns_from_any_length(time: int, rng: np.random.Generator) -> None:
    tokens = jnp.asarray(rng.integers(0, 50, (2, time)))

    def slopes(kernel: str):
        graphdef, params = init_decoder(config(attention=kernel), jax.random.key(0), jnp.bfloat16)
        return jax.grad(lambda p: jnp.sum(hidden_states(graphdef, p, tokens).astype(jnp.float32) ** 3))(params)

    for x, y in zip(*(jax.tree.leaves(slopes(kernel)) for kernel in ("cudnn", "xla")), strict=True):
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        assert jnp.linalg.norm(x - y) < 5e-2 * jnp.linalg.norm(y)
