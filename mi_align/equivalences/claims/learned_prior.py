"""Ledger 29–30: MI-DPO, whose reference is a prior that may be learned, and the NWJ bound as a preference loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align import Candidates
from mi_align.equivalences import dynamics
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.methods import METHODS
from mi_align.objectives import donsker_varadhan_bound, kl_k1, kl_regularised_value, nwj_bound

__all__ = ["CLAIMS"]

_PROMPTS, _RESPONSES, _ITERATIONS = 3, 4, 2000
_MI_DPO = "MI-DPO (arXiv 2501.01544), as restated in public summaries"
_INFO_PO = "a reconstruction of InfoPO (arXiv 2505.08507): its exact loss was not seen"


def _pair(key: PRNGKeyArray) -> Inputs:
    """Log-probabilities of a pair under the policy and under a prior ζ, and α."""
    policy, prior = -jnp.abs(3 * jax.random.normal(key, (2, 2)))
    return {"policy": policy, "prior": prior, "alpha": 0.1 + jax.random.uniform(jax.random.fold_in(key, 1))}


def _mi_dpo(x: Inputs, log_prior: Array) -> Array:
    """log(1 + (π_l/ζ_l)^α (ζ_w/π_w)^α), the prior a constant."""
    weight = jnp.exp(x["policy"] - jax.lax.stop_gradient(log_prior)) ** x["alpha"]
    return jnp.log1p(weight[1] / weight[0])


def _prompts(key: PRNGKeyArray) -> Inputs:
    """Logits of a law of prompts, of a policy for each and of a prior over responses; rewards, and β."""
    rows = jax.random.normal(key, (_PROMPTS + 1, 2 * _RESPONSES))
    return {
        "prompt": rows[-1, :_PROMPTS],
        "policy": rows[:-1, :_RESPONSES],
        "reward": rows[:-1, _RESPONSES:],
        "prior": rows[-1, _RESPONSES:],
        "beta": 0.3 + jax.random.uniform(jax.random.fold_in(key, 1)),
    }


def _law_of_prompts(x: Inputs) -> Array:
    return jax.nn.softmax(x["prompt"])


def _logs(x: Inputs) -> tuple[Array, Array]:
    """log π(y|x) and, for every prompt, log ζ(y)."""
    log_policy = jax.nn.log_softmax(x["policy"], axis=-1)
    return log_policy, jnp.broadcast_to(jax.nn.log_softmax(x["prior"]), log_policy.shape)


def _mean_divergence(x: Inputs) -> Array:
    """E_x KL(π(·|x) ‖ ζ), each an exact mean of k1 over the policy's own responses."""
    log_policy, log_prior = _logs(x)
    return _law_of_prompts(x) @ jnp.sum(jnp.exp(log_policy) * kl_k1(log_policy, log_prior), axis=-1)


def _information(x: Inputs) -> tuple[Array, Array]:
    """I(X; Y) as H(Y) − H(Y|X), and KL(π̄ ‖ ζ)."""
    policy = jnp.exp(_logs(x)[0])
    marginal = _law_of_prompts(x) @ policy
    conditional = -_law_of_prompts(x) @ jnp.sum(policy * jnp.log(policy), axis=-1)
    entropy = -jnp.sum(marginal * jnp.log(marginal))
    prior = jnp.exp(x["prior"]) / jnp.sum(jnp.exp(x["prior"]))
    return entropy - conditional, jnp.sum(marginal * jnp.log(marginal / prior))


def _with_marginal(x: Inputs) -> Inputs:
    """The same with the prior at the policy's marginal."""
    return {**x, "prior": jnp.log(_law_of_prompts(x) @ jnp.exp(_logs(x)[0]))}


def _tilted(x: Inputs, log_prior: Array) -> tuple[Array, Array]:
    """log π ∝ log ζ + r/β and its normaliser log Z, prompt by prompt."""
    tilt = log_prior[None, :] + x["reward"] / x["beta"]
    log_normaliser = jax.nn.logsumexp(tilt, axis=-1, keepdims=True)
    return tilt - log_normaliser, log_normaliser


def _least_divergence(x: Inputs) -> Array:
    """min over ζ of E_x KL(π ‖ ζ), by gradient descent on ζ's logits."""
    prior = dynamics.descend(
        lambda prior: _mean_divergence({**x, "prior": prior}), x["prior"], learning_rate=2.0, record=(_ITERATIONS,)
    )
    return _mean_divergence({**x, "prior": prior[0]})


