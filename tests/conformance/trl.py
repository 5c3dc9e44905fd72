"""The formulas of TRL 1.16, and of the papers that it has no loss for, one line a row of the methods' table.

Written down from the formulas alone, over `tests.precise` numbers: value and every derivative at 50 digits. An example
is a pair or a list of responses, each a list of token log-probabilities; padding and masked candidates are gone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.precise import constant, exp, log, log_sum_exp, mean, relu, sigmoid, softplus


class Example:
    """One prompt's responses: sums over tokens under the names that the formulas use.

    `a`, `b`: log-ratios of the chosen and the first rejected response; `z`: of all. `x`, `y`: their log-probabilities;
    `L`: all lengths. `u`, `v`: mean log-probabilities of the pair.
    """

    def __init__(self, policy: list, reference: list, **fields: Any) -> None:
        self.tokens, self.ratios = (
            policy,
            [[p - q for p, q in zip(*both, strict=True)] for both in zip(policy, reference, strict=True)],
        )
        self.reference = [sum(r) for r in reference]
        self.z = [sum(r) for r in self.ratios]
        self.a, self.b = self.z[:2]
        self.L = [len(p) for p in policy]
        self.x, self.y = sum(policy[0]), sum(policy[1])
        self.u, self.v = self.x / self.L[0], self.y / self.L[1]
        self.__dict__.update(fields)


def ell(x: Any) -> Any:
    return log(sigmoid(x))


def smooth(x: Any, e: Any) -> Any:
    return -(1 - e) * ell(x) - e * ell(-x)


def soft(rewards: Sequence, temperature: Any) -> list:
    total = log_sum_exp([r / temperature for r in rewards])
    return [exp(r / temperature - total) for r in rewards]


def power(x: Any, exponent: Any) -> Any:
    """e^x to the exponent."""
    return exp(x * exponent)


def desensitised(e: Example, which: int, tail: Any) -> Any:
    m = min(e.L[:2])
    return sum(e.ratios[which][:m]) + tail * sum([0, *e.ratios[which][m:]])


def signed(e: Example, x: Callable) -> list:
    """x of what ought to grow."""
    return [x(z, good) for z, good in zip(e.z, e.desirable, strict=True)]


def token_mean(examples: list[Example], which: int = 0) -> Any:
    """−Σ log π / Σ L of a batch's chosen responses, prompts included where they are given."""
    rows = [getattr(e, "prompt", []) + e.tokens[which] for e in examples]
    return -sum(sum(row) for row in rows) / sum(len(row) for row in rows)


def log1mexp(x: Any) -> Any:
    return log(1 - exp(x))


def ranked(s: Sequence) -> Any:
    return sum(log_sum_exp(s[i:]) - s[i] for i in range(len(s)))


def nca(s: Sequence) -> Any:
    return softplus(-s[0]) + mean([softplus(k) for k in s])


def scaled(e: Example, beta: Any) -> list:
    return [beta * z for z in e.z]


Pairwise = Callable[..., Any]

