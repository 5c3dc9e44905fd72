"""Ledger 20 and 22: what DPO and MIO do to a pair: per logit, per parameter at the start, per probability."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.critics import Candidates
from mi_align.equivalences import scores
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.populations import mio_pair_loss
from mi_align.methods import METHODS
from mi_align.objectives import bradley_terry_loss

__all__ = ["CLAIMS"]

_RESPONSES = 4
_FENG = "Feng et al. 2024 (arXiv 2404.04626); re-derived here"
_SMALL = tuple(10.0**-k for k in range(4, 9))


def _model(key: PRNGKeyArray) -> Inputs:
    """A small network from a prompt to logits over responses, and two values of β. Whole numbers: no derivative."""
    x = scores.uniforms(key, prompt=(2,), first=(3, 2), second=(_RESPONSES, 3), beta=(2,))
    return {**x, "second": 3 * x["second"], "beta": jnp.exp(1.5 * x["beta"])}


def _first_slope(x: Inputs, method: str, beta: Array, responses: int = 2) -> Array:
    """The gradient of a method's loss in every weight of the network, where the policy is still its reference."""

    def loss(weights: tuple[Array, Array]) -> Array:
        logp = jax.nn.log_softmax(weights[1] @ jnp.tanh(weights[0] @ x["prompt"]))[:responses]
        return METHODS[method](Candidates.from_sequences(logp, jax.lax.stop_gradient(logp)), beta=beta)

    first, second = jax.grad(loss)((x["first"], x["second"]))
    return jnp.concatenate([first.ravel(), second.ravel()])


def _pulls(loss: Callable[[Array, Array], Array], x: Inputs) -> Array:
    """(−∂ℓ/∂a, ∂ℓ/∂c): up on the chosen, down on the rejected logit."""
    da, dc = jax.grad(loss, (0, 1))(x["a"], x["c"])
    return jnp.stack([-da, dc])


def _mio_pulls(x: Inputs, factor: float = 1.5) -> Array:
    chosen, rejected = 1 / (1 + jnp.exp(-x["a"])), 1 / (1 + jnp.exp(-x["c"]))
    return jnp.stack([1 - factor * chosen, 0.5 * rejected])


def _dpo_pulls(x: Inputs, factor: float = 1.0) -> Array:
    pull = 1 / (1 + jnp.exp(x["a"] - x["c"]))
    return jnp.stack([pull, factor * pull])


def _odds(key: PRNGKeyArray) -> Inputs:
    """The ratios π_θ/π_ref of chosen and rejected, from 1/20 to 20, and β."""
    x = scores.uniforms(key, ratio=(2,), beta=())
    return {"ratio": jnp.exp(3 * x["ratio"]), "beta": jnp.exp(-0.8 + 1.5 * x["beta"])}


def _loss_of_ratios(method: str, ratio: Array, beta: Array) -> Array:
    """A method's loss where the reference has probability 1."""
    return METHODS[method](Candidates.from_sequences(jnp.log(ratio), jnp.zeros_like(ratio)), beta=beta)


def _slope_in_ratios(method: str, x: Inputs) -> Array:
    return jax.grad(lambda ratio: _loss_of_ratios(method, ratio, x["beta"]))(x["ratio"])


def _dpo_in_ratios(x: Inputs) -> Array:
    (w, v), b = x["ratio"], x["beta"]
    total = w**b + v**b
    return jnp.stack([-b * v**b / (w * total), b * v ** (b - 1) / total])


def _mio_in_ratios(x: Inputs, factor: float = 1.5) -> Array:
    (w, v), b = x["ratio"], x["beta"]
    return jnp.stack([b / w * (factor * w**b / (1 + w**b) - 1), b / v * v**b / (1 + v**b) / 2])


def _cross_term(x: Inputs, method: str) -> Array:
    """∂²ℓ/∂x_w∂x_l."""
    return jax.hessian(lambda ratio: _loss_of_ratios(method, ratio, x["beta"]))(x["ratio"])[0, 1]


def _tabular(key: PRNGKeyArray) -> Inputs:
    """Logits of a policy and of its reference over some responses, the first chosen, the second rejected; and β."""
    x = scores.uniforms(key, policy=(_RESPONSES,), reference=(_RESPONSES,), beta=())
    return {"policy": 2 * x["policy"], "reference": 2 * x["reference"], "beta": jnp.exp(-0.8 + 1.5 * x["beta"])}


def _slope_in_logits(x: Inputs) -> Array:
    reference = jax.nn.log_softmax(x["reference"])[:2]

    def loss(logits: Array) -> Array:
        return METHODS["mio"](Candidates.from_sequences(jax.nn.log_softmax(logits)[:2], reference), beta=x["beta"])

    return jax.grad(loss)(x["policy"])


