"""What torch, rax (`make conformance` installs them) and SciPy say, where they have the function.

Values and derivatives, in float64, of our function and of theirs on the same random inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from mi_align import objectives as ours
from mi_align.estimation.pass_at_k import pass_at_k

pytestmark = pytest.mark.usefixtures("x64")

BATCH, K, TIME = 6, 4, 5
#: Both sides round every term a few times; no number here is a difference that cancels more than two of its digits.
RELATIVE, ABSOLUTE = 1e-12, 1e-13
Arrays = dict[str, np.ndarray]


@pytest.fixture
def drawn(rng: np.random.Generator) -> Arrays:
    """One of everything; which of it a comparison reads, its arguments' names say."""
    weights = rng.gamma(0.8, size=(BATCH, K)) + 0.01
    return {
        "positive": rng.normal(0.4, 2, BATCH),
        "negative": rng.normal(0, 2, BATCH),
        "negatives": rng.normal(0, 2, (BATCH, K)),
        "scores": rng.normal(0, 2, (BATCH, K)),
        "weights": weights / weights.sum(-1, keepdims=True),
        "joint": rng.normal(1, 2, BATCH),
        "marginal": rng.normal(0, 2, BATCH + 3),
        "logp": -rng.exponential(size=(BATCH, TIME)),
        "old_logp": -rng.exponential(size=(BATCH, TIME)),
        "advantage": rng.normal(size=(BATCH, TIME)),
        "reward": rng.normal(size=(BATCH, K)),
        "value": rng.normal(size=BATCH),
        "old_value": rng.normal(size=BATCH),
        "returns": rng.normal(size=BATCH),
    }


#: The arguments that get a derivative, in the order in which both sides take them, and the two sides. Theirs takes the
#: library first. What a side holds constant (an advantage, a label) is among the arguments that follow.
Comparison = tuple[tuple[str, ...], tuple[str, ...], Callable[..., Any], Callable[..., Any]]
PAIR, SAMPLES = ("positive", "negative"), ("joint", "marginal")


def _bce(torch: Any, score: Any, target: float) -> Any:
    functional = torch.nn.functional
    return functional.binary_cross_entropy_with_logits(score, torch.full_like(score, target), reduction="none")


def _row(torch: Any, positive: Any, negatives: Any) -> Any:
    return torch.cat([positive[:, None], negatives], dim=1)


def _first(torch: Any, scores: Any) -> Any:
    return torch.zeros(len(scores), dtype=torch.long)


def _kl(torch: Any, log_p: Any, log_q: Any) -> Any:
    """KL(p ‖ q) over the last axis; torch takes q first."""
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _exo_pair(t: Any, p: Any, n: Any) -> Any:
    label = t.log(t.tensor([0.9, 0.1], dtype=p.dtype)).expand(len(p), 2)
    return _kl(t, t.log_softmax(t.stack([p, n], -1), -1), label)


def _ppo(t: Any, logp: Any, old: Any, advantage: Any) -> Any:
    ratio = t.exp(logp - old)
    return -t.min(ratio * advantage, t.clamp(ratio, 0.8, 1.3) * advantage)


def _value(t: Any, value: Any, old: Any, returns: Any) -> Any:
    clipped = old + t.clamp(value - old, -0.2, 0.2)
    return t.max((value - returns) ** 2, (clipped - returns) ** 2) / 2


def _cispo(t: Any, logp: Any, old: Any, advantage: Any) -> Any:
    weight = t.clamp(t.exp(logp - old), max=1.5).detach()
    return (-weight * advantage[:, :1] * logp).mean()


def _gspo(t: Any, logp: Any, old: Any, advantage: Any) -> Any:
    ratio, a = t.exp((logp - old).mean(-1)), advantage[:, 0]
    return -t.min(ratio * a, t.clamp(ratio, 0.9, 1.2) * a)


