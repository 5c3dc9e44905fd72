"""The paper's formula of every public objective: one line each, evaluated by `precise` at 50 digits or more.

Arguments have the objectives' own names. A batch is taken apart before, so `positive` is one number and `negatives` a
list; candidates under a mask are gone. What an objective is compared with is the line here and nothing else: the
conformance suite fails for an objective that has none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from tests.precise import clip as _clip
from tests.precise import constant, exp, log, log_sum_exp, mean, relu, sigmoid, softplus, sqrt


def _flipped(u: Any, label_smoothing: Any) -> Any:
    return -(1 - label_smoothing) * log(sigmoid(u)) - label_smoothing * log(sigmoid(-u))


def _log_softmax(scores: list) -> list:
    total = log_sum_exp(scores)
    return [s - total for s in scores]


def _ranked(scores: list, ties: list, top_k: int) -> Any:
    """Plackett–Luce stage by stage; a candidate competes with its own level (Breslow) and with all below."""
    odds = [exp(s) for s in scores]
    tails = [*itertools.accumulate(reversed(odds), initial=0)][::-1]
    starts = list(itertools.accumulate(range(len(scores)), lambda start, i: start if ties[i] else i))
    rivals = [tails[i + 1] if start == i else tails[start] - odds[i] for i, start in enumerate(starts)]
    return sum((log(1 + rival / own) for rival, own in list(zip(rivals, odds, strict=True))[:top_k]), 0)


def _interpolated(scores: list, alpha: Any, log_baseline: list) -> Any:
    """Poole et al.'s I_α with the pair that belongs together among the others of the first baseline only."""
    n = len(scores)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]

    def baseline(i: int, j: int) -> Any:
        others = mean([exp(s) for k, s in enumerate(scores[i]) if k != j])
        return alpha * others + (1 - alpha) * exp(log_baseline[i])

    joint = mean([scores[i][i] - log(baseline(i, j)) for i, j in pairs])
    return 1 + joint - mean([exp(scores[i][j]) / baseline(i, i) for i, j in pairs])


def _above_others(reward: list) -> list:
    return [r - mean([q for i, q in enumerate(reward) if i != k]) for k, r in enumerate(reward)]


def _deviation(reward: list, correction: Any) -> Any:
    if not max(reward) > min(reward):
        return 1  # of equal rewards, which have no advantage
    return sqrt(sum((r - mean(reward)) ** 2 for r in reward) / (len(reward) - correction))


def _surrogate(ratio: Any, advantage: Any, clip_low: Any, clip_high: Any, ratio_cap: Any) -> Any:
    return -min(min(ratio, ratio_cap) * advantage, _clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)


def _differences(left: list, right: list) -> list:
    return [x - y for x, y in zip(left, right, strict=True)]


def _excess(d: Any) -> Any:
    return exp(d) - 1 - d


def _surrogates(
    logp: list, old_logp: list, advantage: list, reference_logp: list, beta: Any, **clips: Any
) -> list[list]:
    """PPO's surrogate and β k₃ of every token, response by response."""
    return [
        [_surrogate(exp(x - y), a, **clips) + beta * _excess(z - x) for x, y, z in zip(p, o, f, strict=True)]
        for p, o, a, f in zip(logp, old_logp, advantage, reference_logp, strict=True)
    ]


