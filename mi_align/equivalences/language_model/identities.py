"""L1: losses that are one loss, each in two formulas; the second with a factor of 1, and in its twin a bit more."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mi_align.critics.candidates import Candidates
from mi_align.critics.policy import implicit_reward
from mi_align.elementary import sigmoid, softplus
from mi_align.methods import METHODS
from mi_align.numerics import log_sum_exp, masked_sum
from mi_align.objectives import (
    bco_pair_loss,
    bradley_terry_loss,
    donsker_varadhan_bound,
    info_nce_loss,
    plackett_luce_loss,
)

__all__ = ["BETA", "IDENTITIES", "LossIdentity"]

Losses = Callable[[Candidates], Float[Array, "batch"]]
Factored = Callable[[Candidates, Float[Array, ""]], Float[Array, "batch"]]
Formula = Callable[[Array, Array, Array], Array]  # (logits, which candidates are there, factor) -> one loss a prompt

BETA = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossIdentity:
    """Two losses that give one number and one gradient of all parameters.

    Attributes:
      id: the ledger's number, L1 and a letter.
      title: the claim in a few plain words.
      statement: in LaTeX, without dollar signs; s_0 is the chosen response's logit, s_1 … s_K the others'.
      left: candidates -> one loss a prompt.
      right: (candidates, factor) -> the other formula. With factor 1 it is `left`; with 1 + 1e-6 it is the perturbed
        twin, which must be found out.
      slip: what is too large in the twin.
      source: where the claim comes from.
      pair: whether it is about one negative; the batch's first ones are taken then.
      at_reference: whether it is about the point where the policy is the reference.
      values: whether the values agree too, and not the gradients alone.
    """

    id: str
    title: str
    statement: str
    left: Losses
    right: Factored
    slip: str
    source: str
    pair: bool = False
    at_reference: bool = False
    values: bool = True


def row(name: str, beta: float = BETA) -> Losses:
    """A method of the table at a given β."""
    return METHODS[name].configure(beta=beta)


def formula(loss: Formula) -> Factored:
    """A formula in the implicit rewards s = β (log π − log π_ref), `[batch, candidates]`."""

    def losses(c: Candidates, factor: Array) -> Array:
        rewards = implicit_reward(c, beta=BETA)
        there = jnp.ones(rewards.shape, bool) if c.candidate_mask is None else c.candidate_mask
        return loss(rewards, there, factor)

    return losses


@formula
def _bradley_terry(s: Array, there: Array, factor: Array) -> Array:
    return bradley_terry_loss(factor * s[..., 0], s[..., 1])


@formula
def _info_nce(s: Array, there: Array, factor: Array) -> Array:
    return info_nce_loss(s[..., 0], factor * s[..., 1:], where=there[..., 1:])


@formula
def _log_size_minus_donsker_varadhan(s: Array, there: Array, factor: Array) -> Array:
    size = jnp.sum(there, axis=-1, dtype=s.dtype)
    return jnp.log(size) - donsker_varadhan_bound(factor * s[..., :1], s, where_marginal=there)


@formula
def _weighted_likelihood(s: Array, there: Array, factor: Array) -> Array:
    """−w (s₀ − s₁) with w = σ(s₁ − s₀) held fixed: each pair's likelihood ratio, weighted by how wrong it is."""
    weight = jax.lax.stop_gradient(sigmoid(factor * (s[..., 1] - s[..., 0])))
    return -weight * (s[..., 0] - s[..., 1])


@formula
def _lifted_bradley_terry(s: Array, there: Array, factor: Array) -> Array:
    """After a number of the prompt's own, one that even moves with the parameters, is added to both logits."""
    lift = jnp.sin(s[..., 0]) + s[..., 1] / 2 + 1
    return bradley_terry_loss(s[..., 0] + lift, s[..., 1] + factor * lift)


@formula
def _s_dpo(s: Array, there: Array, factor: Array) -> Array:
    return softplus(factor * log_sum_exp(s[..., 1:] - s[..., :1], there[..., 1:], axis=-1))


@formula
def _first_choice(s: Array, there: Array, factor: Array) -> Array:
    return plackett_luce_loss(s.at[..., 0].multiply(factor), where=there, top_k=1)


@formula
def _noise_contrastive(s: Array, there: Array, factor: Array) -> Array:
    size = jnp.sum(there, axis=-1, dtype=s.dtype)
    return softplus(-s[..., 0]) + factor * masked_sum(softplus(s), there, axis=-1) / size


@formula
def _anchored_bco(s: Array, there: Array, factor: Array) -> Array:
    chosen, rejected = s[..., 0], s[..., 1]
    return bco_pair_loss(chosen, rejected) / 2 + factor * (softplus(chosen) - chosen / 2)


def _dpo(c: Candidates, factor: Array) -> Array:
    return METHODS["dpo"](c, beta=factor * BETA)