#: One number an example; `e` is the example and the rest are hyper-parameters.
BY_EXAMPLE: dict[str, Pairwise] = {
    "dpo": lambda e, beta: -ell(beta * (e.a - e.b)),
    "cdpo": lambda e, beta, label_smoothing: smooth(beta * (e.a - e.b), label_smoothing),
    "robust_dpo": lambda e, beta, label_smoothing: (
        (-(1 - label_smoothing) * ell(beta * (e.a - e.b)) + label_smoothing * ell(-beta * (e.a - e.b)))
        / (1 - 2 * label_smoothing)
    ),
    "ipo": lambda e, beta: (e.a / e.L[0] - e.b / e.L[1] - 1 / (2 * beta)) ** 2,
    "ipo_sum": lambda e, beta: (e.a - e.b - 1 / (2 * beta)) ** 2,
    "hinge": lambda e, beta, margin: relu(margin - beta * (e.a - e.b)),
    "gpo_exponential": lambda e, beta: exp(-beta * (e.a - e.b)),
    "gpo_truncated_quadratic": lambda e, beta, margin: relu(margin - beta * (e.a - e.b)) ** 2,
    "gpo_savage": lambda e, beta: 1 / (1 + exp(beta * (e.a - e.b))) ** 2,
    "exo_pair": lambda e, beta, label_smoothing: (
        sigmoid(beta * (e.a - e.b)) * (ell(beta * (e.a - e.b)) - log(1 - label_smoothing))
        + sigmoid(beta * (e.b - e.a)) * (ell(beta * (e.b - e.a)) - log(label_smoothing))
    ),
    "discopop": lambda e, beta, temperature: (
        (1 - sigmoid(beta * (e.a - e.b) / temperature)) * -ell(beta * (e.a - e.b))
        + sigmoid(beta * (e.a - e.b) / temperature) * exp(-beta * (e.a - e.b))
    ),
    "sigmoid_norm": lambda e, beta: -ell(beta * (e.a / e.L[0] - e.b / e.L[1])),
    "f_dpo_reverse_kl": lambda e, beta: -ell(beta * (e.a - e.b)),
    "f_dpo_forward_kl": lambda e, beta: -ell(beta * ((1 - exp(-e.a)) - (1 - exp(-e.b)))),
    "f_dpo_js": lambda e, beta: -ell(beta * (log(2) + ell(e.a) - log(2) - ell(e.b))),
    "f_dpo_alpha": lambda e, beta, alpha: (
        -ell(beta * ((1 - power(e.a, -alpha)) / alpha - (1 - power(e.b, -alpha)) / alpha))
    ),
    "f_dpo_alpha_trl": lambda e, beta, alpha: (
        -ell(beta * ((power(e.a, alpha - 1) - 1) / (alpha - 1) - (power(e.b, alpha - 1) - 1) / (alpha - 1)))
    ),
    "dpop": lambda e, beta, penalty: -ell(beta * (e.a - e.b - penalty * relu(-e.a))),
    "r_dpo": lambda e, beta, length_penalty: -ell(beta * (e.a - e.b) + length_penalty * (e.L[0] - e.L[1])),
    "ld_dpo": lambda e, beta, tail_weight: (
        -ell(beta * (desensitised(e, 0, tail_weight) - desensitised(e, 1, tail_weight)))
    ),
    "tdpo1": lambda e, beta: -ell(beta * (e.a - e.b - (sum(e.kl[1]) - sum(e.kl[0])))),
    "tdpo2": lambda e, beta, kl_weight: -ell(beta * (e.a - e.b - kl_weight * (sum(e.kl[1]) - constant(sum(e.kl[0]))))),
    "rpo": lambda e, beta, nll_weight: -ell(beta * (e.a - e.b)) - nll_weight * e.u,
    "wpo": lambda e, beta: (
        constant(
            exp(mean([p - c for p, c in zip(e.tokens[0], e.collision[0], strict=True)]))
            * exp(mean([p - c for p, c in zip(e.tokens[1], e.collision[1], strict=True)]))
        )
        * -ell(beta * (e.a - e.b))
    ),
    "mi_dpo": lambda e, beta: -ell(beta * e.a - beta * e.b),
    "bco_pair": lambda e, beta: -ell(beta * e.a) - ell(-beta * e.b),
    "sppo_hard": lambda e, beta: (e.a - 1 / (2 * beta)) ** 2 + (e.b + 1 / (2 * beta)) ** 2,
    "apo_zero": lambda e, beta: 1 - sigmoid(beta * e.a) + sigmoid(beta * e.b),
    "apo_down": lambda e, beta: sigmoid(beta * e.a) + 1 - sigmoid(beta * (e.a - e.b)),
    "nwj_po": lambda e, beta: -beta * e.a + exp(beta * e.b),
    "infonce_dpo": lambda e, beta: log(sum(exp(beta * (z - e.a)) for z in e.z)),
    "plackett_luce_dpo": lambda e, beta: ranked(scaled(e, beta)),
    "mio": lambda e, beta: nca(scaled(e, beta)),
    "nca": lambda e, beta: nca(scaled(e, beta)),
    "nca_reward": lambda e, beta, reward_temperature: sum(
        w * softplus(-s) + softplus(s) / len(e.z)
        for w, s in zip(soft(e.reward, reward_temperature), scaled(e, beta), strict=True)
    ),
    "infonca": lambda e, beta, reward_temperature: sum(
        w * (log_sum_exp(scaled(e, beta)) - s)
        for w, s in zip(soft(e.reward, reward_temperature), scaled(e, beta), strict=True)
    ),
    "exo": lambda e, beta, reward_temperature: sum(
        p * (log(p) - log(w)) for p, w in zip(soft(e.z, 1 / beta), soft(e.reward, reward_temperature), strict=True)
    ),
    "kto": lambda e, beta, desirable_weight, undesirable_weight: mean(
        signed(
            e,
            lambda z, good: (
                desirable_weight * (1 - sigmoid(beta * (z - constant(e.divergence))))
                if good
                else undesirable_weight * (1 - sigmoid(beta * (constant(e.divergence) - z)))
            ),
        )
    ),
    "apo_zero_unpaired": lambda e, beta: mean(
        signed(e, lambda z, good: 1 - sigmoid(beta * z) if good else sigmoid(beta * z))
    ),
    "bco": lambda e, beta, shift: mean(
        signed(e, lambda z, good: -ell(beta * z - shift) if good else -ell(-(beta * z - shift)))
    ),
    "a2po": lambda e, beta: mean([(beta * z - r) ** 2 for z, r in zip(e.z, e.reward, strict=True)]),
    "dpo_reference_free": lambda e, beta: -ell(beta * (e.x - e.y)),
    "slic": lambda e, beta, margin, nll_weight: relu(margin - beta * (e.x - e.y)) - nll_weight * e.x,
    "simpo": lambda e, beta, margin: -ell(beta * (e.u - e.v - margin / beta)),
    "alpha_po": lambda e, beta, alpha, margin: -ell(beta * (power(e.v, -alpha) - power(e.u, -alpha)) / alpha - margin),
    "bradley_terry": lambda e, centring_weight: (
        -ell(e.score[0] - e.score[1] - e.given_margin) + centring_weight * (e.score[0] + e.score[1]) ** 2
    ),
    "plackett_luce_reward": lambda e: ranked(e.score),
}

