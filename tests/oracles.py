"""The paper's formula of every public objective: one line each, evaluated by `precise` at 50 digits or more.

Arguments have the objectives' own names. A batch is taken apart before, so `positive` is one number and `negatives` a
list; candidates under a mask are gone. What an objective is compared with is the line here and nothing else: the
conformance suite fails for an objective that has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.precise import exp, log, log_sum_exp, mean, relu, sigmoid, softplus


def _flipped(u: Any, label_smoothing: Any) -> Any:
    return -(1 - label_smoothing) * log(sigmoid(u)) - label_smoothing * log(sigmoid(-u))


def _ranked(scores: list, ties: list, top_k: int) -> Any:
    """Plackett–Luce stage by stage; a candidate competes with its own level (Breslow) and with all below."""
    stages = range(min(top_k, len(scores)))
    starts = [max(j for j in range(i + 1) if j == 0 or not ties[j]) for i in stages]
    rivals = [[s for j, s in enumerate(scores) if j >= starts[i] and j != i] for i in stages]
    return sum((log(1 + sum(exp(rival - scores[i]) for rival in rivals[i])) for i in stages), 0)


ORACLES: dict[str, Callable[..., Any]] = {
    # pairwise
    "bradley_terry_loss": lambda positive, negative, margin, label_smoothing: (
        _flipped(positive - negative - margin, label_smoothing)
    ),
    "robust_bradley_terry_loss": lambda positive, negative, label_smoothing: (
        -(1 - label_smoothing) * log(sigmoid(positive - negative))
        + label_smoothing * log(sigmoid(negative - positive))
    )
    / (1 - 2 * label_smoothing),
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
        w * (log_sum_exp(scores) - s) for s, w in zip(scores, weights, strict=True)
    ),
    "weighted_nca_loss": lambda scores, weights: sum(
        w * softplus(-s) + softplus(s) / len(scores) for s, w in zip(scores, weights, strict=True)
    ),
    "exo_loss": lambda scores, weights: sum(
        exp(s - log_sum_exp(scores)) * (s - log_sum_exp(scores) - log(w)) for s, w in zip(scores, weights, strict=True)
    ),
    "plackett_luce_loss": lambda scores, ties, top_k: _ranked(scores, ties, top_k),
    # unpaired
    "kto_loss": lambda score, desirable, reference_point, desirable_weight, undesirable_weight: (
        desirable_weight * (1 - sigmoid(score - reference_point))
        if desirable
        else undesirable_weight * (1 - sigmoid(reference_point - score))
    ),
    "kto_reference_point": lambda score: relu(mean(score)),
    "apo_zero_unpaired_loss": lambda score, desirable: 1 - sigmoid(score) if desirable else sigmoid(score),
    "bco_loss": lambda score, desirable, shift: (
        -log(sigmoid(score - shift)) if desirable else -log(sigmoid(-(score - shift)))
    ),
}
#: Another name of an objective: the table has one line for both.
ORACLES["mio_loss"] = ORACLES["nca_loss"]