IDENTITIES: tuple[LossIdentity, ...] = (
    LossIdentity(
        id="L1a",
        title="DPO is Bradley–Terry on the implicit reward",
        statement=r"\mathcal L_{\mathrm{DPO}} = -\log\sigma(s_0 - s_1),"
        r"\quad s = \beta\log\frac{\pi}{\pi_{\mathrm{ref}}}",
        left=row("dpo"),
        right=_bradley_terry,
        slip="the chosen reward",
        source="Rafailov et al. 2023 (arXiv 2305.18290), eq. 7; ledger 13",
        pair=True,
    ),
    LossIdentity(
        id="L1b",
        title="DPO is InfoNCE with one negative",
        statement=r"\mathcal L_{\mathrm{DPO}} = -\log\frac{e^{s_0}}{e^{s_0} + e^{s_1}}",
        left=row("dpo"),
        right=_info_nce,
        slip="the negative's reward",
        source="van den Oord et al. 2018 (arXiv 1807.03748), eq. 4; ledger 13",
        pair=True,
    ),
    LossIdentity(
        id="L1c",
        title="DPO is log 2 minus Donsker–Varadhan, pair by pair",
        statement=r"\mathcal L_{\mathrm{DPO}} = \log 2 - \left[s_0 - \log\tfrac12(e^{s_0} + e^{s_1})\right]",
        left=row("dpo"),
        right=_log_size_minus_donsker_varadhan,
        slip="the joint term",
        source="Lv et al. 2025 (arXiv 2506.22578), with the 50/50 mixture as the marginal; ledger 13",
        pair=True,
    ),
    LossIdentity(
        id="L1d",
        title="DPO's gradient is a weighted likelihood's",
        statement=r"\nabla\mathcal L_{\mathrm{DPO}} = -\beta\,\sigma(s_1 - s_0)\,\nabla\log\frac{\pi(y_0)}{\pi(y_1)}",
        left=row("dpo"),
        right=_weighted_likelihood,
        slip="the margin inside the weight",
        source="Rafailov et al. 2023 (arXiv 2305.18290), section 4; ledger 45",
        pair=True,
        values=False,
    ),
    LossIdentity(
        id="L1e",
        title="a prompt's own level is invisible to DPO",
        statement=r"\mathcal L_{\mathrm{DPO}}(s_0 + k(x), s_1 + k(x)) = \mathcal L_{\mathrm{DPO}}(s_0, s_1)",
        left=row("dpo"),
        right=_lifted_bradley_terry,
        slip="the rejected response's lift",
        source="ledger 46",
        pair=True,
    ),
    LossIdentity(
        id="L1f",
        title="InfoNCE over K negatives is S-DPO",
        statement=r"\mathcal L_{\mathrm{InfoNCE}} = -\log\sigma\Bigl(-\log\sum_{k\ge1} e^{s_k - s_0}\Bigr)",
        left=row("infonce_dpo"),
        right=_s_dpo,
        slip="the inner logarithm",
        source="Chen et al. 2024 (arXiv 2406.09215); ledger 17",
    ),
    LossIdentity(
        id="L1g",
        title="InfoNCE over K negatives is Plackett–Luce's first choice",
        statement=r"\mathcal L_{\mathrm{InfoNCE}} = -\Bigl[s_0 - \log\sum_{k\ge0} e^{s_k}\Bigr]",
        left=row("infonce_dpo"),
        right=_first_choice,
        slip="the winner's score",
        source="Rafailov et al. 2023 (arXiv 2305.18290), appendix A.3; ledger 17",
    ),
    LossIdentity(
        id="L1h",
        title="InfoNCE over K negatives is log(K+1) minus Donsker–Varadhan",
        statement=r"\mathcal L_{\mathrm{InfoNCE}} = \log(K+1) - \Bigl[s_0 - \log\tfrac1{K+1}\sum_{k\ge0} e^{s_k}\Bigr]",
        left=row("infonce_dpo"),
        right=_log_size_minus_donsker_varadhan,
        slip="the joint term",
        source="ledger 6 and 13, with the mixture of all candidates as the marginal",
    ),
    LossIdentity(
        id="L1i",
        title="MIO is noise-contrastive alignment",
        statement=r"\mathcal L_{\mathrm{MIO}} = \mathrm{sp}(-s_0) + \tfrac1{K+1}\sum_{k\ge0}\mathrm{sp}(s_k)",
        left=row("mio"),
        right=_noise_contrastive,
        slip="the marginal's weight",
        source="Chen et al. 2024 (arXiv 2402.05369) with a hard label; Lv et al. 2025; ledger 18",
    ),
    LossIdentity(
        id="L1j",
        title="MIO is half of BCO and an anchor on the chosen reward",
        statement=r"\mathcal L_{\mathrm{MIO}} = \tfrac12\mathcal L_{\mathrm{BCO}} + \log\bigl(2\cosh\tfrac{s_0}2\bigr)",
        left=row("mio"),
        right=_anchored_bco,
        slip="the anchor's weight",
        source="derived here; ledger 19",
        pair=True,
    ),
    LossIdentity(
        id="L1k",
        title="at the start MIO at 2β has DPO's gradient at β",
        statement=r"\nabla\mathcal L_{\mathrm{MIO}}^{2\beta} = \nabla\mathcal L_{\mathrm{DPO}}^{\beta}"
        r"\quad\text{at } \pi = \pi_{\mathrm{ref}}",
        left=row("mio", 2 * BETA),
        right=_dpo,
        slip="DPO's β",
        source="derived here; ledger 20",
        pair=True,
        at_reference=True,
        values=False,
    ),
)
