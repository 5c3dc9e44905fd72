"""Ledger 27: DPO under other divergences, each of which scores a response by f′ of its probability ratio."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align import Candidates
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.methods import METHODS

__all__ = ["CLAIMS"]

_WANG = "Wang et al. 2023 (arXiv 2309.16240)"
_SMALL = tuple(2.0**-k for k in range(3, 12))


def _ratios(key: PRNGKeyArray) -> Inputs:
    """Log-ratios of a chosen and a rejected response, β, and an order α of a divergence."""
    z, scale = jax.random.normal(key, (2,)), jax.random.uniform(jax.random.fold_in(key, 1), (2,))
    return {"z": z, "beta": 0.1 + scale[0], "alpha": 0.1 + 0.8 * scale[1]}


def _loss(x: Inputs, method: str, **hyper: Array) -> Array:
    """A method's loss where the reference has probability 1, so that π/π_ref = e^z."""
    return METHODS[method](Candidates.from_sequences(x["z"], jnp.zeros_like(x["z"])), beta=x["beta"], **hyper)


def _f_dpo(x: Inputs, f: Callable[[Array], Array]) -> Array:
    """−log σ(β (f′(u_w) − f′(u_l))), u = π/π_ref: f′ by automatic differentiation of the divergence's generator."""
    chosen, rejected = jax.vmap(jax.grad(f))(jnp.exp(x["z"]))
    return jnp.log1p(jnp.exp(-x["beta"] * (chosen - rejected)))


def _reverse_kl(u: Array) -> Array:
    return u * jnp.log(u)


def _forward_kl(u: Array) -> Array:
    return -jnp.log(u)


def _jensen_shannon(u: Array) -> Array:
    return u * jnp.log(u) - (u + 1) * jnp.log((u + 1) / 2)


def _alpha(alpha: Array) -> Callable[[Array], Array]:
    return lambda u: (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1))


def _towards_dpo(x: Inputs, method: str, alpha: float) -> Array:
    return jnp.abs(_loss(x, method, alpha=jnp.asarray(alpha, x["z"].dtype)) - _loss(x, "dpo"))


def _same_ratio(x: Inputs) -> Inputs:
    """The same with chosen and rejected at one level."""
    return {**x, "z": x["z"][:1].repeat(2)}