def _blahut_arimoto(x: Inputs) -> Array:
    """log ζ after alternating between the best policy for a prior and the best prior for a policy."""

    def alternate(_: int, log_prior: Array) -> Array:
        return jax.nn.logsumexp(_tilted(x, log_prior)[0], axis=0, b=_law_of_prompts(x)[:, None])

    return jax.lax.fori_loop(0, _ITERATIONS, alternate, jax.nn.log_softmax(x["prior"]))


def _best_value(x: Inputs) -> Array:
    """E_x [E_π r − β KL(π ‖ ζ)] at the alternation's end."""
    log_prior = _blahut_arimoto(x)
    log_policy, _ = _tilted(x, log_prior)
    log_reference = jnp.broadcast_to(log_prior, log_policy.shape)
    value = kl_regularised_value(log_policy, log_reference, x["reward"], beta=x["beta"])
    return _law_of_prompts(x) @ jnp.sum(jnp.exp(log_policy) * value, axis=-1)


def _ceiling(x: Inputs, log_prior: Array, slack: float = 1.0) -> Array:
    """E_x β log Z_x(ζ) + β log max_y E_x[e^{r/β} / Z_x(ζ)]: no prior does better, whatever ζ this is computed at."""
    _, log_normaliser = _tilted(x, log_prior)
    gain = jnp.max(_law_of_prompts(x) @ jnp.exp(x["reward"] / x["beta"] - log_normaliser))
    return x["beta"] * (_law_of_prompts(x) @ log_normaliser[:, 0] + slack * jnp.log(gain))


def _log_ratios(key: PRNGKeyArray) -> Inputs:
    z = jax.random.normal(key, (2,))
    return {"chosen": 2 * z[0], "rejected": 2 * z[1]}


