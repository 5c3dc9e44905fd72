"""Ledger 9 and 12: what no estimate of a large divergence from few samples can do, variance and confidence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import finite_laws as finite
from mi_align.equivalences import two_letters
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import all_groups, between, group_chances, normals
from mi_align.equivalences.populations import donsker_varadhan, kullback_leibler
from mi_align.objectives import donsker_varadhan_bound, info_nce_bound, kl_k1, nwj_bound, tuba_bound

__all__ = ["CLAIMS"]

_LETTERS, _JOINT, _MARGINAL, _CANDIDATES = 3, 2, 3, 8
_SIZES = (32.0, 64.0, 128.0, 256.0)
_OFF = 1 + 1e-6
_VARIANCE = "Song & Ermon 2020 (arXiv 1910.06222), theorem 2"
_CONFIDENCE = "McAllester & Stratos 2020 (arXiv 1811.04251)"


def _two_laws(key: PRNGKeyArray) -> Inputs:
    """Logits of p and q with their best critic; one time in seven p is q restricted to two letters."""
    x = normals(key, p=(_LETTERS,), q=(_LETTERS,), apart=())
    q = between(-2, 2, x["q"])
    restricted = q.at[-1].add(-40)
    laws = {"p": jnp.where(finite.or_zero(x["apart"]) > 0, between(-2, 2, x["p"]), restricted), "q": q}
    return {**laws, "T": finite.best_critic(laws)}


def _terms(critic: Array) -> Array:
    """e^T of each score, as TUBA's bound has it of a marginal sample of one."""
    return 1 - tuba_bound(jnp.zeros_like(critic)[:, None], critic[:, None])


def _variance(law: Array, values: Array) -> Array:
    return jnp.sum(law * (values - jnp.sum(law * values)) ** 2)


def _nwj_moments(x: Inputs) -> Array:
    """Mean and variance of NWJ over every batch, at the best critic."""
    values, chance = finite.all_batches(nwj_bound, {**x, "T": finite.best_critic(x) + 1}, joint=_JOINT, marginal=3)
    return jnp.stack([jnp.sum(chance * values), _variance(chance, values)])


def _expected_moments(x: Inputs, factor: float = 1.0) -> Array:
    """KL, and Var_p(log p/q)/N + χ²/M; χ² may be off by a factor."""
    spread = _variance(finite.laws(x)[0], finite.best_critic(x))
    return jnp.stack([finite.kl(x), spread / _JOINT + factor * finite.chi_square(x) / _MARGINAL])


def _shifted_gaussian(x: Inputs) -> Array:
    """KL and χ² of N(μ, 1) from N(0, 1), by quadrature."""
    points, weights = (jnp.asarray(part, x["mu"].dtype) for part in finite.gauss_hermite())
    critic, critic_under_p = (kl_k1(-((y - x["mu"]) ** 2) / 2, -(y**2) / 2) for y in (points, points + x["mu"]))
    return jnp.stack([weights @ critic_under_p, _variance(weights, _terms(critic))])


def _scaled_variances(x: Inputs) -> Array:
    """n Var[log mean e^T] for each n, the logarithm being what a batch puts into Donsker–Varadhan's bound."""
    values, chance = two_letters.bounds(x, _SIZES)
    return jnp.asarray(_SIZES) * jax.vmap(_variance)(chance, values)


def _remaining_variance(x: Inputs, off: float = 0.0) -> Array:
    """(5/2 χ⁴ − m₃)/n for each n, and a share of χ² by which the limit is off."""
    m = two_letters.moments(x)
    return (2.5 * m.variance**2 - m.third) / jnp.asarray(_SIZES) + off * m.variance


def _spoiled(key: PRNGKeyArray) -> Inputs:
    """Two laws, far apart one time in seven; N from 2 to 1000; a critic near the best one for p against q̃."""
    x = normals(key, p=(_LETTERS,), q=(_LETTERS,), error=(_LETTERS,), apart=(), size=())
    far = jnp.where(finite.or_zero(x["apart"]) > 0, 0.0, 40.0) * jnp.asarray([1.0, -1.0, 0.0])
    size = jnp.floor(2 * 500 ** between(0, 1, x["size"]) ** 2)
    laws = {"p": between(-2, 2, x["p"]) + far, "q": between(-2, 2, x["q"]) - far, "size": size}
    return {**laws, "T": jnp.log(finite.laws(laws)[0] / _diluted(laws, size)) + x["error"]}