def _argmin(f: Callable[[Array], Array], start: float) -> Array:
    """Newton's method in log t, from `start`, towards the minimum of a function on t > 0."""
    slope = jax.grad(lambda log_t: f(jnp.exp(log_t)))

    def step(_: int, log_t: Array) -> Array:
        return log_t - slope(log_t) / jax.grad(slope)(log_t)

    return jnp.exp(jax.lax.fori_loop(0, 20, step, jnp.log(jnp.asarray(start))))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="27a",
        title="f-DPO under the reverse KL is DPO",
        statement=r"f(u) = u\log u:\quad -\log\sigma\left(\beta f'(u_w) - \beta f'(u_l)\right) = \ell_{\mathrm{DPO}}",
        kind=Kind.EXACT,
        draw=_ratios,
        left=lambda x: _loss(x, "dpo"),
        right=lambda x: _f_dpo(x, _reverse_kl),
        twin=lambda x: _f_dpo(x, _forward_kl),
        slip="the forward KL",
        source=_WANG,
    ),
    Claim(
        id="27b",
        title="f-DPO under the forward KL scores by −1/u",
        statement=r"f(u) = -\log u:\quad f'(u) = -1/u",
        kind=Kind.EXACT,
        draw=_ratios,
        left=lambda x: _loss(x, "f_dpo_forward_kl"),
        right=lambda x: _f_dpo(x, _forward_kl),
        twin=lambda x: _f_dpo(x, lambda u: jnp.log(u)),
        slip="the sign",
        source=_WANG,
    ),
    Claim(
        id="27c",
        title="f-DPO under Jensen–Shannon scores by log 2u/(1+u)",
        statement=r"f(u) = u\log u - (u+1)\log\tfrac{u+1}{2}:\quad f'(u) = \log\tfrac{2u}{1+u} = \log 2 +"
        r" \log\sigma(\log u)",
        kind=Kind.EXACT,
        draw=_ratios,
        left=lambda x: _loss(x, "f_dpo_js"),
        right=lambda x: _f_dpo(x, _jensen_shannon),
        twin=lambda x: _f_dpo(x, lambda u: u * jnp.log(u) - (u + 1) * jnp.log(u + 1) / 2),
        slip="half the mixture's weight",
        source=_WANG,
    ),
    Claim(
        id="27d",
        title="f-DPO under an α-divergence scores by (1 − u^−α)/α",
        statement=r"f'(u) = \frac{1 - u^{-\alpha}}{\alpha}",
        kind=Kind.EXACT,
        draw=_ratios,
        left=lambda x: _loss(x, "f_dpo_alpha", alpha=x["alpha"]),
        right=lambda x: _f_dpo(x, _alpha(x["alpha"])),
        twin=lambda x: _f_dpo(x, _alpha(1 - x["alpha"])),
        slip="1 − α for α",
        source=_WANG,
    ),
    Claim(
        id="27e",
        title="Two conventions of α are one family, read from opposite ends",
        statement=r"\frac{u^{\alpha'-1}-1}{\alpha'-1} = \frac{1-u^{-\alpha}}{\alpha}\quad\text{at } \alpha' = 1-\alpha",
        kind=Kind.EXACT,
        draw=_ratios,
        left=lambda x: _loss(x, "f_dpo_alpha_trl", alpha=1 - x["alpha"]),
        right=lambda x: _loss(x, "f_dpo_alpha", alpha=x["alpha"]),
        twin=lambda x: _loss(x, "f_dpo_alpha", alpha=1 - x["alpha"]),
        slip="the same α in both, which agree only at ½",
        source="derived here; TRL 1.16 has the first, TRL to 0.27 and Wang et al. 2023 the second",
    ),
    Claim(
        id="27f",
        title="α → 0 is DPO, at a linear rate",
        statement=r"\left|\ell_{\alpha} - \ell_{\mathrm{DPO}}\right| = \Theta(\alpha)",
        kind=Kind.ASYMPTOTIC,
        draw=_ratios,
        left=lambda x: jnp.stack([_towards_dpo(x, "f_dpo_alpha", alpha) for alpha in _SMALL]),
        right=lambda x: jnp.asarray(_SMALL, x["z"].dtype),
        twin=lambda x: jnp.asarray(_SMALL, x["z"].dtype) ** 2,
        slip="a quadratic rate",
        source="derived here",
        samples=1000,
        grid=_SMALL,
    ),
    Claim(
        id="27g",
        title="f-DPO under Jensen–Shannon is not MIO: it does not see a pair's common level",
        statement=r"u_w = u_l:\quad \ell_{\mathrm{JS\text{-}DPO}} = \log 2\ \text{ at every level}",
        kind=Kind.EXACT,
        draw=_ratios,
        left=lambda x: _loss(_same_ratio(x), "f_dpo_js"),
        right=lambda x: jnp.log(2.0) * jnp.ones_like(x["beta"]),
        twin=lambda x: _loss(_same_ratio(x), "mio") / 2,
        slip="half of MIO's loss, which is log 2 at level 0 alone",
        source="derived here",
    ),
    Claim(
        id="27h",
        title="Why the reverse KL allows displacement: its generator is least at 1/e, below 1",
        statement=r"\operatorname{argmin}_t\ t\log t = 1/e < 1,\qquad \operatorname{argmin}_t\ \tfrac12\log^2 t = 1",
        kind=Kind.OPTIMUM,
        draw=lambda key: {"start": 0.3 + jax.random.uniform(key)},
        left=lambda x: jnp.stack([_argmin(_reverse_kl, 0.5), _argmin(lambda t: jnp.log(t) ** 2 / 2, x["start"])]),
        right=lambda x: jnp.stack([jnp.exp(-jnp.ones_like(x["start"])), jnp.ones_like(x["start"])]),
        twin=lambda x: jnp.ones((2,), x["start"].dtype),
        slip="both at 1",
        source="arXiv 2602.06788, as restated in public notes; minimised here",
        derivatives=0,
        samples=64,
    ),
)
