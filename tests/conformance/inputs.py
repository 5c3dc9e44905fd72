"""Inputs for any objective, drawn from what its signature says.

One name means one thing everywhere in the library, so how an argument is drawn belongs to its name, and its shape to
its annotation: `"*batch"` is a number an example, `"*batch K"` a list.

Logits lie on a binary grid fine enough to look continuous and coarse enough that sums and differences of a few of them
are exact. What a comparison then sees is the formula's own error, not the rounding of s⁺ − s⁻, which no formula can
undo.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

#: How logits are spread: standard deviation, with "ties" for many equal ones and "shifted" for a common large offset.
REGIMES = (1e-6, 0.1, 3.0, 60.0, 1e4, "ties", "shifted")
#: A spread without the grid: what is then off is the rounding of s⁺ − s⁻ too, and the condition number's to judge.
RAW = "raw"
SIZES = {"K": 5, "n": 5, "N": 4}

LOGITS = {"positive", "negative", "negatives", "scores", "score"}
LEVELS = {"margin", "target", "reference_point", "shift"}
FLAGS = {"desirable", "ties"}
UNIFORM = {
    "label_smoothing": (0.01, 0.45),
    "temperature": (0.05, 1.5),
    "desirable_weight": (0.3, 2.0),
    "undesirable_weight": (0.3, 2.0),
}


def shapes(objective: Callable[..., Any]) -> dict[str, tuple[str, ...] | None]:
    """Every array argument's axes after the batch, by name; None for a number that the whole batch shares."""
    hints = typing.get_type_hints(inspect.unwrap(objective))
    return {name: _axes(hints[name]) for name in inspect.signature(objective).parameters if _is_drawn(name)}


def _is_drawn(name: str) -> bool:
    return name != "where"


def _axes(hint: Any) -> tuple[str, ...] | None:
    for part in [hint, *typing.get_args(hint)]:
        dims = getattr(part, "dim_str", None)
        if dims is not None:
            return tuple(dims.split()[1:]) if dims.startswith("*") else None
    return None


def masks(objective: Callable[..., Any]) -> dict[str, tuple[str, ...]]:
    """The mask that the objective takes, if any, with its axes after the batch."""
    hints = typing.get_type_hints(inspect.unwrap(objective))
    return {"where": _axes(hints["where"])} if "where" in hints else {}


def hidden_by_mask(objective: Callable[..., Any], name: str) -> bool:
    """Whether the objective's mask is about the argument `name`."""
    return masks(objective).get("where", None) == shapes(objective).get(name, ())


def draw_mask(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A mask that keeps about two thirds, and in each list at least one entry."""
    kept = rng.random(shape) < 0.7
    kept[np.arange(shape[0]), rng.integers(shape[-1], size=shape[0])] = True
    return kept


def draw(
    objective: Callable[..., Any],
    rng: np.random.Generator,
    regime: float | str,
    *,
    batch: tuple[int, ...] = (8,),
    dtype: type = np.float64,
    sizes: Mapping[str, int] = SIZES,
) -> dict[str, Any]:
    """One batch of arguments by name, without masks."""
    arguments = {}
    for name, axes in shapes(objective).items():
        shape = () if axes is None else (*batch, *(sizes[a] for a in axes))
        arguments[name] = _draw_one(name, rng, regime, shape, dtype)
    move = offset(rng, regime, batch, dtype)
    for name in LOGITS & arguments.keys():
        arguments[name] += move.reshape(batch + (1,) * (arguments[name].ndim - len(batch)))
    return arguments


def _draw_one(name: str, rng: np.random.Generator, regime: float | str, shape: tuple[int, ...], dtype: type) -> Any:
    if name in LOGITS | LEVELS:
        return logits(rng, regime, shape, dtype)
    if name in FLAGS:
        return rng.random(shape) < 0.4
    if name == "weights":
        mass = rng.gamma(0.7, size=shape) + 1e-3
        return (mass / mass.sum(-1, keepdims=True)).astype(dtype)
    if name == "top_k":
        return int(rng.integers(2, 5))
    low, high = UNIFORM[name]
    return rng.uniform(low, high, shape).astype(dtype)


def logits(rng: np.random.Generator, regime: float | str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Normal numbers; but for the raw ones on a grid, so that sums and differences of a few of them are exact."""
    if regime == "ties":
        return rng.choice([-2.5, 0.0, 0.625, 0.625, 40.0], shape).astype(dtype)
    if regime == RAW:
        spread = 10.0 ** rng.uniform(-2, 2, shape[:1] + (1,) * (len(shape) - 1))
        return (spread * rng.normal(size=shape)).astype(dtype)
    scale = 3.0 if regime == "shifted" else float(regime)
    # |x| < 8 scale: five bits are left for sums of a few; an offset of 8,000 takes twelve more.
    bits = np.finfo(dtype).nmant - (15 if regime == "shifted" else 5)
    grid = 2.0 ** (np.ceil(np.log2(scale)) - bits)
    return (np.round(scale * np.clip(rng.normal(size=shape), -4, 4) / grid) * grid).astype(dtype)


def offset(rng: np.random.Generator, regime: float | str, batch: tuple[int, ...], dtype: type) -> np.ndarray:
    """What all of an example's logits have in common: large numbers if "shifted", otherwise nothing."""
    return rng.integers(-8000, 8000, batch).astype(dtype) if regime == "shifted" else np.zeros(batch, dtype)


def examples(objective: Callable[..., Any], arguments: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The batch taken apart: plain Python numbers and lists, one dictionary an example; masks stay beside them."""
    axes = {**shapes(objective), **masks(objective)}
    size = next(len(x) for name, x in arguments.items() if axes[name] is not None)
    for i in range(size):
        yield {name: x if axes[name] is None else np.asarray(x)[i].tolist() for name, x in arguments.items()}
