"""An Optax optimiser from its configuration: schedule, clipping, decay of matrices alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import optax

from mi_align.training.config import OptimiserConfig
from mi_align.training.parts import path_of

__all__ = ["make_optimiser", "rate_schedule"]


def make_optimiser(config: OptimiserConfig, steps: int) -> optax.GradientTransformation:
    """The optimiser of a run of so many steps."""
    rate = rate_schedule(config, steps)
    decay = {"weight_decay": config.weight_decay, "mask": decays}
    made: dict[str, Callable[[], optax.GradientTransformation]] = {
        "adamw": lambda: optax.adamw(rate, b1=config.beta1, b2=config.beta2, eps=config.eps, **decay),
        "lion": lambda: optax.lion(rate, b1=config.beta1, b2=config.beta2, **decay),
        "adafactor": lambda: optax.adafactor(
            rate, weight_decay_rate=config.weight_decay or None, weight_decay_mask=decays
        ),
        "sgd": lambda: optax.chain(optax.add_decayed_weights(config.weight_decay, decays), optax.sgd(rate)),
    }
    optimiser = made[config.name]()
    return optimiser if config.clip is None else optax.chain(optax.clip_by_global_norm(config.clip), optimiser)


def rate_schedule(config: OptimiserConfig, steps: int) -> optax.Schedule:
    """The learning rate by step: up from 0 on a line, then as `schedule` says to 0 at the last step."""
    warm = round(config.warmup * steps)
    rest = max(steps - warm, 1)
    falls = {
        "constant": optax.constant_schedule(config.rate),
        "linear": optax.linear_schedule(config.rate, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(config.rate, rest),
    }
    rises = optax.linear_schedule(config.rate / max(warm, 1), config.rate, max(warm - 1, 1))
    return optax.join_schedules([rises, falls[config.schedule]], [warm]) if warm else falls[config.schedule]


def decays(params: Any) -> Any:
    """Which parameters weight decay pulls at: matrices; not norms and biases, of which each block has a vector."""

    def is_matrix(keys: tuple[Any, ...], x: jax.Array) -> bool:
        return x.ndim - path_of(keys).startswith("blocks.") >= 2

    return jax.tree_util.tree_map_with_path(is_matrix, params)
