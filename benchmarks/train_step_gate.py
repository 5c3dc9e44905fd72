"""Whether a contender's step is right: nothing is timed before it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.train_step_case import slug
from mi_align.models import load_pretrained

__all__ = ["ALLOWED", "JUDGE", "check", "distances"]

#: Whose numbers the others' are compared with.
JUDGE = "torch by hand, live reference"
#: What is allowed: nats of the mean loss, nats a sequence, 1 − cosine of the gradients. The first loss is log 2 for
#: everybody, as policy and reference are one; it is the gradient, and the loss after one update, that tell steps apart.
ALLOWED = {"first_loss": 1e-6, "second_loss": 1e-4, "logps": 1e-3, "gradient": 1e-6}


def distances(name: str, folder: Path) -> dict[str, float]:
    """How far a contender's numbers are from the judge's; gradients as the loader of weights reads them."""
    mine, judge = (np.load(folder / f"{slug(n)}.npz") for n in (name, JUDGE))
    losses, logps = np.abs(mine["losses"] - judge["losses"]), np.abs(mine["logps"] - judge["logps"])
    one, other = (_flat(load_pretrained(folder / f"gradient-{slug(n)}").params) for n in (name, JUDGE))
    return {
        "first_loss": float(losses[0]),
        "second_loss": float(losses[1]),
        "moved": float(abs(mine["losses"][1] - mine["losses"][0])),
        "logps": float(logps.max()),
        "gradient": float(1 - one @ other / np.sqrt((one @ one) * (other @ other))),
    }


def check(name: str, found: dict[str, float]) -> None:
    """End the program over a contender that is wrong.

    The second loss says something only if the update moved it by more than is allowed.
    """
    wrong = {key: found[key] for key, limit in ALLOWED.items() if not found[key] <= limit}
    if wrong:
        raise SystemExit(f"{name} is WRONG, and nothing was timed: {wrong}, where {ALLOWED} are allowed.")
    if found["moved"] < 10 * ALLOWED["second_loss"]:
        raise SystemExit(f"{name}: one update moved the loss by {found['moved']:.1e} only, which checks nothing.")


def _flat(params: Any) -> np.ndarray:
    """All numbers of a tree, in float64."""
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(params)])