def _projected(x: Inputs, centred: bool = True) -> Array:
    """π_y (g_y − Σ π g), g the slope in the probabilities by the closed form in their ratios to the reference."""
    policy, reference = jax.nn.softmax(x["policy"]), jax.nn.softmax(x["reference"])
    slope = _mio_in_ratios({"ratio": policy[:2] / reference[:2], "beta": x["beta"]}) / reference[:2]
    slope = jnp.concatenate([slope, jnp.zeros_like(policy[2:])])
    return policy * (slope - (jnp.sum(policy * slope) if centred else 0))


def _push_on_rare(x: Inputs) -> Array:
    """MIO's slope in the rejected response's probability ratio as that falls, at β = ½."""

    def slope(rejected: Array) -> Array:
        return _slope_in_ratios("mio", {"ratio": jnp.stack([x["ratio"][0], rejected]), "beta": jnp.asarray(0.5)})[1]

    return jax.vmap(slope)(jnp.asarray(_SMALL, x["ratio"].dtype))


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="20a",
        title="How hard MIO pulls: the chosen response by its own level, the rejected by its own",
        statement=r"-\frac{\partial \ell_{\mathrm{MIO}}}{\partial a} = 1 - \tfrac32\,\sigma(a),\qquad"
        r" \frac{\partial \ell_{\mathrm{MIO}}}{\partial c} = \tfrac12\,\sigma(c)",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=lambda x: _pulls(mio_pair_loss, x),
        right=_mio_pulls,
        twin=lambda x: _mio_pulls(x, factor=1.5 * (1 + 1e-6)),
        slip="3/2 multiplied by 1 + 1e-6",
        source="derived here",
        figure="flow_field",
    ),
    Claim(
        id="20b",
        title="How hard DPO pulls: chosen and rejected alike, by their difference",
        statement=r"-\frac{\partial \ell_{\mathrm{DPO}}}{\partial a} ="
        r" \frac{\partial \ell_{\mathrm{DPO}}}{\partial c} = \sigma(c - a)",
        kind=Kind.EXACT,
        draw=scores.pair,
        left=lambda x: _pulls(bradley_terry_loss, x),
        right=_dpo_pulls,
        twin=lambda x: _dpo_pulls(x, factor=1 + 1e-6),
        slip="the rejected one's pull multiplied by 1 + 1e-6",
        source="Rafailov et al. 2023 (arXiv 2305.18290), section 4",
        figure="flow_field",
    ),
    Claim(
        id="20c",
        title="At the start MIO's gradient is DPO's, for any model, exactly if its β is twice as large",
        statement=r"\theta = \theta_{\mathrm{ref}}:\quad \nabla_\theta\,\ell_{\mathrm{MIO}}(\beta') ="
        r" \frac{\beta'}{2\beta}\,\nabla_\theta\,\ell_{\mathrm{DPO}}(\beta)",
        kind=Kind.EXACT,
        draw=_model,
        left=lambda x: _first_slope(x, "mio", x["beta"][0]),
        right=lambda x: x["beta"][0] / (2 * x["beta"][1]) * _first_slope(x, "dpo", x["beta"][1]),
        twin=lambda x: x["beta"][0] / x["beta"][1] * _first_slope(x, "dpo", x["beta"][1]),
        slip="the same β in both",
        source="derived here; whatever displacement DPO's first step has, MIO's has too",
        derivatives=0,
    ),
    Claim(
        id="20d",
        title="The same factor of two between MIO and InfoNCE, with any number of negatives",
        statement=r"\theta = \theta_{\mathrm{ref}}:\quad \nabla_\theta\,\ell_{\mathrm{MIO}}(2\beta;\, y^-_{1..K}) ="
        r" \nabla_\theta\,\ell_{\mathrm{InfoNCE}}(\beta;\, y^-_{1..K})",
        kind=Kind.EXACT,
        draw=_model,
        left=lambda x: _first_slope(x, "mio", 2 * x["beta"][0], _RESPONSES),
        right=lambda x: _first_slope(x, "infonce_dpo", x["beta"][0], _RESPONSES),
        twin=lambda x: _first_slope(x, "infonce_dpo", (1 + 1e-6) * x["beta"][0], _RESPONSES),
        slip="β multiplied by 1 + 1e-6",
        source="derived here",
        derivatives=0,
    ),
    Claim(
        id="22a",
        title="DPO's gradient in the probability ratios x = π/π_ref",
        statement=r"\frac{\partial \ell_{\mathrm{DPO}}}{\partial x_w} = -\frac{\beta x_l^\beta}{x_w (x_w^\beta +"
        r" x_l^\beta)},\qquad \frac{\partial \ell_{\mathrm{DPO}}}{\partial x_l} ="
        r" \frac{\beta x_l^{\beta-1}}{x_w^\beta + x_l^\beta}",
        kind=Kind.EXACT,
        draw=_odds,
        left=lambda x: _slope_in_ratios("dpo", x),
        right=_dpo_in_ratios,
        twin=lambda x: _dpo_in_ratios({**x, "beta": (1 + 1e-6) * x["beta"]}),
        slip="β multiplied by 1 + 1e-6",
        source=_FENG,
        tolerance={"float32": 1e-4, "bfloat16": 1e-4},
        why="a slope of up to β/x = 20 β, whose own derivative has 1/x² = 400: so many times the rounding of x",
    ),
    Claim(
        id="22b",
        title="DPO moves the rejected probability faster than the chosen one, by the ratio of the two",
        statement=r"x_l\,\frac{\partial \ell_{\mathrm{DPO}}}{\partial x_l} ="
        r" -x_w\,\frac{\partial \ell_{\mathrm{DPO}}}{\partial x_w}",
        kind=Kind.EXACT,
        draw=_odds,
        left=lambda x: _slope_in_ratios("dpo", x)[1] * x["ratio"][1],
        right=lambda x: -_slope_in_ratios("dpo", x)[0] * x["ratio"][0],
        twin=lambda x: -_slope_in_ratios("mio", x)[0] * x["ratio"][0],
        slip="MIO's push on the chosen",
        source=_FENG,
        derivatives=0,
    ),
    Claim(
        id="22c",
        title="MIO's gradient in the probability ratios",
        statement=r"\frac{\partial \ell_{\mathrm{MIO}}}{\partial x_w} = \frac{\beta}{x_w}\left(\tfrac32"
        r"\,\sigma(\beta\log x_w) - 1\right),\qquad \frac{\partial \ell_{\mathrm{MIO}}}{\partial x_l} ="
        r" \frac{\beta}{2 x_l}\,\sigma(\beta\log x_l)",
        kind=Kind.EXACT,
        draw=_odds,
        left=lambda x: _slope_in_ratios("mio", x),
        right=_mio_in_ratios,
        twin=lambda x: _mio_in_ratios(x, factor=1.5 * (1 + 1e-6)),
        slip="3/2 multiplied by 1 + 1e-6",
        source="derived here",
    ),
    Claim(
        id="22d",
        title="MIO has no cross term: chosen and rejected do not feel each other",
        statement=r"\frac{\partial^2 \ell_{\mathrm{MIO}}}{\partial x_w\,\partial x_l} = 0",
        kind=Kind.EXACT,
        draw=_odds,
        left=lambda x: _cross_term(x, "mio"),
        right=lambda x: jnp.zeros_like(x["beta"]),
        twin=lambda x: _cross_term(x, "dpo"),
        slip="DPO's cross term",
        source="derived here",
        derivatives=0,
    ),
    Claim(
        id="22e",
        title="On the simplex the probabilities' gradient is projected, which couples all responses again",
        statement=r"\frac{\partial \ell}{\partial \theta_y} = \pi_y\left(g_y - \sum_{y'} \pi_{y'} g_{y'}\right),"
        r"\quad g_y = \frac{1}{\pi_{\mathrm{ref}}(y)}\frac{\partial \ell_{\mathrm{MIO}}}{\partial x_y}",
        kind=Kind.EXACT,
        draw=_tabular,
        left=_slope_in_logits,
        right=_projected,
        twin=lambda x: _projected(x, centred=False),
        slip="not projected",
        source="derived here",
        derivatives=0,
    ),
    Claim(
        id="22f",
        title="A rare rejected probability is pushed without bound for β below 1, by MIO as by DPO",
        statement=r"\frac{\partial \ell_{\mathrm{MIO}}}{\partial x_l} \sim \tfrac{\beta}{2}\,x_l^{\beta-1},"
        r"\quad x_l \to 0\qquad (\beta = \tfrac12)",
        kind=Kind.ASYMPTOTIC,
        draw=_odds,
        left=_push_on_rare,
        right=lambda x: jnp.asarray(_SMALL, x["ratio"].dtype) ** -0.5 / 4,
        twin=lambda x: jnp.asarray(_SMALL, x["ratio"].dtype) ** -1.0 / 4,
        slip="β = 0 in the exponent",
        source="derived here",
        samples=4096,
        grid=_SMALL,
    ),
)
