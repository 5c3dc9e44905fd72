"""Rows of the table: critics that look at the policy alone."""

from __future__ import annotations

import functools

from mi_align import critics, objectives
from mi_align.methods import parts
from mi_align.methods.arrangements import chosen_by_length, pair, pair_and_gold
from mi_align.methods.method import Method

__all__ = ["LIKELIHOODS", "PAIRS"]

_free = functools.partial(Method, needs_reference=False)
_pair = functools.partial(_free, arrange=pair, objective=objectives.bradley_terry_loss)
#: TRL's CPO family: its likelihood term is a mean over the tokens of the micro-batch.
_cpo = functools.partial(_pair, regulariser=parts.token_nll, couples_batch=True)
_CPO = "Xu et al. 2024, CPO, arXiv 2401.08417"
_TPO = "Saeidi et al. 2024, arXiv 2405.16681"

#: One chosen against one rejected response.
PAIRS = (
    _pair(
        name="dpo_reference_free",
        critic=critics.log_probability,
        defaults={"beta": 0.1},
        source="dpo with a uniform reference",
        aliases=("reference_free",),
    ),
    _pair(
        name="slic",
        critic=critics.log_probability,
        objective=objectives.hinge_loss,
        regulariser=parts.sequence_nll,
        defaults={"beta": 1.0, "margin": 1.0, "nll_weight": 0.1},
        source="Zhao et al. 2023, SLiC-HF, arXiv 2305.10425",
        aliases=("SLiC",),
        note="NLL weight as in HALOs",
    ),
    _cpo(
        name="cpo",
        critic=critics.log_probability,
        defaults={"beta": 0.1, "nll_weight": 1.0, "label_smoothing": 0.0},
        source=_CPO,
        aliases=("CPO sigmoid",),
    ),
    _cpo(
        name="cpo_hinge",
        critic=critics.log_probability,
        objective=objectives.hinge_loss,
        defaults={"beta": 0.1, "margin": 1.0, "nll_weight": 1.0},
        source="TRL 1.16",
        aliases=("CPO hinge",),
        note="SLiC-HF's own form is slic",
    ),
    _cpo(
        name="cpo_ipo",
        critic=critics.mean_log_probability,
        objective=parts.ipo_loss,
        defaults={"beta": 0.1, "nll_weight": 1.0},
        source="TRL 1.16",
        aliases=("CPO ipo",),
        note="a token, without a reference",
    ),
    _cpo(
        name="cpo_simpo",
        critic=critics.length_normalised,
        defaults={"beta": 0.1, "margin": 0.5, "nll_weight": 1.0, "label_smoothing": 0.0},
        source="TRL 1.16",
        aliases=("CPO simpo", "CPO-SimPO"),
        note="TRL's defaults: γ/β = 5 and NLL on; SimPO's own are simpo's",
    ),
    _pair(
        name="simpo",
        critic=critics.length_normalised,
        defaults={"beta": 2.0, "margin": 0.5},
        source="Meng et al. 2024, arXiv 2405.14734",
        aliases=("SimPO",),
        note="β and γ/β = 0.25 of the authors' repository; γ is `margin`",
    ),
    _cpo(
        name="cpo_alpha",
        critic=critics.power_likelihood,
        defaults={"beta": 0.1, "alpha": 0.25, "margin": 0.0, "nll_weight": 1.0, "label_smoothing": 0.0},
        source="TRL 1.16",
        aliases=("CPO alpha",),
        note="TRL's α is 0 unless set. Right where TRL's exp underflows, below mean log-probabilities of −88",
    ),
    _pair(
        name="alpha_po",
        critic=critics.power_likelihood,
        defaults={"beta": 2.5, "alpha": 0.25, "margin": 0.25},
        source="Gupta et al. 2025, arXiv 2501.03884",
        aliases=("AlphaPO",),
        note="the paper tunes β and γ/β for each model; γ is `margin`",
    ),
    _pair(
        name="orpo",
        critic=critics.log_odds,
        weight=parts.preference_weight,
        regulariser=parts.token_nll,
        defaults={"beta": 0.1, "nll_weight": 1.0},
        couples_batch=True,
        source="Hong et al. 2024, arXiv 2403.07691",
        aliases=("ORPO",),
        note="β is the paper's λ. TRL's NLL counts the prompt too: put its tokens into `nll_mask`",
    ),
    _free(
        name="tpo",
        critic=critics.log_probability,
        objective=objectives.bradley_terry_loss,
        arrange=pair_and_gold,
        regulariser=parts.gold_token_nll,
        defaults={"beta": 0.01, "nll_weight": 1.0, "label_smoothing": 0.0},
        couples_batch=True,
        source=_TPO,
        aliases=("TPO",),
        note="candidates: chosen, rejected, gold",
    ),
    _free(
        name="tpo_l",
        critic=critics.length_normalised,
        objective=objectives.bradley_terry_loss,
        arrange=pair_and_gold,
        regulariser=parts.gold_token_nll,
        defaults={"beta": 0.01, "margin": 0.5, "nll_weight": 1.0, "label_smoothing": 0.0},
        couples_batch=True,
        source=_TPO,
        aliases=("TPO-L", "tpo-l"),
        note="candidates: chosen, rejected, gold; TRL's β and γ = `margin`, whose ratio is 50",
    ),
)

#: The chosen response alone.
LIKELIHOODS = (
    _free(
        name="sft",
        critic=critics.mean_log_probability,
        objective=parts.negated,
        arrange=chosen_by_length,
        couples_batch=True,
        source="maximum likelihood",
        aliases=("sft",),
        note="a mean over the tokens of the batch, as in TRL",
    ),
)
