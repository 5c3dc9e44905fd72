"""The paper's dynamics on the small language model: DPO and MIO from one starting point, over several seeds."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from mi_align.critics import log_ratio
from mi_align.data import PreferenceBatch, take
from mi_align.methods import METHODS, Method
from mi_align.reproduction.learner import Learner, Tick, order_of_batches
from mi_align.reproduction.plan import Plan
from mi_align.training import TokenLogps, candidates, init_state, preference_loss, scan_steps, train_step
from mi_align.training.state import Params

__all__ = ["Curves", "compared_methods", "train_over_seeds"]


class Curves(NamedTuple):
    """What became of the preferences while they were learnt; in nats.

    Attributes:
      chosen: mean log π − log π_ref of the chosen responses in the batch of each step, before the step.
      rejected: the same of the rejected ones.
      reference: log π_ref of each seed's chosen responses.
      final: their log π after the last step.
      epoch: how many steps see every pair once.
    """

    chosen: Float[np.ndarray, "seeds steps"]
    rejected: Float[np.ndarray, "seeds steps"]
    reference: Float[np.ndarray, "seeds pairs"]
    final: Float[np.ndarray, "seeds pairs"]
    epoch: int

    def smooth(self, values: Float[np.ndarray, "seeds steps"]) -> Float[np.ndarray, "seeds epochs_end"]:
        """Running means over one epoch: each is over all pairs, seen by the policy as it moved."""
        total = np.cumsum(np.pad(values, ((0, 0), (1, 0))), axis=-1)
        return (total[:, self.epoch :] - total[:, : -self.epoch]) / self.epoch


def compared_methods(plan: Plan) -> Mapping[str, Method]:
    """DPO, and MIO at the β that gives it the same first gradient."""
    return {
        "dpo": METHODS["dpo"].configure(beta=plan.beta),
        "mio": METHODS["mio"].configure(beta=plan.mio_beta),
    }


def train_over_seeds(
    learner: Learner, method: Method, plan: Plan, *, seed: int = 0, tick: Tick = lambda _: None
) -> Curves:
    """Train the learner on each seed's own pairs, by Adam, at a rate that fades out; all seeds in one program."""
    seeds = [seed + i for i in range(plan.seeds)]
    chosen_pairs = [np.random.default_rng(s).permutation(len(learner.data.tokens))[: plan.pairs] for s in seeds]
    pairs = [take(learner.data, picked) for picked in chosen_pairs]
    data = jax.tree.map(lambda *leaves: jnp.stack([leaf[:, :2] for leaf in leaves]), *pairs)
    logps = jax.jit(jax.vmap(functools.partial(_in_batches, learner.logps, plan.batch)))
    params = jax.tree.map(lambda x: jnp.stack([x] * plan.seeds), learner.params)
    reference = logps(params, data)

    # At a constant rate Adam spikes now and then where gradients have become tiny: no curve may end in such a spike.
    fade = plan.steps // 5
    optimiser = optax.adam(optax.linear_schedule(plan.rate, 0.0, fade, transition_begin=plan.steps - fade))
    step = train_step(preference_loss(learner.logps, method), optimiser)
    run = jax.jit(jax.vmap(functools.partial(scan_steps, step)))
    state = jax.vmap(functools.partial(init_state, optimiser=optimiser))(params)
    history = []
    for first in range(0, plan.steps, plan.segment):
        orders = [order_of_batches(plan.pairs, plan.batch, seed=s, first=first, steps=plan.segment) for s in seeds]
        state, metrics = run(state, (data, reference), np.stack(orders))
        history.append({name: np.asarray(metrics[f"log_ratio/{name}"].value()) for name in ("chosen", "rejected")})
        tick((first + plan.segment) / plan.steps)

    def of_chosen(values: Array) -> np.ndarray:
        return np.asarray(jnp.sum(values, axis=-1)[..., 0])

    moved = log_ratio(jax.vmap(candidates)(data, logps(state.params, data), reference))[..., 0]
    return Curves(
        chosen=np.concatenate([part["chosen"] for part in history], axis=-1),
        rejected=np.concatenate([part["rejected"] for part in history], axis=-1),
        reference=of_chosen(reference),
        final=of_chosen(reference) + np.asarray(moved),
        epoch=plan.pairs // plan.batch,
    )


def _in_batches(logps: TokenLogps, size: int, params: Params, data: PreferenceBatch) -> Array:
    """All pairs, scored in batches of the size that training uses: the same shapes, hence the same rounding."""
    parts = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), data)
    scored = jax.lax.map(functools.partial(logps, params), parts)
    return scored.reshape(-1, *scored.shape[2:])
