"""THE TABLE. A method is a row: which critic, which objective, which regulariser, and whose defaults.

Where TRL (1.16) departs from a method's paper, the row under TRL's name keeps TRL's numbers and its source says so.
"""

from __future__ import annotations

import functools
from typing import Any

from jaxtyping import Array

from mi_align import critics, objectives
from mi_align.critics import Candidates
from mi_align.methods import parts
from mi_align.methods.method import (
    Method,
    Table,
    against_rewards,
    one_against_rest,
    pair,
    ranking,
    soft_labelled,
    unpaired,
)

__all__ = ["METHODS"]


def _with_gold(logits: Array, candidates: Candidates) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Chosen, rejected and a gold response that only the regulariser looks at."""
    if logits.shape[-1] != 3:
        raise ValueError(
            f"there are {logits.shape[-1]} candidates a prompt, but 3 were wanted: chosen, rejected, gold."
        )
    return pair(logits[..., :2], candidates)


def _with_margin(logits: Array, candidates: Candidates) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A pair and, where annotators gave one, its margin."""
    arguments, _ = pair(logits, candidates)
    return arguments, {} if candidates.margin is None else {"margin": candidates.margin}


def _across_batch(logits: Array, candidates: Candidates) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Pairs whose objective couples the batch: its last axis is the batch's."""
    return pair(logits, candidates)


