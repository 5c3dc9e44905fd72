"""Objectives of pairs and of single responses, mapped one by one."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
from objective_case import Case, case, coupled, grouped, pair, scores, with_rax

__all__ = ["CASES"]

TARGET, SMOOTHING, MARGIN = 5.0, 0.1, 0.7  # away from neutral values


def labelled(n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """n scores and whether each response was desirable."""
    return scores(rng, n), rng.random(n) < 0.6


def _pairwise_logistic(rax):
    def loss(s, t):
        both = jnp.stack([s, t], -1)
        labels = jnp.zeros_like(both).at[..., 0].set(1)
        return rax.pairwise_logistic_loss(both, labels, reduce_fn=None).sum(-1)  # of all ordered pairs, one counts

    return loss


def _exo(m, s, t):
    won, lost = m.log_sigmoid(s - t), m.log_sigmoid(t - s)
    return m.exp(won) * (won - float(np.log1p(-SMOOTHING))) + m.exp(lost) * (lost - float(np.log(SMOOTHING)))


PAIRS: tuple[Case, ...] = (
    case(
        "bradley_terry_loss",
        pair,
        lambda m, s, t: -m.log_sigmoid(s - t),
        peers={
            "optax": lambda s, t: optax.losses.sigmoid_binary_cross_entropy(s - t, jnp.ones_like(s)),
            **with_rax(rax=_pairwise_logistic),
        },
    ),
    case(
        "robust_bradley_terry_loss",
        pair,
        lambda m, s, t: (
            (SMOOTHING * m.log_sigmoid(t - s) - (1 - SMOOTHING) * m.log_sigmoid(s - t)) / (1 - 2 * SMOOTHING)
        ),
        hyper={"label_smoothing": SMOOTHING},
    ),
    case("exo_pair_loss", pair, _exo, hyper={"label_smoothing": SMOOTHING}),
    case(
        "hinge_loss",
        pair,
        lambda m, s, t: m.relu(1 - (s - t)),
        peers={"optax": lambda s, t: optax.losses.hinge_loss(s - t, jnp.ones_like(s))},
    ),
    case(
        "squared_loss",
        pair,
        lambda m, s, t: (s - t - TARGET) ** 2,
        hyper={"target": TARGET},
        peers={"optax": lambda s, t: optax.losses.squared_error(s - t, jnp.full_like(s, TARGET))},
    ),
    case("exponential_loss", pair, lambda m, s, t: m.exp(t - s)),
    case(
        "truncated_quadratic_loss",
        pair,
        lambda m, s, t: m.relu(MARGIN - (s - t)) ** 2,
        hyper={"margin": MARGIN},
    ),
    case("savage_loss", pair, lambda m, s, t: m.expit(t - s) ** 2),
    case(
        "discopop_loss",
        pair,
        lambda m, s, t: m.expit((t - s) / 0.05) * m.softplus(t - s) + m.expit((s - t) / 0.05) * m.exp(t - s),
    ),
    case("bco_pair_loss", pair, lambda m, s, t: m.softplus(-s) + m.softplus(t)),
    case("sppo_hard_loss", pair, lambda m, s, t: (s - TARGET) ** 2 + (t + TARGET) ** 2, hyper={"target": TARGET}),
    case("apo_zero_loss", pair, lambda m, s, t: 1 - m.expit(s) + m.expit(t)),
    case("apo_down_loss", pair, lambda m, s, t: m.expit(s) + 1 - m.expit(s - t)),
    case("nwj_pair_loss", pair, lambda m, s, t: m.exp(t) - s),
    case("centring_penalty", pair, lambda m, s, t: (s + t) ** 2),
    coupled("aot_loss (N=1024)", grouped(1024, 2), lambda m, s, t: m.softplus(m.sort(t) - m.sort(s)), largest=1e6),
)

SINGLES: tuple[Case, ...] = (
    case(
        "kto_loss",
        labelled,
        lambda m, s, good: m.where(good, 1.5 * m.expit(0.4 - s), 0.5 * m.expit(s - 0.4)),
        hyper={"reference_point": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.5},
        held=(1,),
    ),
    case("apo_zero_unpaired_loss", labelled, lambda m, s, good: m.where(good, m.expit(-s), m.expit(s)), held=(1,)),
    case(
        "bco_loss",
        labelled,
        lambda m, s, good: m.where(good, m.softplus(0.4 - s), m.softplus(s - 0.4)),
        hyper={"shift": 0.4},
        held=(1,),
    ),
    coupled("kto_reference_point", lambda n, rng: (1 + scores(rng, n),), lambda m, s: m.relu(s.mean()), held=(0,)),
)

CASES = PAIRS + SINGLES
