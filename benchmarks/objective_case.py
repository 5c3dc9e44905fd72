"""What an objective's benchmark is made of: a formula for any array library, and the inputs that it is given.

A formula is written once, as `formula(m, *arrays)`: with `m` = `NUMPY` it is the float64 reference of the gate, with
`JAX` what a user would write by hand, with `torch_namespace()` the peer.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mi_align import objectives

Formula = Callable[..., Any]
Inputs = Callable[[int, np.random.Generator], tuple[np.ndarray, ...]]


@dataclasses.dataclass(frozen=True)
class Namespace:
    """The functions of one array library that formulas need; operators and the arrays' own `sum`, `mean` do the rest.

    Attributes:
      hold: its argument as a constant, without a derivative.
      tails: log Σ_{j≥i} eˣʲ along the last axis.
      std: the sample's deviation along the last axis, which is kept.
    """

    exp: Formula
    expm1: Formula
    log: Formula
    log_sigmoid: Formula
    softplus: Formula
    expit: Formula
    relu: Formula
    logaddexp: Formula
    logsumexp: Formula
    log_softmax: Formula
    tails: Formula
    where: Formula
    clip: Formula
    minimum: Formula
    maximum: Formula
    concatenate: Formula
    sort: Formula
    std: Formula
    diagonal: Formula
    hold: Formula


def _logsumexp(x: Any) -> Any:
    return np.logaddexp.reduce(x, axis=-1)


NUMPY = Namespace(
    exp=np.exp,
    expm1=np.expm1,
    log=np.log,
    log_sigmoid=lambda x: -np.logaddexp(0, -x),
    softplus=lambda x: np.logaddexp(0, x),
    expit=lambda x: np.exp(-np.logaddexp(0, -x)),
    relu=lambda x: np.maximum(x, 0),
    logaddexp=np.logaddexp,
    logsumexp=_logsumexp,
    log_softmax=lambda x: x - _logsumexp(x)[..., None],
    tails=lambda x: np.logaddexp.accumulate(x[..., ::-1], axis=-1)[..., ::-1],
    where=np.where,
    clip=np.clip,
    minimum=np.minimum,
    maximum=np.maximum,
    concatenate=lambda xs: np.concatenate(xs, axis=-1),
    sort=lambda x: np.sort(x, axis=-1),
    std=lambda x: x.std(-1, ddof=1, keepdims=True),
    diagonal=np.diagonal,
    hold=lambda x: x,
)

JAX = Namespace(
    exp=jnp.exp,
    expm1=jnp.expm1,
    log=jnp.log,
    log_sigmoid=jax.nn.log_sigmoid,
    softplus=jax.nn.softplus,
    expit=jax.nn.sigmoid,
    relu=jax.nn.relu,
    logaddexp=jnp.logaddexp,
    logsumexp=lambda x: jax.nn.logsumexp(x, axis=-1),
    log_softmax=lambda x: jax.nn.log_softmax(x, axis=-1),
    tails=lambda x: jax.lax.cumlogsumexp(x, axis=x.ndim - 1, reverse=True),
    where=jnp.where,
    clip=jnp.clip,
    minimum=jnp.minimum,
    maximum=jnp.maximum,
    concatenate=lambda xs: jnp.concatenate(xs, axis=-1),
    sort=lambda x: jnp.sort(x, axis=-1),
    std=lambda x: x.std(-1, ddof=1, keepdims=True),
    diagonal=jnp.diagonal,
    hold=jax.lax.stop_gradient,
)


def torch_namespace() -> Namespace:
    """The same of torch."""
    import torch
    from torch.nn import functional

    return Namespace(
        exp=torch.exp,
        expm1=torch.expm1,
        log=torch.log,
        log_sigmoid=functional.logsigmoid,
        softplus=functional.softplus,
        expit=torch.sigmoid,
        relu=torch.relu,
        logaddexp=torch.logaddexp,
        logsumexp=lambda x: torch.logsumexp(x, -1),
        log_softmax=lambda x: functional.log_softmax(x, -1),
        tails=lambda x: torch.logcumsumexp(x.flip(-1), -1).flip(-1),
        where=torch.where,
        clip=torch.clamp,
        minimum=torch.minimum,
        maximum=torch.maximum,
        concatenate=lambda xs: torch.cat(xs, -1),
        sort=lambda x: torch.sort(x, -1).values,
        std=lambda x: x.std(-1, keepdim=True),
        diagonal=torch.diagonal,
        hold=lambda x: x.detach(),
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """One objective in one layout of its inputs.

    Attributes:
      name: the objective, and in brackets the layout where it has several.
      inputs: number of floats -> the arrays, float32 or boolean, in the order of `ours`.
      ours: the public function on those arrays.
      formula: the same in any array library: `formula(m, *arrays)`.
      held: positions of the inputs that have no derivative: masks, labels, and numbers that came with the sample. They
        are passed to everybody, and nobody differentiates them. Where all are held, only the value is timed.
      torch: what a user of torch would write instead of the formula, given the module and `torch.nn.functional`.
      peers: further JAX libraries' functions on the same arrays.
      elementwise: whether it maps pairs or single scores one by one, which the bandwidth target is about.
      largest: the most floats that it is timed on.
    """

    name: str
    inputs: Inputs
    ours: Callable[..., Any]
    formula: Formula
    held: tuple[int, ...] = ()
    torch: Callable[[Any, Any], Formula] | None = None
    peers: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    elementwise: bool = True
    largest: float = 1e8

    @property
    def objective(self) -> str:
        """The public name of what is timed."""
        return self.name.split(" ")[0]


def case(name: str, inputs: Inputs, formula: Formula, *, hyper: Mapping[str, float] | None = None, **more: Any) -> Case:
    """A case of the public function that `name` begins with, under these hyper-parameters."""
    public = getattr(objectives, name.split(" ")[0])
    return Case(name, inputs, lambda *arrays: public(*arrays, **(hyper or {})), formula, **more)


def coupled(*arguments: Any, **more: Any) -> Case:
    """A case that adds up along an axis, and stops at a tenth of the elementwise cases' floats."""
    return case(*arguments, **{"elementwise": False, "largest": 1e7, **more})


def with_rax(**peers: Callable[[Any], Formula]) -> dict[str, Formula]:
    """Peers made from the module of rax, or none where it is not installed."""
    if importlib.util.find_spec("rax") is None:
        return {}
    rax = importlib.import_module("rax")
    return {name: peer(rax) for name, peer in peers.items()}


# --- Inputs ---------------------------------------------------------------------------------------------------------


def scores(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 scores on the scale of implicit rewards."""
    return 3 * rng.standard_normal(shape, np.float32)


def near(rng: np.random.Generator, x: np.ndarray) -> np.ndarray:
    """What another policy says of the same tokens: ratios on both sides of a clip at 0.2."""
    return x + np.float32(0.3) * rng.standard_normal(x.shape, np.float32)


def pair(n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """n scores as n/2 pairs."""
    return scores(rng, n // 2), scores(rng, n // 2)


def listed(candidates: int) -> Inputs:
    """n scores as lists of one positive and `candidates` − 1 negatives."""
    return lambda n, rng: (scores(rng, n // candidates), scores(rng, n // candidates, candidates - 1))


def grouped(size: int, arrays: int = 1) -> Inputs:
    """n numbers in so many arrays, in groups of `size`."""
    return lambda n, rng: tuple(scores(rng, max(n // (arrays * size), 1), size) for _ in range(arrays))
