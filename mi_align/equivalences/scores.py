"""Logits as claims like them: of every size from hundredths to dozens, far apart, nearly tied and tied.

A critic's scores of one prompt's responses, and responses token by token under a policy and a reference.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mi_align.critics import Candidates
from mi_align.equivalences.claim import Inputs

__all__ = ["candidates", "log_ratios", "lot", "pair", "spread", "tokens", "uniforms"]


def uniforms(key: PRNGKeyArray, **shapes: tuple[int, ...]) -> dict[str, Float[Array, "..."]]:
    """Arrays of independent numbers, uniform on (−1, 1), by name; all from one call, which compiles fastest."""
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    parts = jnp.split(jax.random.uniform(key, (int(ends[-1]),), minval=-1), ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def spread(
    x: Float[Array, "*shape"], *, level: Float[Array, ""], scale: Float[Array, ""], apart: Float[Array, ""]
) -> Float[Array, "*shape"]:
    """Numbers in (−1, 1) as logits of at most 40 in size around one level; one time in eight they are all equal.

    Args:
      x: one number a logit.
      level: the logits' common part.
      scale: decides the size of everything, from 0.01 to 20.
      apart: decides how far the logits lie from one another, relative to the level.
    """
    distance = jnp.maximum(apart + 0.75, 0) ** 3 / 5.4
    return jnp.exp(-0.8 + 3.8 * scale) * (level + distance * x)


def pair(key: PRNGKeyArray) -> Inputs:
    """The logits `a` of a chosen and `c` of a rejected response."""
    a, c = spread(**uniforms(key, x=(2,), level=(), scale=(), apart=()))
    return {"a": a, "c": c}


def lot(key: PRNGKeyArray, *, size: int) -> Inputs:
    """Logits `s` of some candidates, the first of them the positive, and which are there: at least the first two."""
    x = uniforms(key, x=(size,), where=(size,), level=(), scale=(), apart=())
    where = (x.pop("where") > -0.4).at[:2].set(True)
    return {"s": spread(**x), "where": where}


def tokens(key: PRNGKeyArray, *, responses: int = 2, length: int = 3) -> Inputs:
    """Token log-probabilities of some responses, of which the last lacks its last token, and β from 0.02 to 2."""
    shape = (responses, length)
    x = uniforms(key, policy=shape, reference=shape, beta=())
    kept = jnp.ones(shape, bool).at[-1, -1].set(False)
    logps = {name: 2 * x[name] - 2 for name in ("policy", "reference")}
    return {**logps, "kept": kept, "beta": jnp.exp(-1.6 + 2.3 * x["beta"])}


def candidates(x: Inputs) -> Candidates:
    """What a method takes, of `tokens`."""
    kept: Bool[Array, "responses length"] = x["kept"]
    return Candidates(policy=x["policy"], reference=x["reference"], response_mask=kept)


def log_ratios(x: Inputs) -> Float[Array, "responses"]:
    """log π − log π_ref of each response of `tokens`; no derivative goes through the reference, as in training."""
    difference = x["policy"] - jax.lax.stop_gradient(x["reference"])
    return jnp.sum(jnp.where(x["kept"], difference, 0), axis=-1)