def _around_reference_point(logits: Array, candidates: Candidates) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Single responses, and the KL estimate that they are measured against."""
    (score, desirable), _ = unpaired(logits, candidates)
    if candidates.reference_point is None:
        raise ValueError(
            "`candidates.reference_point` is None, but KTO measures rewards against an estimate of KL(π‖π_ref), in "
            "nats. Get one from mismatched prompts and responses: `objectives.kto_reference_point(log_ratios)`."
        )
    return (score, desirable, candidates.reference_point), {}


_IMPLICIT = functools.partial(Method, critic=critics.implicit_reward, arrange=pair)
_FREE = functools.partial(Method, arrange=pair, needs_reference=False)
_SINGLE = functools.partial(Method, critic=critics.implicit_reward, arrange=unpaired)
_LISTED = functools.partial(Method, critic=critics.implicit_reward, arrange=one_against_rest)

_BT = objectives.bradley_terry_loss

METHODS = Table(
    # Pairs, through their margin, against a reference.
    _IMPLICIT(
        name="dpo",
        objective=_BT,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        source="Rafailov et al. 2023, eq. 7. TRL ignores label smoothing here; this row does not",
        aliases=("sigmoid",),
    ),
    _IMPLICIT(
        name="cdpo",
        objective=_BT,
        defaults={"beta": 0.1, "label_smoothing": 0.1},
        source="Mitchell 2023, conservative DPO",
        aliases=("conservative DPO",),
    ),
    _IMPLICIT(
        name="robust_dpo",
        objective=objectives.robust_bradley_terry_loss,
        defaults={"beta": 0.1, "label_smoothing": 0.1},
        source="Chowdhury et al. 2024, eq. 4",
        aliases=("robust", "rDPO"),
    ),
    _IMPLICIT(
        name="ipo",
        critic=critics.mean_log_ratio,
        objective=parts.ipo,
        defaults={"beta": 0.1},
        source="Azar et al. 2023, eq. 17, a token, as in TRL, EasyDeL, HALOs; β is the paper's τ",
        aliases=("ipo",),
    ),
    _IMPLICIT(
        name="ipo_sum",
        critic=critics.log_ratio,
        objective=parts.ipo,
        defaults={"beta": 0.1},
        source="Azar et al. 2023, eq. 17, a response, as in the paper and OpenRLHF",
        aliases=("IPO",),
    ),
    _IMPLICIT(
        name="hinge_dpo",
        objective=objectives.hinge_loss,
        defaults={"beta": 0.1, "margin": 1.0},
        source="Liu et al. 2023, RSO: hinge on the implicit reward",
        aliases=("hinge", "RSO"),
    ),
    _IMPLICIT(
        name="exo_pair",
        objective=objectives.exo_pair_loss,
        defaults={"beta": 0.1, "label_smoothing": 1e-3},
        source="Ji et al. 2024, eq. 16",
        aliases=("exo_pair", "EXO"),
    ),
    _IMPLICIT(
        name="discopop",
        objective=objectives.discopop_loss,
        defaults={"beta": 0.1, "temperature": 0.05},
        source="Lu et al. 2024, DiscoPOP; in the log domain, where TRL's exp overflows",
        aliases=("discopop",),
    ),
    _IMPLICIT(
        name="sigmoid_norm",
        critic=critics.length_normalised_reward,
        objective=_BT,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        source="Lambert et al. 2024, Tülu 3: length-normalised DPO",
        aliases=("sigmoid_norm",),
    ),
    _IMPLICIT(
        name="aot",
        critic=parts.margins,
        objective=objectives.aot_loss,
        arrange=_across_batch,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        source="Melnyk et al. 2024, paired; couples the batch",
        aliases=("aot",),
    ),
    _IMPLICIT(
        name="aot_unpaired",
        objective=objectives.aot_loss,
        arrange=_across_batch,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        source="Melnyk et al. 2024, unpaired; couples the batch",
        aliases=("aot_unpaired", "aot_pair before TRL 1.0"),
    ),
    # Other divergences, other scores.
    _IMPLICIT(
        name="f_dpo_forward_kl",
        critic=critics.forward_kl_reward,
        objective=_BT,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        source="Wang et al. 2023, f-DPO, forward KL",
        aliases=("sigmoid, f_divergence_type=forward_kl",),
    ),
    _IMPLICIT(
        name="f_dpo_js",
        critic=critics.jensen_shannon_reward,
        objective=_BT,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        source="Wang et al. 2023, f-DPO, Jensen–Shannon; of the margin, hence not MIO",
        aliases=("sigmoid, f_divergence_type=js_divergence",),
    ),
    _IMPLICIT(
        name="f_dpo_alpha",
        critic=critics.alpha_reward,
        objective=_BT,
        defaults={"beta": 0.1, "alpha": 0.5, "label_smoothing": 0.0},
        source="Wang et al. 2023, f-DPO, α-divergence (1 − u^−α)/α; TRL to 0.27",
        aliases=("α-DPO",),
    ),
    _IMPLICIT(
        name="f_dpo_alpha_trl",
        critic=critics.tsallis_reward,
        objective=_BT,
        defaults={"beta": 0.1, "alpha": 0.5, "label_smoothing": 0.0},
        source="TRL 1.16's α-divergence (u^(α−1) − 1)/(α−1)",
        aliases=("sigmoid, f_divergence_type=alpha_divergence",),
    ),
    _IMPLICIT(
        name="dpop",
        critic=critics.displacement_penalised_reward,
        objective=_BT,
        defaults={"beta": 0.3, "penalty": 50.0, "label_smoothing": 0.0},
        source="Pal et al. 2024, DPO-Positive (Smaug), eq. 3",
        aliases=("DPOP", "DPO-Positive"),
    ),
    _IMPLICIT(
        name="r_dpo",
        critic=critics.length_regularised_reward,
        objective=_BT,
        defaults={"beta": 0.1, "length_penalty": 0.01, "label_smoothing": 0.0},
        source="Park et al. 2024, R-DPO, eq. 9",
        aliases=("R-DPO",),
    ),
    _IMPLICIT(
        name="ld_dpo",
        critic=critics.length_desensitised_reward,
        objective=_BT,
        defaults={"beta": 0.1, "alpha": 0.5, "label_smoothing": 0.0},
        source="Liu et al. 2024, LD-DPO",
        aliases=("sigmoid, ld_alpha=α",),
    ),
    _IMPLICIT(
        name="tdpo1",
        critic=critics.token_divergence_reward,
        objective=_BT,
        defaults={"beta": 0.1},
        source="Zeng et al. 2024, TDPO₁",
        aliases=("TDPO1",),
    ),
    _IMPLICIT(
        name="tdpo2",
        critic=critics.token_regularised_reward,
        objective=_BT,
        defaults={"beta": 0.1, "kl_weight": 0.5},
        source="Zeng et al. 2024, TDPO₂",
        aliases=("TDPO2",),
    ),
    _IMPLICIT(
        name="rpo",
        objective=_BT,
        regulariser=parts.chosen_likelihood,
        defaults={"beta": 0.1, "nll_weight": 1.0, "label_smoothing": 0.0},
        source="Pang et al. 2024, iterative RPO: DPO + NLL a token of the chosen",
        aliases=("rpo_alpha", "DPO + SFT"),
    ),
    _IMPLICIT(
        name="wpo",
        objective=_BT,
        weight=parts.collision_weight,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        source="Zhou et al. 2024, WPO, as in TRL: weights of both responses multiplied",
        aliases=("sigmoid, use_weighting",),
    ),
    # Pairs, through their two levels.
    _LISTED(
        name="mio",
        objective=objectives.nca_loss,
        defaults={"beta": 1.0},
        source="Lv et al. 2025, Jensen–Shannon with the mixture of all candidates; the paper's β is 1",
        aliases=("MIO",),
    ),
    _LISTED(
        name="nca",
        objective=objectives.nca_loss,
        defaults={"beta": 0.01},
        source="Chen et al. 2024, NCA with a hard label: MIO at another β",
        aliases=("nca_pair",),
    ),
    _IMPLICIT(
        name="bco_pair",
        objective=objectives.bco_pair_loss,
        defaults={"beta": 0.1},
        source="Jung et al. 2024, without the running mean that TRL subtracted to 0.27",
        aliases=("bco_pair", "biased NCA"),
    ),
    _IMPLICIT(
        name="sppo_hard",
        critic=critics.log_ratio,
        objective=parts.sppo,
        defaults={"beta": 0.1},
        source="Wu et al. 2024, SPPO with hard labels",
        aliases=("sppo_hard",),
    ),
    _IMPLICIT(
        name="apo_zero",
        objective=objectives.apo_zero_loss,
        defaults={"beta": 0.1},
        source="D'Oosterlinck et al. 2024, APO-zero",
        aliases=("apo_zero",),
    ),
    _IMPLICIT(
        name="apo_down",
        objective=objectives.apo_down_loss,
        defaults={"beta": 0.1},
        source="D'Oosterlinck et al. 2024, APO-down",
        aliases=("apo_down",),
    ),
    _IMPLICIT(
        name="nwj_po",
        objective=objectives.nwj_pair_loss,
        defaults={"beta": 1.0},
        source="reconstruction: the NWJ bound on the log-ratio, as InfoPO (2505.08507) may use it",
        aliases=("NWJ-PO",),
    ),
    # K candidates a prompt.
    _LISTED(
        name="infonce_dpo",
        objective=objectives.info_nce_loss,
        defaults={"beta": 0.1},
        source="Chen et al. 2024, S-DPO: InfoNCE on the implicit reward, K negatives",
        aliases=("S-DPO", "softmax DPO"),
    ),
    _LISTED(
        name="plackett_luce_dpo",
        objective=objectives.plackett_luce_loss,
        arrange=ranking,
        defaults={"beta": 0.1},
        source="Rafailov et al. 2023, appendix A.3",
        aliases=("listwise DPO",),
    ),
    _LISTED(
        name="infonca",
        objective=parts.rewarded_info_nce,
        arrange=soft_labelled,
        defaults={"beta": 0.01, "temperature": 1.0},
        source="Chen et al. 2024, InfoNCA, rewards as soft labels",
        aliases=("InfoNCA",),
    ),
    _LISTED(
        name="nca_reward",
        objective=parts.rewarded_nca,
        arrange=soft_labelled,
        defaults={"beta": 0.01, "temperature": 1.0},
        source="Chen et al. 2024, NCA, rewards as soft labels",
        aliases=("NCA",),
    ),
    _LISTED(
        name="exo",
        objective=parts.rewarded_exo,
        arrange=soft_labelled,
        defaults={"beta": 0.1, "temperature": 1.0},
        source="Ji et al. 2024, EXO on K rewarded samples",
        aliases=("EXO-rw",),
    ),
    # Single responses.
    _SINGLE(
        name="kto",
        objective=parts.kto,
        arrange=_around_reference_point,
        defaults={"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        source="Ethayarajh et al. 2024, eq. 7",
        aliases=("kto",),
    ),
    _SINGLE(
        name="apo_zero_unpaired",
        objective=objectives.apo_zero_unpaired_loss,
        defaults={"beta": 0.1},
        source="D'Oosterlinck et al. 2024, unpaired",
        aliases=("apo_zero_unpaired",),
    ),
    _SINGLE(
        name="bco",
        objective=objectives.bco_loss,
        defaults={"beta": 0.1, "shift": 0.0},
        source="Jung et al. 2024; δ, the running mean of rewards, is passed in as `shift`",
        aliases=("BCO",),
    ),
    _SINGLE(
        name="a2po",
        objective=parts.regression,
        arrange=against_rewards,
        defaults={"beta": 0.001},
        source="Brantley et al. 2025, A*-PO; `reward` is r − V*",
        aliases=("A2PO", "A*-PO"),
    ),
    # Without a reference.
    _FREE(
        name="dpo_reference_free",
        critic=critics.log_probability,
        objective=_BT,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        source="DPO with a uniform reference",
        aliases=("reference_free",),
    ),
    _FREE(
        name="slic",
        critic=critics.log_probability,
        objective=objectives.hinge_loss,
        regulariser=parts.chosen_likelihood,
        defaults={"beta": 1.0, "margin": 1.0, "nll_weight": 0.1},
        source="Zhao et al. 2023, SLiC-HF: hinge on log-likelihoods + NLL",
        aliases=("CPO hinge", "SLiC"),
    ),
    _FREE(
        name="cpo",
        critic=critics.log_probability,
        objective=_BT,
        regulariser=parts.chosen_likelihood,
        defaults={"beta": 0.1, "nll_weight": 1.0, "label_smoothing": 0.0},
        source="Xu et al. 2024, CPO",
        aliases=("CPO sigmoid",),
    ),
    _FREE(
        name="cpo_ipo",
        critic=critics.mean_log_probability,
        objective=parts.ipo,
        regulariser=parts.chosen_likelihood,
        defaults={"beta": 0.1, "nll_weight": 1.0},
        source="TRL's CPO with the IPO loss on mean log-probabilities",
        aliases=("CPO ipo",),
    ),
    _FREE(
        name="simpo",
        critic=critics.length_normalised,
        objective=parts.simpo,
        defaults={"beta": 2.0, "gamma": 0.5, "label_smoothing": 0.0},
        source="Meng et al. 2024, SimPO, eq. 6, the repository's β and γ/β = 0.25",
        aliases=("SimPO",),
    ),
    _FREE(
        name="cpo_simpo",
        critic=critics.length_normalised,
        objective=parts.simpo,
        regulariser=parts.chosen_likelihood,
        defaults={"beta": 0.1, "gamma": 0.5, "nll_weight": 1.0, "label_smoothing": 0.0},
        source="TRL's SimPO: γ/β = 5 and NLL on by default",
        aliases=("CPO simpo", "CPO-SimPO"),
    ),
    _FREE(
        name="alpha_po",
        critic=critics.power_likelihood,
        objective=parts.simpo,
        defaults={"beta": 2.5, "alpha": 0.25, "gamma": 0.5, "label_smoothing": 0.0},
        source="Gupta et al. 2025, AlphaPO; from mean log-probabilities, where TRL's exp underflows",
        aliases=("CPO alpha≠0", "AlphaPO"),
    ),
    _FREE(
        name="orpo",
        critic=critics.log_odds,
        objective=parts.odds_ratio,
        regulariser=parts.chosen_likelihood,
        defaults={"beta": 0.1, "nll_weight": 1.0},
        source="Hong et al. 2024, ORPO, NLL of the response; TRL's includes the prompt",
        aliases=("ORPO",),
    ),
    _FREE(
        name="tpo",
        critic=critics.length_normalised,
        objective=parts.simpo,
        arrange=_with_gold,
        regulariser=parts.gold_likelihood,
        defaults={"beta": 2.0, "gamma": 0.5, "nll_weight": 1.0, "label_smoothing": 0.0},
        source="Saeidi et al. 2025, TPO-L: SimPO + NLL of a third, gold response",
        aliases=("TPO-L",),
    ),
    # A reward model.
    _FREE(
        name="bradley_terry",
        critic=critics.reward_score,
        objective=_BT,
        arrange=_with_margin,
        regulariser=parts.centring,
        defaults={"centring_weight": 0.0},
        source="Bradley & Terry 1952; Touvron et al. 2023 for the margin; Eisenstein et al. 2023 for the centring",
        aliases=("RewardTrainer", "reward"),
    ),
)
