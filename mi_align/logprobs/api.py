"""Token log-probabilities and statistics of the next token's distribution, by whichever way suits the platform."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from mi_align import checks
from mi_align.logprobs import joined, reference, sharded
from mi_align.logprobs.contract import Plan, Problem, RowSums
from mi_align.logprobs.joined import Inputs
from mi_align.logprobs.layout import Layout
from mi_align.logprobs.pallas_ways import PALLAS_WAYS
from mi_align.logprobs.tiles import Tiles, choose, kept_tiles, tile_bytes
from mi_align.logprobs.ways import REFERENCE, WAYS, chosen
from mi_align.numerics import accumulation_dtype, fill

__all__ = ["TokenStatistics", "token_logps", "token_statistics"]

Scalar = float | Float[Array, ""]


class TokenStatistics(NamedTuple):
    """What one pass over the vocabulary tells of each position, `[..., time]`; 0 (False) under the mask.

    Attributes:
      logp: log-probability of the target, nats, ≤ 0.
      log_normaliser: log Σ_j e^{z_j}: squared, the z-loss.
      entropy: −Σ_j p_j log p_j, nats.
      mean_logit: Σ_j z_j / V.
      sum_squares: Σ_j p_j², the chance that two draws agree (WPO's alignment weight).
      hit: whether the target has the largest logit; of several largest, the first counts. Not differentiable.
    """

    logp: Float[Array, "*batch time"]
    log_normaliser: Float[Array, "*batch time"]
    entropy: Float[Array, "*batch time"]
    mean_logit: Float[Array, "*batch time"]
    sum_squares: Float[Array, "*batch time"]
    hit: Bool[Array, "*batch time"]


def token_logps(
    hidden: Float[Array, "*batch time features"],
    vocabulary: Float[Array, "vocab features"],
    targets: Int[Array, "*batch time"],
    *,
    where: Bool[Array, "*batch time"] | None = None,
    bias: Float[Array, " vocab"] | None = None,
    soft_cap: Scalar | None = None,
    temperature: Scalar = 1.0,
    logit_scale: Scalar = 1.0,
    implementation: str = "auto",
    memory_budget: int | None = None,
    filter_eps: float | None = None,
    tiles: Tiles | None = None,
    layout: Layout | None = None,
) -> Float[Array, "*batch time"]:
    """log π(target | everything before it) of each position, in nats, from a decoder's last hidden states.

    ℓ_t = z_{y_t} − log Σ_j exp z_j,  z_j = c·tanh((s·h_t·v_j + b_j) / c) / τ  (without a cap: (s·h_t·v_j + b_j) / τ)

    The caller aligns: `hidden[t]` is the state that *predicts* `targets[t]`, so a sequence is scored by
    `token_logps(hidden[..., :-1, :], vocabulary, tokens[..., 1:])`.

    The `[..., time, vocab]` logits are never held: they are made tile by tile, and again in the backward pass.
    Positions under the mask cost nothing, under `jit` too. Gradients that nobody asks for cost nothing: where
    the vocabulary matrix and the bias are constants (a frozen head), forward and backward together cost half as much.
    The derivative is written by hand for one backward pass; `implementation="reference"` has every derivative.

    Args:
      hidden: last hidden states, `[..., time, features]`.
      vocabulary: one row a token, `[vocab, features]`: the embedding table where the head is tied to it.
      targets: token ids in [0, vocab), `[..., time]`.
      where: which positions to score, `[..., time]`, True = keep. Default: all.
      bias: added to the logits, `[vocab]`; −inf removes an entry, such as padding of the vocabulary, except under a
        `soft_cap`, which makes it −`soft_cap`. Default: none.
      soft_cap: c > 0 of z = c·tanh(u / c), as in Gemma 2 (30). Default: none.
      temperature: τ > 0. Default 1.
      logit_scale: s. Default 1; Cohere's models and muP have others.
      implementation: the way: "auto" (the platform's), "chunked" (XLA), "reference" (plain, with all logits), or
        "pallas_gpu" and "pallas_tpu": kernels in float32 and half precision whose tiles never leave the chip (forward
        passes of `token_statistics` and of frozen heads are "chunked"'s); on other platforms they are interpreted,
        which is slow. "auto" takes "pallas_gpu" on an NVIDIA GPU from Ampere on, in half precision, where none of the
        next three options is given and the logits are more than one tile; everywhere else "chunked". Under `vmap` over
        different masks its backward pass costs several times as much: give the masks' axis as one of the batch.
        "pallas_tpu" was compiled for v5e, v5p and v6e and timed on none.
      memory_budget: bytes of logits that may be kept from the forward to the backward pass, instead of making them
        again; as many tiles as fit are. Default: `tiles.TILE_BYTES`, which is as much as one tile needs anyway.
      filter_eps: in the backward pass, skip tiles in which every probability is below it and no target lies (gradient
        filtering of Cut Cross-Entropy). ∂loss/∂z then lacks entries below `filter_eps` · |cotangent|. Default: none.
      tiles: sizes of a tile. Default: `tiles.choose`.
      layout: how positions and the vocabulary matrix are spread over a mesh of devices; `tiles` and `memory_budget` are
        then those of one device. The plain way does not look at it and leaves all to XLA. Default: one device.

    Returns:
      `[..., time]`, ≤ 0; exactly 0 with zero gradient under the mask, whatever `hidden` and `targets` hold there.
      Half precision is accumulated in, and comes back as, float32; float64 is kept.

    Raises:
      ValueError: shapes disagree, a hyper-parameter is out of range, or a kept target is outside the vocabulary. Under
        `jit` a target has no value to look at: a kept one outside the vocabulary gives NaN.
      TypeError: a floating-point array, integer targets or a boolean mask was wanted.

    Gradient: ∂ℓ_t/∂z = onehot(y_t) − softmax(z); also in `logit_scale` and `temperature`, where there is no cap.

    Source: online normaliser, Milakov & Gimelshein 2018 (arXiv 1805.02867); recomputation and filtering, Wijmans et al.
    2024 (Cut Cross-Entropy, arXiv 2411.09009).

    >>> import jax.numpy as jnp
    >>> hidden, vocabulary = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.eye(3, 2)
    >>> token_logps(hidden, vocabulary, jnp.array([0, 2])).round(4)
    Array([-0.5514, -2.2395], dtype=float32)
    """
    _check(hidden, vocabulary, targets, where, bias)
    folded = _folded(hidden, vocabulary, bias, soft_cap, temperature, logit_scale)
    way, plan = _planned(hidden, vocabulary, where, implementation, memory_budget, filter_eps, tiles, layout)
    return _logps(hidden, vocabulary, targets, where, *folded, way=way, plan=plan, layout=layout)


def token_statistics(
    hidden: Float[Array, "*batch time features"],
    vocabulary: Float[Array, "vocab features"],
    targets: Int[Array, "*batch time"],
    *,
    where: Bool[Array, "*batch time"] | None = None,
    bias: Float[Array, " vocab"] | None = None,
    soft_cap: Scalar | None = None,
    temperature: Scalar = 1.0,
    logit_scale: Scalar = 1.0,
    implementation: str = "auto",
    memory_budget: int | None = None,
    filter_eps: float | None = None,
    tiles: Tiles | None = None,
    layout: Layout | None = None,
) -> TokenStatistics:
    """`token_logps`, and from the same pass what else is asked of the next token's distribution.

    Args, shapes and errors are those of `token_logps`.

    Returns:
      `TokenStatistics`; under `jit`, those of its fields that are not used cost nothing.

    Gradient: with p = softmax(z), ∂logp/∂z_j = 1[j = y] − p_j, ∂log_normaliser/∂z_j = p_j, ∂mean_logit/∂z_j = 1/V,
      ∂entropy/∂z_j = −p_j (log p_j + entropy), ∂sum_squares/∂z_j = 2 p_j (p_j − sum_squares).

    Source: Σ p² weighs the tokens of WPO, Zhou et al. 2024 (arXiv 2406.11827).

    >>> import jax.numpy as jnp
    >>> hidden, vocabulary = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.eye(3, 2)
    >>> came = token_statistics(hidden, vocabulary, jnp.array([0, 2]))
    >>> came.entropy.round(4), came.hit
    (Array([0.9753, 0.6656], dtype=float32), Array([ True, False], dtype=bool))
    """
    _check(hidden, vocabulary, targets, where, bias)
    folded = _folded(hidden, vocabulary, bias, soft_cap, temperature, logit_scale)
    way, plan = _planned(hidden, vocabulary, where, implementation, memory_budget, filter_eps, tiles, layout)
    plan = dataclasses.replace(plan, statistics=True)
    return _statistics(hidden, vocabulary, targets, where, *folded, way=way, plan=plan, layout=layout)


def _suits_a_kernel(hidden: Array, vocabulary: Array, *options: Any) -> bool:
    """Whether "auto" may be a Pallas kernel: half precision, none of the options, more logits than one tile has."""
    half = jnp.dtype(hidden.dtype).itemsize == jnp.dtype(vocabulary.dtype).itemsize == 2
    logits = 4 * jnp.size(hidden) // max(1, jnp.shape(hidden)[-1]) * jnp.shape(vocabulary)[0]
    return half and all(option is None for option in options) and logits > tile_bytes()


@functools.partial(jax.jit, static_argnames=("way", "plan", "layout"))
def _logps(
    hidden: Array,
    vocabulary: Array,
    targets: Array,
    where: Array | None,
    bias: Array | None,
    scale: Array | None,
    soft_cap: Array | None,
    *,
    way: str,
    plan: Plan,
    layout: Layout | None,
) -> Array:
    inside, sums = _rows(hidden, vocabulary, targets, where, bias, scale, soft_cap, way, plan, layout)
    return _finished(_logp(sums), inside, where, jnp.shape(targets))


@functools.partial(jax.jit, static_argnames=("way", "plan", "layout"))
def _statistics(
    hidden: Array,
    vocabulary: Array,
    targets: Array,
    where: Array | None,
    bias: Array | None,
    scale: Array | None,
    soft_cap: Array | None,
    *,
    way: str,
    plan: Plan,
    layout: Layout | None,
) -> TokenStatistics:
    inside, sums = _rows(hidden, vocabulary, targets, where, bias, scale, soft_cap, way, plan, layout)
    gap, squares, mean, best = sums.gap, sums.sum_squares, sums.mean_logit, sums.argmax
    assert gap is not None and squares is not None and mean is not None and best is not None
    shape = jnp.shape(targets)
    hit = (best == targets.reshape(-1)) & inside
    return TokenStatistics(
        logp=_finished(_logp(sums), inside, where, shape),
        log_normaliser=_finished(sums.top + sums.log_mass, None, where, shape),
        entropy=_finished(sums.log_mass - gap, None, where, shape),
        mean_logit=_finished(mean, None, where, shape),
        sum_squares=_finished(squares, None, where, shape),
        hit=hit.reshape(shape) if where is None else hit.reshape(shape) & where,
    )


def _rows(
    hidden: Array,
    vocabulary: Array,
    targets: Array,
    where: Array | None,
    bias: Array | None,
    scale: Array | None,
    soft_cap: Array | None,
    way: str,
    plan: Plan,
    layout: Layout | None,
) -> tuple[Array, RowSums]:
    """Which targets are in the vocabulary, and the row sums; all positions on one axis."""
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    where = None if where is None else where.reshape(-1)
    inside = (targets >= 0) & (targets < vocabulary.shape[0])
    targets = jnp.where(inside, targets, 0)
    if way == REFERENCE:
        problem = Problem(hidden, vocabulary, targets, bias, scale, soft_cap)
        return inside, reference.row_sums(problem, where, statistics=plan.statistics)
    inputs = Inputs(hidden, vocabulary, targets, bias, scale, soft_cap, where)
    if layout is None:
        return inside, joined.row_sums(WAYS[way], plan, inputs)
    return inside, sharded.row_sums(layout, WAYS[way], plan, inputs)


def _logp(sums: RowSums) -> Array:
    """log p of the target. The normaliser is not added up first: where logits are large it would lose these digits."""
    return (sums.target_logit - sums.top) - sums.log_mass


def _finished(values: Array, inside: Array | None, where: Array | None, shape: tuple[int, ...]) -> Array:
    values = fill(values, inside, jnp.nan).reshape(shape)
    return fill(values, where, 0)


def _folded(
    hidden: Array,
    vocabulary: Array,
    bias: Array | None,
    soft_cap: Scalar | None,
    temperature: Scalar,
    logit_scale: Scalar,
) -> tuple[Array | None, Array | None, Array | None]:
    """Bias, scale and cap that have the temperature in them: c·tanh(u/c)/τ = (c/τ)·tanh((u/τ)/(c/τ)). None for none."""
    checks.number("temperature", temperature)
    checks.number("logit_scale", logit_scale, checks.Range(remedy="It multiplies h·v."))
    if soft_cap is not None:
        checks.number("soft_cap", soft_cap, checks.Range(above=0, remedy="Pass None for no cap."))
    dtype = accumulation_dtype(hidden, vocabulary)
    cap = None if soft_cap is None else jnp.asarray(soft_cap, dtype)
    if _is_one(temperature):
        return bias, None if _is_one(logit_scale) else jnp.asarray(logit_scale, dtype), cap
    divisor = jnp.asarray(temperature, dtype)
    bias = None if bias is None else jnp.asarray(bias, dtype) / divisor
    return bias, jnp.asarray(logit_scale, dtype) / divisor, None if cap is None else cap / divisor


def _is_one(x: Scalar) -> bool:
    return isinstance(x, int | float) and x == 1


def _planned(
    hidden: Array,
    vocabulary: Array,
    where: Array | None,
    implementation: str,
    memory_budget: int | None,
    filter_eps: float | None,
    given: Tiles | None,
    layout: Layout | None,
) -> tuple[str, Plan]:
    """The name of a way, and everything static, from shapes alone."""
    if memory_budget is not None:
        checks.number("memory_budget", memory_budget, checks.Range(at_least=0, remedy="It is in bytes."))
    if filter_eps is not None:
        checks.number("filter_eps", filter_eps, checks.Range(above=0, below=1, remedy="Pass None to skip nothing."))
    name = chosen(implementation, suits=_suits_a_kernel(hidden, vocabulary, memory_budget, filter_eps, given))
    if name == REFERENCE or not jnp.size(hidden):  # no tiles go over no positions
        return REFERENCE, Plan(Tiles(1, 1, 1))
    if name in PALLAS_WAYS:
        _check_for_kernels(name, hidden, vocabulary, memory_budget=memory_budget, filter_eps=filter_eps, tiles=given)
    rows, vocab = max(1, jnp.size(hidden) // max(1, jnp.shape(hidden)[-1])), jnp.shape(vocabulary)[0]
    rows, vocab = (rows, vocab) if layout is None else layout.share(rows, vocab)
    dtype = accumulation_dtype(hidden, vocabulary)
    sizes = choose(rows, vocab, dtype, masked=where is not None) if given is None else given
    sizes = Tiles(sizes.rows, sizes.tail, min(sizes.vocabulary, vocab))
    budget = tile_bytes() if memory_budget is None else memory_budget
    padded = -(-rows // sizes.tail) * sizes.tail
    return name, Plan(sizes, False, kept_tiles(budget, padded, vocab, sizes, dtype), filter_eps)


def _check_for_kernels(name: str, hidden: Array, vocabulary: Array, **options: Any) -> None:
    """A Pallas kernel refuses what it would not heed."""
    for option, value in options.items():
        if value is not None:
            raise ValueError(
                f"`{option}` is given beside {name!r}, which has no use for it. Pass 'chunked', or drop it."
            )
    if accumulation_dtype(hidden, vocabulary) != jnp.float32:
        raise TypeError(f"{name!r} computes in float32, but float64 was given. Pass 'chunked', or float32.")


def _check(hidden: Any, vocabulary: Any, targets: Any, where: Any, bias: Any) -> None:
    checks.floating(hidden=hidden, vocabulary=vocabulary)
    checks.integers(targets=targets)
    shapes = jnp.shape(hidden), jnp.shape(vocabulary)
    if len(shapes[1]) != 2 or shapes[0][-1:] != shapes[1][1:] or 0 in shapes[1]:
        raise ValueError(
            f"`hidden` has shape {list(shapes[0])} and `vocabulary` {list(shapes[1])}, but [..., time, features] and "
            "[vocab, features] were wanted, with at least one token and feature: one row a token (a linear layer's "
            "kernel, transposed)."
        )
    if jnp.shape(targets) != jnp.shape(hidden)[:-1]:
        raise ValueError(
            f"`targets` has shape {list(jnp.shape(targets))}, but `hidden` {list(jnp.shape(hidden))}: one id a "
            f"position was wanted, {list(jnp.shape(hidden)[:-1])}."
        )
    checks.mask(where, targets, of="`targets`")
    if bias is not None:
        checks.floating(bias=bias)
        if jnp.shape(bias) != jnp.shape(vocabulary)[:1]:
            raise ValueError(
                f"`bias` has shape {list(jnp.shape(bias))} and `vocabulary` {list(jnp.shape(vocabulary))}, but "
                f"{list(jnp.shape(vocabulary)[:1])} was wanted: one number a token."
            )
    _check_ids(targets, where, jnp.shape(vocabulary)[0])


def _check_ids(targets: Any, where: Any, vocab: int) -> None:
    """An id has a value to look at only outside `jit`, or inside it where it is a constant of the program."""
    if isinstance(targets, jax.core.Tracer) or isinstance(where, jax.core.Tracer):
        return
    ids = np.asarray(targets)  # NumPy's, as under `jit` JAX traces operations on constants too
    outside = (ids < 0) | (ids >= vocab)
    outside = outside if where is None else outside & np.asarray(where)
    if outside.any():
        first = int(ids[outside][0])
        raise ValueError(
            f"`targets` holds {first}, but the vocabulary has {vocab} rows: ids from 0 to {vocab - 1} were wanted. "
            "Mask positions without a target with `where`."
        )
