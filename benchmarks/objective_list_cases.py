"""Objectives of lists, and bounds on mutual information over whole samples."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
import optax
from objective_case import Case, case, coupled, grouped, listed, pair, scores, with_rax

from mi_align import objectives

__all__ = ["BOUNDS", "LISTS", "WIDE"]

ALPHA, LEVEL = 0.3, 0.5


def _joined(m, s, t):
    return m.concatenate([s[..., None], t])


def _info_nce(m, s, t):
    return m.logsumexp(_joined(m, s, t)) - s


def _info_nce_bound(m, s, t):
    return math.log(1 + t.shape[-1]) - _info_nce(m, s, t)


def _nca(m, s, t):
    return m.softplus(-s) + (m.softplus(s) + m.softplus(t).sum(-1)) / (1 + t.shape[-1])


def _with_positive(s, t):
    return jnp.concatenate([s[..., None], t], axis=-1)


def _optax_softmax(s, t):
    every = _with_positive(s, t)
    return optax.losses.softmax_cross_entropy_with_integer_labels(every, jnp.zeros(every.shape[:-1], jnp.int32))


def _rax_softmax(rax):
    def loss(s, t):
        every = _with_positive(s, t)
        return rax.softmax_loss(every, jnp.zeros_like(every).at[..., 0].set(1), reduce_fn=None)

    return loss


def _rax_list_mle(rax):
    def loss(s):
        labels = jnp.broadcast_to(jnp.arange(s.shape[-1], 0, -1, dtype=s.dtype), s.shape)
        return rax.listmle_loss(s, labels, reduce_fn=None)

    return loss


def _cross_entropy(torch, F):
    def loss(s, t):
        every = torch.cat([s[:, None], t], -1)
        return F.cross_entropy(every, torch.zeros(len(s), dtype=torch.long), reduction="none")

    return loss


def _weighted(n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Lists of 16 with soft labels."""
    s, raw = grouped(16, 2)(n // 2 * 2, rng)
    weights = np.exp(raw)
    return s, weights / weights.sum(-1, keepdims=True)


SOFTMAX_PEERS = {"optax": _optax_softmax, **with_rax(rax=_rax_softmax)}

LISTS: tuple[Case, ...] = (
    case("nca_loss (K=1, MIO)", listed(2), _nca),
    case("mio_loss (K=1)", listed(2), _nca),
    case("info_nce_loss (K=1)", listed(2), lambda m, s, t: m.logaddexp(s, t[..., 0]) - s),
    coupled("info_nce_loss (K=15)", listed(16), _info_nce, torch=_cross_entropy, peers=SOFTMAX_PEERS),
    coupled("info_nce_bound (K=15)", listed(16), _info_nce_bound),
    coupled("nca_loss (K=15)", listed(16), _nca),
    coupled(
        "plackett_luce_loss (n=16)",
        grouped(16),
        lambda m, s: (m.tails(s) - s).sum(-1),
        peers=with_rax(rax=_rax_list_mle),
    ),
    coupled(
        "weighted_info_nce_loss (n=16)",
        _weighted,
        lambda m, s, w: -(w * m.log_softmax(s)).sum(-1),
        held=(1,),
        peers={"optax": lambda s, w: optax.losses.softmax_cross_entropy(s, w)},
    ),
    coupled(
        "weighted_nca_loss (n=16)",
        _weighted,
        lambda m, s, w: (w * m.softplus(-s)).sum(-1) + m.softplus(s).sum(-1) / s.shape[-1],
        held=(1,),
    ),
    coupled(
        "exo_loss (n=16)",
        _weighted,
        lambda m, s, w: (m.exp(m.log_softmax(s)) * (m.log_softmax(s) - m.log(w))).sum(-1),
        held=(1,),
    ),
)


def _donsker_varadhan(m, s, t):
    return s.mean() - m.logsumexp(t) + math.log(t.shape[-1])


def _interpolated(m, s):
    size, powers = s.shape[-1], m.exp(s)
    mixed = ALPHA * (powers.sum(-1)[:, None] - powers) / (size - 1) + (1 - ALPHA) * math.exp(LEVEL)
    logs, own = m.log(mixed), m.diagonal(mixed)
    others = (powers.sum(-1) - m.diagonal(powers)) / own
    pairs = size * (size - 1)
    return 1 + m.diagonal(s).mean() - (logs.sum() - m.diagonal(logs).sum()) / pairs - others.sum() / pairs


BOUNDS: tuple[Case, ...] = (
    coupled("donsker_varadhan_bound", pair, _donsker_varadhan),
    Case(
        "mine_step",
        pair,
        lambda s, t: objectives.mine_step(objectives.mine_init(), s, t)[0],
        _donsker_varadhan,  # the first step's value and gradient
        elementwise=False,
        largest=1e7,
    ),
    coupled("nwj_bound", pair, lambda m, s, t: s.mean() - m.exp(t - 1).mean()),
    coupled(
        "tuba_bound",
        pair,
        lambda m, s, t: s.mean() - m.exp(t - LEVEL).mean() - LEVEL + 1,
        hyper={"log_baseline": LEVEL},
    ),
    coupled("jensen_shannon_bound", pair, lambda m, s, t: -m.softplus(-s).mean() - m.softplus(t).mean()),
    coupled(
        "smile_bound",
        pair,
        lambda m, s, t: s.mean() - m.logsumexp(m.clip(t, -2.0, 2.0)) + math.log(t.shape[-1]),
        hyper={"clip": 2.0},
    ),
    coupled(
        "interpolated_bound (N×N)",
        lambda n, rng: (scores(rng, math.isqrt(n), math.isqrt(n)),),
        _interpolated,
        hyper={"alpha": ALPHA, "log_baseline": LEVEL},
        largest=1e6,
    ),
)

WIDE = coupled(
    "info_nce_loss (B=64, K=10⁶)",
    lambda n, rng: (scores(rng, 64), scores(rng, 64, n // 64)),
    _info_nce,
    torch=_cross_entropy,
    peers=SOFTMAX_PEERS,
)
