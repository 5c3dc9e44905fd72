"""One step as a pure function: the same under `jit`, under `scan`, and under `vmap` over seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from mi_align.numerics import Mean
from mi_align.training.metrics import Metrics
from mi_align.training.parts import join
from mi_align.training.state import Follow, Params, TrainState

__all__ = ["Loss", "Step", "scan_steps", "train_step"]

#: (parameters, batch) -> the loss as (total, weight), and metrics. The weight must not depend on the parameters. Where
#: the state has a live reference, its parameters come third.
Loss = Callable[..., tuple[Mean, Metrics]]
#: (state, batch) -> the next state, and the metrics of the batch before the update.
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def train_step(
    loss: Loss,
    optimiser: optax.GradientTransformation,
    *,
    micro_batches: int = 1,
    follow: Follow | None = None,
) -> Step:
    """A step that descends the gradient of `loss`.

    Args:
      loss: what to minimise.
      optimiser: any Optax transformation.
      micro_batches: in how many equal parts, one after the other, the batch is scored, to save memory. Totals and
        weights are summed before they are divided, so the gradient is that of the whole batch for every loss,
        whatever share of the weight a part has.
      follow: how a live reference comes after the policy (`follow_policy`). Default: it stays.

    Raises:
      ValueError: there are several micro-batches, and the loss says by an attribute `couples_batch` that an example's
        loss depends on the rest of its batch; or, from the step, they do not divide the batch.

    Returns:
      The step; compile it with `jax.jit`. Its metrics are those of the loss, `loss` and `grad_norm`.
    """

    if micro_batches > 1 and getattr(loss, "couples_batch", False):
        raise ValueError(
            f"`micro_batches` is {micro_batches}, but this loss couples the examples of a batch: parts would be scored "
            "as batches of their own. Pass 1, or take a method that does not (`Method.couples_batch`)."
        )

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        anchor = () if state.reference is None else (jax.lax.stop_gradient(join(state.reference, state.frozen)),)

        def whole(params: Params, part: PyTree) -> tuple[Mean, Metrics]:
            return loss(join(params, state.frozen), part, *anchor)

        slope, metrics = _gradient(whole, state.params, batch, micro_batches)
        updates, opt_state = optimiser.update(slope, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        reference = state.reference if follow is None else follow(state.reference, params, state.step + 1)
        norm = optax.tree.norm(slope)
        metrics = metrics | {"grad_norm": Mean(norm, jnp.ones_like(norm))}
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state, reference=reference), metrics

    return step


def _gradient(loss: Loss, params: Params, batch: PyTree, micro_batches: int) -> tuple[Params, Metrics]:
    """The gradient of the mean loss over all parts of the batch, and their merged metrics."""

    def total(params: Params, part: PyTree) -> tuple[Array, Metrics]:
        mean, metrics = loss(params, part)
        return mean.total, metrics | {"loss": mean}

    slope_of = jax.grad(total, has_aux=True)
    if micro_batches == 1:
        slope, metrics = slope_of(params, batch)
    else:
        parts = jax.tree.map(lambda x: _split(x, micro_batches), batch)
        shapes = jax.eval_shape(slope_of, params, jax.tree.map(lambda x: x[0], parts))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        def add(carry: Any, part: PyTree) -> tuple[Any, None]:
            # Totals and weights add up, and so do the gradients of totals. Without the barrier the TPU's compiler moves
            # the sum over devices out of the loop, and dies of it (`while_loop_all_reduce_code_motion`, jax 0.10.2).
            return jax.tree.map(jnp.add, carry, jax.lax.optimization_barrier(slope_of(params, part))), None

        (slope, metrics), _ = jax.lax.scan(add, nothing, parts)
    weight = metrics["loss"].weight
    inverse = 1 / jnp.where(weight > 0, weight, 1)
    return jax.tree.map(lambda g: g * inverse.astype(g.dtype), slope), metrics


def _split(x: Array, parts: int) -> Array:
    if x.shape[0] % parts:
        raise ValueError(
            f"the batch has {x.shape[0]} examples, which `micro_batches` = {parts} does not divide. Change one of them."
        )
    return x.reshape(parts, x.shape[0] // parts, *x.shape[1:])


def scan_steps(
    step: Step, state: TrainState, data: PyTree, indices: Int[Array, "steps batch"]
) -> tuple[TrainState, Metrics]:
    """Many steps in one program, over data that lies on the device as a whole.

    Args:
      step: from `train_step`.
      state: where to begin.
      data: a pytree whose leaves have the examples on their first axis.
      indices: which examples make up the batch of each step.

    Returns:
      The last state, and the metrics of every step, each leaf `[steps]`.
    """

    def body(state: TrainState, picked: Array) -> tuple[TrainState, Metrics]:
        return step(state, jax.tree.map(lambda x: x[picked], data))

    return jax.lax.scan(body, state, indices)
