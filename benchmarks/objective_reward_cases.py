"""Policy gradients, their advantages, and estimators of a divergence."""

from __future__ import annotations

import numpy as np
from objective_case import Case, case, coupled, grouped, near, scores

from mi_align import objectives

__all__ = ["CASES"]

TOKENS = 64
LOW, HIGH, CAP = 0.2, 0.3, 1.2


def sampled(n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Log-probabilities now, those with which was sampled, and an advantage each."""
    logp = -np.abs(scores(rng, n // 3))
    return logp, near(rng, logp), scores(rng, n // 3)


def tokens(n: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The same for responses of 64 tokens, with an advantage each."""
    logp = -np.abs(scores(rng, max(n // (2 * TOKENS), 1), TOKENS))
    return logp, near(rng, logp), scores(rng, len(logp))


def _surrogate(m, log_ratio, advantage):
    ratio = m.exp(log_ratio)
    return -m.minimum(ratio * advantage, m.clip(ratio, 1 - LOW, 1 + HIGH) * advantage)


def _of_tokens(m, logp, old, advantage):
    return _surrogate(m, logp - old, advantage[:, None])


def _cispo(m, logp, old, advantage):
    weight = m.hold(m.clip(m.exp(logp - old), 0.0, CAP))
    return -(weight * advantage[:, None] * logp).mean()


def _mean(objective):
    """What is merged over micro-batches as a total and a weight, as a number."""
    return lambda *arrays: objective(*arrays).value()


def _grouped_tokens(name: str, formula, ours) -> Case:
    return Case(f"{name} (T=64)", tokens, ours, formula, held=(1, 2), elementwise=False, largest=1e7)


CLIPS = {"clip_low": LOW, "clip_high": HIGH}
HELD = {"held": (1, 2)}

CASES: tuple[Case, ...] = (
    case("reinforce_loss", lambda n, rng: sampled(n * 3 // 2, rng)[::2], lambda m, x, a: -a * x, held=(1,)),
    coupled(
        "rloo_loss (G=8)",
        grouped(8, 2),
        lambda m, x, r: -(r - (r.sum(-1)[..., None] - r) / 7) * x,
        held=(1,),
    ),
    case("ppo_loss", sampled, lambda m, x, old, a: _surrogate(m, x - old, a), hyper=CLIPS, **HELD),
    case(
        "ppo_value_loss",
        sampled,
        lambda m, v, old, r: 0.5 * m.maximum((v - r) ** 2, (m.minimum(m.maximum(v, old - 0.2), old + 0.2) - r) ** 2),
        **HELD,
    ),
    _grouped_tokens(
        "grpo_loss", lambda m, *x: _of_tokens(m, *x).mean(-1), lambda *x: objectives.grpo_loss(*x, **CLIPS)
    ),
    _grouped_tokens(
        "dr_grpo_loss",
        lambda m, *x: _of_tokens(m, *x).sum(-1) / 100,
        lambda *x: objectives.dr_grpo_loss(*x, max_length=100.0, **CLIPS),
    ),
    _grouped_tokens(
        "dapo_loss",
        lambda m, *x: _of_tokens(m, *x).mean(),
        _mean(lambda *x: objectives.dapo_loss(*x, **CLIPS)),
    ),
    _grouped_tokens(
        "bnpo_loss",
        lambda m, *x: _of_tokens(m, *x).mean(),
        _mean(lambda *x: objectives.bnpo_loss(*x, **CLIPS)),
    ),
    _grouped_tokens(
        "gspo_loss",
        lambda m, x, old, a: _surrogate(m, (x - old).mean(-1), a),
        lambda *x: objectives.gspo_loss(*x, **CLIPS),
    ),
    _grouped_tokens("cispo_loss", _cispo, _mean(lambda *x: objectives.cispo_loss(*x, ratio_cap=CAP))),
    case("kl_k1", lambda n, rng: sampled(n * 3 // 2, rng)[:2], lambda m, x, ref: x - ref),
    case("kl_k2", lambda n, rng: sampled(n * 3 // 2, rng)[:2], lambda m, x, ref: 0.5 * (x - ref) ** 2),
    case("kl_k3", lambda n, rng: sampled(n * 3 // 2, rng)[:2], lambda m, x, ref: m.expm1(ref - x) + x - ref),
    case(
        "kl_regularised_value",
        sampled,
        lambda m, x, ref, r: r - 0.3 * (x - ref),
        hyper={"beta": 0.3},
    ),
    coupled("centred_advantage (G=8)", grouped(8), lambda m, r: r - r.mean(-1)[..., None], held=(0,)),
    coupled(
        "group_advantage (G=8)",
        grouped(8),
        lambda m, r: (r - r.mean(-1)[..., None]) / (m.std(r) + 1e-4),
        held=(0,),
    ),
    coupled("rloo_advantage (G=8)", grouped(8), lambda m, r: r - (r.sum(-1)[..., None] - r) / 7, held=(0,)),
)
