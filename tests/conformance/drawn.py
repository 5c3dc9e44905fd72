"""Inputs for the objectives that reduce over samples, groups or tokens: how their arguments are drawn, a line each.

`inputs` draws those of pairs and lists from their signatures.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.conformance.inputs import logits, offset

Arrays = dict[str, np.ndarray]
#: (generator, regime, leading axes, dtype, size of the sample) -> arguments by name.
Draw = Callable[..., Arrays]


def _two(
    rng: np.random.Generator, regime: float | str, batch: tuple[int, ...], dtype: type, size: int | None = None
) -> Arrays:
    """Two samples of different size."""
    sizes = {"joint": 4, "marginal": 6} if size is None else {"joint": size // 2 + 1, "marginal": size}
    move = offset(rng, regime, batch, dtype)[..., None]
    return {name: logits(rng, regime, (*batch, n), dtype) + move for name, n in sizes.items()}


def _with_baseline(
    rng: np.random.Generator, regime: float | str, batch: tuple[int, ...], dtype: type, size: int | None = None
) -> Arrays:
    """A baseline near the partition: far below it the bound is −∞, and so is its derivative."""
    drawn = _two(rng, regime, batch, dtype, size)
    near = logits(rng, min(regime, 3.0) if isinstance(regime, float) else 3.0, batch, dtype)
    return drawn | {"log_baseline": drawn["marginal"].max(-1) + near}


def _with_clip(
    rng: np.random.Generator, regime: float | str, batch: tuple[int, ...], dtype: type, size: int | None = None
) -> Arrays:
    return _two(rng, regime, batch, dtype, size) | {"clip": rng.uniform(0.3, 9, batch).astype(dtype)}


def _matrix(
    rng: np.random.Generator, regime: float | str, batch: tuple[int, ...], dtype: type, size: int | None = None
) -> Arrays:
    n = 3 if size is None else math.isqrt(size)
    return {
        "scores": logits(rng, regime, (*batch, n, n), dtype) + offset(rng, regime, batch, dtype)[..., None, None],
        "alpha": rng.uniform(0.02, 0.98, batch).astype(dtype),
        "log_baseline": logits(rng, regime, (*batch, n), dtype),
    }


#: How a bound's arguments are drawn, and what `worst_errors` has to know about it.
BOUNDS: dict[str, tuple[Draw, dict[str, Any]]] = {
    "donsker_varadhan_bound": (_two, {"levels": {"joint", "marginal"}}),
    "nwj_bound": (_two, {}),
    "tuba_bound": (_with_baseline, {}),
    "jensen_shannon_bound": (_two, {}),
    # The clip stands for scores at either end, which move the bound to opposite sides.
    "smile_bound": (_with_clip, {"differences": {"clip"}, "both_ways": {"clip"}}),
    # Both vanish at the bound's own optimum, as the difference of two terms of order 1.
    "interpolated_bound": (_matrix, {"differences": {"alpha", "log_baseline"}}),
}


def _numbers(*names: str, group: int | None = None, **ranges: tuple[float, float]) -> Draw:
    """Arguments on a regime's scale, one number each or a group, and hyper-parameters uniform in their ranges."""

    def draw(
        rng: np.random.Generator, regime: float | str, batch: tuple[int, ...], dtype: type, size: int | None = None
    ) -> Arrays:
        shape = batch if group is None else (*batch, size or group)
        drawn = {name: logits(rng, regime, shape, dtype) for name in names}
        if "reward" in drawn and group:  # where all are equal, the deviation has no derivative
            drawn["reward"][..., 0] += drawn["reward"].max(-1) == drawn["reward"].min(-1)
        return drawn | {name: rng.uniform(*ends, batch).astype(dtype) for name, ends in ranges.items()}

    return draw


CLIPS = {"clip_low": (0.1, 0.5), "clip_high": (0.1, 0.5), "ratio_cap": (2.0, 5.0)}


def _tokens(**ranges: tuple[float, float]) -> Draw:
    """Groups of two responses with three tokens; the reference is near the policy, or its penalty drowns the rest."""

    def draw(
        rng: np.random.Generator, regime: float | str, batch: tuple[int, ...], dtype: type, size: int | None = None
    ) -> Arrays:
        shape = (*batch, 2, size or 3)
        drawn = {name: logits(rng, regime, shape, dtype) for name in ("logp", "old_logp")}
        drawn |= {
            name: rng.uniform(*ends, batch).astype(dtype) for name, ends in (ranges | {"beta": (0.01, 0.2)}).items()
        }
        drawn["reference_logp"] = drawn["logp"] + logits(rng, 1.0, shape, dtype)
        return drawn | {"advantage": logits(rng, 3.0, (*batch, 2), dtype)}

    return draw


#: The same for KL estimators, advantages and policy gradients.
POLICY_GRADIENT: dict[str, tuple[Draw, dict[str, Any]]] = {
    "kl_k1": (_numbers("logp", "reference_logp"), {}),
    "kl_k2": (_numbers("logp", "reference_logp"), {}),
    "kl_k3": (_numbers("logp", "reference_logp"), {}),
    "kl_regularised_value": (_numbers("logp", "reference_logp", "reward", beta=(0.01, 2)), {}),
    "centred_advantage": (_numbers("reward", group=5), {}),
    "rloo_advantage": (_numbers("reward", group=5), {}),
    # How an advantage moves with a reward that stands alone in its group is a difference that nearly cancels.
    "group_advantage": (
        _numbers("reward", group=5, correction=(0, 1.5), eps=(1e-5, 1e-2)),
        {"differences": {"reward"}, "both_ways": {"reward"}},
    ),
    "reinforce_loss": (_numbers("logp", "advantage"), {}),
    "rloo_loss": (_numbers("logp", "reward", group=4), {}),
    "ppo_loss": (_numbers("logp", "old_logp", "advantage", **CLIPS), {}),
    "ppo_value_loss": (_numbers("value", "old_value", "returns", clip=(0.1, 0.5)), {}),
    "grpo_loss": (_tokens(**CLIPS), {}),
    "dr_grpo_loss": (_tokens(**CLIPS, max_length=(4, 9)), {}),
    "dapo_loss": (_tokens(**CLIPS), {}),
    "bnpo_loss": (_tokens(**CLIPS), {}),
    "gspo_loss": (_tokens(**CLIPS), {}),
    "cispo_loss": (_tokens(ratio_cap=(2.0, 5.0)), {}),
}
