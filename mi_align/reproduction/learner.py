"""A small language model that has learnt its task by supervised training: where everything else starts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mi_align.data import (
    ByteTokenizer,
    EncodingCounts,
    Preference,
    PreferenceBatch,
    batch_indices,
    borrow_negatives,
    encode_preferences,
)
from mi_align.equivalences.language_model import Setting
from mi_align.models import DecoderConfig, count_parameters, init_decoder
from mi_align.reproduction.plan import Plan
from mi_align.training import TokenLogps, init_state, scan_steps, scorer, supervised_loss, train_step
from mi_align.training.state import Params

__all__ = ["Learner", "Tick", "learn", "order_of_batches", "setting"]

#: Told after each segment which share of the work is done, in [0, 1].
Tick = Callable[[float], None]


class Learner(NamedTuple):
    """A language model after supervised training.

    Attributes:
      logps: (parameters, batch) -> token log-probabilities.
      plain_logps: the same, from all logits at once; what the certificates compare with.
      params: the trained parameters.
      before: those of one segment earlier: another policy near them.
      data: all preferences as tokens.
      counts: what encoding cut.
      losses: mean negative log-likelihood of a token at every step, in nats.
      parameters: how many there are.
    """

    logps: TokenLogps
    plain_logps: TokenLogps
    params: Params
    before: Params
    data: PreferenceBatch
    counts: EncodingCounts
    losses: np.ndarray
    parameters: int


def order_of_batches(size: int, batch: int, *, seed: int, first: int, steps: int) -> np.ndarray:
    """Which examples make up the batches of some steps, `[steps, batch]`."""
    return np.stack([batch_indices(size, batch, seed=seed, step=first + step) for step in range(steps)])


def learn(preferences: Sequence[Preference], plan: Plan, *, seed: int = 0, tick: Tick = lambda _: None) -> Learner:
    """Train a fresh decoder on the chosen responses."""
    tokenizer = ByteTokenizer()
    preferences = preferences[: plan.supervised_examples]
    data, counts = encode_preferences(
        preferences, tokenizer, max_prompt=plan.max_prompt, max_response=plan.max_response
    )
    config = DecoderConfig(vocab_size=tokenizer.vocab_size, width=plan.width, layers=plan.layers, heads=plan.heads)
    graphdef, params = init_decoder(config, jax.random.key(seed))
    logps = scorer(graphdef)
    optimiser = optax.adam(plan.supervised_rate)
    step = train_step(supervised_loss(logps), optimiser)
    run = jax.jit(functools.partial(scan_steps, step))
    on_device = jax.tree.map(jnp.asarray, data)
    state, before, losses = init_state(params, optimiser), params, []
    for first in range(0, plan.supervised_steps, plan.segment):
        before = state.params
        order = order_of_batches(len(data.tokens), plan.supervised_batch, seed=seed, first=first, steps=plan.segment)
        state, metrics = run(state, on_device, order)
        losses.append(np.asarray(metrics["loss"].value()))
        tick((first + plan.segment) / plan.supervised_steps)
    plain = scorer(graphdef, implementation="reference")
    size = count_parameters(params)
    return Learner(logps, plain, state.params, before, data, counts, np.concatenate(losses), size)


def setting(learner: Learner, preferences: Sequence[Preference], plan: Plan) -> Setting:
    """What the claims on a language model take: a batch with K negatives each, and two neighbouring policies."""
    listed = borrow_negatives(preferences, plan.certificate_negatives)[: plan.certificate_prompts]
    batch, _ = encode_preferences(listed, ByteTokenizer(), max_prompt=plan.max_prompt, max_response=plan.max_response)
    batch = jax.tree.map(jnp.asarray, batch)
    time = batch.tokens.shape[-1]

    def with_more_padding(params: Params) -> jax.Array:
        tokens, mask = (jnp.pad(x, ((0, 0), (0, 0), (0, 5))) for x in (batch.tokens, batch.response_mask))
        return learner.logps(params, batch._replace(tokens=tokens, response_mask=mask))[..., : time - 1]

    def one_candidate_at_a_time(params: Params) -> jax.Array:
        single = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0)[:, :, None], batch)
        return jnp.moveaxis(jax.lax.map(lambda part: learner.logps(params, part)[:, 0], single), 0, 1)

    return Setting(
        logps=lambda params: learner.logps(params, batch),
        policy=learner.params,
        reference=learner.before,
        response_mask=batch.response_mask[..., 1:],
        candidate_mask=batch.candidate_mask,
        routes={
            "with more padding": with_more_padding,
            "one candidate at a time": one_candidate_at_a_time,
            "from all logits at once": lambda params: learner.plain_logps(params, batch),
        },
    )
