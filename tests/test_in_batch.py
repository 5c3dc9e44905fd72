"""InfoNCE over the batch without its scores: against the objective on all scores, on one device and on eight."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mi_align.logprobs import Layout, in_batch_clip_loss, in_batch_info_nce_bound, in_batch_info_nce_loss
from mi_align.logprobs.both_ways import both_ways
from mi_align.objectives import info_nce_bound, info_nce_loss

SCALE = 0.6
QUICK = {"xla_backend_optimization_level": 0}
HUGE = 65_536
LAYOUTS = ["gather", "ring"]


def layout(travel: str) -> Layout:
    if jax.device_count() < 8:
        pytest.skip("a mesh of 8 devices")
    return Layout(jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,)), ("data",), P("data"), travel)


def pairs(rng: np.random.Generator, batch: int, features: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, a y that says something of it, and weights of the losses, so that no symmetry hides a gradient."""
    x = rng.normal(size=(batch, features))
    return x, 0.5 * x + rng.normal(size=(batch, features)), rng.normal(size=batch)


def on_scores(objective, x, y, scale=SCALE):
    """An objective on all B × B scores; the partner is the positive, all others are negatives."""
    scores = scale * jnp.matmul(x, y.T, precision="highest")
    return objective(jnp.diagonal(scores), scores, where=~jnp.eye(x.shape[0], dtype=bool))


def slopes_of(loss):
    """The program of the values, and of the weighted sum's gradients in x, y and the scale."""

    def total(x, y, scale, weight):
        values = loss(x, y, scale=scale)
        return jnp.sum(weight * values), values

    # It runs once: LLVM need not optimise it.
    quick = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True), compiler_options=QUICK)

    def run(x, y, weight, scale=SCALE):
        (_, values), grads = quick(x, y, jnp.asarray(scale, x.dtype), weight)
        return values, *grads

    return run


def slopes(loss, *args):
    """What that program gives."""
    return slopes_of(loss)(*args)


def far(came, wanted) -> list[float]:
    """The largest difference of each, in units of the largest entry."""
    return [float(np.abs(np.asarray(c, float) - w).max() / np.abs(w).max()) for c, w in zip(came, wanted, strict=True)]


def spread_of(came, wanted) -> np.ndarray:
    """The root mean square of each difference."""
    return np.array([np.sqrt(np.mean(np.square(np.asarray(c, float) - w))) for c, w in zip(came, wanted, strict=True)])


@pytest.mark.parametrize("batch", [7, 64, 300])
def test_it_is_the_objective_on_all_scores(rng: np.random.Generator, x64: None, batch: int) -> None:
    x, y, weight = (jnp.asarray(a, jnp.float32) for a in pairs(rng, batch))
    wide = [a.astype(jnp.float64) for a in (x, y, weight)]
    scale = float(jnp.float32(SCALE))
    plain = functools.partial(on_scores, info_nce_loss)
    truth = [np.asarray(a) for a in slopes(plain, *wide, scale)]
    # A score, and with it a loss, is rounded to an ulp of the largest score, a gradient to as many of the largest
    # embedding, and that in the scale, a sum of both signs, to as many of its terms.
    largest = float(jnp.abs(scale * x @ y.T).max())
    longest = scale * float(jnp.abs(weight).max()) * float(jnp.maximum(jnp.abs(x).max(), jnp.abs(y).max()))
    unit = largest * np.array([1, longest, longest, float(jnp.abs(weight).sum()) / scale])

    def ulps(came, dtype) -> np.ndarray:
        worst = [np.abs(np.asarray(c, float) - w).max() for c, w in zip(came, truth, strict=True)]
        return np.array(worst) / unit / np.finfo(dtype).eps

    assert ulps(slopes(in_batch_info_nce_loss, *wide, scale), np.float64).max() < 2
    came = slopes(in_batch_info_nce_loss, x, y, weight)
    assert ulps(came, np.float32).max() < 2
    if batch == 300:  # enough entries for a root mean square
        own = slopes(plain, x, y, weight)
        assert (spread_of(came[:3], truth[:3]) <= 1.5 * spread_of(own[:3], truth[:3])).all()