def _diluted(x: Inputs, size: Array | float) -> Array:
    """q̃ = (1 − 1/N) q + p/N: q with one sample in N from p, the spoiler."""
    p, q = finite.laws(x)
    return q + (p - q) / size


def _under_diluted(x: Inputs) -> Array:
    """KL(p ‖ q̃), and Donsker–Varadhan's bound of some critic."""
    p, diluted = finite.laws(x)[0], _diluted(x, x["size"])
    return jnp.stack([kullback_leibler(p, diluted), donsker_varadhan(x["T"], p, diluted)])


def _no_spoiler(x: Inputs) -> Array:
    """(1 − 1/N)^N."""
    return jnp.exp(x["size"] * jnp.log1p(-1 / x["size"]))


def _certain(x: Inputs, *, diluted: bool) -> Array:
    """The chance that Donsker–Varadhan's bound of N marginal samples, of q or of q̃, says more than log N."""
    law = _diluted(x, _MARGINAL) if diluted else finite.laws(x)[1]
    scores = jnp.asarray(all_groups(_LETTERS, _MARGINAL), law.dtype) @ x["T"]
    joint = jnp.full((len(scores), 1), finite.laws(x)[0] @ x["T"])
    is_certain = donsker_varadhan_bound(joint, scores) > jnp.log(jnp.asarray(_MARGINAL, law.dtype))
    return group_chances(jnp.log(law), _MARGINAL) @ is_certain.astype(law.dtype)


def _candidates(key: PRNGKeyArray) -> Inputs:
    """A highest score, how far others lie below it, and which of them there are."""
    x = normals(key, top=(), gap=(), others=(_CANDIDATES,), where=(_CANDIDATES,))
    return {
        "top": 10 * x["top"],
        "gap": 40 ** between(-1, 1, x["gap"]),
        "others": -jnp.abs(x["others"]),
        "where": (x["where"] > -0.5).at[0].set(True),
    }


def _with_spoiler(x: Inputs) -> Array:
    """Donsker–Varadhan's bound where the joint's scores and the marginal's first are the highest."""
    marginal = x["top"] - x["gap"] * (jnp.arange(_CANDIDATES) > 0)
    return donsker_varadhan_bound(jnp.full(2, x["top"]), marginal, where_marginal=x["where"])


def _spoiled_value(x: Inputs, factor: float = 1.0) -> Array:
    """log N − log(1 + (N − 1) e^−L)."""
    size = jnp.sum(x["where"], dtype=x["gap"].dtype)
    return jnp.log(size) - jnp.log1p(factor * (size - 1) * jnp.exp(-x["gap"]))


