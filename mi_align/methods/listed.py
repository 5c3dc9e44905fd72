"""Rows of the table: lists of candidates, single responses, and reward models."""

from __future__ import annotations

import functools

from mi_align import critics, objectives
from mi_align.methods import parts
from mi_align.methods.arrangements import (
    against_rewards,
    one_against_rest,
    pair_with_margin,
    ranking,
    soft_labelled,
    unpaired,
    unpaired_around_divergence,
)
from mi_align.methods.method import Method

__all__ = ["LISTS", "REWARDS", "SINGLES"]

_list = functools.partial(Method, critic=critics.implicit_reward)

#: One chosen response against K others, rankings, and rewarded lists.
LISTS = (
    _list(
        name="infonce_dpo",
        objective=objectives.info_nce_loss,
        arrange=one_against_rest,
        defaults={"beta": 0.1},
        source="Chen et al. 2024, S-DPO, arXiv 2406.09215",
        aliases=("S-DPO", "softmax DPO"),
        note="dpo with K negatives",
    ),
    _list(
        name="plackett_luce_dpo",
        objective=objectives.plackett_luce_loss,
        arrange=ranking,
        defaults={"beta": 0.1},
        source="Rafailov et al. 2023, arXiv 2305.18290, appendix A.3",
        aliases=("listwise DPO",),
        note="best first; `top_k` stops after so many places",
    ),
    _list(
        name="mio",
        objective=objectives.nca_loss,
        arrange=one_against_rest,
        defaults={"beta": 1.0},
        source="Lv et al. 2025, arXiv 2506.22578",
        aliases=("MIO",),
        note="nca at the paper's β",
    ),
    _list(
        name="nca",
        objective=objectives.nca_loss,
        arrange=one_against_rest,
        defaults={"beta": 0.1},
        source="Chen et al. 2024, arXiv 2402.05369",
        aliases=("nca_pair", "NCA"),
        note="TRL's β; the authors' is 0.01",
    ),
    _list(
        name="nca_reward",
        objective=objectives.weighted_nca_loss,
        arrange=soft_labelled,
        defaults={"beta": 0.1, "reward_temperature": 1e-4},
        source="Chen et al. 2024, arXiv 2402.05369",
        aliases=("NCA with rewards",),
        note="the authors' temperature makes the labels hard: it depends on the rewards' scale",
    ),
    _list(
        name="infonca",
        objective=objectives.weighted_info_nce_loss,
        arrange=soft_labelled,
        defaults={"beta": 0.1, "reward_temperature": 1e-4},
        source="Chen et al. 2024, arXiv 2402.05369",
        aliases=("InfoNCA",),
        note="the authors' temperature makes the labels hard: it depends on the rewards' scale",
    ),
    _list(
        name="exo",
        objective=objectives.exo_loss,
        arrange=soft_labelled,
        defaults={"beta": 0.1, "reward_temperature": 1.0},
        source="Ji et al. 2024, arXiv 2402.00856",
        aliases=("EXO with rewards",),
    ),
)

#: Responses one at a time: no pairs are needed.
SINGLES = (
    _list(
        name="kto",
        objective=objectives.kto_loss,
        arrange=unpaired_around_divergence,
        defaults={"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
        source="Ethayarajh et al. 2024, arXiv 2402.01306",
        aliases=("kto",),
        note="z, `reference_point`, is the caller's: see `objectives.kto_reference_point`. TRL's is one a micro-batch",
    ),
    _list(
        name="apo_zero_unpaired",
        objective=objectives.apo_zero_unpaired_loss,
        arrange=unpaired,
        defaults={"beta": 0.1},
        source="D'Oosterlinck et al. 2024, arXiv 2408.06266",
        aliases=("apo_zero_unpaired",),
    ),
    _list(
        name="bco",
        objective=objectives.bco_loss,
        arrange=unpaired,
        defaults={"beta": 0.1, "shift": 0.0},
        source="Jung et al. 2024, arXiv 2404.04656",
        aliases=("BCO",),
        note="δ, a running mean of rewards in TRL, is the caller's `shift`",
    ),
    _list(
        name="a2po",
        objective=parts.regression_loss,
        arrange=against_rewards,
        defaults={"beta": 1e-3},
        source="Brantley et al. 2025, arXiv 2505.20686",
        aliases=("A2PO", "A*-PO"),
        note="`reward` holds the advantage r − V*; β is the second one, β₂",
    ),
)

#: A reward head instead of a policy.
REWARDS = (
    Method(
        name="bradley_terry",
        critic=critics.reward_score,
        objective=objectives.bradley_terry_loss,
        arrange=pair_with_margin,
        regulariser=parts.centring,
        defaults={"centring_weight": 0.0},
        needs_reference=False,
        source="Ouyang et al. 2022, arXiv 2203.02155; centring: Eisenstein et al. 2023, arXiv 2312.09244",
        aliases=("reward", "RewardTrainer"),
        note="margins (Touvron et al. 2023) come with the candidates; 0.01 is the usual centring",
    ),
    Method(
        name="plackett_luce_reward",
        critic=critics.reward_score,
        objective=objectives.plackett_luce_loss,
        arrange=ranking,
        needs_reference=False,
        source="Plackett 1975; Luce 1959",
        aliases=("listwise reward model",),
        note="best first; `top_k` stops after so many places",
    ),
)
