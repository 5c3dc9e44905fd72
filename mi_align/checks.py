"""Shapes, dtypes and ranges: what may enter, and the wording of every error.

Shapes and dtypes are known at trace time and are checked there, by the functions that compute. The value of a traced
hyper-parameter is not, so ranges are looked at where there is a value to look at: in an eager call (the
`objective` decorator), in `Method.configure` and in the command line, all from the one table `RANGES`.

Every message names the argument, says what came, what was wanted, and what to do about it.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "RANGES",
    "Range",
    "broadcastable",
    "candidates",
    "floating",
    "integers",
    "labels",
    "mask",
    "negatives_match",
    "no_more_than",
    "number",
    "same_but_for",
    "same_shape",
    "square",
    "unknown_name",
    "whole_groups",
]


def floating(**arrays: Any) -> None:
    """Every argument is a floating-point array (or Python float)."""
    for name, x in arrays.items():
        dtype = _dtype(name, x)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"`{name}` has dtype {dtype}, but a floating-point array was wanted. "
                f"Convert it, e.g. `{name}.astype(jnp.float32)`."
            )


def integers(**arrays: Any) -> None:
    """Every argument is an array of integers (or a Python int)."""
    for name, x in arrays.items():
        dtype = _dtype(name, x)
        if not jnp.issubdtype(dtype, jnp.integer):
            raise TypeError(
                f"`{name}` has dtype {dtype}, but integers were wanted. Convert it, e.g. `{name}.astype(jnp.int32)`."
            )


def _dtype(name: str, x: Any) -> jnp.dtype:
    """The dtype of an array or number; lists, which NumPy would convert and JAX does not, are refused."""
    if isinstance(x, list | tuple | dict):
        raise TypeError(f"`{name}` is a {type(x).__name__}, but an array was wanted: `jnp.asarray({name})`.")
    return jnp.result_type(x)


def same_shape(**arrays: Any) -> None:
    """All arguments have one shape: nothing is broadcast silently."""
    shapes = {name: jnp.shape(x) for name, x in arrays.items()}
    if len(set(shapes.values())) > 1:
        came = ", ".join(f"`{name}` {list(shape)}" for name, shape in shapes.items())
        raise ValueError(
            f"shapes differ: {came}. One shape was wanted, an entry an example; broadcast explicitly with "
            "`jnp.broadcast_to` if that is meant."
        )


def same_but_for(axis: int | tuple[int, ...], **arrays: Any) -> None:
    """All arguments have one shape, but for the length of `axis`, which is at least 1."""
    shapes = {name: jnp.shape(x) for name, x in arrays.items()}
    axes = (axis,) if isinstance(axis, int) else axis
    came = ", ".join(f"`{name}` {list(shape)}" for name, shape in shapes.items())
    ranks = {len(shape) for shape in shapes.values()}
    if len(ranks) > 1 or any(not -min(ranks) <= a < min(ranks) for a in axes):
        raise ValueError(f"shapes do not fit: {came}, axis={axis}. One number of axes, `axis` among them, was wanted.")
    reduced = {a % min(ranks) for a in axes}
    if len({tuple(n for i, n in enumerate(shape) if i not in reduced) for shape in shapes.values()}) > 1:
        raise ValueError(
            f"shapes differ: {came}. Only the length along axis={axis} may differ; broadcast the others explicitly "
            "with `jnp.broadcast_to` if that is meant."
        )
    if any(shape[a] == 0 for shape in shapes.values() for a in reduced):
        raise ValueError(
            f"an empty sample: {came}, axis={axis}. At least one entry was wanted; mask entries that are missing with "
            "`where_…` instead of leaving the axis empty."
        )


def square(scores: Any, *, name: str = "scores") -> None:
    """`scores` is `[..., N, N]` with N ≥ 2: every x against every y, the pairs that belong together on the diagonal."""
    shape = jnp.shape(scores)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2:
        raise ValueError(
            f"`{name}` has shape {list(shape)}, but [..., N, N] with N ≥ 2 was wanted: every x against every y, the "
            "pairs that belong together on the diagonal."
        )


def whole_groups(logp: Any, **arrays: Any) -> None:
    """`logp` is `[..., group, time]`, and each argument `[..., group]`: one number a response."""
    shape = jnp.shape(logp)
    if len(shape) < 2 or 0 in shape[-2:]:
        raise ValueError(
            f"`logp` has shape {list(shape)}, but [..., group, time] was wanted: token log-probabilities of at least "
            "one response a group. For sequence log-probabilities use `reinforce_loss` or `rloo_loss`."
        )
    for name, x in arrays.items():
        if jnp.shape(x) != shape[:-1]:
            raise ValueError(
                f"`{name}` has shape {list(jnp.shape(x))} and `logp` {list(shape)}, but {list(shape[:-1])} was wanted: "
                "one number a response, for all its tokens."
            )


def negatives_match(positive: Any, negatives: Any) -> None:
    """`negatives` is `positive`'s shape with one more axis at its end, of K ≥ 1 candidates."""
    wanted, came = jnp.shape(positive), jnp.shape(negatives)
    if len(came) != len(wanted) + 1 or came[:-1] != wanted:
        raise ValueError(
            f"`negatives` has shape {list(came)} and `positive` {list(wanted)}, but {[*wanted, 'K']} was wanted: "
            "the same batch, then an axis of K negatives. For one negative each, pass `negatives[..., None]`."
        )
    if came[-1] == 0:
        raise ValueError(
            f"`negatives` has shape {list(came)}: K = 0 negatives. At least one was wanted; mask candidates that are "
            "missing with `where` instead of leaving the axis empty."
        )