def _structural(x: Inputs, *, positive_among_marginal: bool = False) -> tuple[Array, Array]:
    """InfoNCE, log(K + 1) and Donsker–Varadhan's bound, the positive log(K + 1) nats and a gap above all negatives.

    Returned as the lower and the upper sides of InfoNCE ≤ log(K + 1) ≤ Donsker–Varadhan.
    """
    ceiling = jnp.log1p(jnp.sum(x["where"], dtype=x["gap"].dtype))
    positive, negatives = x["top"] + ceiling + x["gap"], x["top"] + x["others"]
    among = jnp.append(negatives, positive), jnp.append(x["where"], positive_among_marginal)
    estimate = donsker_varadhan_bound(positive[None], among[0], where_marginal=among[1])
    lower = info_nce_bound(positive, negatives, where=x["where"])
    return jnp.stack([lower, ceiling]), jnp.stack([ceiling, estimate])


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="9a",
        title="A term of the partition's estimate varies by χ², at the best critic",
        statement=r"T = \log\frac{p}{q}:\quad \mathrm{Var}_q\left[e^T\right] = \mathrm{Var}_q\left[\frac{p}{q}\right]"
        r" = \chi^2(p\,\|\,q)",
        kind=Kind.EXACT,
        draw=_two_laws,
        left=lambda x: _variance(finite.laws(x)[1], _terms(finite.best_critic(x))),
        right=finite.chi_square,
        twin=lambda x: _OFF * finite.chi_square(x),
        slip="χ² multiplied by 1 + 1e-6",
        source=_VARIANCE,
    ),
    Claim(
        id="9b",
        title="χ² is exponential in the divergence",
        statement=r"e^{\mathrm{KL}(p\,\|\,q)} - 1 \le \chi^2(p\,\|\,q)",
        kind=Kind.INEQUALITY,
        draw=_two_laws,
        left=lambda x: jnp.expm1(finite.kl(x)),
        right=finite.chi_square,
        twin=lambda x: finite.chi_square(x) / _OFF,
        slip="χ² divided by 1 + 1e-6: it is attained where p is q restricted to some letters",
        source=f"derived here (Jensen); {_VARIANCE}",
    ),
    Claim(
        id="9c",
        title="Of shifted Gaussians χ² is exponential in twice the divergence",
        statement=r"p = \mathcal{N}(\mu, 1),\ q = \mathcal{N}(0, 1):\quad \mathrm{KL} = \frac{\mu^2}{2},\quad"
        r" \chi^2 = e^{2\,\mathrm{KL}} - 1",
        kind=Kind.EXACT,
        draw=lambda key: {"mu": between(-1.5, 1.5, jax.random.normal(key))},
        left=_shifted_gaussian,
        right=lambda x: jnp.stack([x["mu"] ** 2 / 2, jnp.expm1(x["mu"] ** 2)]),
        twin=lambda x: jnp.stack([x["mu"] ** 2 / 2, jnp.expm1(_OFF * x["mu"] ** 2)]),
        slip="the exponent multiplied by 1 + 1e-6",
        source="derived here; by Gauss–Hermite quadrature with 32 points",
        samples=100_000,
    ),
    Claim(
        id="9d",
        title="NWJ with the best critic is unbiased, and varies by χ² over the size of its marginal sample",
        statement=r"\mathbb{E}\,\hat I_{\mathrm{NWJ}} = \mathrm{KL}(p\,\|\,q), \quad"
        r" \mathrm{Var}\,\hat I_{\mathrm{NWJ}} = \frac1N\mathrm{Var}_p\left[\log\tfrac{p}{q}\right] +"
        r" \frac1M\,\chi^2(p\,\|\,q)",
        kind=Kind.EXACT,
        draw=_two_laws,
        left=_nwj_moments,
        right=_expected_moments,
        twin=lambda x: _expected_moments(x, _OFF),
        slip="χ² multiplied by 1 + 1e-6",
        source=f"{_VARIANCE}; all 243 batches of N = 2 and M = 3 letters enumerated",
        samples=4000,
    ),
    Claim(
        id="9e",
        title="So it takes e^KL samples to know a divergence by NWJ",
        statement=r"\mathrm{Var}\,\hat I_{\mathrm{NWJ}} \ge \frac{e^{\mathrm{KL}(p\,\|\,q)} - 1}{M}",
        kind=Kind.INEQUALITY,
        draw=_two_laws,
        left=lambda x: jnp.expm1(finite.kl(x)) / _MARGINAL,
        right=lambda x: _nwj_moments(x)[1],
        twin=lambda x: _nwj_moments(x)[1] / _OFF,
        slip="the variance divided by 1 + 1e-6",
        source=_VARIANCE,
        samples=4000,
        tolerance={"float32": 1e-5, "bfloat16": 1e-5},
        why="a variance, the difference of moments: their rounding is larger than its own",
    ),
    Claim(
        id="9f",
        title="Donsker–Varadhan's logarithm does not help: in large batches it varies by χ²/n too",
        statement=r"n\,\mathrm{Var}\Bigl[\log\frac1n\sum_i \frac{p}{q}(y_i)\Bigr] = \chi^2 +"
        r" \frac{\frac52\chi^4 - \mathbb{E}_q\left(\frac{p}{q} - 1\right)^3}{n} + O(n^{-2})",
        kind=Kind.ASYMPTOTIC,
        draw=two_letters.draw,
        left=lambda x: _scaled_variances(x) - two_letters.moments(x).variance,
        right=_remaining_variance,
        twin=lambda x: _remaining_variance(x, 0.005),
        slip="a limit that is off by half a per cent, so that the rest does not vanish",
        source=f"{_VARIANCE}, for the limit; the remainder derived here; all batches enumerated",
        samples=256,
        grid=_SIZES,
    ),
    Claim(
        id="12a",
        title="One spoiler in N samples hides any divergence above log N",
        statement=r"\tilde q = \left(1 - \tfrac1N\right) q + \tfrac1N p:\quad"
        r" I_{\mathrm{DV}}(T;\,p, \tilde q) \le \mathrm{KL}(p\,\|\,\tilde q) \le \log N",
        kind=Kind.INEQUALITY,
        draw=_spoiled,
        left=_under_diluted,
        right=lambda x: jnp.stack([jnp.log(x["size"]), _under_diluted(x)[0]]),
        twin=lambda x: jnp.stack([jnp.log(x["size"] / _OFF), _under_diluted(x)[0]]),
        slip="N divided by 1 + 1e-6: it is attained where p and q have nothing in common",
        source=f"{_CONFIDENCE}, in the proof for the divergence",
        samples=200_000,
    ),
    Claim(
        id="12b",
        title="But one time in four no spoiler is drawn",
        statement=r"\frac14 \le \left(1 - \frac1N\right)^N \le \frac1e, \quad N \ge 2",
        kind=Kind.INEQUALITY,
        draw=_spoiled,
        left=lambda x: jnp.stack([jnp.asarray(0.25, x["T"].dtype), _no_spoiler(x)]),
        right=lambda x: jnp.stack([_no_spoiler(x), jnp.asarray(jnp.exp(-1.0), x["T"].dtype)]),
        twin=lambda x: jnp.stack([_no_spoiler(x) / _OFF, jnp.asarray(jnp.exp(-1.0), x["T"].dtype)]),
        slip="the chance divided by 1 + 1e-6: a quarter is attained at N = 2",
        source=_CONFIDENCE,
        samples=200_000,
    ),
    Claim(
        id="12c",
        title="So an estimate above log N is wrong under q̃ at least a quarter as often as it is seen under q",
        statement=r"\tfrac14\Pr_{q^N}\left[\hat I_{\mathrm{DV}} > \log N\right] \le"
        r" \Pr_{\tilde q^N}\left[\hat I_{\mathrm{DV}} > \log N \ge \mathrm{KL}(p\,\|\,\tilde q)\right]",
        kind=Kind.INEQUALITY,
        draw=_spoiled,
        left=lambda x: _certain(x, diluted=False) / 4,
        right=lambda x: _certain(x, diluted=True),
        twin=lambda x: _certain(x, diluted=True) / 4,
        slip="without the quarter",
        source=f"{_CONFIDENCE}; all 27 batches of N = 3 letters enumerated",
        samples=20_000,
    ),
    Claim(
        id="12d",
        title="A batch with a spoiler, a marginal score as high as the joint's, says log N at most",
        statement=r"F - \log\frac{e^F + (N-1)\,e^{F-L}}{N} = \log N - \log\left(1 + (N-1)\,e^{-L}\right)",
        kind=Kind.EXACT,
        draw=_candidates,
        left=_with_spoiler,
        right=_spoiled_value,
        twin=lambda x: _spoiled_value(x, _OFF),
        slip="(N − 1) e^−L multiplied by 1 + 1e-6",
        source=f"{_CONFIDENCE}, where L is infinite",
    ),
    Claim(
        id="12e",
        title="Negative control: log N limits what can be trusted, not what is estimated, except by InfoNCE",
        statement=r"s^+ > \log(K+1) + \max_k s^-_k:\quad"
        r" \hat I_{\mathrm{InfoNCE}} \le \log(K+1) \le \hat I_{\mathrm{DV}}",
        kind=Kind.INEQUALITY,
        draw=_candidates,
        left=lambda x: _structural(x)[0],
        right=lambda x: _structural(x)[1],
        twin=lambda x: _structural(x, positive_among_marginal=True)[1],
        slip="the positive among Donsker–Varadhan's marginal sample, where it is a spoiler",
        source="derived here",
    ),
)
