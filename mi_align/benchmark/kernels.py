"""The ways of making token log-probabilities that are timed: the library's own, what one would write, and a user's."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from mi_align import checks
from mi_align.logprobs import token_logps
from mi_align.logprobs.cases import Case
from mi_align.logprobs.ways import CHOICE, REFERENCE, WAYS
from mi_align.plugins import line_in, load_module

__all__ = ["Kernel", "Logps", "at_target", "chosen_kernels", "kernels", "load_kernel", "logits", "plain"]

#: (hidden `[*positions, D]`, vocabulary `[V, D]`, targets `[*positions]`, where, soft cap) -> logps `[*positions]`.
Logps = Callable[[Array, Array, Array, Array | None, float | None], Array]

_ROWS = 256  # of the tiles that `checkpointed` goes through


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One row of the table.

    Attributes:
      name: of the row.
      logps: the function that is timed.
      frozen: whether the vocabulary matrix is a constant, and only the hidden states have a gradient.
      half: whether half of the positions are masked.
      soft_cap: whether it can cap the logits.
      losses: whether whole preference losses are timed on it too.
      gradient_only: whether its forward pass alone is another row's.
      recomputes: whether its backward pass makes the logits again, if they are many.
      description: a line for `--help` and the page.
    """

    name: str
    logps: Logps
    frozen: bool = False
    half: bool = False
    soft_cap: bool = True
    losses: bool = False
    gradient_only: bool = False
    recomputes: bool = False
    description: str = ""


def logits(hidden: Array, vocabulary: Array, soft_cap: float | None) -> Array:
    """All logits, in the dtype of the inputs; float32 products are exact on every platform, as the library's are."""
    z = jnp.einsum("...d,vd->...v", hidden, vocabulary, precision=jax.lax.Precision.HIGHEST)
    return z if soft_cap is None else soft_cap * jnp.tanh(z / soft_cap)


def plain(hidden: Array, vocabulary: Array, targets: Array, where: Any = None, soft_cap: float | None = None) -> Array:
    """Three lines of JAX, all logits at once: what one would write, and what errors are measured by."""
    return at_target(logits(hidden, vocabulary, soft_cap), targets)


def at_target(z: Array, targets: Array) -> Array:
    """The log-softmax of logits `[*positions, V]` at the targets, in float32 or wider."""
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return jnp.take_along_axis(jax.nn.log_softmax(z), targets[..., None], -1)[..., 0]


def checkpointed(
    hidden: Array, vocabulary: Array, targets: Array, where: Any = None, soft_cap: float | None = None
) -> Array:
    """The plain way on 256 positions at a time, each made again in the backward pass."""
    rows, count = hidden.reshape(-1, hidden.shape[-1]), targets.size
    tile = min(_ROWS, count)
    missing = -count % tile
    rows = jnp.pad(rows, ((0, missing), (0, 0))).reshape(-1, tile, rows.shape[-1])
    ids = jnp.pad(targets.reshape(-1), (0, missing)).reshape(-1, tile)
    one = jax.checkpoint(lambda tile: plain(tile[0], vocabulary, tile[1], soft_cap=soft_cap))
    return jax.lax.map(one, (rows, ids)).reshape(-1)[:count].reshape(targets.shape)


def by_optax(
    hidden: Array, vocabulary: Array, targets: Array, where: Any = None, soft_cap: float | None = None
) -> Array:
    """Optax's cross-entropy on all logits."""
    import optax

    z = logits(hidden, vocabulary, soft_cap)
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return -optax.softmax_cross_entropy_with_integer_labels(z, targets)


def _ours(**options: Any) -> Logps:
    def logps(hidden: Array, vocabulary: Array, targets: Array, where: Any = None, soft_cap: Any = None) -> Array:
        return token_logps(hidden, vocabulary, targets, where=where, soft_cap=soft_cap, **options)

    return logps


def _with_all_logits_kept(
    hidden: Array, vocabulary: Array, targets: Array, where: Any = None, soft_cap: float | None = None
) -> Array:
    width = jnp.promote_types(hidden.dtype, jnp.float32).itemsize
    budget = 2 * targets.size * vocabulary.shape[0] * width  # twice, for tiles that do not divide
    return token_logps(hidden, vocabulary, targets, where=where, soft_cap=soft_cap, memory_budget=budget)