def _nwj_po(x: Inputs, shift: float | Array = 0.0) -> Array:
    """The table's loss on log-ratios moved up by a common amount."""
    ratios = jnp.stack([x["chosen"], x["rejected"]]) + shift
    return METHODS["nwj_po"](Candidates.from_sequences(ratios, jnp.zeros_like(ratios)), beta=1.0)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="29a",
        title="MI-DPO with the reference as its prior is DPO",
        statement=r"-\log\sigma\left(\alpha\log\tfrac{\pi_w}{\zeta_w} - \alpha\log\tfrac{\pi_l}{\zeta_l}\right)"
        r" = \ell_{\mathrm{DPO}}\quad\text{at } \zeta = \pi_{\mathrm{ref}},\ \beta = \alpha",
        kind=Kind.EXACT,
        draw=_pair,
        left=lambda x: METHODS["dpo"](Candidates.from_sequences(x["policy"], x["prior"]), beta=x["alpha"]),
        right=lambda x: _mi_dpo(x, x["prior"]),
        twin=lambda x: _mi_dpo(x, x["prior"][::-1]),
        slip="the priors of chosen and rejected exchanged",
        source=_MI_DPO,
    ),
    Claim(
        id="29b",
        title="MI-DPO with a uniform prior is reference-free DPO",
        statement=r"\zeta = \text{const}:\quad \ell_{\mathrm{MI\text{-}DPO}} ="
        r" -\log\sigma\left(\alpha\log\pi_w - \alpha\log\pi_l\right)",
        kind=Kind.EXACT,
        draw=_pair,
        left=lambda x: METHODS["dpo_reference_free"](Candidates.from_sequences(x["policy"]), beta=x["alpha"]),
        right=lambda x: _mi_dpo(x, jnp.full_like(x["prior"], -3.0)),
        twin=lambda x: _mi_dpo(x, x["prior"]),
        slip="a prior that is not uniform",
        source=_MI_DPO + "; SimPO without length normalisation and margin",
    ),
    Claim(
        id="29c",
        title="The divergence from a prior is information plus the prior's own misfit",
        statement=r"\mathbb{E}_x\,\mathrm{KL}(\pi(\cdot|x)\,\Vert\,\zeta) = I_\pi(X;Y) +"
        r" \mathrm{KL}(\bar\pi\,\Vert\,\zeta)",
        kind=Kind.EXACT,
        draw=_prompts,
        left=_mean_divergence,
        right=lambda x: jnp.sum(jnp.stack(_information(x))),
        twin=lambda x: _information(x)[0],
        slip="the misfit left out",
        source="derived here; Cover & Thomas, section 10.8",
        samples=200_000,
    ),
    Claim(
        id="29d",
        title="The best prior is the policy's marginal, and leaves the mutual information",
        statement=r"\min_\zeta\ \mathbb{E}_x\,\mathrm{KL}(\pi(\cdot|x)\,\Vert\,\zeta) = I_\pi(X;Y)",
        kind=Kind.OPTIMUM,
        draw=_prompts,
        left=_least_divergence,
        right=lambda x: _information(x)[0],
        twin=lambda x: jnp.sum(jnp.stack(_information(x))),
        slip="the prior that was drawn instead of the best one",
        source="Blahut 1972, Arimoto 1972",
        derivatives=0,
        samples=64,
    ),
    Claim(
        id="29e",
        title="Learning policy and prior in turn reaches the best of both",
        statement=r"\max_{\pi,\zeta}\ \mathbb{E}_x\left[\mathbb{E}_\pi r - \beta\,\mathrm{KL}(\pi\Vert\zeta)\right]"
        r" = \max_\pi\ \mathbb{E}\,r - \beta I_\pi(X;Y) \le \mathbb{E}_x\beta\log Z_x(\zeta) +"
        r" \beta\log\max_y\mathbb{E}_x\tfrac{e^{r/\beta}}{Z_x(\zeta)}\quad\text{with equality at the limit}",
        kind=Kind.OPTIMUM,
        draw=_prompts,
        left=_best_value,
        right=lambda x: _ceiling(x, _blahut_arimoto(x)),
        twin=lambda x: _ceiling(x, jax.nn.log_softmax(x["prior"])),
        slip="the ceiling computed at the first prior",
        source="Blahut 1972, Arimoto 1972",
        derivatives=0,
        samples=64,
        tolerance=dict.fromkeys(("float64", "float32", "bfloat16"), 1e-3),
        why="the alternation closes in like 1/n where a response leaves the prior's support; n = 2000",
    ),
    Claim(
        id="30a",
        title="NWJ-PO is 1 minus the NWJ bound on one pair",
        statement=r"-z_w + e^{z_l} = 1 - I_{\mathrm{NWJ}}(z_w + 1;\ z_l + 1)",
        kind=Kind.EXACT,
        draw=_log_ratios,
        left=_nwj_po,
        right=lambda x: 1 - nwj_bound(x["chosen"][None] + 1, x["rejected"][None] + 1),
        twin=lambda x: 1 - nwj_bound(x["chosen"][None], x["rejected"][None]),
        slip="the critic not moved by 1",
        source=_INFO_PO,
    ),
    Claim(
        id="30b",
        title="NWJ-PO pulls the chosen log-ratio with constant force and brakes only the rejected one",
        statement=r"\frac{\partial \ell}{\partial z_w} = -1,\qquad \frac{\partial \ell}{\partial z_l} = e^{z_l}",
        kind=Kind.EXACT,
        draw=_log_ratios,
        left=lambda x: jnp.stack(list(jax.grad(_nwj_po)(x).values())),
        right=lambda x: jnp.stack([-jnp.ones_like(x["chosen"]), jnp.exp(x["rejected"])]),
        twin=lambda x: jnp.stack([-jnp.exp(-x["chosen"]), jnp.exp(x["rejected"])]),
        slip="a pull on the chosen that fades, as exponential loss has it",
        source=_INFO_PO,
    ),
    Claim(
        id="30c",
        title="At its best common level NWJ-PO is the margin: DV with the rejected response alone as marginal",
        statement=r"\min_k\ \ell(z_w + k, z_l + k) = 1 - (z_w - z_l) = 1 - I_{\mathrm{DV}}(z_w; z_l),"
        r"\quad k = -z_l",
        kind=Kind.EXACT,
        draw=_log_ratios,
        left=lambda x: _nwj_po(x, -x["rejected"]),
        right=lambda x: 1 - donsker_varadhan_bound(x["chosen"][None], x["rejected"][None]),
        twin=lambda x: 1 - donsker_varadhan_bound(x["chosen"][None], jnp.stack([x["chosen"], x["rejected"]])),
        slip="the mixture of both as marginal, which makes it DPO",
        source="derived here from 3",
    ),
)