TORCH: dict[str, Comparison] = {
    "bradley_terry_loss, smoothed": (
        *(PAIR, ()),
        lambda p, n: ours.bradley_terry_loss(p, n, margin=0.7, label_smoothing=0.1),
        lambda t, p, n: _bce(t, p - n - 0.7, 0.9),
    ),
    "bradley_terry_loss": (
        *(PAIR, ()),
        ours.bradley_terry_loss,
        lambda t, p, n: t.nn.functional.soft_margin_loss(p - n, t.ones_like(p), reduction="none"),
    ),
    "robust_bradley_terry_loss": (
        *(PAIR, ()),
        lambda p, n: ours.robust_bradley_terry_loss(p, n, label_smoothing=0.2),
        lambda t, p, n: (0.8 * _bce(t, p - n, 1.0) - 0.2 * _bce(t, p - n, 0.0)) / 0.6,
    ),
    "exo_pair_loss": (*(PAIR, ()), lambda p, n: ours.exo_pair_loss(p, n, label_smoothing=0.1), _exo_pair),
    "hinge_loss": (
        *(PAIR, ()),
        lambda p, n: ours.hinge_loss(p, n, margin=1.3),
        lambda t, p, n: t.nn.functional.margin_ranking_loss(p, n, t.ones_like(p), margin=1.3, reduction="none"),
    ),
    "truncated_quadratic_loss": (
        *(PAIR, ()),
        lambda p, n: ours.truncated_quadratic_loss(p, n, margin=1.3),
        lambda t, p, n: t.nn.functional.margin_ranking_loss(p, n, t.ones_like(p), margin=1.3, reduction="none") ** 2,
    ),
    "squared_loss": (
        *(PAIR, ()),
        lambda p, n: ours.squared_loss(p, n, target=2.5),
        lambda t, p, n: t.nn.functional.mse_loss(p - n, t.full_like(p, 2.5), reduction="none"),
    ),
    "sppo_hard_loss": (
        *(PAIR, ()),
        lambda p, n: ours.sppo_hard_loss(p, n, target=2.5),
        lambda t, p, n: (
            t.nn.functional.mse_loss(p, t.full_like(p, 2.5), reduction="none")
            + t.nn.functional.mse_loss(n, t.full_like(n, -2.5), reduction="none")
        ),
    ),
    "exponential_loss": (*(PAIR, ()), ours.exponential_loss, lambda t, p, n: t.exp(n - p)),
    "savage_loss": (*(PAIR, ()), ours.savage_loss, lambda t, p, n: t.sigmoid(n - p) ** 2),
    "apo_zero_loss": (*(PAIR, ()), ours.apo_zero_loss, lambda t, p, n: 1 - t.sigmoid(p) + t.sigmoid(n)),
    "apo_down_loss": (*(PAIR, ()), ours.apo_down_loss, lambda t, p, n: t.sigmoid(p) + 1 - t.sigmoid(p - n)),
    "bco_pair_loss": (*(PAIR, ()), ours.bco_pair_loss, lambda t, p, n: _bce(t, p, 1.0) + _bce(t, n, 0.0)),
    "aot_loss": (
        *(PAIR, ()),
        lambda p, n: ours.aot_loss(p, n, label_smoothing=0.1),
        lambda t, p, n: _bce(t, t.sort(p).values - t.sort(n).values, 0.9),
    ),
    "info_nce_loss": (
        *(("positive", "negatives"), ()),
        ours.info_nce_loss,
        lambda t, p, n: t.nn.functional.cross_entropy(_row(t, p, n), _first(t, n), reduction="none"),
    ),
    "nca_loss": (
        *(("positive", "negatives"), ()),
        ours.nca_loss,
        lambda t, p, n: t.nn.functional.softplus(-p) + t.nn.functional.softplus(_row(t, p, n)).mean(-1),
    ),
    "weighted_info_nce_loss": (
        *(("scores", "weights"), ()),
        ours.weighted_info_nce_loss,
        lambda t, s, w: t.nn.functional.cross_entropy(s, w, reduction="none"),
    ),
    "exo_loss": (
        *(("scores", "weights"), ()),
        ours.exo_loss,
        lambda t, s, w: _kl(t, t.log_softmax(s, -1), t.log(w)),
    ),
    "plackett_luce_loss": (
        *(("scores",), ()),
        ours.plackett_luce_loss,
        lambda t, s: (t.flip(t.logcumsumexp(t.flip(s, [-1]), -1), [-1]) - s).sum(-1),
    ),
    "donsker_varadhan_bound": (
        *(SAMPLES, ()),
        ours.donsker_varadhan_bound,
        lambda t, a, b: a.mean() - t.logsumexp(b, 0) + np.log(len(b)),
    ),
    "nwj_bound": (*(SAMPLES, ()), ours.nwj_bound, lambda t, a, b: a.mean() - t.exp(b - 1).mean()),
    "tuba_bound": (
        *(SAMPLES, ()),
        lambda a, b: ours.tuba_bound(a, b, log_baseline=0.6),
        lambda t, a, b: a.mean() - t.exp(b).mean() / np.exp(0.6) - 0.6 + 1,
    ),
    "jensen_shannon_bound": (
        *(SAMPLES, ()),
        ours.jensen_shannon_bound,
        lambda t, a, b: -_bce(t, a, 1.0).mean() - _bce(t, b, 0.0).mean(),
    ),
    "smile_bound": (
        *(SAMPLES, ()),
        lambda a, b: ours.smile_bound(a, b, clip=1.1),
        lambda t, a, b: a.mean() - t.logsumexp(t.clamp(b, -1.1, 1.1), 0) + np.log(len(b)),
    ),
    "kl_k3": (
        *(("logp", "old_logp"), ()),
        ours.kl_k3,
        lambda t, p, q: t.expm1(q - p) - (q - p),
    ),
    "ppo_loss": (
        *(("logp",), ("old_logp", "advantage")),
        lambda p, o, a: ours.ppo_loss(p, o, a, clip_low=0.2, clip_high=0.3),
        _ppo,
    ),
    "grpo_loss": (
        *(("logp",), ("old_logp", "advantage")),
        lambda p, o, a: ours.grpo_loss(p, o, a[:, 0], clip_low=0.2, clip_high=0.3),
        lambda t, p, o, a: _ppo(t, p, o, a[:, :1]).mean(-1),
    ),
    "dapo_loss": (
        *(("logp",), ("old_logp", "advantage")),
        lambda p, o, a: ours.dapo_loss(p, o, a[:, 0], clip_low=0.2, clip_high=0.3).value(),
        lambda t, p, o, a: _ppo(t, p, o, a[:, :1]).mean(),
    ),
    "cispo_loss": (
        *(("logp",), ("old_logp", "advantage")),
        lambda p, o, a: ours.cispo_loss(p, o, a[:, 0], ratio_cap=1.5).value(),
        _cispo,
    ),
    "gspo_loss": (
        *(("logp",), ("old_logp", "advantage")),
        lambda p, o, a: ours.gspo_loss(p, o, a[:, 0], clip_low=0.1, clip_high=0.2),
        _gspo,
    ),
    "ppo_value_loss": (
        *(("value",), ("old_value", "returns")),
        lambda v, o, r: ours.ppo_value_loss(v, o, r, clip=0.2),
        _value,
    ),
    "group_advantage": (
        *(("reward",), ()),
        lambda r: ours.group_advantage(r, eps=1e-4),
        lambda t, r: (r - r.mean(-1, keepdim=True)) / (r.std(-1, keepdim=True) + 1e-4),
    ),
    "rloo_advantage": (
        *(("reward",), ()),
        ours.rloo_advantage,
        lambda t, r: r - (r.sum(-1, keepdim=True) - r) / (r.shape[-1] - 1),
    ),
}


