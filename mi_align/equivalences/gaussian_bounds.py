"""Bounds on mutual information against its true value, on correlated Gaussians with the exact critic, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mi_align.equivalences.studies import in_float64
from mi_align.objectives import (
    donsker_varadhan_bound,
    info_nce_bound,
    interpolated_bound,
    jensen_shannon_bound,
    nwj_bound,
    smile_bound,
)

__all__ = ["Estimates", "estimate", "gaussian_scores"]


class Estimates(NamedTuple):
    """Each estimator's values over many batches.

    Attributes:
      information: the true mutual informations, in nats.
      batch: N, samples in a batch.
      alpha: the interpolated bound's.
      values: estimator -> values `[informations, batches]`, in nats.
    """

    information: np.ndarray
    batch: int
    alpha: float
    values: Mapping[str, np.ndarray]


def gaussian_scores(
    key: PRNGKeyArray, information: Float[Array, ""], *, batch: int, dimensions: int
) -> Float[Array, "batch batch"]:
    """log p(x, y) / p(x) p(y) of every x_i with every y_j; x_i and y_i are drawn together.

    x and y are standard Gaussian vectors whose coordinates correlate by ρ, with −½ log(1 − ρ²) nats a coordinate.
    """
    x, noise = jax.random.normal(key, (2, batch, dimensions))
    unexplained = jnp.exp(-2 * information / dimensions)  # 1 − ρ²
    rho = jnp.sqrt(-jnp.expm1(-2 * information / dimensions))
    y = rho * x + jnp.sqrt(unexplained) * noise
    squares = rho * (jnp.sum(x**2, 1)[:, None] + jnp.sum(y**2, 1)[None, :])
    return information + rho * (2 * x @ y.T - squares) / (2 * unexplained)


def _all_estimates(scores: Array, smile_clip: float, alpha: float) -> dict[str, Array]:
    """Every bound on one matrix of scores: the diagonal is the joint sample, everything else the marginal one."""
    batch = scores.shape[0]
    off_diagonal = ~jnp.eye(batch, dtype=bool)
    joint, marginal, others = jnp.diagonal(scores), scores.ravel(), off_diagonal.ravel()
    return {
        "DV": donsker_varadhan_bound(joint, marginal, where_marginal=others),
        "NWJ": nwj_bound(joint + 1, marginal + 1, where_marginal=others),
        "Jensen–Shannon + log 4": jensen_shannon_bound(joint, marginal, where_marginal=others) + jnp.log(4.0),
        "InfoNCE": jnp.mean(info_nce_bound(joint, scores, where=off_diagonal)),
        f"SMILE, τ = {smile_clip:g}": smile_bound(joint, marginal, clip=smile_clip, where_marginal=others),
        f"interpolated, α = {alpha:g}": interpolated_bound(scores, alpha=alpha, log_baseline=jnp.zeros(batch)),
    }


@in_float64
def estimate(
    key: PRNGKeyArray,
    information: tuple[float, ...] = tuple(np.linspace(0.5, 10.0, 20)),
    *,
    batch: int = 128,
    batches: int = 100,
    dimensions: int = 10,
    smile_clip: float = 5.0,
    alpha: float = 0.01,
) -> Estimates:
    """All estimators with the exact critic, on `batches` independent batches at each true value."""

    def one(key: PRNGKeyArray, truth: Array) -> dict[str, Array]:
        scores = gaussian_scores(key, truth, batch=batch, dimensions=dimensions)
        return _all_estimates(scores, smile_clip, alpha)

    keys = jax.random.split(key, (len(information), batches))
    many = jax.jit(lambda keys, truth: jax.lax.map(lambda k: one(k, truth), keys))
    rows = [many(k, jnp.asarray(truth)) for k, truth in zip(keys, information, strict=True)]
    values = {name: np.asarray([row[name] for row in rows]) for name in rows[0]}
    return Estimates(np.asarray(information), batch, alpha, values)
