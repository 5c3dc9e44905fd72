"""The objectives as they are benchmarked: a float64 reference for the gate, a hand-written formula, and the peers.

Peers appear where their library is installed and has the function. torch's formulas are those of TRL 1.16.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mi_align import objectives

BETA = 0.1  # hyper-parameters of the peers' formulas, away from neutral values
SMOOTHING = 0.1


@dataclasses.dataclass(frozen=True)
class Case:
    """One objective in one layout of its scores.

    Attributes:
      name: the objective.
      shapes: number of scores -> shapes of the arrays that it takes.
      ours: the public function on those arrays; one number an example.
      reference: the formula in float64 NumPy.
      by_hand: what a user would write in a line of JAX.
      torch: the formula in torch, given the module and `torch.nn.functional`.
      peers: further JAX libraries' functions.
      elementwise: whether it maps pairs or single scores one by one, which the bandwidth target is about.
    """

    name: str
    shapes: Callable[[int], tuple[tuple[int, ...], ...]]
    ours: Callable[..., Any]
    reference: Callable[..., Any]
    by_hand: Callable[..., Any]
    torch: Callable[[Any, Any], Callable[..., Any]] | None = None
    peers: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)
    elementwise: bool = True


def pair(n: int) -> tuple[tuple[int, ...], ...]:
    """n scores as n/2 pairs."""
    return (n // 2,), (n // 2,)


def listed(candidates: int) -> Callable[[int], tuple[tuple[int, ...], ...]]:
    """n scores as lists of one positive and `candidates` − 1 negatives."""
    return lambda n: ((n // candidates,), (n // candidates, candidates - 1))


def ranked(candidates: int) -> Callable[[int], tuple[tuple[int, ...], ...]]:
    """n scores as rankings of `candidates`."""
    return lambda n: ((n // candidates, candidates),)


def _softplus(x: Any) -> Any:
    return np.logaddexp(0, x)


def _expit(x: Any) -> Any:
    return np.exp(-_softplus(-x))


def _with_positive(positive: Any, negatives: Any) -> Any:
    return jnp.concatenate([positive[..., None], negatives], axis=-1)


def _first(scores: Any) -> Any:
    return jnp.zeros(scores.shape, scores.dtype).at[..., 0].set(1)


def _rax() -> Any:
    return importlib.import_module("rax") if importlib.util.find_spec("rax") else None


def _rax_softmax(positive: Any, negatives: Any) -> Any:
    scores = _with_positive(positive, negatives)
    return _rax().softmax_loss(scores, _first(scores), reduce_fn=None)


def _rax_listmle(scores: Any) -> Any:
    labels = jnp.broadcast_to(jnp.arange(scores.shape[-1], 0, -1, dtype=scores.dtype), scores.shape)
    return _rax().listmle_loss(scores, labels, reduce_fn=None)


def _optax_softmax(positive: Any, negatives: Any) -> Any:
    scores = _with_positive(positive, negatives)
    return optax.losses.softmax_cross_entropy_with_integer_labels(scores, jnp.zeros(scores.shape[:-1], jnp.int32))


def _reference_info_nce(s: Any, t: Any) -> Any:
    return np.logaddexp.reduce(np.concatenate([s[..., None], t], -1), axis=-1) - s


def _reference_nca(s: Any, t: Any) -> Any:
    return _softplus(-s) + (_softplus(s) + _softplus(t).sum(-1)) / (1 + t.shape[-1])


def _reference_plackett_luce(s: Any) -> Any:
    return (np.logaddexp.accumulate(s[..., ::-1], axis=-1)[..., ::-1] - s).sum(-1)


def _with_rax(**peers: Callable[..., Any]) -> dict[str, Callable[..., Any]]:
    return peers if _rax() else {}


CASES = (
    Case(
        "bradley_terry_loss",
        pair,
        objectives.bradley_terry_loss,
        lambda s, t: _softplus(t - s),
        lambda s, t: -jax.nn.log_sigmoid(s - t),
        lambda torch, F: lambda s, t: -F.logsigmoid(s - t),
        {
            "optax": lambda s, t: optax.losses.sigmoid_binary_cross_entropy(s - t, jnp.ones_like(s)),
            **_with_rax(
                rax=lambda s, t: (
                    _rax()
                    .pairwise_logistic_loss(jnp.stack([s, t], -1), _first(jnp.stack([s, t], -1)), reduce_fn=None)
                    .sum(-1)
                )  # of all ordered pairs, of which one counts
            ),
        },
    ),
    Case(
        "robust_bradley_terry_loss",
        pair,
        lambda s, t: objectives.robust_bradley_terry_loss(s, t, label_smoothing=SMOOTHING),
        lambda s, t: ((1 - SMOOTHING) * _softplus(t - s) - SMOOTHING * _softplus(s - t)) / (1 - 2 * SMOOTHING),
        lambda s, t: (
            (SMOOTHING * jax.nn.log_sigmoid(t - s) - (1 - SMOOTHING) * jax.nn.log_sigmoid(s - t)) / (1 - 2 * SMOOTHING)
        ),
        lambda torch, F: (
            lambda s, t: (
                (-F.logsigmoid(s - t) * (1 - SMOOTHING) + F.logsigmoid(t - s) * SMOOTHING) / (1 - 2 * SMOOTHING)
            )
        ),
    ),
    Case(
        "exo_pair_loss",
        pair,
        lambda s, t: objectives.exo_pair_loss(s, t, label_smoothing=SMOOTHING),
        lambda s, t: (
            _expit(s - t) * (-_softplus(t - s) - np.log1p(-SMOOTHING))
            + _expit(t - s) * (-_softplus(s - t) - np.log(SMOOTHING))
        ),
        lambda s, t: (
            jax.nn.sigmoid(s - t) * (jax.nn.log_sigmoid(s - t) - jnp.log1p(-SMOOTHING))
            + jax.nn.sigmoid(t - s) * (jax.nn.log_sigmoid(t - s) - jnp.log(SMOOTHING))
        ),
        lambda torch, F: (
            lambda s, t: (
                torch.sigmoid(s - t) * (F.logsigmoid(s - t) - float(np.log1p(-SMOOTHING)))
                + torch.sigmoid(t - s) * (F.logsigmoid(t - s) - float(np.log(SMOOTHING)))
            )
        ),
    ),
    Case(
        "hinge_loss",
        pair,
        objectives.hinge_loss,
        lambda s, t: np.maximum(0, 1 - (s - t)),
        lambda s, t: jax.nn.relu(1 - (s - t)),
        lambda torch, F: lambda s, t: torch.relu(1 - (s - t)),
        {"optax": lambda s, t: optax.losses.hinge_loss(s - t, jnp.ones_like(s))},
    ),
    Case(
        "squared_loss",
        pair,
        lambda s, t: objectives.squared_loss(s, t, target=1 / (2 * BETA)),
        lambda s, t: (s - t - 1 / (2 * BETA)) ** 2,
        lambda s, t: (s - t - 1 / (2 * BETA)) ** 2,
        lambda torch, F: lambda s, t: (s - t - 1 / (2 * BETA)) ** 2,
        {"optax": lambda s, t: optax.losses.squared_error(s - t, jnp.full_like(s, 1 / (2 * BETA)))},
    ),
    Case(
        "discopop_loss",
        pair,
        objectives.discopop_loss,
        lambda s, t: _expit((t - s) / 0.05) * _softplus(t - s) + _expit((s - t) / 0.05) * np.exp(t - s),
        lambda s, t: (
            jax.nn.sigmoid((t - s) / 0.05) * jax.nn.softplus(t - s) + jax.nn.sigmoid((s - t) / 0.05) * jnp.exp(t - s)
        ),
        lambda torch, F: (
            lambda s, t: (
                -F.logsigmoid(s - t) * (1 - torch.sigmoid((s - t) / 0.05))
                + torch.exp(-(s - t)) * torch.sigmoid((s - t) / 0.05)
            )
        ),
    ),
    Case(
        "bco_pair_loss",
        pair,
        objectives.bco_pair_loss,
        lambda s, t: _softplus(-s) + _softplus(t),
        lambda s, t: jax.nn.softplus(-s) + jax.nn.softplus(t),
        lambda torch, F: lambda s, t: -F.logsigmoid(s) - F.logsigmoid(-t),
    ),
    Case(
        "sppo_hard_loss",
        pair,
        lambda s, t: objectives.sppo_hard_loss(s, t, target=1 / (2 * BETA)),
        lambda s, t: (s - 1 / (2 * BETA)) ** 2 + (t + 1 / (2 * BETA)) ** 2,
        lambda s, t: (s - 1 / (2 * BETA)) ** 2 + (t + 1 / (2 * BETA)) ** 2,
        lambda torch, F: lambda s, t: (s - 1 / (2 * BETA)) ** 2 + (t + 1 / (2 * BETA)) ** 2,
    ),
    Case(
        "apo_zero_loss",
        pair,
        objectives.apo_zero_loss,
        lambda s, t: _expit(-s) + _expit(t),
        lambda s, t: 1 - jax.nn.sigmoid(s) + jax.nn.sigmoid(t),
        lambda torch, F: lambda s, t: 1 - torch.sigmoid(s) + torch.sigmoid(t),
    ),
    Case(
        "nca_loss (K=1, MIO)",
        listed(2),
        objectives.nca_loss,
        _reference_nca,
        lambda s, t: jax.nn.softplus(-s) + 0.5 * jax.nn.softplus(s) + 0.5 * jax.nn.softplus(t[..., 0]),
        lambda torch, F: lambda s, t: -F.logsigmoid(s) - 0.5 * F.logsigmoid(-s) - 0.5 * F.logsigmoid(-t[..., 0]),
    ),
    Case(
        "info_nce_loss (K=1)",
        listed(2),
        objectives.info_nce_loss,
        _reference_info_nce,
        lambda s, t: jnp.logaddexp(s, t[..., 0]) - s,
        lambda torch, F: lambda s, t: torch.logaddexp(s, t[..., 0]) - s,
    ),
    Case(
        "info_nce_loss (K=15)",
        listed(16),
        objectives.info_nce_loss,
        _reference_info_nce,
        lambda s, t: jax.nn.logsumexp(_with_positive(s, t), axis=-1) - s,
        lambda torch, F: (
            lambda s, t: F.cross_entropy(
                torch.cat([s[:, None], t], -1), torch.zeros(len(s), dtype=torch.long), reduction="none"
            )
        ),
        {"optax": _optax_softmax, **_with_rax(rax=_rax_softmax)},
        elementwise=False,
    ),
    Case(
        "nca_loss (K=15)",
        listed(16),
        objectives.nca_loss,
        _reference_nca,
        lambda s, t: jax.nn.softplus(-s) + (jax.nn.softplus(s) + jax.nn.softplus(t).sum(-1)) / 16,
        lambda torch, F: lambda s, t: -F.logsigmoid(s) - (F.logsigmoid(-s) + F.logsigmoid(-t).sum(-1)) / 16,
        elementwise=False,
    ),
    Case(
        "plackett_luce_loss (n=16)",
        ranked(16),
        objectives.plackett_luce_loss,
        _reference_plackett_luce,
        lambda s: (jax.lax.cumlogsumexp(s, axis=s.ndim - 1, reverse=True) - s).sum(-1),
        lambda torch, F: lambda s: (torch.logcumsumexp(s.flip(-1), -1).flip(-1) - s).sum(-1),
        _with_rax(rax=_rax_listmle),
        elementwise=False,
    ),
    Case(
        "donsker_varadhan_bound",
        pair,
        objectives.donsker_varadhan_bound,
        lambda s, t: s.mean() - (np.logaddexp.reduce(t) - np.log(t.size)),
        lambda s, t: s.mean() - jax.nn.logsumexp(t) + jnp.log(t.size),
        lambda torch, F: lambda s, t: s.mean() - torch.logsumexp(t, 0) + float(np.log(len(t))),
        elementwise=False,
    ),
    Case(
        "jensen_shannon_bound",
        pair,
        objectives.jensen_shannon_bound,
        lambda s, t: -_softplus(-s).mean() - _softplus(t).mean(),
        lambda s, t: -jax.nn.softplus(-s).mean() - jax.nn.softplus(t).mean(),
        lambda torch, F: lambda s, t: -F.softplus(-s).mean() - F.softplus(t).mean(),
        elementwise=False,
    ),
)

WIDE = Case(
    "info_nce_loss (B=64, K=10⁶)",
    lambda n: ((64,), (64, n // 64)),
    objectives.info_nce_loss,
    _reference_info_nce,
    lambda s, t: jax.nn.logsumexp(_with_positive(s, t), axis=-1) - s,
    lambda torch, F: (
        lambda s, t: F.cross_entropy(
            torch.cat([s[:, None], t], -1), torch.zeros(len(s), dtype=torch.long), reduction="none"
        )
    ),
    {"optax": _optax_softmax, **_with_rax(rax=_rax_softmax)},
    elementwise=False,
)
