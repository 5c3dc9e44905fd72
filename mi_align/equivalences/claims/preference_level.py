"""Ledger 19 and 21: MIO holds the chosen response's own level: at ln 2 above the reference, and no higher."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.critics import Candidates
from mi_align.equivalences import scores
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.optimise import minimise
from mi_align.equivalences.populations import mio_pair_loss
from mi_align.equivalences.spectrum import spectrum
from mi_align.methods import METHODS
from mi_align.objectives import bco_pair_loss, bradley_terry_loss, nca_loss

__all__ = ["CLAIMS"]

_NEGATIVES, _RESPONSES = 5, 4
_LEAST = float(np.log(3 * np.sqrt(3) / 2))  # .9547712524
_JUNG = "Jung et al. 2024 (arXiv 2404.04656), theorem 1"


def _mio(x: Inputs) -> Array:
    return mio_pair_loss(x["a"], x["c"])


def _bco(x: Inputs) -> Array:
    return bco_pair_loss(x["a"], x["c"])


def _dpo(x: Inputs) -> Array:
    return bradley_terry_loss(x["a"], x["c"])


def _near_optimum(key: PRNGKeyArray) -> Inputs:
    """a from far to within a millionth of ln 2, c from 5 down to −35."""
    x = scores.uniforms(key, a=(), c=())
    return {"a": jnp.log(2.0) + 5 * x["a"] ** 5, "c": -15 + 20 * x["c"]}


def _log_cosh(a: Array) -> Array:
    """log(2 cosh(a/2))."""
    return jnp.abs(a) / 2 + jnp.log1p(jnp.exp(-jnp.abs(a)))


def _gap(x: Inputs) -> Array:
    """log[1 + (e^{−a} + e^c)/(1 + e^{c−a})]."""
    top = jnp.logaddexp(-x["a"], x["c"]) - jnp.logaddexp(0, x["c"] - x["a"])
    return jax.nn.softplus(top)


def _excess(x: Inputs, share: float = 2 / 3) -> Array:
    """(3/2) KL(Bern(2/3) ‖ Bern(σ(a))) + ½ sp(c)."""
    cross = share * jnp.logaddexp(0, -x["a"]) + (1 - share) * jnp.logaddexp(0, x["a"])
    entropy = -(2 / 3) * np.log(2 / 3) - (1 / 3) * np.log(1 / 3)
    return 1.5 * (cross - entropy) + 0.5 * jnp.logaddexp(0, x["c"])


def _lowest_curvature(loss: Callable[[Array], Array], x: Inputs) -> Array:
    """The smallest eigenvalue of the loss's Hessian in all the logits."""
    return jnp.min(spectrum(jax.hessian(loss)(x["s"])).values)


def _best_level(x: Inputs) -> Array:
    """Where MIO with the drawn negatives is least in the chosen logit, and the gradient left there."""
    start = jnp.clip(x["s"][:1], -3, 3)
    found = minimise(lambda a: nca_loss(a[0], x["s"][1:], where=x["where"][1:]), start, steps=12)
    return jnp.stack([found.point[0], found.residual])


def _log_of_kept(x: Inputs, others: float = 0.0) -> Array:
    return jnp.stack([jnp.log(jnp.sum(x["where"]) + others), jnp.zeros_like(x["s"][0])])


def _movable(key: PRNGKeyArray) -> Inputs:
    """β from 0.2 to 1.6, and a reference that leaves room for 2^{1/β} times the chosen response's probability."""
    x = scores.uniforms(key, others=(_RESPONSES - 1,), room=(), beta=())
    beta = 0.9 + 0.7 * x["beta"]
    chosen = (0.45 + 0.35 * x["room"]) * 2 ** (-1 / beta)
    others = jnp.log1p(-chosen) + jax.nn.log_softmax(2 * x["others"])
    return {"reference": jnp.concatenate([jnp.log(chosen)[None], others]), "beta": beta}


