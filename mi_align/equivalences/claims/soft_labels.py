"""Ledger 28: lists of candidates with soft labels: EXO, InfoNCA, and the f-PO family between and around them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.objectives import exo_loss, exo_pair_loss, weighted_info_nce_loss

__all__ = ["CLAIMS"]

_FPO = "Ji et al. 2024, EXO (arXiv 2402.00856); Han et al. 2024, f-PO (arXiv 2410.21662)"
_SMALL = tuple(2.0**-k for k in range(5, 14))


def _list(key: PRNGKeyArray) -> Inputs:
    """Scores and rewards of four candidates, and a share ε of flipped labels."""
    scores, rewards = 2 * jax.random.normal(key, (2, 4))
    return {"s": scores, "r": rewards, "e": 0.01 + 0.48 * jax.random.uniform(jax.random.fold_in(key, 1))}


def _laws(x: Inputs) -> tuple[Array, Array]:
    """P = softmax(s), from the policy, and Q = softmax(r), from the rewards."""
    policy, target = jnp.exp(x["s"]), jnp.exp(x["r"])
    return policy / jnp.sum(policy), target / jnp.sum(target)


def _kl(p: Array, q: Array) -> Array:
    return jnp.sum(p * jnp.log(p / q))


def _labels(x: Inputs) -> Array:
    return jax.nn.softmax(x["r"])


def _entropy(p: Array) -> Array:
    return -jnp.sum(p * jnp.log(p))


def _two_way(x: Inputs, flipped: float | Array) -> Array:
    """KL of (σ(u), σ(−u)) from (1 − ε, ε)."""
    win = 1 / (1 + jnp.exp(x["s"][1] - x["s"][0]))
    return _kl(jnp.stack([win, 1 - win]), jnp.stack([1 - flipped, flipped]))


def _exo_slope(x: Inputs, centred: bool = True) -> Array:
    """P_k (log P_k/Q_k − KL(P‖Q))."""
    p, q = _laws(x)
    return p * (jnp.log(p / q) - (_kl(p, q) if centred else 0))


def _alpha_divergence(x: Inputs, order: float) -> Array:
    """Σ Q^a P^{1−a} − 1 over a (a − 1): f-PO's α-family, which is EXO at a → 0."""
    p, q = _laws(x)
    return jnp.sum(p * jnp.expm1(order * jnp.log(q / p))) / (order * (order - 1))


def _jeffreys(x: Inputs) -> Array:
    """Σ (P − Q) log P/Q."""
    p, q = _laws(x)
    return jnp.sum((p - q) * jnp.log(p / q))


def _both_losses(x: Inputs) -> Array:
    """EXO's loss plus InfoNCA's, less the entropy of the labels: Jeffreys' divergence in public functions."""
    labels = _labels(x)
    return exo_loss(x["s"], labels) + weighted_info_nce_loss(x["s"], labels) - _entropy(labels)


