"""The Pallas kernels against NumPy's float64: no worse than the plain formula in the same dtype, whatever the edges."""

from __future__ import annotations

import contextlib
import functools
import math
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas import tpu as pltpu

from mi_align.logprobs import pallas_gpu, pallas_tpu
from mi_align.logprobs._pallas_common import PerRow, Tiles, contract, cotangent
from tests.abstract_gpu import gpu_in_mind

SCALE = 0.7


class Way(NamedTuple):
    """Kernels, with tiles so small that every axis of the cases below takes several and ends within one."""

    backend: ModuleType
    forward: tuple[tuple[str, object], ...]
    backward: tuple[tuple[str, object], ...]


TPU, GPU = Tiles(128, 128, 128), Tiles(32, 64, 32)
WAYS = {
    "tpu, a kernel for each gradient": Way(pallas_tpu, (("tiles", TPU),), (("tiles", (TPU, TPU)),)),
    "tpu, one kernel for both": Way(pallas_tpu, (("tiles", TPU),), (("tiles", (TPU,)),)),
    "gpu": Way(pallas_gpu, (("tiles", GPU), ("shares", 3)), (("tiles", GPU), ("chunk", (128, 192)))),
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


class Case(NamedTuple):
    hidden: jax.Array
    vocabulary: jax.Array
    targets: jax.Array
    bias: jax.Array | None
    weights: tuple[jax.Array, ...]


def draw(rng: np.random.Generator, N: int, D: int, V: int, dtype=jnp.float32, bias: bool = False) -> Case:
    return Case(
        jnp.asarray(rng.normal(size=(N, D)), dtype),
        jnp.asarray(3 * rng.normal(size=(V, D)) / np.sqrt(D), dtype),
        jnp.asarray(rng.integers(0, V, N), jnp.int32),
        jnp.asarray(rng.normal(size=V), jnp.float32) if bias else None,
        tuple(jnp.asarray(rng.normal(size=N) + k, jnp.float32) for k in (2, -1, 0.5, 3, 0.1)),
    )


@functools.cache
def program(way: Way, interpret):
    """Forward and backward, compiled once for all cases of one shape."""

    def both(case: Case, soft_cap, rows, entries):
        arrays = case[:4]
        common = {"scale": SCALE, "soft_cap": soft_cap, "rows": rows, "entries": entries, "interpret": interpret}
        target, top, log_mass = way.backend.forward(*arrays, **dict(way.forward), **common)
        gradients = way.backend.backward(*arrays, top, log_mass, *case.weights, **dict(way.backward), **common)
        return target, top, log_mass, *gradients

    return jax.jit(both, compiler_options={"xla_backend_optimization_level": 0})  # compiling is what takes the time


def run(way: Way, case: Case, *, soft_cap=None, rows=None, entries=None, interpret=True):
    """(target logit, largest logit, log-mass, d scale·hidden, d vocabulary, d bias)."""
    rows, entries = (
        len(x) if n is None else n for x, n in zip((case.targets, case.vocabulary), (rows, entries), strict=True)
    )
    return program(way, interpret)(case, soft_cap, rows, entries)


def truth(case: Case, *, soft_cap=None, rows=None):
    """The same in float64, from the formulas as they are written."""
    h, v, bias, *weights = (
        None if x is None else np.asarray(x, np.float64)[:n]
        for x, n in zip(
            (case.hidden, case.vocabulary, case.bias, *case.weights), (rows, None, None, *[rows] * 5), strict=True
        )
    )
    targets = np.asarray(case.targets)[:rows]
    z = SCALE * h @ v.T + (0 if bias is None else bias)
    z = z if soft_cap is None else soft_cap * np.tanh(z / soft_cap)
    below = z - z.max(1, keepdims=True)
    log_mass = np.log(np.exp(below).sum(1))
    t, a, b, c, m = (x[:, None] for x in weights)
    p = np.exp(below - log_mass[:, None])
    slope = t * (np.arange(len(v)) == targets[:, None]) + p * (a + b * below + c * p) + m
    slope = slope if soft_cap is None else slope * (1 - (z / soft_cap) ** 2)
    d_bias = None if bias is None else slope.sum(0)
    return z[np.arange(len(z)), targets], z.max(1), log_mass, slope @ v, SCALE * slope.T @ h, d_bias


@functools.partial(jax.jit, static_argnames="rows")
def plain(case: Case, soft_cap=None, rows=None):
    """All logits at once in the inputs' own dtype; the derivative takes it too, as the operand of a matmul does."""
    h, targets, weights = case.hidden[:rows], case.targets[:rows], [w[:rows, None] for w in case.weights]
    z = SCALE * contract(h, case.vocabulary, (1, 1)) + (0 if case.bias is None else case.bias[None, :])
    z = z if soft_cap is None else soft_cap * jnp.tanh(z / soft_cap)
    below = z - jnp.max(z, axis=1, keepdims=True)
    log_mass = jax.nn.logsumexp(below, axis=1)
    t, a, b, c, m = weights
    p = jnp.exp(below - log_mass[:, None])
    slope = t * jax.nn.one_hot(targets, z.shape[1]) + p * (a + b * below + c * p) + m
    slope = slope if soft_cap is None else slope * (1 - jnp.tanh(jnp.arctanh(z / soft_cap)) ** 2)
    rounded = slope.astype(h.dtype)
    return (
        jnp.take_along_axis(z, targets[:, None], 1)[:, 0],
        jnp.max(z, axis=1),
        log_mass,
        contract(rounded, case.vocabulary, (1, 0)).astype(h.dtype),
        (SCALE * contract(rounded, h, (0, 0))).astype(h.dtype),
        None if case.bias is None else slope.sum(0),
    )


def error(came, wanted: np.ndarray) -> float:
    return float(np.abs(np.asarray(came, np.float64) - wanted).max() / (np.abs(wanted).max() or 1.0))


def excess(came, case: Case, **options) -> list[float]:
    """Each result's error as a share of what is allowed: 1.5 times that of the plain formula, and 4 ulp of float32, as
    one of the two may happen to round well."""
    rows = options.get("rows")
    allowed = [
        None if w is None else 1.5 * error(x, w) + 4 * float(jnp.finfo(jnp.float32).eps)
        for x, w in zip(plain(case, **options), truth(case, **options), strict=True)
    ]
    kept = [x if n in (4, 5) else x[:rows] for n, x in enumerate(came)]
    return [error(x, w) / e for x, w, e in zip(kept, truth(case, **options), allowed, strict=True) if e is not None]


#: Most tests share the shape of the second, and with it what was compiled.
COMMON = (150, 72, 333)
SETTINGS = {
    "nothing divides": ((300, 200, 500), jnp.float32, {}),
    "bias and cap": (COMMON, jnp.float32, {"soft_cap": 2.5, "bias": True}),
    "bfloat16, few rows": ((300, 256, 500), jnp.bfloat16, {"soft_cap": 2.5, "bias": True, "rows": 140}),
    "one row, one tile": ((1, 16, 7), jnp.float32, {"bias": True}),
}


@ways
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_values_and_gradients_are_as_exact_as_the_plain_formula(way, setting, rng) -> None:
    shape, dtype, options = setting
    options = dict(options)
    case = draw(rng, *shape, dtype, options.pop("bias", False))
    came = run(way, case, **options)
    assert [x.dtype for x in came[:5]] == [jnp.float32] * 3 + [dtype, dtype]
    assert max(excess(came, case, **options)) <= 1


@pytest.mark.parametrize("name", ["scale", "soft_cap", "bias", "targets", *"tabcm"])
def test_a_small_change_of_what_is_claimed_is_noticed(name, rng) -> None:
    case = draw(rng, 60, 24, 130, bias=True)
    claim, soft_cap = case, 5.0
    came = plain(case, soft_cap)
    assert max(excess(came, claim, soft_cap=soft_cap)) <= 1
    if name == "scale":
        claim = case._replace(hidden=case.hidden * 1.001)
    elif name == "soft_cap":
        soft_cap *= 1.001
    elif name == "bias":
        claim = case._replace(bias=case.bias.at[129].add(0.01))
    elif name == "targets":
        claim = case._replace(targets=case.targets.at[59].set((case.targets[59] + 1) % 130))
    else:
        weights = [1.001 * w if n == "tabcm".index(name) else w for n, w in enumerate(case.weights)]
        claim = case._replace(weights=tuple(weights))
    assert max(excess(came, claim, soft_cap=soft_cap)) > 1


@ways
@pytest.mark.parametrize("rows", [0, 1, 128, 130])
def test_rows_beyond_the_last_leave_zeros_and_no_trace(way, rows, rng) -> None:
    case = draw(rng, *COMMON, bias=True)
    spoiled = case._replace(
        hidden=case.hidden.at[rows:].set(jnp.nan),
        targets=case.targets.at[rows:].set(2**30),
        weights=tuple(w.at[rows:].set(jnp.inf) for w in case.weights),
    )
    came, clean = run(way, spoiled, rows=rows, soft_cap=2.5), run(way, case, rows=rows, soft_cap=2.5)
    jax.tree.map(np.testing.assert_array_equal, came, clean)
    for x in came[:4]:
        assert not np.asarray(x[rows:]).any()
    if rows == 0:
        assert not any(np.asarray(x).any() for x in came)
    else:
        assert max(excess(came, case, rows=rows, soft_cap=2.5)) <= 1


@ways
@pytest.mark.parametrize("entries", [-5, 0, 1, 128, 300])
def test_entries_beyond_the_last_have_no_probability_and_no_gradient(way, entries, rng) -> None:
    case = draw(rng, *COMMON, bias=True)
    case = case._replace(targets=jnp.where(jnp.arange(150) % 3 == 0, 299, 0))
    spoiled = case._replace(vocabulary=case.vocabulary.at[max(entries, 0) :].set(1e6))
    came = run(way, spoiled, entries=entries, soft_cap=2.5)
    assert not came[4][max(entries, 0) :].any() and not came[5][max(entries, 0) :].any()
    if entries <= 0:
        assert np.isneginf(came[2]).all() and not came[0].any()
        return
    rest = case._replace(vocabulary=case.vocabulary[:entries], bias=case.bias[:entries])
    here = rest.targets < entries
    rest = rest._replace(targets=rest.targets % entries, weights=(case.weights[0] * here, *case.weights[1:]))
    came = (np.where(here, came[0], truth(rest, soft_cap=2.5)[0]), *came[1:4], came[4][:entries], came[5][:entries])
    assert max(excess(came, rest, soft_cap=2.5)) <= 1


@ways
def test_a_target_outside_the_vocabulary_meets_no_column(way, rng) -> None:
    case = draw(rng, *COMMON, bias=True)
    outside = case._replace(targets=case.targets.at[:4].set(jnp.array([-1, 333, 334, -(2**31)])))
    without = case._replace(weights=(case.weights[0].at[:4].set(0), *case.weights[1:]))
    came, wanted = run(way, outside, soft_cap=2.5), run(way, without, soft_cap=2.5)
    assert not came[0][:4].any() and wanted[0][:4].all()
    jax.tree.map(np.testing.assert_array_equal, came[1:], wanted[1:])


@ways
def test_a_forbidden_token_has_no_probability_and_a_whole_forbidden_tile_no_effect(way, rng) -> None:
    case = draw(rng, 40, 24, 150, bias=True)
    bias = case.bias.at[:130].set(-jnp.inf)
    case = case._replace(targets=130 + case.targets % 20, weights=(*case.weights[:4], jnp.zeros(40)))
    rest = case._replace(vocabulary=case.vocabulary[130:], bias=bias[130:], targets=case.targets - 130)
    *sums, d_hidden, d_vocabulary, d_bias = run(way, case._replace(bias=bias))
    assert not d_vocabulary[:130].any() and not d_bias[:130].any()
    assert max(excess((*sums, d_hidden, d_vocabulary[130:], d_bias[130:]), rest)) <= 1


@ways
def test_huge_logits_stay_finite(way, rng) -> None:
    case = draw(rng, 40, 24, 150, bias=True)
    case = case._replace(hidden=1e4 * case.hidden)
    _, top, log_mass, *gradients = run(way, case)
    z = SCALE * np.asarray(case.hidden, np.float64) @ np.asarray(case.vocabulary, np.float64).T + np.asarray(case.bias)
    assert error(top + log_mass, z.max(1)) < 1e-6
    assert all(np.isfinite(x).all() for x in gradients)


@pytest.mark.parametrize("backend", [pallas_tpu, pallas_gpu], ids=["tpu", "gpu"])
def test_scale_cap_and_rows_may_be_traced_and_compile_once(backend, rng) -> None:
    case, traces = draw(rng, 33, 24, 150), []

    @jax.jit
    def f(scale, soft_cap, rows):
        traces.append(1)
        return backend.forward(*case[:3], scale=scale, soft_cap=soft_cap, rows=rows, interpret=True)[2]

    ten, whole = f(SCALE, 2.5, 10), f(SCALE, 2.5, 33)
    assert not ten[10:].any() and error(whole, truth(case, soft_cap=2.5)[2]) < 1e-6
    assert error(f(2 * SCALE, 2.5, 33), truth(case._replace(hidden=2 * case.hidden), soft_cap=2.5)[2]) < 1e-6
    assert len(traces) == 1


@pytest.mark.parametrize("name", [name for name in WAYS if "tpu" in name])
def test_the_tpu_interpreter_finds_no_race_and_no_read_of_what_was_never_written(name, rng, capfd) -> None:
    case = draw(rng, 130, 200, 150, bias=True)
    params = pltpu.InterpretParams(
        dma_execution_mode="on_wait", detect_races=True, out_of_bounds_reads="uninitialized", uninitialized_memory="nan"
    )
    came = run(WAYS[name], case, rows=129, interpret=params)
    assert max(excess(came, case, rows=129)) <= 1
    assert "RACE DETECTED" not in capfd.readouterr().out


@ways
def test_a_gradient_that_is_not_wanted_is_none_and_the_other_unchanged(way, rng) -> None:
    case = draw(rng, 40, 24, 150, bias=True)
    came = run(way, case)
    tiles = dict(way.backward) | ({"tiles": (TPU,)} if way.backend is pallas_tpu else {})

    def backward(wanted: tuple[bool, bool]):
        return way.backend.backward(
            *case[:4], *came[1:3], *case.weights, scale=SCALE, interpret=True, wanted=wanted, **tiles
        )

    by_hidden, by_vocabulary = (jax.jit(backward, static_argnums=0)(w) for w in ((True, False), (False, True)))
    assert by_hidden[1:] == (None, None) and by_vocabulary[0] is None
    exact = 4 * float(jnp.finfo(jnp.float32).eps)  # sums in another order where one kernel made both
    for one, both in zip((by_hidden[0], *by_vocabulary[1:]), came[3:], strict=True):
        assert error(one, np.asarray(both, np.float64)) < exact


def test_the_weights_of_common_quantities_are_what_their_docstring_says(rng, x64) -> None:
    z, target, g = jnp.asarray(3 * rng.normal(size=11)), 4, 1.7
    top = jnp.max(z)
    log_mass = jax.nn.logsumexp(z - top)
    p = jnp.exp(z - top - log_mass)
    entropy, square = log_mass - p @ (z - top), p @ p
    none = dict.fromkeys("tabcm", 0.0)

    def softmax(x):
        return jnp.exp(x - jax.nn.logsumexp(x))

    claims = {
        "log-probability": (lambda x: x[target] - jax.nn.logsumexp(x), {"t": g, "a": -g}),
        "log-normaliser": (jax.nn.logsumexp, {"a": g}),
        "entropy": (lambda x: -softmax(x) @ jnp.log(softmax(x)), {"a": g * (log_mass - entropy), "b": -g}),
        "mean logit": (jnp.mean, {"m": g / 11}),
        "Σp²": (lambda x: softmax(x) @ softmax(x), {"a": -2 * g * square, "c": 2 * g}),
    }
    for name, (f, weights) in claims.items():
        came = cotangent(z, jnp.arange(11), PerRow(target, top, log_mass, **none | weights), None)
        np.testing.assert_allclose(came, g * jax.jit(jax.grad(f))(z), atol=1e-14, err_msg=name)


MODELS = {"GPT-2": (768, 50257), "Qwen2.5-0.5B": (896, 151936), "Llama-3-8B": (4096, 128256), "tiny": (16, 7)}
TRITON = export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5", "NVIDIA H100 80GB HBM3"])
@pytest.mark.parametrize("model", MODELS)
def test_both_passes_lower_without_the_hardware(kind, model) -> None:
    platform, backend = ("tpu", pallas_tpu) if "TPU" in kind else ("cuda", pallas_gpu)
    (D, V), N = MODELS[model], 8192
    shape = jax.ShapeDtypeStruct
    case = shape((N, D), jnp.bfloat16), shape((V, D), jnp.bfloat16), shape((N,), jnp.int32), shape((V,), jnp.float32)
    number, rows = shape((N,), jnp.float32), shape((), jnp.int32)

    def forward(*x):
        return backend.forward(*x[:4], soft_cap=30.0, rows=x[4], device_kind=kind)

    def backward(*x):
        return backend.backward(*x[:-1], soft_cap=30.0, rows=x[-1], device_kind=kind)

    for f, arguments in ((forward, (*case, rows)), (backward, (*case, *[number] * 7, rows))):
        with gpu_in_mind(kind) if platform == "cuda" else contextlib.nullcontext():
            program = export.export(jax.jit(f), platforms=[platform], disabled_checks=[TRITON])(*arguments)
        text = program.mlir_module()
        assert {"tpu": "tpu_custom_call", "cuda": "__gpu$xla.gpu.triton"}[platform] in text
        if math.prod(pallas_gpu.CHUNK) < N * V:  # else all of them are one chunk
            assert f"{N}x{V}" not in text and f"{V}x{N}" not in text


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v5", "TPU v6 lite", "a chip of tomorrow"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_tiles_fit_the_tpu_and_keep_to_its_grain(kind, dtype) -> None:
    budget = pallas_tpu.CHIPS.get(kind, pallas_tpu.ANY_CHIP).budget
    for N, D, V in ((8192, 4096, 128256), (65536, 768, 50257), (2048, 5120, 151936), (100, 3584, 256000), (9, 72, 11)):
        for own in (None, "rows", "vocabulary", "both"):
            tiles = pallas_tpu.tiles_for(N, D, V, dtype, kind, own=own)
            assert all(n % 128 == 0 for n in tiles)
            assert pallas_tpu.memory(tiles, D, dtype, own) <= budget
            assert tiles.rows < 2 * max(N, 128) and tiles.vocabulary < 2 * max(V, 128)


def test_tiles_of_a_gpu_are_powers_of_two_and_fit_its_shared_memory() -> None:
    for kind, kib in (("NVIDIA H100 80GB HBM3", 227), ("NVIDIA A100-SXM4-80GB", 163), ("another", 96)):
        for dtype in (jnp.bfloat16, jnp.float32):
            for N, D, V in ((8192, 4096, 128256), (3, 20, 11)):
                tiles = pallas_gpu.tiles_for(N, D, V, dtype, kind)
                assert all(n >= 16 and n & (n - 1) == 0 for n in tiles)
                held = pallas_gpu.STAGES * jnp.dtype(dtype).itemsize * tiles.features * (tiles.rows + tiles.vocabulary)
                assert held <= kib * 1024


def test_a_vocabulary_whose_ids_float32_cannot_hold_is_refused() -> None:
    shape = jax.ShapeDtypeStruct
    arrays = shape((8, 8), jnp.float32), shape((2**24 + 1, 8), jnp.float32), shape((8,), jnp.int32)
    with pytest.raises(ValueError, match="`vocabulary` has 16777217 rows"):
        jax.eval_shape(
            lambda h, v, t, n: pallas_tpu.backward(h, v, t, None, *[n] * 7), *arrays, arrays[0].update(shape=(8,))
        )