def _trained(x: Inputs) -> Array:
    """π/π_ref of the chosen response after MIO has converged, e^c of the rejected, the residual.

    The two logits of the pair are trained; how the other responses share the rest is nothing to the loss.
    """

    def log_policy(logits: Array) -> Array:
        return jax.nn.log_softmax(jnp.concatenate([logits, x["reference"][2:]]))

    def loss(logits: Array) -> Array:
        pair = Candidates.from_sequences(log_policy(logits)[:2], x["reference"][:2])
        return METHODS["mio"](pair, beta=x["beta"])

    found = minimise(loss, x["reference"][:2], steps=40)
    ratio = jnp.exp(log_policy(found.point) - x["reference"])
    return jnp.stack([ratio[0], ratio[1] ** x["beta"], found.residual])


def _target(x: Inputs, gain: float = 2.0) -> Array:
    return jnp.stack([gain ** (1 / x["beta"]), jnp.zeros_like(x["beta"]), jnp.zeros_like(x["beta"])])


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="19a",
        title="MIO is half of BCO plus an anchor on the chosen reward",
        statement=r"\ell_{\mathrm{MIO}} = \tfrac12\left[\mathrm{sp}(-a) + \mathrm{sp}(c)\right] +"
        r" \log\left(2\cosh\tfrac a2\right) = \tfrac12\,\ell_{\mathrm{BCO}} + \log\left(2\cosh\tfrac a2\right)",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=_mio,
        right=lambda x: _bco(x) / 2 + _log_cosh(x["a"]),
        twin=lambda x: _bco(x) / 2 + _log_cosh((1 + 1e-6) * x["a"]),
        slip="the anchor's argument multiplied by 1 + 1e-6",
        source="derived here",
    ),
    Claim(
        id="19b",
        title="How far BCO lies above DPO",
        statement=r"\ell_{\mathrm{BCO}} - \ell_{\mathrm{DPO}} ="
        r" \log\left(1 + \frac{e^{-a} + e^{c}}{1 + e^{c-a}}\right) > 0",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=lambda x: _bco(x) - _dpo(x),
        right=_gap,
        twin=lambda x: _gap({"a": x["a"], "c": (1 + 1e-6) * x["c"]}),
        slip="the rejected logit multiplied by 1 + 1e-6",
        source=f"derived here; the inequality: {_JUNG}",
    ),
    Claim(
        id="19c",
        title="BCO bounds DPO from above",
        statement=r"\ell_{\mathrm{DPO}} \le \ell_{\mathrm{BCO}}",
        kind=Kind.INEQUALITY,
        draw=scores.pair,
        left=_dpo,
        right=_bco,
        twin=lambda x: _bco(x) / 2,
        slip="half of BCO",
        source=_JUNG,
    ),
    Claim(
        id="19d",
        title="MIO lies above log 2 + BCO/2 by a margin that vanishes only where the chosen reward is 0",
        statement=r"\log 2 + \tfrac12\,\ell_{\mathrm{BCO}} + \frac{a^2}{8 + 4|a|} \le \ell_{\mathrm{MIO}}",
        kind=Kind.INEQUALITY,
        draw=scores.pair,
        left=lambda x: jnp.log(2.0) + _bco(x) / 2 + x["a"] ** 2 / (8 + 4 * jnp.abs(x["a"])),
        right=_mio,
        twin=lambda x: _mio(x) - x["a"] ** 2 / 16,
        slip="less a²/16",
        source="derived here",
    ),
    Claim(
        id="19e",
        title="Equality of MIO and log 2 + BCO/2 at chosen reward 0",
        statement=r"a = 0:\quad \ell_{\mathrm{MIO}} = \log 2 + \tfrac12\,\ell_{\mathrm{BCO}}",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=lambda x: mio_pair_loss(jnp.zeros_like(x["c"]), x["c"]),
        right=lambda x: jnp.log(2.0) + bco_pair_loss(jnp.zeros_like(x["c"]), x["c"]) / 2,
        twin=lambda x: jnp.log(2.0) + bco_pair_loss(jnp.full_like(x["c"], 1e-6), x["c"]) / 2,
        slip="chosen reward 1e-6",
        source="derived here",
    ),
    Claim(
        id="19f",
        title="MIO bounds DPO from above; the constant is the best one, approached at a = ln 2, c → −∞",
        statement=r"\log 2 + \tfrac12\,\ell_{\mathrm{DPO}} < \log\tfrac{3\sqrt3}{2} +"
        r" \tfrac12\,\ell_{\mathrm{DPO}} \le \ell_{\mathrm{MIO}}",
        kind=Kind.INEQUALITY,
        draw=_near_optimum,
        left=lambda x: _LEAST + _dpo(x) / 2,
        right=_mio,
        twin=lambda x: (1 - 1e-6) * _mio(x),
        slip="MIO multiplied by 1 − 1e-6",
        source="derived here",
    ),
    Claim(
        id="21a",
        title="MIO is convex in all its logits",
        statement=r"\lambda_{\min}\left(\nabla^2 \ell_{\mathrm{MIO}}(s^+, s^-_{1..K})\right) \ge 0",
        kind=Kind.INEQUALITY,
        draw=lambda key: {"s": scores.lot(key, size=3)["s"]},
        left=lambda x: jnp.zeros_like(x["s"][0]),
        right=lambda x: _lowest_curvature(lambda s: nca_loss(s[0], s[1:]), x),
        twin=lambda x: _lowest_curvature(lambda s: nca_loss(s[0], s[1:]) - jax.nn.softplus(s[1]), x),
        slip="the sign of one negative's term",
        source="derived here",
        samples=100_000,
    ),
    Claim(
        id="21b",
        title="MIO's infimum",
        statement=r"\ell_{\mathrm{MIO}} \ge \log\tfrac{3\sqrt3}{2} = \log 4 - \tfrac32\log\tfrac43 \approx 0.95477",
        kind=Kind.INEQUALITY,
        draw=_near_optimum,
        left=lambda x: jnp.full_like(x["a"], np.log(4) - 1.5 * np.log(4 / 3)),
        right=_mio,
        twin=lambda x: (1 - 1e-6) * _mio(x),
        slip="MIO multiplied by 1 − 1e-6",
        source="derived here",
    ),
    Claim(
        id="21c",
        title="What MIO is above its infimum: 0 only at a = ln 2 and c = −∞",
        statement=r"\ell_{\mathrm{MIO}} = \log\tfrac{3\sqrt3}{2} + \tfrac32\,\mathrm{KL}\left(\tfrac23 \,\Vert\,"
        r" \sigma(a)\right) + \tfrac12\,\mathrm{sp}(c)",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=_mio,
        right=lambda x: _LEAST + _excess(x),
        twin=lambda x: _LEAST + _excess(x, share=(1 + 1e-6) * 2 / 3),
        slip="2/3 multiplied by 1 + 1e-6",
        source="derived here",
    ),
    Claim(
        id="21d",
        title="With K negatives MIO holds the chosen level at log(K + 1): at ln 2 with one",
        statement=r"\operatorname{argmin}_{s^+}\ \ell_{\mathrm{MIO}}(s^+, s^-_{1..K}) = \log(K+1)",
        kind=Kind.OPTIMUM,
        draw=lambda key: scores.lot(key, size=1 + _NEGATIVES),
        left=_best_level,
        right=_log_of_kept,
        twin=lambda x: _log_of_kept(x, others=-1.0),
        slip="log K",
        source="derived here",
        derivatives=0,
        samples=4096,
    ),
    Claim(
        id="21e",
        title="Trained on one pair, MIO raises the chosen probability to 2^{1/β} times the reference's, and stops",
        statement=r"\pi_\theta(y_w) \to 2^{1/\beta}\,\pi_{\mathrm{ref}}(y_w),\qquad \pi_\theta(y_l) \to 0",
        kind=Kind.OPTIMUM,
        draw=_movable,
        left=_trained,
        right=_target,
        twin=lambda x: _target(x, gain=2 * (1 + 1e-6)),
        slip="2 multiplied by 1 + 1e-6",
        source="derived here; a response that the reference hardly gives stays rare",
        derivatives=0,
        samples=512,
        figure="gain_cap",
    ),
)