def _to_mixture(x: Inputs) -> Array:
    """The Jensen–Shannon divergence of P and Q, weights ½."""
    p, q = _laws(x)
    return (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="28a",
        title="EXO is the reverse KL of the candidates' softmax from that of their rewards",
        statement=r"\ell_{\mathrm{EXO}} = \mathrm{KL}(P_\theta\,\Vert\,P_R),\quad P_\theta = \mathrm{softmax}(s),"
        r"\ P_R = \mathrm{softmax}(r)",
        kind=Kind.EXACT,
        draw=_list,
        left=lambda x: exo_loss(x["s"], _labels(x)),
        right=lambda x: _kl(*_laws(x)),
        twin=lambda x: _kl(*_laws(x)[::-1]),
        slip="the forward KL",
        source=_FPO,
    ),
    Claim(
        id="28b",
        title="DPO on soft labels (InfoNCA) is the forward KL, plus the labels' entropy",
        statement=r"\ell_{\mathrm{InfoNCA}} = \mathrm{KL}(P_R\,\Vert\,P_\theta) + H(P_R)",
        kind=Kind.EXACT,
        draw=_list,
        left=lambda x: weighted_info_nce_loss(x["s"], _labels(x)),
        right=lambda x: _kl(*_laws(x)[::-1]) + _entropy(_laws(x)[1]),
        twin=lambda x: _kl(*_laws(x)) + _entropy(_laws(x)[1]),
        slip="the reverse KL",
        source=_FPO,
    ),
    Claim(
        id="28c",
        title="EXO on a pair, with smoothed labels",
        statement=r"\ell_{\mathrm{EXO}}(s^+, s^-) = \mathrm{KL}\left((\sigma(u), \sigma(-u))\,\Vert\,"
        r"(1-\varepsilon, \varepsilon)\right)",
        kind=Kind.EXACT,
        draw=_list,
        left=lambda x: exo_pair_loss(x["s"][0], x["s"][1], label_smoothing=x["e"]),
        right=lambda x: _two_way(x, x["e"]),
        twin=lambda x: _two_way(x, 1 - x["e"]),
        slip="the labels exchanged",
        source=_FPO,
    ),
    Claim(
        id="28d",
        title="EXO on a pair is EXO on a list of two",
        statement=r"\ell_{\mathrm{EXO}}^{\mathrm{pair}}(s_1, s_2; \varepsilon) ="
        r" \ell_{\mathrm{EXO}}\left((s_1, s_2), (1-\varepsilon, \varepsilon)\right)",
        kind=Kind.EXACT,
        draw=_list,
        left=lambda x: exo_pair_loss(x["s"][0], x["s"][1], label_smoothing=x["e"]),
        right=lambda x: exo_loss(x["s"][:2], jnp.stack([1 - x["e"], x["e"]])),
        twin=lambda x: weighted_info_nce_loss(x["s"][:2], jnp.stack([1 - x["e"], x["e"]])),
        slip="InfoNCA on the list of two",
        source="derived here",
    ),
    Claim(
        id="28e",
        title="EXO and InfoNCA together are Jeffreys' divergence",
        statement=r"\ell_{\mathrm{EXO}} + \ell_{\mathrm{InfoNCA}} - H(P_R) = \sum_k (P_k - Q_k)\log\frac{P_k}{Q_k}",
        kind=Kind.EXACT,
        draw=_list,
        left=_both_losses,
        right=_jeffreys,
        twin=lambda x: _jeffreys(x) + _entropy(_laws(x)[0]) - _entropy(_laws(x)[1]),
        slip="the policy's entropy for the labels'",
        source=_FPO,
    ),
    Claim(
        id="28f",
        title="f-PO's squared Hellinger loss is at most EXO's",
        statement=r"\sum_k\left(\sqrt{P_k}-\sqrt{Q_k}\right)^2 \le \mathrm{KL}(P\,\Vert\,Q)",
        kind=Kind.INEQUALITY,
        draw=_list,
        left=lambda x: jnp.sum((jnp.sqrt(_laws(x)[0]) - jnp.sqrt(_laws(x)[1])) ** 2),
        right=lambda x: exo_loss(x["s"], _labels(x)),
        twin=lambda x: exo_loss(x["s"], _labels(x)) / 3,
        slip="a third of EXO's loss",
        source=_FPO,
    ),
    Claim(
        id="28g",
        title="f-PO's Jensen–Shannon loss is at most a quarter of Jeffreys'",
        statement=r"\mathrm{JSD}(P, Q) \le \tfrac14\left[\mathrm{KL}(P\,\Vert\,Q) + \mathrm{KL}(Q\,\Vert\,P)\right]",
        kind=Kind.INEQUALITY,
        draw=_list,
        left=_to_mixture,
        right=lambda x: _both_losses(x) / 4,
        twin=lambda x: _both_losses(x) / 10,
        slip="a tenth instead of a quarter",
        source="Lin 1991; the losses: " + _FPO,
    ),
    Claim(
        id="28h",
        title="EXO's gradient",
        statement=r"\frac{\partial \ell_{\mathrm{EXO}}}{\partial s_k} = P_k\left(\log\frac{P_k}{Q_k} -"
        r" \mathrm{KL}(P\,\Vert\,Q)\right)",
        kind=Kind.EXACT,
        draw=_list,
        left=lambda x: jax.grad(exo_loss)(x["s"], _labels(x)),
        right=_exo_slope,
        twin=lambda x: _exo_slope(x, centred=False),
        slip="the KL not subtracted",
        source="derived here",
        derivatives=0,
    ),
    Claim(
        id="28i",
        title="f-PO's α-family ends in EXO, at a linear rate",
        statement=r"\left|\frac{\sum_k Q_k^{\alpha}P_k^{1-\alpha} - 1}{\alpha(\alpha-1)} -"
        r" \ell_{\mathrm{EXO}}\right| = \Theta(\alpha)",
        kind=Kind.ASYMPTOTIC,
        draw=_list,
        left=lambda x: jnp.stack([jnp.abs(_alpha_divergence(x, a) - exo_loss(x["s"], _labels(x))) for a in _SMALL]),
        right=lambda x: jnp.asarray(_SMALL, x["s"].dtype),
        twin=lambda x: jnp.sqrt(jnp.asarray(_SMALL, x["s"].dtype)),
        slip="half the rate",
        source=_FPO,
        samples=1000,
        grid=_SMALL,
    ),
)
