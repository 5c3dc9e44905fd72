"""Low-rank adapters (LoRA): a frozen decoder whose matrices W act as W + s A B, of which A and B alone are trained.

An adapted decoder is a structure and a pytree like any other, for scoring, sampling and training alike. Its parameters
are the base's own arrays, not copies of them, and for each adapted matrix two more, `….lora.a` and `….lora.b`. The
forward pass goes through the two thin factors, x W + s (x A) B: no product A B and no gradient of W is ever held. While
B is 0, as it begins, the decoder is its base exactly.

PEFT's dropout of the adapter's input is left out: a decoder here is a function of its parameters and tokens alone.

Source: Hu et al. 2021 (arXiv 2106.09685); the scale that does not depend on the rank, Kalajdzievski 2023 (2312.03732).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from mi_align import checks
from mi_align.models.decoder import Decoder
from mi_align.models.families import Weight
from mi_align.models.functional import Params
from mi_align.models.layers import LowRank
from mi_align.numerics import as_float

__all__ = [
    "ALL",
    "Factors",
    "LoraConfig",
    "adapter_of",
    "add_adapter",
    "init_adapter",
    "is_adapter",
    "matrices",
    "merge_adapter",
    "whole_parameter",
]

#: The target that stands for every matrix of the blocks, as in PEFT.
ALL = "all-linear"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """An adapter.

    Attributes:
      rank: columns of A and rows of B, r.
      alpha: how strongly the adapter acts, α: it is scaled by α/r.
      targets: the matrices that get one, by the names that they have in the family's files: `q_proj`, `k_proj`,
        `v_proj`, `o_proj`, `gate_proj`, `up_proj`, `down_proj`; GPT-2's `c_attn`, `attn.c_proj`, `c_fc`, `mlp.c_proj`
        (`c_proj` is both of these). "all-linear": every one.
      rslora: scale by α/√r, whose gradients do not shrink as r grows.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL,)
    rslora: bool = False

    def __post_init__(self) -> None:
        """Ranges."""
        if self.rank < 1:
            raise ValueError(f"`rank` is {self.rank}, but at least 1 was wanted.")
        checks.number("alpha", self.alpha, checks.Range(above=0))
        if not self.targets:
            raise ValueError(f"`targets` is empty, but names of matrices were wanted, or {ALL!r}.")

    @property
    def scale(self) -> float:
        """What multiplies x A B."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class Factors(NamedTuple):
    """The adapter of one matrix, in all layers.

    Attributes:
      a: `[layers, in, rank]`.
      b: `[layers, rank, out]`.
    """

    a: Float[Array, "layers in rank"]
    b: Float[Array, "layers rank out"]


#: By the path of the matrix: `blocks.attention.query`.
Adapter = Mapping[str, Factors]


def matrices(weights: Iterable[Weight], targets: Sequence[str]) -> list[str]:
    """The paths, `blocks.attention.query`, of the matrices among `weights` that are meant by their families' names.

    A target is the end of a name, from a dot on, as in PEFT: `c_proj` and `mlp.c_proj` both mean
    `transformer.h.{}.mlp.c_proj`.

    Raises:
      ValueError: nothing has this name.
    """
    names = {
        w.ours.removesuffix(".kernel"): w.theirs.removesuffix(".weight") for w in weights if w.ours.endswith(".kernel")
    }
    chosen: set[str] = set()
    for target in targets:
        found = {path for path, name in names.items() if target == ALL or f".{name}".endswith(f".{target}")}
        if not found:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in names.values()}))
            raise ValueError(
                f"`targets` holds {target!r}, but this model's matrices are called {known}. {ALL!r} means all of them."
            )
        chosen |= found
    return [path for path in names if path in chosen]


def init_adapter(params: Params, paths: Sequence[str], rank: int, key: PRNGKeyArray) -> dict[str, Factors]:
    """An adapter that changes nothing yet: A uniform within ±1/√in, as PEFT draws it, and B zero; in float32.

    Args:
      params: the base's.
      paths: from `matrices`.
      rank: of every factor.
      key: a random key.
    """
    made = {}
    for path, one in zip(paths, jax.random.split(key, max(len(paths), 1)), strict=False):
        layers, fan_in, fan_out = _at(params, path)["kernel"].get_value().shape
        bound = fan_in**-0.5
        a = jax.random.uniform(one, (layers, fan_in, rank), jnp.float32, -bound, bound)
        made[path] = Factors(a, jnp.zeros((layers, rank, fan_out), jnp.float32))
    return made


def add_adapter(
    graphdef: nnx.GraphDef[Decoder], params: Params, adapter: Adapter, *, scale: float
) -> tuple[nnx.GraphDef[Decoder], Params]:
    """The decoder with an adapter beside its matrices; one that it has there already is replaced.

    Args:
      graphdef: the base's structure.
      params: the base's parameters, which the result holds as they are.
      adapter: from `init_adapter`, or read from files.
      scale: `LoraConfig.scale`.

    Raises:
      ValueError: factors do not fit their matrix.
    """
    decoder = nnx.merge(graphdef, params)
    for path, factors in adapter.items():
        linear = _inside(decoder, path)
        layers, fan_in, fan_out = linear.kernel.get_value().shape
        rank = factors.a.shape[-1]
        wanted = (layers, fan_in, rank), (layers, rank, fan_out)
        if (factors.a.shape, factors.b.shape) != wanted:
            raise ValueError(
                f"the adapter of {path} has shapes {list(factors.a.shape)} and {list(factors.b.shape)}, but "
                f"{list(wanted[0])} and {list(wanted[1])} were wanted. Was it made for another model?"
            )
        linear.lora = nnx.data(LowRank(*factors, scale=scale))
    return _split(decoder)


def merge_adapter(graphdef: nnx.GraphDef[Decoder], params: Params) -> tuple[nnx.GraphDef[Decoder], Params]:
    """A decoder without an adapter whose matrices are W + s A B: the same function, but for rounding."""
    decoder, whole = nnx.merge(graphdef, params), whole_parameter(graphdef, params)
    for path in adapter_of(params):
        linear = _inside(decoder, path)
        linear.kernel, linear.lora = linear.kernel.replace(whole(f"{path}.kernel")), nnx.data(None)
    return _split(decoder)


def whole_parameter(graphdef: nnx.GraphDef[Decoder], params: Params) -> Callable[[str], Array]:
    """A function from the path of a parameter of the base to its value, an adapter of it merged in.

    The sum W + s A B is made in float32 or wider and rounded to W's dtype once; one matrix at a time is held.
    """
    decoder = nnx.merge(graphdef, params)

    def whole(path: str) -> Array:
        parent, _, name = path.rpartition(".")
        module = _inside(decoder, parent)
        x: Array = getattr(module, name).get_value()
        if name != "kernel" or module.lora is None:
            return x
        wide, a, b = as_float(x, module.lora.a.get_value(), module.lora.b.get_value())
        return (wide + module.lora.scale * jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)).astype(x.dtype)

    return whole


def adapter_of(params: Params) -> dict[str, Factors]:
    """The adapter that is among a decoder's parameters; empty where there is none."""
    leaves = {".".join(map(str, key)): leaf.get_value() for key, leaf in nnx.to_flat_state(params)}
    paths = [path.removesuffix(".lora.a") for path in leaves if path.endswith(".lora.a")]
    return {path: Factors(leaves[f"{path}.lora.a"], leaves[f"{path}.lora.b"]) for path in paths}


def is_adapter(path: str) -> bool:
    """Whether a parameter of this path is an adapter's: what is trained, where the base is frozen.

    >>> is_adapter("blocks.attention.query.lora.a"), is_adapter("blocks.attention.query.kernel")
    (True, False)
    """
    return path.endswith((".lora.a", ".lora.b"))


def _split(decoder: Decoder) -> tuple[nnx.GraphDef[Decoder], Params]:
    graphdef, params, _ = nnx.split(decoder, nnx.Param, ...)
    return graphdef, params


def _inside(decoder: Decoder, path: str) -> Any:
    """The module at a path; the decoder itself at none."""
    return functools.reduce(getattr, path.split("."), decoder) if path else decoder


def _at(params: Params, path: str) -> Any:
    return functools.reduce(lambda node, name: node[name], path.split("."), params)
