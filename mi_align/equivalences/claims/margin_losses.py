"""Ledger 47: the losses that see a pair through its margin alone are one family."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals
from mi_align.objectives import (
    bradley_terry_loss,
    exponential_loss,
    hinge_loss,
    savage_loss,
    squared_loss,
    truncated_quadratic_loss,
)

__all__ = ["CLAIMS"]


def _margins(key: PRNGKeyArray) -> Inputs:
    """Two logits, a common level, a hinge's margin and a squared loss's target."""
    x = normals(key, positive=(), negative=(), level=(), margin=(), target=())
    return {**x, "margin": between(0.2, 3.0, x["margin"]), "target": between(0.2, 3.0, x["target"])}


def _features(key: PRNGKeyArray) -> Inputs:
    """Features of both responses, a linear critic's parameters, and what some losses want of a margin."""
    x = normals(key, positive=(3,), negative=(3,), parameters=(3,), margin=(), target=())
    return {
        **x,
        "margin": between(0.2, 3.0, x["margin"]),
        "target": between(0.2, 3.0, x["target"]),
    }


def _family(positive: Array, negative: Array, x: Inputs) -> list[Array]:
    """Six losses of the margin."""
    return [
        bradley_terry_loss(positive, negative),
        exponential_loss(positive, negative),
        savage_loss(positive, negative),
        hinge_loss(positive, negative, margin=x["margin"]),
        truncated_quadratic_loss(positive, negative, margin=x["margin"]),
        squared_loss(positive, negative, target=x["target"]),
    ]


def _curves(u: Array, x: Inputs) -> Array:
    """f(u): logistic, exponential, Savage, hinge, truncated quadratic, squared."""
    short = jnp.where(u < x["margin"], x["margin"] - u, 0)
    odds = jnp.exp(-u)
    return jnp.stack([jnp.log(1 + odds), odds, (odds / (1 + odds)) ** 2, short, short**2, (u - x["target"]) ** 2])


def _scaled_gradients(x: Inputs) -> Array:
    """Each loss's gradient, over its own −f′(0), in a critic's parameters without their part along φ⁺ − φ⁻."""
    apart = x["positive"] - x["negative"]
    level = x["parameters"] - apart * (apart @ x["parameters"]) / (apart @ apart)

    def losses(parameters: Array) -> Array:
        return jnp.stack(_family(parameters @ x["positive"], parameters @ x["negative"], x))

    steepness = jnp.stack([*jnp.array([0.5, 1.0, 0.25, 1.0]), 2 * x["margin"], 2 * x["target"]])
    return jax.jacrev(losses)(level) / steepness[:, None]


def _common_gradient(x: Inputs) -> Array:
    return jnp.broadcast_to(x["negative"] - x["positive"], (6, 3))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="47a",
        title="Logistic, exponential, Savage, hinge, truncated quadratic and squared: one family of margin losses",
        statement=r"\ell(s^+, s^-) = f(s^+ - s^-)",
        kind=Kind.EXACT,
        draw=_margins,
        left=lambda x: jnp.stack(_family(x["positive"] + x["level"], x["negative"] + x["level"], x)),
        right=lambda x: _curves(x["positive"] - x["negative"], x),
        twin=lambda x: _curves(x["negative"] - x["positive"], x),
        slip="the margin's sign",
        source="Tang et al. 2024 (arXiv 2402.05749), table 1",
        derivatives=2,
    ),
    Claim(
        id="47b",
        title="At margin 0 the whole family has one gradient, up to scale",
        statement=r"s^+ = s^-:\quad \frac{\nabla_\theta\, f(s^+ - s^-)}{-f'(0)} ="
        r" -\nabla_\theta\,(s^+ - s^-) \quad\text{for all six}",
        kind=Kind.EXACT,
        draw=_features,
        left=_scaled_gradients,
        right=_common_gradient,
        twin=lambda x: _common_gradient(x) * (1 + 1e-6),
        slip="one part in a million",
        source="Tang et al. 2024 (arXiv 2402.05749), section 4",
        derivatives=0,
    ),
)
