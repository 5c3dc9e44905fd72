"""From what a file holds to what a method takes: pairs taken apart, rankings narrowed, and the impossible refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mi_align.data import Preference, PreferenceBatch, borrow_negatives, labelled, mismatched, side_by_side
from mi_align.methods import (
    METHODS,
    Method,
    against_rewards,
    pair_with_margin,
    pairs_of_batch,
    ranking,
    soft_labelled,
    unpaired,
    unpaired_around_divergence,
)

__all__ = ["Note", "arranged", "fitted", "reads_labels", "reads_mismatched", "reads_rewards"]

#: Is told in words what became of the data.
Note = Callable[[str], None]


def reads_labels(method: Method) -> bool:
    """Whether it takes responses one at a time, each desirable or not."""
    return method.arrange in (unpaired, unpaired_around_divergence)


def reads_mismatched(method: Method | None) -> bool:
    """Whether it measures rewards against an estimate of KL(π ‖ π_ref), for which a run scores mismatched responses."""
    return method is not None and method.arrange is unpaired_around_divergence


def reads_rewards(method: Method) -> bool:
    """Whether it reads a score of each candidate."""
    return method.arrange in (soft_labelled, against_rewards)


def _compares_samples(method: Method) -> bool:
    """Whether its two samples are compared as wholes, so that nothing has to be paired."""
    return method.arrange is pairs_of_batch and method.critic is METHODS["aot_unpaired"].critic


def fitted(
    preferences: Sequence[Preference],
    method: Method | None,
    *,
    negatives: int | None,
    threshold: float | None,
    note: Note,
) -> Sequence[Preference]:
    """The preferences as `method` takes them.

    Args:
      preferences: what was read, of one kind.
      method: the configured row; None for supervised learning.
      negatives: so many rejected responses a prompt, borrowed where there are fewer; None: as they are.
      threshold: scores above it make a response desirable; None: scores are no labels.
      note: is told in words what became of the data, where that is not plain.

    Raises:
      ValueError: they do not hold what the method reads; the message says which data or method to take instead.
    """
    if method is None:
        return _demonstrations(preferences, note)
    if threshold is not None and reads_labels(method):
        preferences = _labelled_by_score(preferences, threshold, note)
    if reads_labels(method):
        return _singles(preferences, method, note)
    if all(p.desirable is not None for p in preferences):
        if _compares_samples(method):
            return preferences
        raise ValueError(
            f"the data are single responses with a label, but {method.name!r} compares the responses of a prompt. Take "
            "'kto', 'bco', 'apo_zero_unpaired' or 'aot_unpaired', or give pairs."
        )
    if reads_rewards(method):
        return _scored(preferences, method, negatives)
    if method.arrange is pair_with_margin:
        _tell_margins(preferences, method, note)
    if method.arrange is ranking and negatives is None and any(p.rejected for p in preferences):
        return preferences
    return _against_others(preferences, method, negatives, note)


def arranged(batch: PreferenceBatch, method: Method | None, note: Note) -> PreferenceBatch:
    """The encoded data, with labelled responses side by side where a method compares the two samples."""
    if method is None or batch.desirable is None or not _compares_samples(method):
        return batch
    beside = side_by_side(batch)
    good = int(batch.desirable[:, 0].sum())
    repeated = 2 * len(beside.tokens) - len(batch.tokens)
    note(
        f"{good:,} desirable and {len(batch.tokens) - good:,} undesirable responses stand side by side, "
        f"{repeated:,} of the fewer repeated"
    )
    return beside


def _demonstrations(preferences: Sequence[Preference], note: Note) -> Sequence[Preference]:
    """What is worth imitating."""
    kept = [p._replace(rejected=(), scores=None, desirable=None) for p in preferences if p.desirable is not False]
    if not kept:
        raise ValueError("no response is labelled desirable, and supervised learning imitates those alone.")
    if len(kept) < len(preferences):
        note(f"{len(preferences) - len(kept):,} responses labelled undesirable are not imitated")
    return kept


def _labelled_by_score(preferences: Sequence[Preference], threshold: float, note: Note) -> Sequence[Preference]:
    singles = []
    for whole in preferences:
        if whole.scores is None:
            singles.append(whole)
            continue
        for response, score in zip((whole.chosen, *whole.rejected), whole.scores, strict=True):
            singles.append(Preference(whole.prompt, response, (), desirable=score > threshold))
    note(f"scores above {threshold:g} made responses desirable")
    return singles


def _singles(preferences: Sequence[Preference], method: Method, note: Note) -> Sequence[Preference]:
    if any(p.scores is not None for p in preferences):
        raise ValueError(
            f"the data have scores, but {method.name!r} reads labels. Say by `data.threshold` above which score a "
            "response is desirable, or add a `label` column."
        )
    if any(p.desirable is None and not p.rejected for p in preferences):
        raise ValueError(
            f"the data are demonstrations, but {method.name!r} needs undesirable responses as well. Add a `label` "
            "column, give pairs, or take `method: sft`."
        )
    singles = labelled(preferences)
    if any(p.desirable is None for p in preferences):
        note(f"{len(preferences):,} preferences were taken apart into {len(singles):,} labelled responses")
    good = sum(bool(p.desirable) for p in singles)
    note(f"{good:,} desirable and {len(singles) - good:,} undesirable responses{_balance(method, good, len(singles))}")
    return mismatched(singles) if reads_mismatched(method) else singles


def _balance(method: Method, good: int, size: int) -> str:
    """What Ethayarajh et al. advise on unequal numbers: λ_D n_D / (λ_U n_U) within [1, 4/3]."""
    bad = size - good
    weights = [method.defaults.get(name, 1.0) for name in ("desirable_weight", "undesirable_weight")]
    if "desirable_weight" not in method.hyper_parameters() or not good or not bad:
        return ""
    share = weights[0] * good / (weights[1] * bad)
    if 1 <= share <= 4 / 3:
        return ""
    name, factor = ("desirable_weight", bad / good) if good < bad else ("undesirable_weight", good / bad)
    return f"; weighed {share:.2g} : 1, where KTO's authors advise 1 to 1.33: `hyper.{name}={factor:.3g}` makes it 1"


def _scored(preferences: Sequence[Preference], method: Method, negatives: int | None) -> Sequence[Preference]:
    if any(p.scores is None for p in preferences):
        raise ValueError(
            f"{method.name!r} reads a score of each response. Give `prompt`, `completions` and `scores`, or take "
            "'infonce_dpo', 'mio' or 'nca', which need to know the best one only."
        )
    if negatives is not None:
        raise ValueError(f"`data.negatives` borrows responses that nobody scored, but {method.name!r} reads scores.")
    if method.arrange is soft_labelled and not any(p.rejected for p in preferences):
        raise ValueError(
            f"{method.name!r} compares the scored responses of a prompt, but each prompt has one. Give `prompt`, "
            "`completions` and `scores`."
        )
    return preferences


def _tell_margins(preferences: Sequence[Preference], method: Method, note: Note) -> None:
    """Margins are read where all preferences have one."""
    given = [i for i, p in enumerate(preferences) if p.margin is not None]
    if not given:
        return
    if len(given) < len(preferences):
        raise ValueError(
            f"{len(given):,} of {len(preferences):,} preferences have a number as `margin`, which {method.name!r} "
            "takes into account: all or none was wanted. Fill the column, or rename it."
        )
    values = [p.margin for p in preferences if p.margin is not None]
    note(f"margins from {min(values):g} to {max(values):g} are taken from the data")


def _against_others(
    preferences: Sequence[Preference], method: Method, negatives: int | None, note: Note
) -> Sequence[Preference]:
    """One chosen response against others: of a ranking the best against those that are really worse."""
    tied = sum(_tied_with_best(p) for p in preferences)
    if tied:
        note(f"{tied:,} responses whose score is their prompt's best are not counted as rejected")
    preferences = [p._replace(rejected=p.rejected[_tied_with_best(p) :], scores=None) for p in preferences]
    if negatives is not None:
        return borrow_negatives(preferences, negatives)
    alone = sum(not p.rejected for p in preferences)
    if alone and tied and alone < len(preferences):
        note(f"{alone:,} prompts, all of whose responses have one score, prefer nothing and are left out")
        return [p for p in preferences if p.rejected]
    if alone:
        raise ValueError(
            f"the data have demonstrations, without rejected responses, which {method.name!r} compares with. "
            "Take `method: sft`, or set `data.negatives` to borrow other prompts' responses."
        )
    return preferences


def _tied_with_best(preference: Preference) -> int:
    """How many rejected responses have the chosen one's score; they come first."""
    scores: Any = preference.scores or (0.0,)
    return sum(score == scores[0] for score in scores[1:])
