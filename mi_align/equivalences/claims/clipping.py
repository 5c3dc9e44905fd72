"""Ledger 8: SMILE, which clips the partition term of Donsker–Varadhan's bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals
from mi_align.objectives import donsker_varadhan_bound, jensen_shannon_bound, smile_bound

__all__ = ["CLAIMS"]

_SMILE = "Song & Ermon 2020 (arXiv 1910.06222)"


def _samples(key: PRNGKeyArray) -> Inputs:
    """Scores of a joint and of a marginal sample, τ, and a gap."""
    x = normals(key, joint=(4,), marginal=(5,), clip=(), gap=())
    scores = {name: 3 * x[name] for name in ("joint", "marginal")}
    return {**scores, "clip": 10 ** between(-1, 0.7, x["clip"]), "gap": jnp.exp(x["gap"])}


def _clipped_at(x: Inputs, clip: Array) -> Array:
    return smile_bound(x["joint"], x["marginal"], clip=clip)


def _largest(x: Inputs) -> Array:
    """max |b|, a constant."""
    return jax.lax.stop_gradient(jnp.max(jnp.abs(x["marginal"])))


def _written_out(x: Inputs, low: float = -1.0) -> Array:
    """mean(a) − log mean(clip(e^b, e^−τ, e^τ))."""
    terms = jnp.clip(jnp.exp(x["marginal"]), jnp.exp(low * x["clip"]), jnp.exp(x["clip"]))
    return jnp.mean(x["joint"]) - jnp.log(jnp.mean(terms))


def _law(key: PRNGKeyArray) -> Inputs:
    """A law of four letters, which may put half its mass on each of two; scores that are often clipped; and τ."""
    x = normals(key, q=(4,), scores=(4,), clip=(), sharp=())
    even = jnp.asarray([0.0, 0.0, -30.0, -30.0])
    return {
        "q": x["q"] + jnp.where(x["sharp"] > 1, 1, 0) * (even - x["q"]),
        "scores": 5 * x["scores"],
        "clip": 10 ** between(-1, 0.5, x["clip"]),
    }


def _variance(x: Inputs) -> Array:
    """Var_q of one clipped term, which is e^{−I} of the sample whose only marginal score it is."""
    joint, law = jnp.zeros((4, 1), x["q"].dtype), jax.nn.softmax(x["q"])
    terms = jnp.exp(-smile_bound(joint, x["scores"][:, None], clip=x["clip"]))
    return law @ (terms - law @ terms) ** 2


def _popoviciu(x: Inputs, parts: float = 4.0) -> Array:
    """(e^τ − e^−τ)²/4."""
    return (jnp.exp(x["clip"]) - jnp.exp(-x["clip"])) ** 2 / parts


def _trained_and_reported(x: Inputs) -> tuple[Array, Array]:
    """The authors' combination: SMILE's value by stop-gradient on the Jensen–Shannon bound."""
    trained = jensen_shannon_bound(x["joint"], x["marginal"])
    return trained + jax.lax.stop_gradient(_clipped_at(x, x["clip"]) - trained), trained


def _value_and_slopes(value: Array, slopes: Inputs) -> Array:
    return jnp.concatenate([value[None], slopes["joint"], slopes["marginal"]])


def _combined(x: Inputs) -> Array:
    value, slopes = jax.value_and_grad(lambda y: _trained_and_reported({**x, **y})[0])(_only_scores(x))
    return _value_and_slopes(value, slopes)


def _only_scores(x: Inputs) -> Inputs:
    return {name: x[name] for name in ("joint", "marginal")}


def _parts(x: Inputs, slope_of_joint: float = 1.0) -> Array:
    """SMILE's value, and the Jensen–Shannon bound's slopes in closed form."""
    joint = slope_of_joint * jax.nn.sigmoid(-x["joint"]) / x["joint"].size
    marginal = -jax.nn.sigmoid(x["marginal"]) / x["marginal"].size
    return _value_and_slopes(_written_out(x), {"joint": joint, "marginal": marginal})


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="8a",
        title="A clip beyond all scores leaves Donsker–Varadhan's bound",
        statement=r"\tau > \max_j |b_j|:\quad I_{\mathrm{SMILE}} = I_{\mathrm{DV}}",
        kind=Kind.EXACT,
        draw=_samples,
        left=lambda x: _clipped_at(x, _largest(x) + x["gap"]),
        right=lambda x: donsker_varadhan_bound(x["joint"], x["marginal"]),
        twin=lambda x: _clipped_at(x, 0.999 * _largest(x)),
        slip="a clip just below the largest score",
        source=_SMILE,
    ),
    Claim(
        id="8b",
        title="SMILE clips the partition's terms, and only them",
        statement=r"I_{\mathrm{SMILE}} = \frac1N\sum_i a_i -"
        r" \log\frac1M\sum_j \mathrm{clip}\left(e^{b_j},\,e^{-\tau},\,e^{\tau}\right)",
        kind=Kind.EXACT,
        draw=_samples,
        left=lambda x: _clipped_at(x, x["clip"]),
        right=_written_out,
        twin=lambda x: _written_out(x, -1.000001),
        slip="the lower limit's τ multiplied by 1 + 1e-6",
        source=_SMILE,
    ),
    Claim(
        id="8c",
        title="One clipped term varies by at most (e^τ − e^−τ)²/4",
        statement=r"\mathrm{Var}_q\,\mathrm{clip}\left(e^{T}, e^{-\tau}, e^{\tau}\right) \le"
        r" \tfrac14\left(e^{\tau} - e^{-\tau}\right)^2",
        kind=Kind.INEQUALITY,
        draw=_law,
        left=_variance,
        right=_popoviciu,
        twin=lambda x: _popoviciu(x, 4.000001),
        slip="4.000001 in the place of 4",
        source=f"derived here (Popoviciu); {_SMILE}",
    ),
    Claim(
        id="8d",
        title="Trained by Jensen–Shannon and reported by SMILE: the value of one, the gradient of the other",
        statement=r"I = I_{\mathrm{JS}} + \mathrm{stop}\left(I_{\mathrm{SMILE}} - I_{\mathrm{JS}}\right):\quad"
        r" I = I_{\mathrm{SMILE}},\ \nabla I = \nabla I_{\mathrm{JS}}",
        kind=Kind.EXACT,
        draw=_samples,
        left=_combined,
        right=_parts,
        twin=lambda x: _parts(x, 1 + 1e-6),
        slip="the slope of the joint scores multiplied by 1 + 1e-6",
        source=f"{_SMILE}; the authors' code",
        derivatives=0,
    ),
)
