"""Everything of a run that is compiled: its step, its evaluation and its first state, from settings and inputs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from mi_align.logprobs import Layout
from mi_align.methods import Method
from mi_align.models import Decoder, Pretrained, count_parameters
from mi_align.training.arranging import arrangement
from mi_align.training.config import RunConfig
from mi_align.training.devices import batch_flops
from mi_align.training.feeding import Batch, Feed, reference_scores
from mi_align.training.fitting import reads_mismatched
from mi_align.training.inputs import Inputs, buckets_of
from mi_align.training.losses import preference_loss, supervised_loss
from mi_align.training.metrics import Metrics
from mi_align.training.optimiser import make_optimiser, rate_schedule
from mi_align.training.parts import join
from mi_align.training.readers import reader
from mi_align.training.reference_cache import fingerprint
from mi_align.training.scoring import ROUNDED, TokenLogps, response_entropy, scorer
from mi_align.training.scoring import Batch as Examples
from mi_align.training.sharding import head_layout, mesh_of, put, shardings
from mi_align.training.state import Follow, Params, TrainState, follow_policy, init_state
from mi_align.training.step import train_step
from mi_align.training.trained import compiled_step, parts_of

__all__ = ["Program", "build_program", "first_state", "follow_of", "loss_of", "scorer_of", "scores_live", "spread"]


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled, and the data it runs over.

    Attributes:
      step: (state, batch) -> the next state and metrics.
      batch: (state, number of the step) -> what the step takes; its first part are the examples.
      evaluated: state -> metrics of the whole evaluation data, as batches have them.
      state: before the first step.
      rate: the learning rate of a step.
      frozen_hash: of the parameters that are not trained; None where all are.
      flops: of the model, in a step over a batch.
      lowered: the step before it is compiled for the largest batch, as `jax.jit`'s `lower` gives it.
      facts: what a user wants to know of the data, as metrics.
      together: so many steps belong together, between which the run is not left.
    """

    step: Callable[[TrainState, Any], tuple[TrainState, Metrics]]
    batch: Callable[[TrainState, int], Any]
    evaluated: Callable[[TrainState], Iterator[Metrics]]
    state: TrainState
    rate: optax.Schedule
    frozen_hash: str | None
    flops: Callable[[Examples], float]
    lowered: Callable[[], Any]
    facts: dict[str, float] = dataclasses.field(default_factory=dict)
    together: int = 1


def build_program(
    config: RunConfig,
    inputs: Inputs,
    steps: int,
    *,
    output: Path,
    tick: Callable[[float], None] = lambda share: None,
) -> Program:
    """The program of a run of so many steps; nothing is compiled before its first call, but the reference is scored.

    It takes over the model's arrays: `inputs.model` has none any more after the first step, but for what is frozen.

    Args:
      config: the settings.
      inputs: from `load_inputs`.
      steps: how many will be made.
      output: the run's folder, in which the reference's scores are kept.
      tick: is told which share of the reference has been scored.
    """
    model, method = inputs.model, inputs.method
    mesh = mesh_of(config)
    layout = None if mesh is None else head_layout(mesh, model.config.vocab_size, model.config.width)
    score = scorer_of(config, model.graphdef, layout)
    loss = loss_of(config, method, model.graphdef, score, layout)
    live = scores_live(config, method)
    devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    arrange = arrangement(config, inputs.train, inputs.evaluation, steps=steps, devices=devices)
    scores: Any = (None, None)
    if method is not None and method.needs_reference and not live:
        kept = output / "reference"
        scores = reference_scores(config, inputs, score, arrange, folder=kept, mesh=mesh, tick=tick)
    optimiser = make_optimiser(config.optimiser, steps)
    state = first_state(config, model, optimiser, mesh, live=live)
    step = train_step(loss, optimiser, micro_batches=config.micro_batches, follow=follow_of(config))
    buckets = buckets_of(config, inputs.train, steps)
    feed = Feed(config, inputs.train, inputs.evaluation, scores, arrange, buckets, mesh)
    entropy = None
    if config.evaluate_entropy:
        entropy = response_entropy(model.graphdef, layout=layout, compute_dtype=config.model.compute_dtype)
    evaluate = jax.jit(functools.partial(_evaluate, loss, entropy), compiler_options=ROUNDED)
    compiled = compiled_step(step, state, mesh)
    return Program(
        step=compiled,
        batch=lambda state, n: feed.batch(n),
        evaluated=lambda state: (evaluate(state, batch) for batch in feed.evaluated()),
        state=state,
        facts=arrange.facts(),
        rate=rate_schedule(config.optimiser, steps),
        frozen_hash=None if state.frozen is None else fingerprint(state.frozen),
        flops=functools.partial(batch_flops, model.config, count_parameters(model.params), live=live),
        lowered=lambda: compiled.lower(state, feed.batch(0)),
    )


def first_state(
    config: RunConfig, model: Pretrained, optimiser: optax.GradientTransformation, mesh: Mesh | None, *, live: bool
) -> TrainState:
    """The state before the first step, on its devices. The model's arrays become its own, a reference is a copy."""
    params, frozen = parts_of(config.model, model)
    begin = functools.partial(init_state, optimiser=optimiser)
    state = spread(begin, mesh, params, reference=jax.tree.map(jnp.copy, params) if live else None)
    return state._replace(frozen=frozen if mesh is None else put(frozen, shardings(frozen, mesh)))


def follow_of(config: RunConfig) -> Follow | None:
    """How a run's live reference comes after the policy; None: it stays."""
    return follow_policy(decay=config.follow_decay, every=config.follow_every) if config.follow_every else None


def scorer_of(config: RunConfig, graphdef: nnx.GraphDef[Decoder], layout: Layout | None) -> TokenLogps:
    """The function by which a run scores batches."""
    how = config.model
    return scorer(graphdef, layout=layout, memory_budget=how.memory_budget, compute_dtype=how.compute_dtype)


def scores_live(config: RunConfig, method: Method | None) -> bool:
    """Whether the reference is scored in the step."""
    return method is not None and method.needs_reference and config.reference == "live"


def loss_of(
    config: RunConfig,
    method: Method | None,
    graphdef: nnx.GraphDef[Decoder],
    score: TokenLogps,
    layout: Layout | None,
) -> Callable[..., Any]:
    """The loss of a run's step: (parameters, batch[, live reference]) -> its mean and metrics."""
    if method is None:
        supervised = supervised_loss(score)
        return lambda params, batch: supervised(params, batch[0])
    live = score if scores_live(config, method) else None
    read = reader(graphdef, method, live=live, layout=layout, compute_dtype=config.model.compute_dtype)
    return preference_loss(score, method, live=live, read=read, mismatched=reads_mismatched(method))


def spread(begin: Callable[..., TrainState], mesh: Mesh | None, params: Params, **parts: Params) -> TrainState:
    """The first state, every part of it made where it stays; the arrays given become its own."""
    if mesh is None:
        return begin(params, **parts)
    given = put((params, parts), shardings((params, parts), mesh))
    shapes = jax.eval_shape(lambda given: begin(given[0], **given[1]), given)
    made = jax.jit(lambda given: begin(given[0], **given[1]), out_shardings=shardings(shapes, mesh), donate_argnums=0)
    return made(given)


def _evaluate(loss: Any, entropy: Any, state: TrainState, batch: Batch) -> Metrics:
    anchor = () if state.reference is None else (join(state.reference, state.frozen),)
    params = join(state.params, state.frozen)
    mean, metrics = loss(params, batch, *anchor)
    told = {} if entropy is None else {"entropy": entropy(params, batch[0])}
    return metrics | {"loss": mean} | told