#: The batch's loss; `es` are its examples.
BY_BATCH: dict[str, Pairwise] = {
    "aot": lambda es, beta, label_smoothing: mean(
        [
            smooth(beta * (p - q), label_smoothing)
            for p, q in zip(
                sorted(e.x - e.y for e in es),
                sorted(constant(e.reference[0] - e.reference[1]) for e in es),
                strict=True,
            )
        ]
    ),
    "aot_unpaired": lambda es, beta, label_smoothing: mean(
        [
            smooth(beta * (p - q), label_smoothing)
            for p, q in zip(sorted(e.a for e in es), sorted(e.b for e in es), strict=True)
        ]
    ),
    "dpo_sft": lambda es, beta, nll_weight: mean([-ell(beta * (e.a - e.b)) for e in es]) + nll_weight * token_mean(es),
    "cpo": lambda es, beta, nll_weight, label_smoothing: (
        mean([smooth(beta * (e.x - e.y), label_smoothing) for e in es]) + nll_weight * token_mean(es)
    ),
    "cpo_hinge": lambda es, beta, margin, nll_weight: (
        mean([relu(margin - beta * (e.x - e.y)) for e in es]) + nll_weight * token_mean(es)
    ),
    "cpo_ipo": lambda es, beta, nll_weight: (
        mean([(e.u - e.v - 1 / (2 * beta)) ** 2 for e in es]) + nll_weight * token_mean(es)
    ),
    "cpo_simpo": lambda es, beta, margin, nll_weight, label_smoothing: (
        mean([smooth(beta * (e.u - e.v - margin / beta), label_smoothing) for e in es]) + nll_weight * token_mean(es)
    ),
    "cpo_alpha": lambda es, beta, alpha, margin, nll_weight, label_smoothing: (
        mean(
            [
                smooth(beta * ((power(e.v, -alpha) - power(e.u, -alpha)) / alpha - margin / beta), label_smoothing)
                for e in es
            ]
        )
        + nll_weight * token_mean(es)
    ),
    "orpo": lambda es, beta, nll_weight: (
        nll_weight * token_mean(es) - beta * mean([ell(e.u - e.v - (log1mexp(e.u) - log1mexp(e.v))) for e in es])
    ),
    "tpo": lambda es, beta, nll_weight, label_smoothing: (
        mean([smooth(beta * (e.x - e.y), label_smoothing) for e in es]) + nll_weight * token_mean(es, 2)
    ),
    "tpo_l": lambda es, beta, margin, nll_weight, label_smoothing: (
        mean([smooth(beta * (e.u - e.v - margin / beta), label_smoothing) for e in es]) + nll_weight * token_mean(es, 2)
    ),
    "sft": lambda es: token_mean(es),
}
