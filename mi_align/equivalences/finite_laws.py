"""Two laws on a small alphabet and a critic on it: the bounds' expectations are then sums, exact to the last digits.

p is the law of the joint sample, q that of the marginal one; a critic is a vector, one score a letter. Bounds that are
means over their samples (Jensen–Shannon, NWJ, TUBA) are evaluated on samples of one letter each and averaged over all
pairs of letters.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from mi_align.equivalences.claim import Inputs
from mi_align.equivalences.groups import all_groups, between, group_chances, normals
from mi_align.equivalences.populations import donsker_varadhan, kullback_leibler

__all__ = [
    "all_batches",
    "best_critic",
    "chi_square",
    "draw",
    "dv",
    "expected",
    "gauss_hermite",
    "jensen_shannon",
    "kl",
    "laws",
    "log_partition",
    "or_zero",
    "with_best_critic",
]

Law = Float[Array, "letters"]


def or_zero(noise: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Standard normal numbers carried into [0, 1): exactly 0 one time in seven."""
    return jnp.maximum(between(-0.14, 1, noise), 0)


def draw(key: PRNGKeyArray, *, letters: int = 4) -> dict[str, Float[Array, "..."]]:
    """Logits of `p` and of `q`, a `shift`, and a critic `T`: the best one, off by up to 4 nats, and shifted.

    The shift and the deviation are exactly 0 one time in seven each, so that bounds are seen where they are attained.
    """
    x = normals(key, p=(letters,), q=(letters,), error=(letters,), apart=(2,), shift=())
    apart = or_zero(x["apart"])
    shift = apart[0] * between(-2, 2, x["shift"])
    x = {"p": 1.5 * x["p"], "q": 1.5 * x["q"], "shift": shift, "error": apart[1] ** 2 * between(-4, 4, x["error"])}
    return {name: x[name] for name in ("p", "q", "shift")} | {"T": best_critic(x) + x["error"] + shift}


def laws(x: Inputs) -> tuple[Law, Law]:
    """p and q."""
    return jax.nn.softmax(x["p"]), jax.nn.softmax(x["q"])


def best_critic(x: Inputs) -> Law:
    """log p/q."""
    return jax.nn.log_softmax(x["p"]) - jax.nn.log_softmax(x["q"])


def with_best_critic(x: Inputs) -> Inputs:
    """The same laws with the critic log p/q, moved by the shift."""
    return {**x, "T": best_critic(x) + x["shift"]}


def kl(x: Inputs) -> Float[Array, ""]:
    """KL(p ‖ q), in nats."""
    return laws(x)[0] @ best_critic(x)


def jensen_shannon(x: Inputs) -> Float[Array, ""]:
    """JSD(p, q) with weights ½, in nats."""
    p, q = laws(x)
    return (kullback_leibler(p, (p + q) / 2) + kullback_leibler(q, (p + q) / 2)) / 2


def chi_square(x: Inputs) -> Float[Array, ""]:
    """χ²(p ‖ q) = Var_q(p/q)."""
    p, q = laws(x)
    return jnp.sum((p - q) ** 2 / q)


def log_partition(x: Inputs) -> Float[Array, ""]:
    """log Z = log E_q e^T."""
    return jax.nn.logsumexp(jax.nn.log_softmax(x["q"]) + x["T"])


def dv(x: Inputs) -> Float[Array, ""]:
    """E_p T − log E_q e^T by the library's bound."""
    return donsker_varadhan(x["T"], *laws(x))


def expected(bound: Callable[..., Array], x: Inputs, **hyper: Array) -> Float[Array, ""]:
    """A bound that is a mean over each of its samples: averaged over one joint and one marginal letter."""
    p, q = laws(x)
    shape = (p.size, q.size, 1)
    joint, marginal = jnp.broadcast_to(x["T"][:, None, None], shape), jnp.broadcast_to(x["T"][:, None], shape)
    return p @ bound(joint, marginal, **hyper) @ q


def all_batches(
    bound: Callable[[Array, Array], Array], x: Inputs, *, joint: int, marginal: int
) -> tuple[Float[Array, "joints marginals"], Float[Array, "joints marginals"]]:
    """A bound of the critic's scores on every batch that can be drawn, and every batch's probability.

    Args:
      bound: scores of a joint and of a marginal sample -> one number.
      x: the laws and the critic.
      joint: size of the joint sample.
      marginal: size of the marginal sample.
    """
    letters = x["T"].size
    a, b = (jnp.asarray(all_groups(letters, size), x["T"].dtype) @ x["T"] for size in (joint, marginal))
    shape = (len(a), len(b))
    values = bound(jnp.broadcast_to(a[:, None], (*shape, joint)), jnp.broadcast_to(b, (*shape, marginal)))
    first, second = (group_chances(jax.nn.log_softmax(x[law]), size) for law, size in (("p", joint), ("q", marginal)))
    return values, first[:, None] * second


def gauss_hermite(nodes: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights with which sums are means over a standard Gaussian.

    With 32 of them the mean of e^{tx} is exact to 1e-20 for |t| ≤ 3, and to 1e-9 for |t| ≤ 6.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    return points, weights / weights.sum()