def candidates(scores: Any, *, name: str = "scores") -> None:
    """`scores` has a last axis of n ≥ 1 candidates."""
    shape = jnp.shape(scores)
    if not shape or shape[-1] == 0:
        raise ValueError(
            f"`{name}` has shape {list(shape)}, but [..., n] with n ≥ 1 candidates on the last axis was wanted. Mask "
            "candidates that are missing with `where` instead of leaving the axis empty."
        )


def labels(given: Any, like: Any, *, name: str, of: str) -> None:
    """`given` is boolean and of exactly the shape of `like`."""
    dtype = _dtype(name, given)
    if dtype != jnp.bool_:
        raise TypeError(f"`{name}` has dtype {dtype}, but booleans were wanted. Convert it, e.g. `{name} != 0`.")
    if jnp.shape(given) != jnp.shape(like):
        raise ValueError(
            f"`{name}` has shape {list(jnp.shape(given))}, but {of} has shape {list(jnp.shape(like))}: the same was "
            "wanted, one bool an entry."
        )


def mask(where: Any, like: Any, *, name: str = "where", of: str = "the scores") -> None:
    """`where` is None, or boolean and of exactly the shape of `like`."""
    if where is None:
        return
    dtype = _dtype(name, where)
    if dtype != jnp.bool_:
        raise TypeError(
            f"`{name}` has dtype {dtype}, but a boolean mask was wanted (True = keep). Convert it, e.g. `{name} != 0`."
        )
    if jnp.shape(where) != jnp.shape(like):
        raise ValueError(
            f"`{name}` has shape {list(jnp.shape(where))}, but {of} have shape {list(jnp.shape(like))}: the same was "
            "wanted, one bool an entry (True = keep)."
        )


def broadcastable(shape: tuple[int, ...], **arrays: Any) -> None:
    """Every argument is a scalar, or has as many axes as `shape`, each of its length or 1: one value an example."""
    for name, x in arrays.items():
        came = jnp.shape(x)
        fits = len(came) == len(shape) and all(n in (1, m) for n, m in zip(came, shape, strict=True))
        if came and not fits:
            raise ValueError(
                f"`{name}` has shape {list(came)}, but the batch has shape {list(shape)}: a scalar or one "
                "value an example was wanted."
            )


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a real hyper-parameter may lie, and what to tell the user whose value does not."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    finite: bool = True
    remedy: str = ""

    def describe(self) -> str:
        """The bounds as text: `≥ 0 and < 0.5`."""
        signs = [(">", self.above), ("≥", self.at_least), ("<", self.below), ("≤", self.at_most)]
        return " and ".join(f"{sign} {bound:g}" for sign, bound in signs if bound is not None)

    def holds(self, x: np.ndarray) -> bool:
        """Whether every entry is inside, and finite unless `finite` is off."""
        tests = [
            (np.greater, self.above),
            (np.greater_equal, self.at_least),
            (np.less, self.below),
            (np.less_equal, self.at_most),
        ]
        known = np.isfinite(x) if self.finite else ~np.isnan(x)
        return bool(np.all(known)) and all(np.all(test(x, b)) for test, b in tests if b is not None)


