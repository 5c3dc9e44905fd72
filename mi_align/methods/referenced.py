"""Rows of the table: one chosen against one rejected response, on critics that look at a reference policy."""

from __future__ import annotations

import functools

from mi_align import critics, objectives
from mi_align.methods import parts
from mi_align.methods.arrangements import pair, pairs_of_batch
from mi_align.methods.method import Method

__all__ = ["LEVELS", "MARGINS"]

_pair = functools.partial(Method, critic=critics.implicit_reward, arrange=pair)
_bradley_terry = functools.partial(_pair, objective=objectives.bradley_terry_loss)

#: Through the margin of the two logits.
MARGINS = (
    _bradley_terry(
        name="dpo",
        defaults={"beta": 0.1},
        source="Rafailov et al. 2023, arXiv 2305.18290, eq. 7",
        aliases=("sigmoid",),
        note="TRL takes a label smoothing and ignores it; here `label_smoothing` makes it cdpo",
    ),
    _bradley_terry(
        name="cdpo",
        defaults={"beta": 0.1, "label_smoothing": 0.1},
        source="Mitchell 2023, conservative DPO",
        aliases=("conservative DPO",),
    ),
    _pair(
        name="robust_dpo",
        objective=objectives.robust_bradley_terry_loss,
        defaults={"beta": 0.1, "label_smoothing": 0.1},
        source="Chowdhury et al. 2024, arXiv 2403.00409",
        aliases=("robust", "rDPO"),
        note="TRL's default smoothing is 0, which is dpo",
    ),
    _pair(
        name="ipo",
        critic=critics.mean_log_ratio,
        objective=parts.ipo_loss,
        defaults={"beta": 0.1},
        source="Azar et al. 2023, arXiv 2310.12036, eq. 17",
        aliases=("ipo",),
        note="a token, as TRL, EasyDeL and HALOs have it; the paper's is ipo_sum. β is the paper's τ",
    ),
    _pair(
        name="ipo_sum",
        critic=critics.log_ratio,
        objective=parts.ipo_loss,
        defaults={"beta": 0.1},
        source="Azar et al. 2023, arXiv 2310.12036, eq. 17",
        aliases=("online ipo", "IPO"),
        note="a response, as in the paper, OpenRLHF and TRL's online DPO",
    ),
    _pair(
        name="hinge",
        objective=objectives.hinge_loss,
        defaults={"beta": 0.1, "margin": 1.0},
        source="Liu et al. 2023, RSO, arXiv 2309.06657",
        aliases=("hinge", "RSO"),
    ),
    _pair(
        name="gpo_exponential",
        objective=objectives.exponential_loss,
        defaults={"beta": 0.1},
        source="Tang et al. 2024, GPO, arXiv 2402.05749",
    ),
    _pair(
        name="gpo_truncated_quadratic",
        objective=objectives.truncated_quadratic_loss,
        defaults={"beta": 0.1, "margin": 1.0},
        source="Tang et al. 2024, GPO, arXiv 2402.05749",
    ),
    _pair(
        name="gpo_savage",
        objective=objectives.savage_loss,
        defaults={"beta": 0.1},
        source="Tang et al. 2024, GPO, arXiv 2402.05749",
    ),
    _pair(
        name="exo_pair",
        objective=objectives.exo_pair_loss,
        defaults={"beta": 0.1, "label_smoothing": 1e-3},
        source="Ji et al. 2024, arXiv 2402.00856",
        aliases=("exo_pair", "EXO"),
    ),
    _pair(
        name="discopop",
        objective=objectives.discopop_loss,
        defaults={"beta": 0.1, "temperature": 0.05},
        source="Lu et al. 2024, arXiv 2406.08414",
        aliases=("discopop", "LRML"),
        note="right where TRL's exp overflows, below a margin of −89",
    ),
    _bradley_terry(
        name="sigmoid_norm",
        critic=critics.length_normalised_reward,
        defaults={"beta": 0.1},
        source="Lambert et al. 2024, Tülu 3, arXiv 2411.15124",
        aliases=("sigmoid_norm", "length-normalised DPO"),
    ),
    _pair(
        name="aot",
        critic=critics.policy_and_reference_margins,
        objective=objectives.aot_loss,
        arrange=pairs_of_batch,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        couples_batch=True,
        source="Melnyk et al. 2024, arXiv 2406.05882, paired",
        aliases=("aot",),
    ),
    _pair(
        name="aot_unpaired",
        objective=objectives.aot_loss,
        arrange=pairs_of_batch,
        defaults={"beta": 0.1, "label_smoothing": 0.0},
        couples_batch=True,
        source="Melnyk et al. 2024, arXiv 2406.05882, unpaired",
        aliases=("aot_unpaired", "aot_pair"),
        note="`aot_pair` until TRL 0.27",
    ),
    _bradley_terry(
        name="f_dpo_reverse_kl",
        defaults={"beta": 0.1},
        source="Wang et al. 2023, arXiv 2309.16240",
        aliases=("sigmoid, reverse_kl",),
        note="is dpo",
    ),
    _bradley_terry(
        name="f_dpo_forward_kl",
        critic=critics.forward_kl_reward,
        defaults={"beta": 0.1},
        source="Wang et al. 2023, arXiv 2309.16240",
        aliases=("sigmoid, forward_kl",),
    ),
    _bradley_terry(
        name="f_dpo_js",
        critic=critics.jensen_shannon_reward,
        defaults={"beta": 0.1},
        source="Wang et al. 2023, arXiv 2309.16240",
        aliases=("sigmoid, js_divergence",),
        note="sees the margin only, hence is not mio",
    ),
    _bradley_terry(
        name="f_dpo_alpha",
        critic=critics.alpha_reward,
        defaults={"beta": 0.1, "alpha": 0.5},
        source="Wang et al. 2023, arXiv 2309.16240",
        aliases=("sigmoid, alpha_divergence until 0.27",),
        note="α as in the paper, (1 − u^−α)/α",
    ),
    _bradley_terry(
        name="f_dpo_alpha_trl",
        critic=critics.tsallis_reward,
        defaults={"beta": 0.1, "alpha": 0.5},
        source="TRL 1.16",
        aliases=("sigmoid, alpha_divergence",),
        note="α as TRL 1 has it, (u^(α−1) − 1)/(α − 1); TRL clips the exponent at 80. The paper's at 1 − α",
    ),
    _bradley_terry(
        name="dpop",
        critic=critics.displacement_penalised_reward,
        defaults={"beta": 0.3, "penalty": 50.0},
        source="Pal et al. 2024, Smaug, arXiv 2402.13228",
        aliases=("DPO-Positive",),
    ),
    _bradley_terry(
        name="r_dpo",
        critic=critics.length_regularised_reward,
        defaults={"beta": 0.1, "length_penalty": 0.01},
        source="Park et al. 2024, arXiv 2403.19159",
        aliases=("R-DPO",),
    ),
    _bradley_terry(
        name="ld_dpo",
        critic=critics.length_desensitised_reward,
        defaults={"beta": 0.1, "tail_weight": 0.5},
        source="Liu et al. 2024, arXiv 2409.06411",
        aliases=("sigmoid, ld_alpha",),
        note="TRL's ld_alpha is `tail_weight`, and off by default",
    ),
    _bradley_terry(
        name="tdpo1",
        critic=critics.token_divergence_reward,
        defaults={"beta": 0.1},
        source="Zeng et al. 2024, arXiv 2404.11999",
        aliases=("TDPO₁",),
    ),
    _bradley_terry(
        name="tdpo2",
        critic=critics.token_regularised_reward,
        defaults={"beta": 0.1, "kl_weight": 0.5},
        source="Zeng et al. 2024, arXiv 2404.11999",
        aliases=("TDPO₂",),
    ),
    _bradley_terry(
        name="rpo",
        regulariser=parts.mean_nll,
        defaults={"beta": 0.1, "nll_weight": 1.0},
        source="Pang et al. 2024, arXiv 2404.19733",
        aliases=("rpo_alpha", "DPO + SFT"),
        note="the NLL is a mean over each response; TRL's `sigmoid` + `sft`, over the batch's tokens, is dpo_sft",
    ),
    _bradley_terry(
        name="dpo_sft",
        regulariser=parts.token_nll,
        defaults={"beta": 0.1, "nll_weight": 1.0},
        couples_batch=True,
        source="TRL 1.16",
        aliases=("sigmoid + sft",),
    ),
    _bradley_terry(
        name="wpo",
        weight=critics.on_policy_weight,
        defaults={"beta": 0.1},
        source="Zhou et al. 2024, arXiv 2406.11827, eq. 2",
        aliases=("sigmoid, use_weighting",),
    ),
    _bradley_terry(
        name="mi_dpo",
        defaults={"beta": 0.1},
        source="arXiv 2501.01544",
        aliases=("MI-DPO",),
        note="dpo whose `reference` is a learned prior ζ of responses; β is the paper's α. ζ has a fit of its own",
    ),
)