_VARIANTS = (
    Kernel(
        "memory_budget",
        _with_all_logits_kept,
        gradient_only=True,
        description="token_logps that may keep all logits",
    ),
    Kernel(
        "frozen_head",
        _ours(),
        frozen=True,
        gradient_only=True,
        description="token_logps, gradient in the hidden states only",
    ),
    Kernel("half_masked", _ours(), half=True, recomputes=True, description="token_logps, half of the positions masked"),
    Kernel("plain", plain, losses=True, description="plain JAX: all logits, log_softmax, the target's entry"),
    Kernel(
        "plain_frozen",
        plain,
        frozen=True,
        gradient_only=True,
        description="plain JAX, gradient in the hidden states only",
    ),
    Kernel(
        "checkpoint",
        checkpointed,
        recomputes=True,
        description="plain JAX under lax.map and jax.checkpoint, 256 positions a tile",
    ),
    Kernel("optax", by_optax, description="optax.softmax_cross_entropy_with_integer_labels on all logits"),
)


def _of_platform(way: str, platform: str) -> bool:
    """Whether a way can run here: `pallas_gpu` wants a GPU."""
    return all(way.removesuffix(f"_{other}") == way or other == platform for other in ("cpu", "gpu", "tpu"))


def kernels(platform: str | None = None) -> dict[str, Kernel]:
    """Every kernel of a platform, by default the one where JAX computes; whole losses run on the platform's choice."""
    here = jax.default_backend() if platform is None else platform
    ways = [
        Kernel(
            way,
            _ours(implementation=way),
            losses=way == CHOICE.get(here),
            recomputes=way != REFERENCE,
            description=f'token_logps(implementation="{way}")',
        )
        for way in (*WAYS, REFERENCE)
        if _of_platform(way, here)
    ]
    return {kernel.name: kernel for kernel in (*ways, *_VARIANTS)}


def chosen_kernels(names: str) -> tuple[Kernel, ...]:
    """Those of comma-separated names; all for the empty string."""
    known = kernels()
    wanted = [name.strip() for name in names.split(",") if name.strip()] or list(known)
    for name in wanted:
        if name not in known:
            raise checks.unknown_name("implementation", name, known)
    return tuple(known[name] for name in wanted)


def load_kernel(spec: str, case: Case, dtype: str) -> Kernel:
    """A user's `fn(hidden, vocabulary, targets) -> logps`, from `"file.py:fn"`, traced once at a case's sizes.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it does not run, has no such function, or that function takes or gives something else.
    """
    text, _, name = spec.rpartition(":")
    if not text or not name:
        raise ValueError(f"`kernel` is {spec!r}, but a file and a function were wanted, such as my_kernel.py:my_logps.")
    path = Path(text)
    module = load_module(path, "a kernel")
    function = getattr(module, name, None)
    if not callable(function):
        there = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        raise ValueError(f"{path} has no function `{name}`; it has: {', '.join(there) or 'none'}.")
    _check(function, path, case, dtype)

    def logps(hidden: Array, vocabulary: Array, targets: Array, where: Any = None, soft_cap: Any = None) -> Array:
        rows = function(hidden.reshape(-1, hidden.shape[-1]), vocabulary, targets.reshape(-1))
        return rows.reshape(targets.shape)

    return Kernel(f"{path.name}:{name}", logps, soft_cap=False, losses=True, description="your own")


def _check(function: Callable[..., Any], path: Path, case: Case, dtype: str) -> None:
    """Whether the function takes three arrays and gives one number a position."""
    name = getattr(function, "__name__", type(function).__name__)
    try:
        signature = inspect.signature(function)
        signature.bind(None, None, None)
    except TypeError as error:
        raise ValueError(
            f"{path}: `{name}{signature}` was found, but three arrays come in: "
            f"`{name}(hidden, vocabulary, targets)` ({error})."
        ) from error
    tokens = case.tokens[0]
    shapes = ((tokens, case.features), (case.vocab, case.features), (tokens,))
    dtypes = (jnp.dtype(dtype), jnp.dtype(dtype), jnp.dtype(jnp.int32))
    arrays = [jax.ShapeDtypeStruct(*pair) for pair in zip(shapes, dtypes, strict=True)]
    try:
        came = jax.eval_shape(function, *arrays)
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        given = ", ".join(f"{n} {list(s)}" for n, s in zip(("hidden", "vocabulary", "targets"), shapes, strict=True))
        where = line_in(error, path)
        raise ValueError(f"{path}{where} failed on {given}: {type(error).__name__}: {first}") from error
    if getattr(came, "shape", None) != (tokens,) or not jnp.issubdtype(came.dtype, jnp.floating):
        seen = f"{came.dtype}{list(came.shape)}" if hasattr(came, "shape") else type(came).__name__
        raise ValueError(
            f"{path}: `{name}` gave {seen}, but log-probabilities were wanted, one a position: float[{tokens}]."
        )
