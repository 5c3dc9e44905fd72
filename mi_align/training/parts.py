"""Which part of the parameters is trained: two trees of one structure, with None where the other has the leaf."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

__all__ = ["join", "partition", "path_of"]

Params = Any  # a pytree of arrays


def path_of(keys: tuple[Any, ...]) -> str:
    """A leaf's path as JAX gives it, joined by dots: `blocks.attention.query.kernel`."""
    if isinstance(keys[-1], jax.tree_util.GetAttrKey) and keys[-1].name == "value":  # inside a variable of Flax
        keys = keys[:-1]
    return ".".join(str(next((getattr(k, a) for a in ("key", "name", "idx") if hasattr(k, a)), k)) for k in keys)


def partition(params: Params, trained: Callable[[str], bool]) -> tuple[Params, Params]:
    """The part whose paths `trained` says yes to, and the frozen rest.

    >>> partition({"body": 1.0, "head": 2.0}, lambda path: path == "head")
    ({'body': None, 'head': 2.0}, {'body': 1.0, 'head': None})
    """
    yes = jax.tree_util.tree_map_with_path(lambda keys, _: trained(path_of(keys)), params)
    return (
        jax.tree.map(lambda keep, x: x if keep else None, yes, params),
        jax.tree.map(lambda keep, x: None if keep else x, yes, params),
    )


def join(params: Params, frozen: Params | None) -> Params:
    """The whole of what `partition` took apart; without a frozen part, what is trained."""
    if frozen is None:
        return params
    return jax.tree.map(lambda x, y: y if x is None else x, params, frozen, is_leaf=lambda x: x is None)
