"""Logits as claims like them: of every size from hundredths to dozens, far apart, nearly tied and tied.

A critic's scores of one prompt's responses, and responses token by token under a policy and a reference.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from mi_align.critics import Candidates
from mi_align.equivalences.groups import between, normals

__all__ = ["candidates", "log_ratios", "pair", "spread", "tokens"]


def spread(
    noise: Float[Array, "*shape"], level: Float[Array, ""], scale: Float[Array, ""], apart: Float[Array, ""]
) -> Float[Array, "*shape"]:
    """Standard normal numbers as logits of at most 40 in size, around one level; one in seven times they are all equal.

    Args:
      noise: one number a logit.
      level: the logits' common part, likewise standard normal.
      scale: decides the size of everything, from 0.01 to 20.
      apart: decides how far the logits lie from one another, relative to the level.
    """
    share = between(-0.14, 1, apart)
    distance = jnp.where(share > 0, share**3, 0)
    return 10 ** between(-2, 1.3, scale) * (between(-1, 1, level) + distance * between(-1, 1, noise))


def pair(key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
    """The logits `a` of a chosen and `c` of a rejected response."""
    x = normals(key, noise=(2,), level=(), scale=(), apart=())
    a, c = spread(**x)
    return {"a": a, "c": c}


def tokens(key: PRNGKeyArray, *, responses: int = 2, length: int = 3) -> dict[str, Array]:
    """Token log-probabilities of some responses, of which the last lacks its last token, and β from 0.02 to 2."""
    shape = (responses, length)
    x = normals(key, policy=shape, reference=shape, beta=())
    kept = jnp.ones(shape, bool).at[-1, -1].set(False)
    logps = {name: -jax.nn.softplus(2 * x[name]) for name in ("policy", "reference")}
    return {**logps, "kept": kept, "beta": 10 ** between(-1.7, 0.3, x["beta"])}


def candidates(x: dict[str, Array]) -> Candidates:
    """What a method takes, of `tokens`."""
    return Candidates(policy=x["policy"], reference=x["reference"], response_mask=x["kept"])


def log_ratios(x: dict[str, Array]) -> Float[Array, "responses"]:
    """log π − log π_ref of each response of `tokens`; no derivative goes through the reference, as in training."""
    difference = x["policy"] - jax.lax.stop_gradient(x["reference"])
    return jnp.sum(jnp.where(x["kept"], difference, 0), axis=-1)
