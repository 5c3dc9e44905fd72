"""Ledger 11b to 11e: MINE's gradient, whose denominator is a moving average, and what is left of the batch's bias."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import finite_laws as finite
from mi_align.equivalences import two_letters
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals
from mi_align.objectives import MineState, mine_init, mine_step

__all__ = ["CLAIMS"]

_OFF = 1 + 1e-6
_RATES = (1 / 8, 1 / 16, 1 / 32, 1 / 64)  # 1 − ρ
_BATCH, _SIZES = 8, (16.0, 32.0, 64.0)
_STILL = 1 - 2.0**-53  # ρ so near 1 that a batch does not move the average
_MINE = "Belghazi et al. 2018 (arXiv 1801.04062), section 3.2"
_DELTA = "derived here (delta method); all batches enumerated"


def _three_letters(key: PRNGKeyArray) -> Inputs:
    return finite.draw(key, letters=3)


def _expected_gradient(x: Inputs) -> Array:
    """E of MINE's gradient in every letter's score, over batches of three, with the partition as moving average."""

    def step(joint: Array, marginal: Array) -> Array:
        shape = joint.shape[:-1]
        state = MineState(jnp.full(shape, finite.log_partition(x)), jnp.ones(shape, joint.dtype))
        return mine_step(state, joint, marginal, decay=_STILL)[0]

    def expected_bound(critic: Array) -> Array:
        values, chance = finite.all_batches(step, {**x, "T": critic}, joint=1, marginal=3)
        return jnp.sum(chance * values)

    return jax.grad(expected_bound)(x["T"])


def _gibbs_gradient(x: Inputs, factor: float = 1.0) -> Array:
    """p − q e^T/Z; Z may be off by a factor."""
    p, q = finite.laws(x)
    return p - q * jnp.exp(x["T"] - finite.log_partition(x)) / factor


def _slopes(x: Inputs, state: MineState, every: two_letters.Batches, decay: Array) -> Array:
    """∂/∂t of `mine_step`'s bound for every batch."""
    joint = jnp.zeros((*every.chance.shape, 1))

    def bound(t: Array) -> Array:
        return mine_step(state, joint, two_letters.scores(t, every), decay=decay, where_marginal=every.there)[0]

    return jax.jvp(bound, (x["t"],), (jnp.ones_like(x["t"]),))[1]


def _bias_by_rate(x: Inputs) -> Array:
    """n (E G − ∇DV)/(1 − ρ) for each ρ; G is the gradient of MINE on a batch of n, the average having been Z."""
    every = two_letters.batches(x, (float(_BATCH),))
    shape = every.chance.shape
    state = MineState(jnp.full(shape, two_letters.log_partition(x)), jnp.ones(shape))

    def scaled(rate: Array) -> Array:
        expected = jnp.sum(every.chance * _slopes(x, state, every, 1 - rate))
        return _BATCH * (expected + two_letters.moments(x).slope) / rate

    return jax.vmap(scaled)(jnp.asarray(_RATES))


def _remainder_by_rate(x: Inputs) -> Array:
    """−(1 − ρ) n E[ū δ²] to the first order; ū and 1 + δ are the batch's means of e^T∇T/Z and of e^T/Z."""
    m = two_letters.moments(x)
    return -jnp.asarray(_RATES) * (m.third_with_slope / _BATCH + m.slope * m.variance)


def _bias_of_second_step(x: Inputs) -> Array:
    """n (E G₂ − ∇DV) for each n; G₂ is the gradient of MINE's second step, over every pair of batches."""
    first = two_letters.batches(x, _SIZES)
    shape = first.chance.shape
    start, joint, marginal = (
        mine_init(shape, first.weights.dtype),
        jnp.zeros((*shape, 1)),
        two_letters.scores(x["t"], first),
    )
    seen = mine_step(start, joint, marginal, decay=x["decay"], where_marginal=first.there)[1]
    pairs = (*shape, shape[-1])
    state = MineState(*(jnp.broadcast_to(part[..., None], pairs) for part in seen))
    second = two_letters.Batches(*(jnp.broadcast_to(part[:, None], pairs + part.shape[2:]) for part in first))
    slopes = _slopes(x, state, second, x["decay"])
    expected = jnp.einsum("nij,ni,nj->n", slopes, first.chance, first.chance)
    return jnp.asarray(_SIZES) * (expected + two_letters.moments(x).slope)


def _limit_of_second_step(x: Inputs) -> Array:
    """w₂ Cov − (w₁² + w₂²) E_q(e^T∇T) Var, in units of Z."""
    m, now, squares, _ = _second_step(x)
    return now * m.covariance - squares * m.slope * m.variance


def _second_step(x: Inputs) -> tuple[two_letters.Moments, Array, Array, Array]:
    """Moments; and of the weights w = (ρ, 1)/(1 + ρ) of the batches in the average: the last, squares, cubes."""
    now = 1 / (1 + x["decay"])
    return two_letters.moments(x), now, now**2 + (1 - now) ** 2, now**3 + (1 - now) ** 3


def _remainder_of_second_step(x: Inputs) -> Array:
    """The same to the next order in 1/n."""
    m, now, squares, cubes = _second_step(x)
    with_batch = now**2 * m.third_with_slope - 3 * now * squares * m.covariance * m.variance
    return (m.slope * (cubes * m.third - 3 * squares**2 * m.variance**2) - with_batch) / jnp.asarray(_SIZES)


