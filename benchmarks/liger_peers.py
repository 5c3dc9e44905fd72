"""Liger's chunked preference losses: from hidden states to a loss in one function, a pair at a time.

They take sequences `[2B, T, D]`, the chosen ones first, and give the mean over pairs. The gate multiplies by the number
of pairs and looks at the sum. Their DPO makes the reference's log-probabilities itself, from hidden states; where ours
are given them, there is no equal to compare, hence `dpo_reference_free`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch_peers import Call, TorchWay, finished, in_torch

from mi_align.benchmark.program import Pass
from mi_align.benchmark.task import Task
from mi_align.methods import METHODS

_IGNORED = -100


def loss_of(name: str) -> Any:
    """Liger's module for a method, with this library's defaults and definition."""
    from liger_kernel import chunked_loss

    at = METHODS[name].defaults
    makers: dict[str, Callable[[], Any]] = {
        "dpo_reference_free": lambda: chunked_loss.LigerFusedLinearDPOLoss(beta=at["beta"], use_ref_model=False),
        "orpo": lambda: chunked_loss.LigerFusedLinearORPOLoss(beta=at["beta"]),
        "simpo": lambda: chunked_loss.LigerFusedLinearSimPOLoss(
            beta=at["beta"], gamma=at["margin"], compute_nll_loss=False
        ),
    }
    return makers[name]()


def refusal(task: Task) -> str | None:
    """Why Liger does not compute this."""
    if task.name == "dpo":
        return "it makes the reference's log-probabilities itself; see dpo_reference_free"
    if task.case.soft_cap is not None:
        return f"these logits are capped at {task.case.soft_cap:g}, and it takes no cap"
    return None


def chosen_first(x: np.ndarray) -> np.ndarray:
    """`[B, 2, T, …]` -> `[2B, T, …]`."""
    return np.ascontiguousarray(np.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]))


def by_prompt(x: np.ndarray) -> np.ndarray:
    """`[2B, T, …]` -> `[B, 2, T, …]`."""
    return np.swapaxes(x.reshape(2, -1, *x.shape[1:]), 0, 1)


def loss_call(task: Task, which: Pass) -> Call:
    """The mean loss of a mask's pairs, and its gradients."""
    import torch

    loss = loss_of(task.name)
    hidden = in_torch(chosen_first(np.asarray(task.hidden))).requires_grad_(which == "gradient")
    vocabulary = in_torch(task.vocabulary).requires_grad_(which == "gradient")
    targets = in_torch(chosen_first(np.asarray(task.targets))).long()

    @functools.cache
    def asked(mask: Any) -> Any:
        return torch.where(mask.swapaxes(0, 1).reshape(targets.shape), targets, _IGNORED)

    def run(mask: Any) -> tuple[Any, ...]:
        value = loss(vocabulary, hidden, asked(mask))[0]
        slopes = torch.autograd.grad(value, (hidden, vocabulary)) if which == "gradient" else ()
        return finished(value.detach(), *slopes)

    return run


def as_ours(task: Task, came: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    """The sum over pairs for the mean, and hidden states by prompt."""
    pairs = math.prod(task.targets.shape[:-2])
    value, *slopes = (pairs * x for x in came)
    return (value, *(by_prompt(x) if i == 0 else x for i, x in enumerate(slopes)))


LIGER = TorchWay(
    "liger",
    loss_call,
    package="liger_kernel",
    refusal=refusal,
    compiled=True,
    as_ours=as_ours,
    tasks=("dpo", "dpo_reference_free", "orpo", "simpo"),
)