#: Through both levels: a shift of both logits matters.
LEVELS = (
    _pair(
        name="bco_pair",
        objective=objectives.bco_pair_loss,
        defaults={"beta": 0.1},
        source="Jung et al. 2024, arXiv 2404.04656",
        aliases=("bco_pair", "biased NCA"),
        note="without the running mean δ that TRL subtracted until 0.27; bco has it",
    ),
    _pair(
        name="sppo_hard",
        critic=critics.log_ratio,
        objective=parts.sppo_loss,
        defaults={"beta": 0.1},
        source="Wu et al. 2024, arXiv 2405.00675",
        aliases=("sppo_hard",),
    ),
    _pair(
        name="apo_zero",
        objective=objectives.apo_zero_loss,
        defaults={"beta": 0.1},
        source="D'Oosterlinck et al. 2024, arXiv 2408.06266",
        aliases=("apo_zero",),
    ),
    _pair(
        name="apo_down",
        objective=objectives.apo_down_loss,
        defaults={"beta": 0.1},
        source="D'Oosterlinck et al. 2024, arXiv 2408.06266",
        aliases=("apo_down",),
    ),
    _pair(
        name="nwj_po",
        objective=objectives.nwj_pair_loss,
        defaults={"beta": 1.0},
        source="arXiv 2505.08507",
        aliases=("InfoPO",),
        note="a reconstruction: the NWJ bound on the log-ratio; the paper's exact loss was not at hand",
    ),
)