def _one_step(key: PRNGKeyArray) -> Inputs:
    """Scores of a joint and of a marginal sample, ρ, and what was seen before."""
    x = normals(key, joint=(3,), marginal=(4,), decay=(), weight=(), log_average=())
    scores = {name: 2 * x[name] for name in ("joint", "marginal", "log_average")}
    return {**scores, **{name: between(0.01, 0.999, x[name]) for name in ("decay", "weight")}}


def _stepped(x: Inputs) -> Array:
    """Value, gradient in both samples' scores, and new average of `mine_step`."""
    state = MineState(x["log_average"], x["weight"])
    step = jax.value_and_grad(
        lambda joint, marginal: mine_step(state, joint, marginal, decay=x["decay"]), argnums=(0, 1), has_aux=True
    )
    (value, new), slopes = step(x["joint"], x["marginal"])
    return jnp.concatenate([value[None], *slopes, new.log_average[None]])


def _written_out(x: Inputs, factor: float = 1.0) -> Array:
    """Donsker–Varadhan's value, 1/N, −e^b/(M A) and log A; what is kept of the average may be off by a factor."""
    mean, kept, share = jnp.mean(jnp.exp(x["marginal"])), x["decay"] * x["weight"], 1 - x["decay"]
    average = (factor * kept * jnp.exp(x["log_average"]) + share * mean) / (kept + share)
    joint = jnp.full_like(x["joint"], 1 / x["joint"].size)
    marginal = -jnp.exp(x["marginal"]) / (x["marginal"].size * average)
    value = jnp.mean(x["joint"]) - jnp.log(mean)
    return jnp.concatenate([value[None], joint, marginal, jnp.log(average)[None]])


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="11b",
        title="MINE's gradient with the true partition for its moving average is unbiased",
        statement=r"A = Z:\quad \mathbb{E}\left[\nabla\bar a - \frac{\overline{e^b\,\nabla b}}{A}\right] ="
        r" \nabla I_{\mathrm{DV}}, \quad \frac{\partial I_{\mathrm{DV}}}{\partial T} = p - \frac{q\,e^T}{Z}",
        kind=Kind.EXACT,
        draw=_three_letters,
        left=_expected_gradient,
        right=_gibbs_gradient,
        twin=lambda x: _gibbs_gradient(x, _OFF),
        slip="Z multiplied by 1 + 1e-6",
        source=f"{_MINE}; all 81 batches of one joint and three marginal letters enumerated",
        derivatives=0,
        samples=4000,
    ),
    Claim(
        id="11c",
        title="As ρ → 1, what the batch itself does to the average vanishes, and the bias with it",
        statement=r"A = \rho Z + (1-\rho)\,\overline{e^b}:\quad \frac{n}{1-\rho}"
        r"\left(\mathbb{E}\,G - \nabla I_{\mathrm{DV}}\right) ="
        r" \frac{\mathrm{Cov}_q(e^T\nabla T,\, e^T)}{Z^2} + O(1-\rho)",
        kind=Kind.ASYMPTOTIC,
        draw=two_letters.draw,
        left=lambda x: _bias_by_rate(x) - two_letters.moments(x).covariance,
        right=_remainder_by_rate,
        twin=lambda x: _remainder_by_rate(x) + 0.005 * two_letters.moments(x).covariance,
        slip="a limit that is off by half a per cent, so that the rest does not vanish",
        source=f"{_MINE}, for the remark; {_DELTA}",
        samples=256,
        grid=_RATES,
    ),
    Claim(
        id="11d",
        title="MINE's bias: one term scaled by the last batch's weight, the other by the weights' sum of squares",
        statement=r"n\left(\mathbb{E}\,G_t - \nabla I_{\mathrm{DV}}\right) ="
        r" w_t\frac{\mathrm{Cov}_q(e^T\nabla T,\, e^T)}{Z^2} -"
        r" \sum_{i \le t} w_i^2\,\frac{\mathbb{E}_q[e^T\nabla T]\,\mathrm{Var}_q(e^T)}{Z^3} + O(n^{-1}), \quad"
        r" w_i \propto \rho^{t-i}",
        kind=Kind.ASYMPTOTIC,
        draw=two_letters.draw,
        left=lambda x: _bias_of_second_step(x) - _limit_of_second_step(x),
        right=_remainder_of_second_step,
        twin=lambda x: _remainder_of_second_step(x) + 0.005 * _limit_of_second_step(x),
        slip="a limit that is off by half a per cent, so that the rest does not vanish",
        source=f"{_DELTA}, t = 2",
        samples=16,
        grid=_SIZES,
    ),
    Claim(
        id="11e",
        title="MINE has Donsker–Varadhan's value, and a gradient with the average for its denominator",
        statement=r"A_t = \frac{\rho\,W_{t-1} A_{t-1} + (1-\rho)\,\overline{e^b}}{\rho\,W_{t-1} + 1 - \rho}:\quad"
        r" I_t = \bar a - \log\overline{e^b}, \quad \frac{\partial I_t}{\partial b_j} = -\frac{e^{b_j}}{M A_t}",
        kind=Kind.EXACT,
        draw=_one_step,
        left=_stepped,
        right=_written_out,
        twin=lambda x: _written_out(x, _OFF),
        slip="what is kept of the old average multiplied by 1 + 1e-6",
        source=f"{_MINE}; W is 1 in the paper, and here what is filled of the average",
        derivatives=0,
        tolerance={"float32": 1e-4, "bfloat16": 1e-4},
        why="e^s of scores and log-averages of both signs: roundings times |s|, and a quotient of sums",
    ),
)
