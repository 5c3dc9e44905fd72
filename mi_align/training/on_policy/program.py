"""The program of a run that draws its own responses: rollout, rewards, scores, and then the steps that learn from them.

Step n belongs to rollout r = n // inner_steps: its prompts are f(seed, r), its key is fold_in(key, r), and the policy
that draws is the state's at step r · inner_steps. A run is left between rollouts, so that a
checkpoint is a state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mi_align.data import PreferenceBatch, PromptBatch, batch_indices
from mi_align.methods import Method
from mi_align.models import count_parameters
from mi_align.objectives import kl_regularised_value
from mi_align.training.config import RunConfig
from mi_align.training.devices import batch_flops
from mi_align.training.losses import preference_loss
from mi_align.training.metrics import Metrics
from mi_align.training.on_policy.config import OnPolicyConfig
from mi_align.training.on_policy.estimators import ADVANTAGES, advantage_of, hyper_of
from mi_align.training.on_policy.inputs import OnPolicyInputs, settings_of
from mi_align.training.on_policy.losses import Learned, policy_gradient_loss
from mi_align.training.on_policy.pairs import paired
from mi_align.training.on_policy.rollout import Rollout, rollout_metrics
from mi_align.training.on_policy.sampling import sampler, score_in_parts, texts_of
from mi_align.training.optimiser import make_optimiser, rate_schedule
from mi_align.training.parts import join
from mi_align.training.program import Program, first_state, follow_of, scorer_of
from mi_align.training.reference_cache import fingerprint
from mi_align.training.scoring import ROUNDED, TokenLogps
from mi_align.training.sharding import head_layout, mesh_of, place
from mi_align.training.state import Params, TrainState
from mi_align.training.step import train_step
from mi_align.training.trained import CompiledStep, compiled_step

__all__ = ["build_on_policy"]

#: Which of the seed's keys draws responses, and which those of evaluation: others draw fresh parameters and adapters.
_TRAINING, _EVALUATION = 2, 3


class _Batch(NamedTuple):
    """What a step takes: examples, with what the loss reads beside them, and the metrics of the rollout."""

    examples: PreferenceBatch
    learned: Any
    told: Metrics


def build_on_policy(config: RunConfig, inputs: OnPolicyInputs, steps: int) -> Program:
    """The program of a run of so many steps, as `build_program` makes it for responses of the data.

    It takes over the model's arrays: `inputs.model` has none any more after the first step, but for what is frozen.
    """
    own, model, method = settings_of(config), inputs.model, inputs.method
    mesh = mesh_of(config)
    layout = None if mesh is None else head_layout(mesh, model.config.vocab_size, model.config.width)
    score = scorer_of(config, model.graphdef, layout)
    optimiser = make_optimiser(config.optimiser, steps)
    live = config.reference == "live" and (method is None or method.needs_reference)
    state = first_state(config, model, optimiser, mesh, live=live)
    step = train_step(
        _loss(config, method, score), optimiser, micro_batches=config.micro_batches, follow=follow_of(config)
    )
    compiled = compiled_step(step, state, mesh)
    rollouts = _Rollouts(config, own, inputs, score, mesh)
    return Program(
        step=functools.partial(_stepped, compiled),
        batch=rollouts.batch,
        evaluated=rollouts.evaluated,
        state=state,
        rate=rate_schedule(config.optimiser, steps),
        frozen_hash=None if state.frozen is None else fingerprint(state.frozen),
        flops=functools.partial(batch_flops, model.config, count_parameters(model.params), live=live),
        lowered=lambda: compiled.lower(state, rollouts.shapes(state)),
        together=own.inner_steps,
    )


def _stepped(compiled: CompiledStep, state: TrainState, batch: _Batch) -> tuple[TrainState, Metrics]:
    state, metrics = compiled(state, batch.learned)
    return state, metrics | batch.told


def _loss(config: RunConfig, method: Method | None, score: TokenLogps) -> Callable[..., Any]:
    own = settings_of(config)
    if method is not None:
        return preference_loss(score, method)
    hyper = hyper_of(config.method, config.hyper, longest=own.max_new_tokens)
    return policy_gradient_loss(
        score, config.method, hyper=hyper, longest=own.max_new_tokens, kl_weight=own.kl_weight, kl=own.kl
    )


class _Rollouts:
    """The rollouts of a run, of which the last one is kept for the steps that belong to it."""

    def __init__(
        self, config: RunConfig, own: OnPolicyConfig, inputs: OnPolicyInputs, score: TokenLogps, mesh: Mesh | None
    ) -> None:
        """Nothing is compiled yet."""
        self._config, self._own, self._inputs, self._mesh = config, own, inputs, mesh
        eos_id, how = inputs.tokenizer.eos_id, config.model.compute_dtype
        draw = sampler(inputs.model.graphdef, own, eos_id=eos_id, compute_dtype=how)
        self._draw = jax.jit(lambda state, *given: draw(_policy(state), *given))
        parts = score_in_parts(score, config.micro_batches)
        self._score = jax.jit(functools.partial(_scored, parts), compiler_options=ROUNDED)
        self._learn = jax.jit(functools.partial(_learnt, config, inputs.method))
        self._told = jax.jit(functools.partial(rollout_metrics, eos_id=eos_id))
        self._time = max(x.tokens.shape[1] for x in (inputs.train, inputs.evaluation) if x is not None)
        self._last: tuple[int, _Batch] | None = None

    def batch(self, state: TrainState, n: int) -> _Batch:
        """What step n takes.

        Raises:
          ValueError: it is in the middle of a rollout that was not drawn here, or the reward is not what was wanted.
        """
        number, within = divmod(n, self._own.inner_steps)
        if within == 0:
            picked = batch_indices(
                len(self._inputs.train.tokens), self._config.batch, seed=self._config.seed, step=number
            )
            rollout = self._rollout(state, self._inputs.train, picked, self._key(_TRAINING, number))
            examples, learned = self._learn(rollout)
            self._last = number, _Batch(examples, learned, self._told(rollout))
        if self._last is None or self._last[0] != number:
            raise ValueError(
                f"step {n} is in the middle of a rollout of {self._own.inner_steps} steps, of which no responses are "
                "kept. Go on with the `on_policy.inner_steps` that the run began with."
            )
        return self._last[1]

    def evaluated(self, state: TrainState) -> Iterator[Metrics]:
        """Metrics of responses to the evaluation prompts, drawn with the same keys each time."""
        data, size = self._inputs.evaluation, self._config.batch
        for first in range(0, 0 if data is None else len(data.tokens), size):
            if data is not None:
                picked = np.arange(first, first + size)
                rollout = self._rollout(state, data, picked % len(data.tokens), self._key(_EVALUATION, first))
                where = place(picked < len(data.tokens), self._mesh)
                yield self._told(rollout, where=where)

    def shapes(self, state: TrainState) -> Any:
        """What a step takes, as shapes."""
        size, own = self._config.batch, self._own
        prompts = jax.ShapeDtypeStruct((size, self._time), jnp.int32), jax.ShapeDtypeStruct((size,), jnp.int32)
        batch = jax.eval_shape(self._draw, state, *prompts, jax.eval_shape(lambda: jax.random.key(0)))
        reward = jax.ShapeDtypeStruct((size, own.samples), jnp.float32)
        return jax.eval_shape(lambda *given: self._learn(self._score(*given))[1], state, batch, reward)

    def _rollout(self, state: TrainState, data: PromptBatch, picked: np.ndarray, key: jax.Array) -> Rollout:
        tokens = np.pad(data.tokens[picked], ((0, 0), (0, self._time - data.tokens.shape[1])))
        prompts, lengths = place((tokens, data.lengths[picked]), self._mesh)
        batch = self._draw(state, prompts, lengths, key)
        texts = texts_of(batch, [data.prompts[i] for i in picked], self._inputs.tokenizer)
        reward = self._inputs.reward(*texts).reshape(len(picked), self._own.samples)
        return self._score(state, batch, place(reward, self._mesh))

    def _key(self, what: int, number: int) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self._config.seed), what), number)


def _policy(state: TrainState) -> Params:
    return join(state.params, state.frozen)


def _scored(logps: TokenLogps, state: TrainState, batch: PreferenceBatch, reward: Any) -> Rollout:
    """A rollout with its scores, under the policy and, where there is one, the reference."""
    reference = None if state.reference is None else logps(join(state.reference, state.frozen), batch)
    return Rollout(batch, logps(_policy(state), batch), reference, jnp.asarray(reward))


def _learnt(config: RunConfig, method: Method | None, rollout: Rollout) -> tuple[PreferenceBatch, Any]:
    """The examples of the steps on a rollout, and all that their loss reads."""
    if method is not None:
        pairs = paired(rollout, method)
        return pairs[0], pairs
    own, reward = settings_of(config), rollout.reward
    if own.kl_weight and own.kl == "k1_in_reward":
        log_ratio = rollout.log_ratio()
        reward = kl_regularised_value(log_ratio, jnp.zeros_like(log_ratio), reward, beta=own.kl_weight)
    name = advantage_of(config.method, own.advantage, samples=own.samples, responses=reward.size)
    in_loss = rollout.reference_logp if own.kl_weight and own.kl != "k1_in_reward" else None
    return rollout.batch, Learned(rollout.batch, rollout.logp, in_loss, ADVANTAGES[name](reward))