#: The range of a hyper-parameter belongs to its name: one name means one thing everywhere in the library.
RANGES: dict[str, Range] = {
    "beta": Range(above=0, remedy="β scales the log-ratio; usual values lie between 0.01 and 2."),
    "label_smoothing": Range(at_least=0, below=0.5, remedy="ε is the share of flipped labels; at ½ they say nothing."),
    "alpha": Range(remedy="α shapes a power; 0 and 1 are the logarithm and the reciprocal."),
    "temperature": Range(above=0),
    "reward_temperature": Range(above=0, remedy="Rewards are divided by it before they become soft labels."),
    "tail_weight": Range(at_least=0, at_most=1, remedy="It weighs tokens beyond the shortest response; 1 is DPO."),
    "kl_weight": Range(at_least=0),
    "nll_weight": Range(at_least=0),
    "centring_weight": Range(at_least=0, remedy="Usual is 0.01; 0 leaves the rewards' level free."),
    "length_penalty": Range(at_least=0, remedy="Logits a token; usual values lie between 0.001 and 1."),
    "penalty": Range(at_least=0, remedy="λ of DPOP; usual values lie between 5 and 500."),
    "margin": Range(),
    "target": Range(remedy="For IPO and SPPO on log-ratios it is 1/(2β)."),
    "reference_point": Range(),
    "shift": Range(),
    "desirable_weight": Range(at_least=0),
    "undesirable_weight": Range(at_least=0),
    "log_baseline": Range(),
    "clip": Range(above=0, finite=False, remedy="Scores beyond ±clip stop counting; np.inf clips none."),
    "decay": Range(at_least=0, below=1, remedy="Usual values lie between 0.9 and 0.999."),
    "clip_low": Range(above=0, at_most=1, remedy="The ratio is held above 1 − clip_low; usual is 0.2."),
    "clip_high": Range(above=0, finite=False, remedy="The ratio is held below 1 + clip_high; usual is 0.2."),
    "ratio_cap": Range(at_least=1, finite=False, remedy="np.inf caps nothing."),
    "max_length": Range(above=0, remedy="The longest response that sampling allows, in tokens."),
    "eps": Range(at_least=0),
    "correction": Range(at_least=0, remedy="0 divides by n (population), 1 by n − 1 (sample)."),
}


def number(name: str, value: Any, bounds: Range | None = None, *, wait: bool = False) -> None:
    """A hyper-parameter lies in `bounds`, by default those that `RANGES` has for its name.

    Only concrete Python and NumPy numbers are looked at: a traced value is not known yet, and reading one on a device
    would make the host wait for it. With `wait` it does.
    """
    bounds = RANGES.get(name) if bounds is None else bounds
    unread = isinstance(value, jax.Array) and not (wait and not isinstance(value, jax.core.Tracer))
    if bounds is None or unread:
        return
    x = np.asarray(value)
    remedy = f" {bounds.remedy}" if bounds.remedy else ""
    if x.dtype.kind not in "iuf":
        raise TypeError(f"`{name}` is {value!r}, but a real number was wanted.{remedy}")
    if not bounds.holds(x):
        wanted = f"a {'finite ' * bounds.finite}number {bounds.describe()}".rstrip()
        raise ValueError(f"`{name}` is {value}, but {wanted} was wanted.{remedy}")


def no_more_than(of: str, bound: Any, **values: Any) -> None:
    """No entry of a value exceeds its entry of `bound`, the argument `of`; as in `number`, concrete ones only."""
    for name, value in values.items():
        if isinstance(bound, jax.Array) or isinstance(value, jax.Array):
            continue
        if np.any(np.greater(value, bound)):
            raise ValueError(f"`{name}` is {value} and `{of}` {bound}, but at most `{of}` was wanted, entry by entry.")


#: How many names an error lists.
_SHOWN = 80


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that no table has, with the nearest ones that it may have meant."""
    known = list(known) if isinstance(known, Mapping) else sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    shown = ", ".join(known) if len(known) <= _SHOWN else f"{', '.join(known[:_SHOWN])}, … ({len(known)} in all)"
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"There are: {shown}."
    return ValueError(f"there is no {kind} called {name!r}. {hint}")