def _labels(scores: jax.Array) -> jax.Array:
    """One for the first of a list and nothing for the others."""
    return jnp.zeros_like(scores).at[..., 0].set(1)


def _rank(scores: jax.Array) -> jax.Array:
    return jnp.broadcast_to(-jnp.arange(scores.shape[-1], dtype=scores.dtype), scores.shape)


def _of_pair(loss: str, **options: Any) -> Callable[..., Any]:
    """A loss of rax on a list of two, the first of which is better."""

    def theirs(rax: Any, p: jax.Array, n: jax.Array) -> jax.Array:
        scores = jnp.stack([p, n], -1)
        each = jax.vmap(lambda s: getattr(rax, loss)(s, _labels(s), reduce_fn=jnp.sum, **options))
        return each(scores)

    return theirs


def _of_list(loss: str, labels: Callable[[jax.Array], jax.Array], **options: Any) -> Callable[..., Any]:
    return lambda rax, s: jax.vmap(lambda x: getattr(rax, loss)(x, labels(x), reduce_fn=jnp.sum, **options))(s)


RAX: dict[str, Comparison] = {
    "bradley_terry_loss": (*(PAIR, ()), ours.bradley_terry_loss, _of_pair("pairwise_logistic_loss")),
    "hinge_loss": (*(PAIR, ()), lambda p, n: ours.hinge_loss(p, n, margin=1.0), _of_pair("pairwise_hinge_loss")),
    "bco_pair_loss": (*(PAIR, ()), ours.bco_pair_loss, _of_pair("pointwise_sigmoid_loss")),
    "savage_loss": (
        *(PAIR, ()),
        ours.savage_loss,
        lambda rax, p, n: _of_pair("pairwise_soft_zero_one_loss")(rax, p, n) ** 2,
    ),
    "info_nce_loss": (
        *(("positive", "negatives"), ()),
        ours.info_nce_loss,
        lambda rax, p, n: _of_list("softmax_loss", _labels)(rax, jnp.concatenate([p[:, None], n], -1)),
    ),
    "weighted_info_nce_loss": (
        *(("scores", "weights"), ()),
        ours.weighted_info_nce_loss,
        lambda rax, s, w: jax.vmap(lambda x, y: rax.softmax_loss(x, y, reduce_fn=jnp.sum))(s, w),
    ),
    "plackett_luce_loss": (*(("scores",), ()), ours.plackett_luce_loss, _of_list("listmle_loss", _rank)),
    "plackett_luce_loss, distinct labels": (
        *(("scores",), ()),
        ours.plackett_luce_loss,
        _of_list("unique_softmax_loss", _rank, gain_fn=jnp.ones_like),
    ),
    "plackett_luce_loss, masked": (
        *(("scores",), ()),
        lambda s: ours.plackett_luce_loss(s, where=jnp.broadcast_to(jnp.array([True, False, True, True]), s.shape)),
        _of_list("listmle_loss", _rank, where=jnp.array([True, False, True, True])),
    ),
}


