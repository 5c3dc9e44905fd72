"""Batches of any size from a law on two letters: told apart by how often they have the second, all can be enumerated.

The critic is T = (0, t), so that ∇T = (0, 1) in t; the law of the marginal sample is (1 − `second`, `second`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mi_align.equivalences.claim import Inputs
from mi_align.equivalences.groups import between, normals
from mi_align.objectives import donsker_varadhan_bound

__all__ = ["Batches", "Moments", "batches", "bounds", "draw", "log_partition", "moments", "scores"]


class Batches(NamedTuple):
    """Every batch that can be drawn, for each batch size.

    Attributes:
      weights: log of a letter's share of the batch, times how many letters the batch has. Added to the letters' scores,
        it makes a mean of exponentials over the letters that are there that over the batch.
      there: which letters the batch has.
      chance: the batch's probability; 0 for counts above the batch's size.
    """

    weights: Float[Array, "sizes counts 2"]
    there: Bool[Array, "sizes counts 2"]
    chance: Float[Array, "sizes counts"]


class Moments(NamedTuple):
    """Of w = e^T/Z, whose mean is 1, and of its derivative u = w ∇T; all under the marginal law.

    Attributes:
      slope: E u.
      variance: E (w − 1)²; the χ² of the law tilted by T.
      covariance: E u (w − 1).
      third: E (w − 1)³.
      third_with_slope: E (u − E u)(w − 1)².
    """

    slope: Float[Array, ""]
    variance: Float[Array, ""]
    covariance: Float[Array, ""]
    third: Float[Array, ""]
    third_with_slope: Float[Array, ""]


def draw(key: PRNGKeyArray) -> Inputs:
    """`second` from ½ to 0.8, `t` from 0.5 to 1.5, and the `decay` of a moving average.

    The likelier letter is the one with the higher score: e^T is then skewed to the left, and the terms of an expansion
    in 1/n that follow the first do not change sign between draws.
    """
    x = normals(key, second=(), t=(), decay=())
    return {
        "second": between(0.5, 0.8, x["second"]),
        "t": between(0.5, 1.5, x["t"]),
        "decay": between(0.2, 0.9, x["decay"]),
    }


def _exactly(x: Inputs) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`second` and `t`, to be computed with in float64: biases are differences of nearly equal numbers."""
    return x["second"].astype(float), x["t"].astype(float)


def log_partition(x: Inputs) -> Float[Array, ""]:
    """log Z = log E e^T."""
    second, t = _exactly(x)
    return jnp.log1p(second * jnp.expm1(t))


def moments(x: Inputs) -> Moments:
    """What the batches' expectations are made of for large n."""
    second, t = _exactly(x)
    law = jnp.stack([1 - second, second])
    w = jnp.exp(jnp.stack([jnp.zeros_like(t), t]) - log_partition(x))
    u = w.at[0].set(0)
    slope = law @ u
    return Moments(
        slope=slope,
        variance=law @ (w - 1) ** 2,
        covariance=law @ (u * (w - 1)),
        third=law @ (w - 1) ** 3,
        third_with_slope=law @ ((u - slope) * (w - 1) ** 2),
    )


def batches(x: Inputs, sizes: tuple[float, ...]) -> Batches:
    """All batches of the given sizes."""
    count, size = np.arange(int(max(sizes)) + 1), np.asarray(sizes)[:, None]
    share = np.minimum(count / size, 1)
    shares = np.stack([1 - share, share], axis=-1)
    there = shares > 0
    weights = np.log(np.where(there, shares * there.sum(axis=-1, keepdims=True), 1))
    log_ways = np.asarray([[_log_choose(int(n), int(c)) for c in count] for n in sizes])
    second, _ = _exactly(x)
    log_chance = count * jnp.log(second) + np.maximum(size - count, 0) * jnp.log1p(-second)
    return Batches(jnp.asarray(weights), jnp.asarray(there), jnp.exp(log_chance + log_ways))


def _log_choose(n: int, k: int) -> float:
    return math.log(math.comb(n, k)) if k <= n else -math.inf


def scores(t: Float[Array, "*shape"], every: Batches) -> Float[Array, "sizes counts 2"]:
    """The marginal scores of every batch, as many as there are letters, for a mean of exponentials over `there`."""
    return t * jnp.arange(2) + every.weights


def bounds(x: Inputs, sizes: tuple[float, ...]) -> tuple[Float[Array, "sizes counts"], Float[Array, "sizes counts"]]:
    """Donsker–Varadhan's bound of every batch, less its joint sample's mean; and the batches' probabilities."""
    every = batches(x, sizes)
    joint = jnp.zeros((*every.chance.shape, 1))
    return donsker_varadhan_bound(joint, scores(x["t"], every), where_marginal=every.there), every.chance
