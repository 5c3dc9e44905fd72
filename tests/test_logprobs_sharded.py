"""Log-probabilities over eight devices are those of one; what crosses between devices is read from the program."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mi_align.logprobs import Layout, Tiles, token_logps, token_statistics

BATCH, TIME, FEATURES, VOCAB = 4, 6, 8, 50
TILES = Tiles(rows=4, tail=2, vocabulary=5)
#: Tiles of one size and no kept logits: the program that compiles soonest; as it runs once, LLVM need not optimise it.
QUICK = {"xla_backend_optimization_level": 0}
LEAN = {"tiles": Tiles(rows=4, tail=4, vocabulary=5), "memory_budget": 0}


def mesh(**axes: int) -> jax.sharding.Mesh:
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def three() -> jax.sharding.Mesh:
    return mesh(data=2, fsdp=2, tensor=2)


#: 50 entries divide over 2 devices, but not over 4 or 8.
LAYOUTS = {
    "tensor 8": lambda: Layout(mesh(tensor=8), (), P("tensor")),
    "data 2, tensor 4": lambda: Layout(mesh(data=2, tensor=4), ("data",), P("tensor")),
    "fsdp in features": lambda: Layout(three(), ("data", "fsdp"), P("tensor", "fsdp")),
    "fsdp in rows": lambda: Layout(three(), ("data", "fsdp"), P(("tensor", "fsdp"))),
    "fsdp in a ring": lambda: Layout(three(), ("data", "fsdp"), P(("tensor", "fsdp")), "ring"),
    "two axes of tensor": lambda: Layout(three(), ("data",), P(("fsdp", "tensor"))),
    "data 8": lambda: Layout(mesh(data=8), ("data",), P()),
}
#: One for each way in which a part of the vocabulary meets the tokens.
STAYS_GATHERS_OR_PASSES = ["data 2, tensor 4", "fsdp in features", "fsdp in a ring"]


def case(rng: np.random.Generator, vocab: int = VOCAB, batch: int = BATCH):
    """Hidden states, vocabulary, bias, scale; targets, mask and six weights a position."""
    hidden, vocabulary = rng.normal(size=(batch, TIME, FEATURES)), rng.normal(size=(vocab, FEATURES))
    targets, where = rng.integers(0, vocab, (batch, TIME)), rng.random((batch, TIME)) < 0.7
    where[0] = False  # among others, all that the first device has
    targets[2] = np.argmax(hidden[2] @ vocabulary.T, axis=-1)  # some hit
    weights = rng.normal(size=(5, batch, TIME))
    return (hidden, vocabulary, rng.normal(size=vocab), np.asarray(1.3)), (targets, where, weights)


def statistics(differentiated, given, **options):
    """All statistics, and the gradients in hidden, vocabulary, bias and scale of a weighted sum of them."""
    (targets, where, weights), options = given, LEAN | options

    def total(hidden, vocabulary, bias, scale):
        came = token_statistics(hidden, vocabulary, targets, where=where, bias=bias, logit_scale=scale, **options)
        return sum(jnp.sum(w * x) for w, x in zip(weights, came[:5], strict=True)), came

    slopes, came = jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True), compiler_options=QUICK)(*differentiated)
    return *came, *slopes


def logps(differentiated, given, argnums=(0, 1, 2), **options):
    """Log-probabilities, and gradients of a weighted sum of them."""
    (targets, where, weights), options = given, LEAN | options

    def total(hidden, vocabulary, bias):
        came = token_logps(hidden, vocabulary, targets, where=where, bias=bias, **options)
        return jnp.sum(weights[0].astype(came.dtype) * came), came

    slopes, came = jax.jit(jax.grad(total, argnums, has_aux=True), compiler_options=QUICK)(*differentiated[:3])
    return came, *slopes


def agree(came, wanted, rtol: float) -> None:
    """Equal to `rtol` of the largest entry of each."""
    for c, w in zip(came, wanted, strict=True):
        c, w = np.asarray(c, np.float64), np.asarray(w, np.float64)
        assert np.abs(w).max() > 0
        np.testing.assert_allclose(c, w, rtol=0, atol=rtol * np.abs(w).max())


@pytest.fixture(scope="module")
def alone():
    """What one device gives, once for all layouts."""
    inputs = case(np.random.default_rng(0))
    with jax.enable_x64(True):
        return inputs, statistics(*inputs, soft_cap=4.0)


@pytest.mark.parametrize(
    "name", [x if x in STAYS_GATHERS_OR_PASSES else pytest.param(x, marks=pytest.mark.slow) for x in LAYOUTS]
)
def test_statistics_and_their_gradients_are_those_of_one_device(name: str, alone, x64: None) -> None:
    inputs, wanted = alone
    agree(statistics(*inputs, soft_cap=4.0, layout=LAYOUTS[name]()), wanted, 1e-13)


@pytest.mark.parametrize("name", STAYS_GATHERS_OR_PASSES)
def test_in_float32_they_agree_to_a_millionth(name: str, rng: np.random.Generator) -> None:
    inputs, (targets, where, weights) = case(rng)
    inputs = [jnp.asarray(x, jnp.float32) for x in inputs]
    given = targets, where, abs(weights).astype(np.float32)
    layout = LAYOUTS[name]()
    agree(logps(inputs, given, layout=layout), logps(inputs, given), 1e-6)


@pytest.mark.parametrize("name", ["data 2, tensor 4", "fsdp in a ring"])
def test_a_frozen_head_gives_the_same_hidden_gradient(name: str, rng: np.random.Generator, x64: None) -> None:
    options = {"soft_cap": 3.0, "temperature": 0.7}
    came = [logps(*case(rng), (0,), layout=layout, **options) for rng, layout in twice(rng, LAYOUTS[name]())]
    agree(*came, 1e-13)


def twice(rng: np.random.Generator, layout: Layout):
    """The same random numbers for a layout and for one device."""
    seed = int(rng.integers(2**31))
    return [(np.random.default_rng(seed), layout), (np.random.default_rng(seed), None)]


def test_kept_logits_and_filters_work_inside_a_shard(rng: np.random.Generator, x64: None) -> None:
    inputs, layout = case(rng), LAYOUTS["data 2, tensor 4"]()
    options = {"tiles": TILES, "memory_budget": 8 * 12 * 10, "filter_eps": 1e-17}  # two of three tiles of 12 positions
    agree(logps(*inputs, layout=layout, **options), logps(*inputs), 1e-13)


def test_a_vocabulary_smaller_than_the_mesh_leaves_devices_without_entries(rng: np.random.Generator, x64: None) -> None:
    inputs = case(rng, vocab=3)
    agree(logps(*inputs, layout=LAYOUTS["tensor 8"]()), logps(*inputs), 1e-13)


def test_positions_need_not_divide(rng: np.random.Generator, x64: None) -> None:
    inputs = case(rng, batch=3)
    agree(logps(*inputs, layout=LAYOUTS["data 8"]()), logps(*inputs), 1e-13)


@pytest.mark.parametrize("name", ["tensor 8", "fsdp in a ring"])
def test_a_shard_whose_entries_are_all_removed_says_nothing(name: str, rng: np.random.Generator, x64: None) -> None:
    (hidden, vocabulary, bias, _), (targets, where, weights) = case(rng, vocab=48)
    bias[12:18] = -np.inf  # the third of eight
    bias[24:36] = -np.inf  # the third of four
    targets = np.where(np.isinf(bias)[targets], 1, targets)
    inputs = (hidden, vocabulary, bias), (targets, where, weights)
    lean = LEAN | {"tiles": Tiles(rows=4, tail=4, vocabulary=3)}  # divides a shard: no entry is seen twice
    both = lean | {"layout": LAYOUTS[name]()}, lean
    argnums = (0,) if name == "tensor 8" else (0, 1, 2)  # a frozen head keeps its forward pass's mean
    came, wanted = (logps(*inputs, argnums, **options) for options in both)
    agree(came, wanted, 1e-13)

    def spread(options):
        came = token_statistics(hidden, vocabulary, targets, bias=bias, **options)
        return came.entropy, came.sum_squares

    agree(*(jax.jit(functools.partial(spread, o), compiler_options=QUICK)() for o in both), 1e-13)


@pytest.mark.parametrize("name", ["tensor 8", "fsdp in a ring"])
def test_of_several_largest_logits_the_first_counts_over_all_shards(name: str, rng: np.random.Generator) -> None:
    hidden = jnp.ones((4, 2, 3))
    vocabulary = jnp.zeros((16, 3)).at[jnp.array([5, 9, 14])].set(1.0)
    targets = jnp.array([[5, 9], [14, 0], [5, 5], [9, 9]])
    hit = token_statistics(hidden, vocabulary, targets, layout=LAYOUTS[name]()).hit
    np.testing.assert_array_equal(hit, targets == 5)


def test_bfloat16_is_accumulated_in_float32_across_devices_too(rng: np.random.Generator) -> None:
    inputs, given = case(rng)
    half = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    came, *slopes = logps(half, given, layout=LAYOUTS["fsdp in features"]())
    assert came.dtype == jnp.float32 and {x.dtype for x in slopes} == {jnp.dtype(jnp.bfloat16)}
    wanted, *wanted_slopes = logps([x.astype(jnp.float32) for x in half], given)
    agree([came], [wanted], 1e-6)
    agree(slopes, wanted_slopes, 2 * 2.0**-8)  # rounded in a device's part of the sum, and once more in the whole


def test_under_jit_a_target_outside_the_vocabulary_gives_nan_and_only_there(rng: np.random.Generator) -> None:
    (hidden, vocabulary, *_), (targets, *_) = case(rng)
    for outside in (-1, VOCAB):
        targets[2, 3] = outside
        came = jax.jit(functools.partial(token_logps, layout=LAYOUTS["data 2, tensor 4"]()))(
            hidden, vocabulary, targets
        )
        assert np.argwhere(np.isnan(came)).tolist() == [[2, 3]]


COLLECTIVES = "all-gather|all-reduce|reduce-scatter|collective-permute|all-to-all"


def moved(layout: Layout, batch: int, vocab: int, features: int) -> dict[str, set[str]]:
    """Shapes of what crosses between devices, by how, in a program of value and gradients whose arrays are spread."""
    tokens, rows = P(layout.tokens or None), P(layout.rows or None)
    specs = (tokens, layout.head, rows, tokens, tokens)
    shapes = [(batch, 3, features), (vocab, features), (vocab,), (batch, 3), (batch, 3)]
    dtypes = [jnp.float32, jnp.float32, jnp.float32, jnp.int32, jnp.bool_]
    sharding = [NamedSharding(layout.mesh, spec) for spec in specs]
    args = [jax.ShapeDtypeStruct(*x[:2], sharding=x[2]) for x in zip(shapes, dtypes, sharding, strict=True)]

    def loss(hidden, vocabulary, bias, targets, where):
        return token_logps(hidden, vocabulary, targets, where=where, bias=bias, layout=layout).sum()

    slopes = jax.jit(
        jax.value_and_grad(loss, (0, 1, 2)), out_shardings=(None, tuple(sharding[:3])), compiler_options=QUICK
    )
    found: dict[str, set[str]] = {}
    for line in slopes.lower(*args).compile().as_text().splitlines():
        if match := re.search(rf" = (.*?) ({COLLECTIVES})(?:-start)?\(", line):
            found.setdefault(match[2], set()).update(re.findall(r"\w+\[[\d,]*\]", match[1]))
    return found


def test_a_vocabulary_over_tensor_is_never_gathered() -> None:
    for name in ("data 2, tensor 4", "two axes of tensor"):
        layout = LAYOUTS[name]()
        came = moved(layout, 16, 1000, 24)
        assert came.keys() == {"all-reduce"}, came
        positions, entries = 48 // layout.size(layout.tokens), 1000 // layout.size(layout.rows)
        numbers = {f"f32[{positions}]", f"f32[1,{positions}]", f"f32[{positions},24]", "f32[]"}
        gradients = {f"f32[{entries},24]", f"f32[{entries}]"}  # summed over data
        assert came["all-reduce"] <= numbers | gradients, came


def test_of_a_head_over_tensor_and_fsdp_only_the_tensor_shard_is_gathered() -> None:
    came = moved(LAYOUTS["fsdp in features"](), 16, 1000, 24)
    assert came["all-gather"] == {"f32[500,24]"}
    assert came["reduce-scatter"] == {"f32[500,12]"}
    came = moved(LAYOUTS["fsdp in rows"](), 16, 1000, 24)
    assert came["all-gather"] == {"f32[500,24]", "f32[500]"}
    assert came["reduce-scatter"] == {"f32[250,24]", "f32[250]"}


def test_a_ring_gathers_nothing() -> None:
    came = moved(LAYOUTS["fsdp in a ring"](), 16, 1000, 24)
    assert came.keys() == {"all-reduce", "collective-permute"}
    assert came["collective-permute"] == {"f32[250,24]", "f32[250]"}


def test_a_layout_that_cannot_be_is_refused() -> None:
    m = three()
    with pytest.raises(
        ValueError, match=r"`head` names \['model'\], but the mesh has the axes \['data', 'fsdp', 'tens"
    ):
        Layout(m, ("data",), P("model"))
    with pytest.raises(ValueError, match=r"`tokens` names an axis twice"):
        Layout(m, ("data", "data"), P("tensor"))
    with pytest.raises(ValueError, match=r"`head` names an axis twice"):
        Layout(m, ("data", "fsdp"), P("fsdp", "fsdp"))
    with pytest.raises(ValueError, match=r"features over \('tensor',\), but tokens over \('data',\)"):
        Layout(m, ("data",), P(None, "tensor"))
    with pytest.raises(ValueError, match=r"those that stay were wanted first, P\(\('tensor', 'fsdp'\)\)"):
        Layout(m, ("fsdp",), P(("fsdp", "tensor")))
    with pytest.raises(ValueError, match=r"`travel` is 'ring' and `head`"):
        Layout(m, ("data", "fsdp"), P("tensor", "fsdp"), "ring")
    with pytest.raises(ValueError, match=r"`travel` is 'walk', but one of 'gather', 'ring'"):
        Layout(m, ("data",), P("tensor"), "walk")
    with pytest.raises(ValueError, match=r"two entries at most"):
        Layout(m, ("data",), P("tensor", None, "data"))
    explicit = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    with pytest.raises(ValueError, match=r"are of type Explicit, but Auto was wanted"):
        Layout(explicit, ("data",), P())
    with pytest.raises(ValueError, match=r"\[50, 3\], whose features do not divide over 2 devices of \('fsdp',\)"):
        token_logps(
            jnp.ones((4, 3)), jnp.ones((50, 3)), jnp.zeros(4, int), layout=Layout(m, ("fsdp",), P(None, "fsdp"))
        )


@pytest.mark.parametrize("name", STAYS_GATHERS_OR_PASSES)
def test_a_frozen_and_a_trained_head_in_one_program_keep_their_gradients_apart(
    name: str, rng: np.random.Generator, x64: None
) -> None:
    (hidden, vocabulary, *_), (targets, where, weights) = case(rng)

    def total(hidden, vocabulary, layout):
        one = token_logps(hidden, vocabulary, targets, where=where, layout=layout, **LEAN)
        other = token_logps(hidden, jax.lax.stop_gradient(vocabulary), targets, where=where, layout=layout, **LEAN)
        return jnp.sum(weights[0] * one + weights[1] * other)

    slopes = jax.jit(jax.grad(total, (0, 1)), static_argnums=2, compiler_options=QUICK)
    agree(slopes(hidden, vocabulary, LAYOUTS[name]()), slopes(hidden, vocabulary, None), 1e-13)