def _holding(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A formula in which some arguments are constants; `free` is the one in which none is."""

    def hold(x: Any) -> Any:
        return [hold(entry) for entry in x] if isinstance(x, list) else constant(x)

    def holding(formula: Callable[..., Any]) -> Callable[..., Any]:
        def held(**arguments: Any) -> Any:
            return formula(**{name: hold(x) if name in names else x for name, x in arguments.items()})

        held.free = formula
        return held

    return holding


ORACLES: dict[str, Callable[..., Any]] = {
    # pairwise
    "bradley_terry_loss": lambda positive, negative, margin, label_smoothing: _flipped(
        positive - negative - margin, label_smoothing
    ),
    "robust_bradley_terry_loss": lambda positive, negative, label_smoothing: (
        (
            -(1 - label_smoothing) * log(sigmoid(positive - negative))
            + label_smoothing * log(sigmoid(negative - positive))
        )
        / (1 - 2 * label_smoothing)
    ),
    "exo_pair_loss": lambda positive, negative, label_smoothing: (
        sigmoid(positive - negative) * (log(sigmoid(positive - negative)) - log(1 - label_smoothing))
        + sigmoid(negative - positive) * (log(sigmoid(negative - positive)) - log(label_smoothing))
    ),
    "hinge_loss": lambda positive, negative, margin: relu(margin - (positive - negative)),
    "squared_loss": lambda positive, negative, target: (positive - negative - target) ** 2,
    "exponential_loss": lambda positive, negative: exp(negative - positive),
    "truncated_quadratic_loss": lambda positive, negative, margin: relu(margin - (positive - negative)) ** 2,
    "savage_loss": lambda positive, negative: 1 / (1 + exp(positive - negative)) ** 2,
    "discopop_loss": lambda positive, negative, temperature: (
        (1 - sigmoid((positive - negative) / temperature)) * -log(sigmoid(positive - negative))
        + sigmoid((positive - negative) / temperature) * exp(negative - positive)
    ),
    "aot_loss": lambda positive, negative, label_smoothing: [
        _flipped(p - n, label_smoothing) for p, n in zip(sorted(positive), sorted(negative), strict=True)
    ],
    # anchored
    "bco_pair_loss": lambda positive, negative: -log(sigmoid(positive)) - log(sigmoid(-negative)),
    "sppo_hard_loss": lambda positive, negative, target: (positive - target) ** 2 + (negative + target) ** 2,
    "apo_zero_loss": lambda positive, negative: 1 - sigmoid(positive) + sigmoid(negative),
    "apo_down_loss": lambda positive, negative: sigmoid(positive) + 1 - sigmoid(positive - negative),
    "nwj_pair_loss": lambda positive, negative: exp(negative) - positive,
    "centring_penalty": lambda positive, negative: (positive + negative) ** 2,
    # contrastive
    "info_nce_loss": lambda positive, negatives: log_sum_exp([positive, *negatives]) - positive,
    "info_nce_bound": lambda positive, negatives: (
        log(len(negatives) + 1) + positive - log_sum_exp([positive, *negatives])
    ),
    "nca_loss": lambda positive, negatives: softplus(-positive) + mean([softplus(s) for s in [positive, *negatives]]),
    "weighted_info_nce_loss": lambda scores, weights: sum(
        -w * logp for logp, w in zip(_log_softmax(scores), weights, strict=True)
    ),
    "weighted_nca_loss": lambda scores, weights: sum(
        w * softplus(-s) + softplus(s) / len(scores) for s, w in zip(scores, weights, strict=True)
    ),
    "exo_loss": lambda scores, weights: sum(
        exp(logp) * (logp - log(w)) for logp, w in zip(_log_softmax(scores), weights, strict=True)
    ),
    "plackett_luce_loss": lambda scores, ties, top_k: _ranked(scores, ties, top_k),
    # unpaired
    "kto_loss": lambda score, desirable, reference_point, desirable_weight, undesirable_weight: (
        desirable_weight * (1 - sigmoid(score - reference_point))
        if desirable
        else undesirable_weight * (1 - sigmoid(reference_point - score))
    ),
    "apo_zero_unpaired_loss": lambda score, desirable: 1 - sigmoid(score) if desirable else sigmoid(score),
    "bco_loss": lambda score, desirable, shift: (
        -log(sigmoid(score - shift)) if desirable else -log(sigmoid(-(score - shift)))
    ),
    # variational
    "donsker_varadhan_bound": lambda joint, marginal: mean(joint) - log(mean([exp(b) for b in marginal])),
    "tuba_bound": lambda joint, marginal, log_baseline: (
        mean(joint) - mean([exp(b - log_baseline) for b in marginal]) - log_baseline + 1
    ),
    "nwj_bound": lambda joint, marginal: mean(joint) - mean([exp(b - 1) for b in marginal]),
    "jensen_shannon_bound": lambda joint, marginal: (
        -mean([softplus(-a) for a in joint]) - mean([softplus(b) for b in marginal])
    ),
    "smile_bound": lambda joint, marginal, clip: (
        mean(joint) - log(mean([exp(_clip(b, -clip, clip)) for b in marginal]))
    ),
    "interpolated_bound": lambda scores, alpha, log_baseline: _interpolated(scores, alpha, log_baseline),
    # KL estimators and advantages
    "kl_k1": lambda logp, reference_logp: logp - reference_logp,
    "kl_k2": lambda logp, reference_logp: (logp - reference_logp) ** 2 / 2,
    "kl_k3": lambda logp, reference_logp: exp(reference_logp - logp) - 1 - (reference_logp - logp),
    "kl_regularised_value": lambda logp, reference_logp, reward, beta: reward - beta * (logp - reference_logp),
    "centred_advantage": lambda reward: [r - mean(reward) for r in reward],
    "rloo_advantage": lambda reward: _above_others(reward),
    "group_advantage": lambda reward, correction, eps: [
        (r - mean(reward)) / (_deviation(reward, correction) + eps) for r in reward
    ],
    # policy gradient
    "reinforce_loss": _holding("advantage")(lambda logp, advantage: -advantage * logp),
    "rloo_loss": _holding("reward")(
        lambda logp, reward: [-a * p for a, p in zip(_above_others(reward), logp, strict=True)]
    ),
    "ppo_loss": _holding("old_logp", "advantage")(
        lambda logp, old_logp, advantage, **clips: _surrogate(exp(logp - old_logp), advantage, **clips)
    ),
    "ppo_value_loss": lambda value, old_value, returns, clip: (
        max((value - returns) ** 2, (_clip(value, old_value - clip, old_value + clip) - returns) ** 2) / 2
    ),
    "grpo_loss": _holding("old_logp", "advantage")(lambda **tokens: [mean(row) for row in _surrogates(**tokens)]),
    "dr_grpo_loss": _holding("old_logp", "advantage")(
        lambda max_length, **tokens: [sum(row) / max_length for row in _surrogates(**tokens)]
    ),
    "dapo_loss": _holding("old_logp", "advantage")(
        lambda **tokens: mean([loss for row in _surrogates(**tokens) for loss in row])
    ),
    "bnpo_loss": _holding("old_logp", "advantage")(
        lambda **tokens: mean([loss for row in _surrogates(**tokens) for loss in row])
    ),
    "gspo_loss": _holding("old_logp", "advantage")(
        lambda logp, old_logp, advantage, reference_logp, beta, **clips: [
            _surrogate(exp(mean(_differences(p, o))), a, **clips)
            + mean([beta * _excess(-d) for d in _differences(p, f)])
            for p, o, a, f in zip(logp, old_logp, advantage, reference_logp, strict=True)
        ]
    ),
    "cispo_loss": _holding("old_logp", "advantage")(
        lambda logp, old_logp, advantage, reference_logp, beta, ratio_cap: mean(
            [
                -constant(min(exp(x - y), ratio_cap)) * a * x + beta * _excess(z - x)
                for p, o, a, f in zip(logp, old_logp, advantage, reference_logp, strict=True)
                for x, y, z in zip(p, o, f, strict=True)
            ]
        )
    ),
}
#: Another name of an objective: the table has one line for both.
ORACLES["mio_loss"] = ORACLES["nca_loss"]

#: The same for what objectives and critics are built of.
NUMERICS: dict[str, Callable[..., Any]] = {
    "sigmoid": lambda x: sigmoid(x),
    "softplus": lambda x: softplus(x),
    "log_sigmoid": lambda x: log(sigmoid(x)),
    "log1mexp": lambda x: log(1 - exp(x)),
    "expm1": lambda x: exp(x) - 1,
    "exp_excess": lambda x: _excess(x),
    "log1p": lambda x: log(1 + x),
    "sigmoid_difference": lambda x, y: sigmoid(x) - sigmoid(y),
    "bernoulli_kl": lambda p, q: (
        sigmoid(p) * (log(sigmoid(p)) - log(sigmoid(q))) + sigmoid(-p) * (log(sigmoid(-p)) - log(sigmoid(-q)))
    ),
    "scaled_softplus": lambda x, scale: log(1 + scale * exp(x)),
    "masked_sum": lambda x: sum(x),
    "masked_mean": lambda x: mean(x),
    "mean_expm1": lambda x: mean([exp(entry) - 1 for entry in x]),
    "centred_log_mean_exp": lambda x, centre: log(mean([exp(entry - centre) for entry in x])),
    "log_odds": lambda mean_logp: log(exp(mean_logp) / (1 - exp(mean_logp))),
}