def test_the_bound_is_the_objectives_bound(rng: np.random.Generator, x64: None) -> None:
    x, y, weight = (jnp.asarray(a) for a in pairs(rng, 40))
    came = slopes(in_batch_info_nce_bound, x, y, weight)
    wanted = slopes(functools.partial(on_scores, info_nce_bound), x, y, weight)
    assert max(far(came, [np.asarray(w) for w in wanted])) < 1e-13
    assert (came[0] < np.log(40)).all() and (came[0] > 0).any()


def test_clip_looks_both_ways(rng: np.random.Generator, x64: None) -> None:
    x, y, weight = (jnp.asarray(a) for a in pairs(rng, 40))

    def both(x, y, scale):
        return (on_scores(info_nce_loss, x, y, scale) + on_scores(info_nce_loss, y, x, scale)) / 2

    came, wanted = (slopes(loss, x, y, weight) for loss in (in_batch_clip_loss, both))
    assert max(far(came, [np.asarray(w) for w in wanted])) < 1e-13
    one_way = in_batch_info_nce_loss(x, y, scale=SCALE)
    assert np.abs(came[0] - one_way).max() > 0.1


@pytest.mark.parametrize("size", [8, 45])
def test_both_directions_from_tiles_that_do_not_divide_the_batch(rng: np.random.Generator, x64: None, size) -> None:
    x, y, weight = pairs(rng, 45)
    where = rng.random(45) < 0.8
    weights = weight, rng.normal(size=45)

    def tiled(x, y, *, scale):
        return sum(w * n for w, n in zip(weights, both_ways(x, y, scale, where, size=size), strict=True))

    def plain(x, y, *, scale):
        scores = jnp.where(where[:, None] & where, scale * x @ y.T, -1e30)
        sums = [jax.nn.logsumexp(scores, axis=axis) - jnp.diagonal(scores) for axis in (1, 0)]
        return sum(jnp.where(where, w * n, 0) for w, n in zip(weights, sums, strict=True))

    came, wanted = (slopes(loss, x, y, np.ones(45)) for loss in (tiled, plain))
    assert max(far(came, [np.asarray(w) for w in wanted])) < 1e-13


@pytest.mark.parametrize("loss", [in_batch_info_nce_loss, in_batch_info_nce_bound, in_batch_clip_loss])
def test_a_masked_example_is_as_if_it_were_not_there(rng: np.random.Generator, loss, x64: None) -> None:
    x, y, weight = pairs(rng, 23)
    where = rng.random(23) < 0.6
    wanted = [np.asarray(w) for w in slopes(loss, x[where], y[where], weight[where])]
    masked = slopes_of(functools.partial(loss, where=where))
    for filler in (np.nan, np.inf, 1e30):
        values, dx, dy, d_scale = masked(*(np.where(where[:, None], a, filler) for a in (x, y)), weight)
        assert max(far((values[where], dx[where], dy[where], d_scale), wanted)) < 1e-13
        for came in (values, dx, dy):
            assert not came[~where].any()


def test_nothing_kept_and_one_kept_are_zero(rng: np.random.Generator) -> None:
    x, y, weight = (jnp.asarray(a, jnp.float32) for a in pairs(rng, 4))
    for kept in (jnp.zeros(4, bool), jnp.arange(4) == 2):
        for loss in (in_batch_info_nce_loss, in_batch_info_nce_bound, in_batch_clip_loss):
            for came in slopes(functools.partial(loss, where=kept), x, y, weight):
                np.testing.assert_array_equal(came, 0)


@pytest.mark.parametrize("loss", [in_batch_info_nce_loss, in_batch_clip_loss])
def test_half_precision_is_computed_in_float32(rng: np.random.Generator, loss) -> None:
    x, y, weight = (jnp.asarray(a, jnp.bfloat16) for a in pairs(rng, 20))
    came, *half = slopes(loss, x, y, weight)
    assert came.dtype == jnp.float32 and half[0].dtype == half[1].dtype == jnp.bfloat16
    wide, *whole = slopes(loss, *(a.astype(jnp.float32) for a in (x, y, weight)), jnp.asarray(SCALE, jnp.bfloat16))
    assert max(far([came], [np.asarray(wide)])) < 1e-6
    assert max(far(half, [np.asarray(w) for w in whole])) < 2.0**-8


