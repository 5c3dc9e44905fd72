"""`token_logps` and `token_statistics` by a Pallas kernel, interpreted: the plain way's numbers, wherever they are."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec as P

from mi_align.logprobs import Layout, Tiles, pallas_gpu, token_logps, token_statistics
from tests.abstract_gpu import gpu_in_mind

every_kernel = pytest.mark.parametrize("kernel", ["pallas_gpu", "pallas_tpu"])
QUICK = {"xla_backend_optimization_level": 0}


def case(rng: np.random.Generator, dtype=jnp.float32, vocab: int = 150):
    """(hidden, vocabulary, bias), and targets and mask."""
    shapes = (3, 11, 24), (vocab, 24), (vocab,)
    arrays = tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return arrays, jnp.asarray(rng.integers(0, vocab, (3, 11))), jnp.asarray(rng.random((3, 11)) < 0.6)


def differentiated(function, argnums=(0, 1, 2)):
    """Values, and gradients of a sum that weighs each position otherwise."""

    def total(*arrays):
        came = [x for x in jax.tree.leaves(function(*arrays)) if jnp.issubdtype(x.dtype, jnp.floating)]
        return sum(jnp.sum(jnp.cos(n + jnp.arange(x.size)) * x.reshape(-1)) for n, x in enumerate(came)), came

    return jax.jit(jax.grad(total, argnums, has_aux=True), compiler_options=QUICK)


def agree(came, wanted, within: float) -> None:
    """Equal, to a part of the largest entry of each."""
    for c, w in zip(jax.tree.leaves(came), jax.tree.leaves(wanted), strict=True):
        c, w = np.asarray(c, np.float64), np.asarray(w, np.float64)
        assert np.abs(w).max() > 0
        np.testing.assert_allclose(c, w, rtol=0, atol=within * np.abs(w).max())


@every_kernel
@pytest.mark.parametrize(("dtype", "within"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("asked", [token_logps, token_statistics])
def test_values_and_gradients_are_the_plain_ways(kernel, dtype, within, asked, rng: np.random.Generator) -> None:
    arrays, targets, where = case(rng, dtype)

    def by(implementation):
        return differentiated(
            lambda h, v, b: asked(
                h, v, targets, where=where, bias=b, soft_cap=4.0, temperature=0.7, implementation=implementation
            )
        )(*arrays)

    came, wanted = by(kernel), by("reference")
    agree(came, wanted, within)
    assert [x.dtype for x in came[0]] == [dtype] * 3
    with pytest.raises(AssertionError):
        agree(jax.tree.map(lambda x: x * (1 + 3 * within), came), wanted, within)


@every_kernel
def test_a_frozen_head_and_a_frozen_body_give_what_is_asked_for(kernel, rng: np.random.Generator) -> None:
    arrays, targets, where = case(rng)
    for argnums in (0, 1, 2):
        came, wanted = (
            differentiated(
                lambda h, v, b, way=way: token_logps(h, v, targets, where=where, bias=b, implementation=way), argnums
            )(*arrays)
            for way in (kernel, "reference")
        )
        agree(came, wanted, 2e-6)


@every_kernel
@pytest.mark.skipif(jax.device_count() < 8, reason="a mesh of 2 × 4 devices")
@pytest.mark.parametrize("travel", ["stays", "ring"])
def test_a_vocabulary_that_does_not_divide_over_devices(kernel, travel, rng: np.random.Generator) -> None:
    (hidden, vocabulary, _), targets, where = case(rng, vocab=50)
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    layout = {
        "stays": Layout(mesh, ("data",), P("tensor")),
        "ring": Layout(mesh, ("data", "tensor"), P("tensor"), "ring"),
    }[travel]

    def by(**options):
        return differentiated(lambda h, v: token_logps(h, v, targets, where=where, **options), (0, 1))(
            hidden, vocabulary
        )

    agree(by(layout=layout, implementation=kernel), by(implementation="reference"), 2e-6)


def test_the_gpus_products_go_over_the_shortest_length_that_covers_a_mask(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pallas_gpu, "SHORTEST", 16)
    N = 200  # rows: of four lengths, 64, 128, 192 and all
    hidden, vocabulary = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((N, 24), (50, 24)))
    targets = jnp.asarray(rng.integers(0, 50, N))

    def slopes(way):
        def total(h, v, where):
            return jnp.sum(jnp.cos(jnp.arange(N)) * token_logps(h, v, targets, where=where, implementation=way))

        return jax.jit(jax.grad(total, (0, 1)), compiler_options=QUICK)

    came, wanted = slopes("pallas_gpu"), slopes("reference")
    program = came.lower(hidden, vocabulary, jnp.ones(N, bool)).as_text()
    assert all(f"tensor<{length}x50xf32>" in program for length in (64, 128, 192)), "a product of each"
    for kept in (1, 64, 65, 193, N):
        where = jnp.zeros(N, bool).at[jnp.asarray(rng.permutation(N)[:kept])].set(True)
        agree(came(hidden, vocabulary, where), wanted(hidden, vocabulary, where), 2e-6)
    assert not any(x.any() for x in came(hidden, vocabulary, jnp.zeros(N, bool)))


@every_kernel
def test_vmap_over_masks_that_differ(kernel, rng: np.random.Generator) -> None:
    (hidden, vocabulary, _), targets, where = case(rng)

    def one(h, t, w, way):
        return jax.grad(lambda h: jnp.sum(token_logps(h, vocabulary, t, where=w, implementation=way) ** 2))(h)

    came, wanted = (
        jax.jit(jax.vmap(functools.partial(one, way=way)), compiler_options=QUICK)(hidden, targets, where)
        for way in (kernel, "reference")
    )
    agree(came, wanted, 5e-6)


@every_kernel
def test_nothing_kept_and_nothing_given(kernel, rng: np.random.Generator) -> None:
    (hidden, vocabulary, _), targets, where = case(rng)
    came = token_logps(hidden, vocabulary, targets, where=jnp.zeros_like(where), implementation=kernel)
    assert came.shape == (3, 11) and not came.any()
    assert token_logps(hidden[:0], vocabulary, targets[:0], implementation=kernel).shape == (0, 11)


@pytest.mark.parametrize(
    ("kernel", "platform", "call"),
    [("pallas_gpu", "cuda", "__gpu$xla.gpu.triton"), ("pallas_tpu", "tpu", "tpu_custom_call")],
)
def test_a_program_for_its_own_platform_has_the_kernel_in_it(kernel, platform, call, rng: np.random.Generator) -> None:
    (hidden, vocabulary, _), targets, where = case(rng)
    slopes = jax.jit(
        jax.grad(lambda h, v: token_logps(h, v, targets, where=where, implementation=kernel).sum(), (0, 1))
    )
    checks = [export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")]
    with gpu_in_mind() if platform == "cuda" else contextlib.nullcontext():
        text = export.export(slopes, platforms=[platform], disabled_checks=checks)(hidden, vocabulary).mlir_module()
    assert text.count(call) >= 2, "forward and backward"
    if jax.default_backend() == "cpu":
        assert call not in slopes.lower(hidden, vocabulary).as_text(), "here it is interpreted"


def test_what_a_kernel_would_not_heed_is_refused(x64: None) -> None:
    hidden, vocabulary, targets = jnp.ones((2, 3), jnp.float32), jnp.ones((4, 3), jnp.float32), jnp.array([0, 1])
    call = functools.partial(token_logps, hidden, vocabulary, targets, implementation="pallas_gpu")
    for option in ({"memory_budget": 1000}, {"filter_eps": 1e-6}, {"tiles": Tiles(8, 8, 4)}):
        with pytest.raises(ValueError, match=f"`{next(iter(option))}` is given beside 'pallas_gpu'.*Pass 'chunked'"):
            call(**option)
    with pytest.raises(TypeError, match="'pallas_tpu' computes in float32, but float64 was given"):
        token_logps(jnp.ones((2, 3)), jnp.ones((4, 3)), targets, implementation="pallas_tpu")
