"""What the language model's curves and the negative controls beside them should show, and what they showed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mi_align.reproduction.curves import Curves
from mi_align.reproduction.finding import Finding
from mi_align.reproduction.plan import Plan

__all__ = ["control_findings", "curve_findings"]

#: Nats. DPO has to fall by so much from its peak; MIO may wander from ln 2/β by so much.
FALL, WANDER = 0.5, 0.1


def curve_findings(curves: Mapping[str, Curves], plan: Plan, *, judged: bool) -> list[Finding]:
    """The late decline under DPO, and its absence under MIO, seed by seed.

    Args:
      curves: by method.
      plan: how they were made.
      judged: whether the expectation is one: it belongs to the generated arithmetic, and is only shown for other data.
    """
    dpo, mio = (curves[name].smooth(curves[name].chosen) for name in ("dpo", "mio"))
    fall = dpo.max(axis=-1) - dpo[:, -1]
    cap = np.log(2) / plan.mio_beta
    rejected = {name: c.smooth(c.rejected)[:, -1] for name, c in curves.items()}
    return [
        Finding(
            f"DPO, β = {plan.beta:g}: chosen log-ratio",
            f"falls by more than {FALL:g} nats from its peak, below 0, for every seed",
            f"peaks {_each(dpo.max(axis=-1))} at step {_each(dpo.argmax(axis=-1), '.0f')}; ends at {_each(dpo[:, -1])}",
            bool(np.all((fall > FALL) & (dpo[:, -1] < 0))) if judged else None,
        ),
        Finding(
            f"MIO, β = {plan.mio_beta:g}: chosen log-ratio",
            f"stays within {WANDER:g} of ln 2/β = {cap:.3f}, for every seed",
            f"ends at {_each(mio[:, -1], '+.3f')}",
            bool(np.all(np.abs(mio[:, -1] - cap) < WANDER)) if judged else None,
        ),
        Finding(
            "rejected log-ratio at the end",
            "falls under both, and further under DPO",
            f"DPO {_each(rejected['dpo'], '.1f')}, MIO {_each(rejected['mio'], '.1f')}",
            bool(np.all((rejected["dpo"] < rejected["mio"]) & (rejected["mio"] < 0))) if judged else None,
        ),
    ]


def control_findings(curves: Mapping[str, Curves], plan: Plan, ledger: Sequence[Any], *, judged: bool) -> list[Finding]:
    """Negative controls: what MIO does not do.

    Args:
      curves: by method.
      plan: how they were made.
      ledger: certificates of the ledger, of which 20, 21, 25 and 26 are quoted.
      judged: as for `curve_findings`.
    """
    dpo, mio = curves["dpo"], curves["mio"]
    second = max(float(np.abs(getattr(dpo, x)[:, 1] - getattr(mio, x)[:, 1]).max()) for x in ("chosen", "rejected"))
    # One pair says little about a cap that each pair's own logit keeps: pairs share parameters, so single gains scatter
    # around it by as much as it is, and another rounding moves them. Their medians do not move.
    doublings = (mio.final - mio.reference).ravel() / np.log(2)
    by_probability = mio.reference.ravel().argsort()
    rare, rarest = by_probability[: len(doublings) // 4], by_probability[0]
    cap = 1 / plan.mio_beta
    middle, middle_of_rare = float(np.median(doublings)), float(np.median(doublings[rare]))
    before, after = (np.exp(x.ravel()) for x in (mio.reference, mio.final))
    return [
        Finding(
            "MIO's first step is DPO's (β doubled): log-ratios after it",
            "equal but for rounding: whatever displaces responses at step 1 displaces them under MIO too",
            f"largest difference {second:.0e} nats",
            second < 1e-4,
        ),
        Finding(
            "MIO's gain is capped: final π/π_ref of the chosen responses",
            f"2^{cap:g} = {2**cap:g}, in the median within 10%",
            f"2^{middle:.2f}; from 2^{doublings.min():.2f} to 2^{doublings.max():.2f}",
            bool(abs(middle - cap) < 0.1 * cap) if judged else None,
        ),
        Finding(
            "so a response that was improbable stays so: the least probable quarter of the chosen ones under MIO",
            f"{2**cap:g} times as probable as before, in the median within 10%",
            f"2^{middle_of_rare:.2f}: {np.median(before[rare]):.1e} before, {np.median(after[rare]):.1e} after; "
            f"the least probable one {before[rarest]:.1e} before, {after[rarest]:.1e} after",
            bool(abs(middle_of_rare - cap) < 0.1 * cap) if judged else None,
        ),
        *_quoted(ledger, "first step identical, for any model", ("20",)),
        *_quoted(ledger, "the cap 2^(1/β)", ("21",)),
        *_quoted(ledger, "Jensen–Shannon does not cure the starvation of sampling", ("25", "26")),
    ]


def _quoted(ledger: Sequence[Any], what: str, numbers: Iterable[str]) -> list[Finding]:
    """What the ledger says to it: one line for the claims with these numbers."""
    claims = [c for c in ledger if c.id.rstrip("abcdefghijklmnopqrstuvwxyz") in numbers]
    if not claims:
        return []
    names = ", ".join(c.id for c in claims)
    held = sum(c.passed for c in claims)
    return [Finding(f"{what}: ledger {names}", "certified", f"{held} of {len(claims)} certified", held == len(claims))]


def _each(values: np.ndarray, form: str = "+.2f") -> str:
    return ", ".join(f"{value:{form}}".replace("-", "−") for value in values)