@pytest.mark.parametrize("travel", LAYOUTS)
def test_eight_devices_agree_with_one(rng: np.random.Generator, x64: None, travel: str) -> None:
    batch = 45  # the last device has three examples and padding
    x, y, weight = (jnp.asarray(a) for a in pairs(rng, batch))
    where = jnp.asarray(rng.random(batch) < 0.8).at[:6].set(False)  # the first device has nothing to do
    alone = functools.partial(in_batch_info_nce_loss, where=where)
    spread = functools.partial(alone, layout=layout(travel))
    x, y, weight = (a.astype(jnp.float32).astype(jnp.float64) for a in (x, y, abs(weight)))
    wanted = [np.asarray(a) for a in slopes(alone, x, y, weight, np.float32(SCALE))]
    assert max(far(slopes(spread, x, y, weight, np.float32(SCALE)), wanted)) < 1e-13
    assert max(far(slopes(spread, *(a.astype(jnp.float32) for a in (x, y, weight))), wanted)) < 1e-6


def test_clip_over_a_ring(rng: np.random.Generator, x64: None) -> None:
    x, y, weight = (jnp.asarray(a) for a in pairs(rng, 32))
    spread = functools.partial(in_batch_clip_loss, layout=layout("ring"))
    wanted = [np.asarray(a) for a in slopes(in_batch_clip_loss, x, y, weight)]
    assert max(far(slopes(spread, x, y, weight), wanted)) < 1e-13


def compiled(batch: int, features: int, where: Layout | None):
    """Value and gradients in x, y and scale of the mean loss; nothing is run."""
    sharding = None if where is None else NamedSharding(where.mesh, P("data"))
    one = jax.ShapeDtypeStruct((batch, features), jnp.float32, sharding=sharding)

    def mean(x, y, scale):
        return jnp.mean(in_batch_info_nce_loss(x, y, scale=scale, layout=where))

    out = None if where is None else (None, (sharding, sharding, None))
    function = jax.jit(jax.value_and_grad(mean, (0, 1, 2)), **({} if out is None else {"out_shardings": out}))
    return function.lower(one, one, jax.ShapeDtypeStruct((), jnp.float32)).compile()


@pytest.mark.parametrize("travel", [None, *LAYOUTS])
def test_a_batch_of_65536_takes_no_more_than_a_few_tiles(travel: str | None) -> None:
    features = 16
    program = compiled(HUGE, features, None if travel is None else layout(travel))
    scores, embeddings = 4 * HUGE**2, 4 * HUGE * features
    tile = 8 << 20
    came = program.memory_analysis().temp_size_in_bytes
    assert came < 6 * tile + 4 * embeddings < scores / 200, came / 2**20


def test_a_ring_passes_parts_on_and_gathers_nothing() -> None:
    text = compiled(256, 16, layout("ring")).as_text()
    moved = re.findall(r"= f32\[([\d,]*)\]\S* collective-permute(?:-start)?\(", text)
    assert set(moved) == {"32,16"} and len(moved) >= 3  # y; and backwards y and its gradient
    assert "all-gather" not in text
    assert "all-gather" in compiled(256, 16, layout("gather")).as_text()


def test_wrong_input_is_named(rng: np.random.Generator) -> None:
    x, y, _ = (jnp.asarray(a, jnp.float32) for a in pairs(rng, 5))
    with pytest.raises(ValueError, match=r"`x` has shape \[5, 6\] and `y` \[4, 6\], but \[batch, features\]"):
        in_batch_info_nce_loss(x, y[:4])
    with pytest.raises(ValueError, match=r"`x` has shape \[0, 6\]"):
        in_batch_info_nce_loss(x[:0], y[:0])
    with pytest.raises(ValueError, match="`scale` is inf, but a finite number was wanted"):
        in_batch_info_nce_loss(x, y, scale=float("inf"))
    with pytest.raises(TypeError, match="`y` has dtype int32"):
        in_batch_clip_loss(x, y.astype(jnp.int32))
    with pytest.raises(ValueError, match=r"`where` has shape \[4\], but the examples have shape \[5\]"):
        in_batch_info_nce_bound(x, y, where=jnp.ones(4, bool))