def _values_and_slopes(comparison: Comparison, drawn: Arrays) -> tuple[np.ndarray, list[np.ndarray]]:
    varied, fixed, function, _ = comparison
    values = function(*(jnp.asarray(drawn[n]) for n in varied + fixed))
    weights = _weights(np.shape(values))
    slopes = jax.grad(
        lambda *x: jnp.vdot(function(*x, *(jnp.asarray(drawn[n]) for n in fixed)), weights), tuple(range(len(varied)))
    )
    return np.asarray(values), [np.asarray(s) for s in slopes(*(jnp.asarray(drawn[n]) for n in varied))]


def _weights(shape: tuple[int, ...]) -> np.ndarray:
    """What every value counts in the sum that is differentiated: no two alike."""
    return 1 + np.arange(np.prod(shape, dtype=int)).reshape(shape) / 7


def _assert_same(mine: tuple[np.ndarray, list[np.ndarray]], other: tuple[np.ndarray, list[np.ndarray]]) -> None:
    np.testing.assert_allclose(mine[0], other[0], rtol=RELATIVE, atol=ABSOLUTE)
    for ours_, theirs in zip(mine[1], other[1], strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=RELATIVE, atol=10 * ABSOLUTE)
        assert np.abs(theirs).max() > 1e-3, "a comparison without a derivative says nothing"


@pytest.mark.parametrize("name", TORCH)
def test_torch_agrees_and_a_slip_would_be_seen(name: str, drawn: Arrays) -> None:
    torch = pytest.importorskip("torch")
    varied, fixed, _, theirs = TORCH[name]
    leaves = [torch.tensor(drawn[n], requires_grad=True) for n in varied]
    values = theirs(torch, *leaves, *(torch.tensor(drawn[n]) for n in fixed))
    (values * torch.tensor(_weights(tuple(values.shape)))).sum().backward()
    other = values.detach().numpy(), [x.grad.numpy() for x in leaves]
    _assert_same(_values_and_slopes(TORCH[name], drawn), other)
    with pytest.raises(AssertionError):  # inputs a billionth off are noticed
        _assert_same(_values_and_slopes(TORCH[name], {n: x * (1 + 1e-9) for n, x in drawn.items()}), other)


@pytest.mark.parametrize("name", RAX)
def test_rax_agrees(name: str, drawn: Arrays) -> None:
    rax = pytest.importorskip("rax")
    varied, fixed, _, theirs = RAX[name]
    other = (varied, fixed, lambda *x: theirs(rax, *x), theirs)
    _assert_same(_values_and_slopes(RAX[name], drawn), _values_and_slopes(other, drawn))


# ---------------------------------------------------------------------------------------------------------------- SciPy


def _sp(x: np.ndarray) -> np.ndarray:
    return -special.log_expit(-x)


def _onehot(scores: np.ndarray) -> np.ndarray:
    return np.eye(scores.shape[-1])[0]


def _list_of(d: Arrays) -> np.ndarray:
    return np.concatenate([d["positive"][:, None], d["negatives"]], -1)


