"""Ledger 50: processing loses information, and relabelling neither loses nor makes any."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals
from mi_align.equivalences.populations import donsker_varadhan
from mi_align.objectives import donsker_varadhan_bound, info_nce_bound, jensen_shannon_bound, nwj_bound

__all__ = ["CLAIMS"]

_STATES, _SAMPLES = 3, 3
_ORDERS = np.asarray(list(itertools.permutations(range(_STATES))))


def _chain(key: PRNGKeyArray) -> Inputs:
    """X → Y → Z: logits of the joint law of X and Y and of the channel from Y to Z, and two relabellings."""
    x = normals(key, joint=(_STATES, _STATES), channel=(_STATES, _STATES), orders=(2,))
    order = between(0, len(_ORDERS), x["orders"]).astype(int)
    return {
        "joint": 2 * x["joint"],
        "channel": 2 * x["channel"],
        "orders": jnp.asarray(_ORDERS)[order],
    }


def _gaussian_sample(key: PRNGKeyArray) -> Inputs:
    x = normals(key, first=(_SAMPLES,), second=(_SAMPLES,), correlation=())
    return {**x, "correlation": between(-0.9, 0.9, x["correlation"])}


def _joint(x: Inputs) -> Array:
    """The law of X and Y."""
    return jax.nn.softmax(x["joint"], axis=(0, 1))


def _channel(x: Inputs) -> Array:
    """The law of Z for every y."""
    return jax.nn.softmax(x["channel"], axis=-1)


def _optimal_bound(joint: Array, marginal: Array) -> Array:
    """Donsker and Varadhan's bound at its best critic log p/q, for two laws on finitely many pairs."""
    p, q = joint.ravel(), marginal.ravel()
    return donsker_varadhan(jnp.log(p / q), p, q)


def _product(joint: Array) -> Array:
    """The product of a law's marginals."""
    return jnp.sum(joint, axis=1, keepdims=True) * jnp.sum(joint, axis=0)


def _bound_of(joint: Array) -> Array:
    return _optimal_bound(joint, _product(joint))


def _relabelled(x: Inputs) -> Array:
    rows, columns = jnp.eye(_STATES, dtype=x["joint"].dtype)[x["orders"]]
    return rows @ _joint(x) @ columns.T


def _information(joint: Array) -> Array:
    """H(X) + H(Y) − H(X, Y)."""
    laws = jnp.sum(joint, axis=1), jnp.sum(joint, axis=0), joint
    first, second, both = (-jnp.sum(p * jnp.log(p)) for p in laws)
    return first + second - both


def _log_ratio(first: Array, second: Array, correlation: Array) -> Array:
    """log p(x, y) − log p(x) p(y) of two standard normal variables."""
    unexplained = 1 - correlation**2
    joint = -(first**2 - 2 * correlation * first * second + second**2) / (2 * unexplained) - jnp.log(unexplained) / 2
    return joint + (first**2 + second**2) / 2


def _log_ratio_of_images(u: Array, v: Array, correlation: Array) -> Array:
    """The same for u = sinh x and v = eʸ, from the densities that u and v have."""
    x, y = jnp.arcsinh(u), jnp.log(v)
    log_slope_u, log_slope_v = -jnp.log1p(u**2) / 2, -jnp.log(v)
    unexplained = 1 - correlation**2
    quadratic = (x**2 - 2 * correlation * x * y + y**2) / (2 * unexplained)
    joint = -quadratic - jnp.log(2 * jnp.pi * jnp.sqrt(unexplained)) + log_slope_u + log_slope_v
    first = -(x**2) / 2 - jnp.log(2 * jnp.pi) / 2 + log_slope_u
    second = -(y**2) / 2 - jnp.log(2 * jnp.pi) / 2 + log_slope_v
    return joint - first - second


def _bounds(scores: Array) -> Array:
    """Four bounds from the scores of every x with every y, each at its own best critic; that of NWJ is one higher."""
    joint, marginal = jnp.diagonal(scores), scores.ravel()
    rival = ~jnp.eye(_SAMPLES, dtype=bool)
    return jnp.stack(
        [
            donsker_varadhan_bound(joint, marginal),
            nwj_bound(1 + joint, 1 + marginal),
            jensen_shannon_bound(joint, marginal),
            jnp.mean(info_nce_bound(joint, scores, where=rival)),
        ]
    )


def _bounds_of_images(x: Inputs) -> Array:
    u, v = jnp.sinh(x["first"]), jnp.exp(x["second"])
    return _bounds(_log_ratio_of_images(u[:, None], v, x["correlation"]))


def _plain_bounds(x: Inputs, log_ratio: Callable[[Array, Array, Array], Array]) -> Array:
    scores = log_ratio(x["first"][:, None], x["second"], x["correlation"])
    joint, weight = jnp.diagonal(scores), jnp.exp(scores)
    share = jnp.diagonal(weight) / jnp.mean(weight, axis=1)
    return jnp.stack(
        [
            jnp.mean(joint) - jnp.log(jnp.mean(weight)),
            1 + jnp.mean(joint) - jnp.mean(weight),
            -jnp.mean(jnp.log(1 + jnp.exp(-joint))) - jnp.mean(jnp.log(1 + weight)),
            jnp.mean(jnp.log(share)),
        ]
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="50a",
        title="Processing cannot make information",
        statement=r"X \to Y \to Z \;\Rightarrow\; I(X; Z) \le I(X; Y)",
        kind=Kind.INEQUALITY,
        draw=_chain,
        left=lambda x: _bound_of(_joint(x) @ _channel(x)),
        right=lambda x: _bound_of(_joint(x)),
        twin=lambda x: _bound_of(_joint(x) @ _channel(x) @ _channel(x)),
        slip="Y sent through the channel twice",
        source="Cover & Thomas, Elements of Information Theory, theorem 2.8.1",
    ),
    Claim(
        id="50b",
        title="Relabelling x and y leaves the information, and the bound's optimum, unchanged",
        statement=r"\max_T I_{\mathrm{DV}}(T; f(X), g(Y)) = I(X; Y) = H(X) + H(Y) - H(X, Y),"
        r" \qquad f, g \text{ bijections}",
        kind=Kind.EXACT,
        draw=_chain,
        left=lambda x: _bound_of(_relabelled(x)),
        right=lambda x: _information(_joint(x)),
        twin=lambda x: _optimal_bound(_relabelled(x), _product(_joint(x))),
        slip="the joint law relabelled, its marginals not",
        source="Cover & Thomas, Elements of Information Theory, chapter 2",
    ),
    Claim(
        id="50c",
        title="Every bound at its best critic is the same for u = sinh x and v = exp y, sample by sample",
        statement=r"T^*_{UV}(u, v) = \log\frac{p(u, v)}{p(u)\,p(v)} = T^*_{XY}(x, y), \qquad"
        r" u = \sinh x,\; v = e^y",
        kind=Kind.EXACT,
        draw=_gaussian_sample,
        left=_bounds_of_images,
        right=lambda x: _plain_bounds(x, _log_ratio),
        twin=lambda x: _plain_bounds(x, lambda *point: _log_ratio(*point) - point[1]),
        slip="the Jacobian of v left in the joint density",
        source="derived here: the Jacobians cancel",
        derivatives=0,
        samples=200_000,
    ),
)