#: Our function, its arguments, and SciPy's value and derivatives, each in closed form.
SCIPY: dict[str, tuple[Callable[..., Any], tuple[str, ...], Callable[[Arrays], tuple[Any, list[Any]]]]] = {
    "bradley_terry_loss": (
        ours.bradley_terry_loss,
        PAIR,
        lambda d: (
            -special.log_expit(d["positive"] - d["negative"]),
            [-special.expit(d["negative"] - d["positive"]), special.expit(d["negative"] - d["positive"])],
        ),
    ),
    "bco_pair_loss": (
        ours.bco_pair_loss,
        PAIR,
        lambda d: (
            _sp(-d["positive"]) + _sp(d["negative"]),
            [-special.expit(-d["positive"]), special.expit(d["negative"])],
        ),
    ),
    "info_nce_loss": (
        ours.info_nce_loss,
        ("positive", "negatives"),
        lambda d: (
            -special.log_softmax(_list_of(d), -1)[:, 0],
            [special.softmax(_list_of(d), -1)[:, 0] - 1, special.softmax(_list_of(d), -1)[:, 1:]],
        ),
    ),
    "nca_loss": (
        ours.nca_loss,
        ("positive", "negatives"),
        lambda d: (
            _sp(-d["positive"]) + _sp(_list_of(d)).mean(-1),
            [
                special.expit(d["positive"]) / (K + 1) - special.expit(-d["positive"]),
                special.expit(d["negatives"]) / (K + 1),
            ],
        ),
    ),
    "exo_loss": (
        lambda s, w: ours.exo_loss(s, w),
        ("scores", "weights"),
        lambda d: (
            stats.entropy(special.softmax(d["scores"], -1), d["weights"], axis=-1),
            [
                special.softmax(d["scores"], -1)
                * (
                    special.log_softmax(d["scores"], -1)
                    - np.log(d["weights"])
                    - stats.entropy(special.softmax(d["scores"], -1), d["weights"], axis=-1)[:, None]
                ),
                -special.softmax(d["scores"], -1) / d["weights"],
            ],
        ),
    ),
    "weighted_info_nce_loss": (
        ours.weighted_info_nce_loss,
        ("scores", "weights"),
        lambda d: (
            stats.entropy(d["weights"], axis=-1)
            + stats.entropy(d["weights"], special.softmax(d["scores"], -1), axis=-1),
            [special.softmax(d["scores"], -1) - d["weights"], -special.log_softmax(d["scores"], -1)],
        ),
    ),
    "donsker_varadhan_bound": (
        ours.donsker_varadhan_bound,
        SAMPLES,
        lambda d: (
            d["joint"].mean() - special.logsumexp(d["marginal"], b=1 / d["marginal"].size),
            [np.full(BATCH, 1 / BATCH), -special.softmax(d["marginal"])],
        ),
    ),
    "jensen_shannon_bound": (
        ours.jensen_shannon_bound,
        SAMPLES,
        lambda d: (
            -_sp(-d["joint"]).mean() - _sp(d["marginal"]).mean(),
            [special.expit(-d["joint"]) / BATCH, -special.expit(d["marginal"]) / d["marginal"].size],
        ),
    ),
}


@pytest.mark.parametrize("name", SCIPY)
def test_scipy_agrees(name: str, drawn: Arrays) -> None:
    function, arguments, theirs = SCIPY[name]
    values, slopes = theirs(drawn)
    weights = _weights(np.shape(values))
    weighted = [weights.reshape(weights.shape + (1,) * (np.ndim(s) - weights.ndim)) * s for s in slopes]
    _assert_same(_values_and_slopes((arguments, (), function, function), drawn), (values, weighted))


def test_scipys_gaussians_have_the_divergence_that_the_estimators_average_to() -> None:
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    here, there = stats.norm(0, 1), stats.norm(0.7, 1.4)
    exact = np.log(1.4) + (1 + 0.7**2) / (2 * 1.4**2) - 0.5
    estimate = ours.kl_k1(jnp.asarray(here.logpdf(nodes)), jnp.asarray(there.logpdf(nodes)))
    np.testing.assert_allclose(weights @ np.asarray(estimate) / weights.sum(), exact, rtol=1e-13)


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (1, 7), (5, 7), (7, 7), (3, 40), (60, 200)])
def test_pass_at_k_is_scipys_binomials_and_hypergeometric_law(correct: int, total: int) -> None:
    k = np.arange(1, total + 1)
    came = np.asarray(pass_at_k(correct, total, k))
    ratio = [special.comb(total - correct, j, exact=True) / special.comb(total, j, exact=True) for j in k.tolist()]
    np.testing.assert_allclose(came, 1 - np.array(ratio), rtol=1e-12)
    np.testing.assert_allclose(came, stats.hypergeom(total, correct, k).sf(0), rtol=1e-9)
