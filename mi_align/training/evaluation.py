"""The metrics of a run's evaluation, of any saved model on any data, and what every example contributes to them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mi_align.critics import Candidates, log_probability, log_ratio
from mi_align.data import PreferenceBatch, Tokenizer, chosen_only, load_tokenizer
from mi_align.methods import METHODS, Method
from mi_align.models import Pretrained, published_config
from mi_align.numerics import Mean, masked_sum
from mi_align.training.arranging import Arrangement
from mi_align.training.config import RunConfig
from mi_align.training.feeding import Feed
from mi_align.training.fitting import reads_mismatched
from mi_align.training.inputs import Inputs, load_offline, method_of, model_of
from mi_align.training.losses import comparison, metrics_of
from mi_align.training.metrics import Metrics, merge, summarise
from mi_align.training.parts import Params
from mi_align.training.program import scorer_of
from mi_align.training.readers import reader, reads_divergence, reads_score
from mi_align.training.reference_cache import score_all
from mi_align.training.scoring import ROUNDED, Batch, response_entropy
from mi_align.training.sharding import head_layout, mesh_of, place, put, shardings

__all__ = ["Evaluation", "Tick", "evaluate"]

#: Is told which share of the reference has been scored.
Tick = Callable[[float], None]


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
      numbers: by name, as a run reports them of its evaluation data; of a policy also `entropy`, nats a token.
      examples: of each example its prompt, its responses and what the model makes of them; of JSON's types.
      inputs: the data, and what became of them so that the method could take them.
    """

    numbers: dict[str, float]
    examples: list[dict[str, Any]]
    inputs: Inputs


def evaluate(config: RunConfig, *, reference: str | None = None, tick: Tick = lambda share: None) -> Evaluation:
    """Score `config.data.train` by `config.model` under `config.method`, without training anything.

    Args:
      config: the settings of a run; those of its steps are not looked at.
      reference: a folder or a Hub id of the policy that the method compares with, of the same vocabulary.
      tick: is told which share of the reference has been scored.

    Raises:
      FileNotFoundError: there is no such folder or file.
      ValueError: the method needs a reference and has none, or the other way round; the model has not the head that it
        reads; the two models do not share their tokens; or the data do not fit the method.
    """
    # What is too much to keep is read from both models at once; else the reference is scored before the policy is read.
    # Examples are told in the order of their file, and buckets would sort them.
    config = dataclasses.replace(config, reference="live", data=dataclasses.replace(config.data, buckets=None))
    method = method_of(config)
    _check(config, method, reference)
    inputs, scores, anchor = _with_reference(config, method, reference, tick)
    model, mesh = inputs.model, mesh_of(config)
    params = model.params if mesh is None else put(model.params, shardings(model.params, mesh))
    feed = Feed(config, inputs.train, inputs.train, (None, scores), Arrangement(None), None, mesh)
    program = jax.jit(_seen_by(config, method, model), compiler_options=ROUNDED)
    parts: list[Metrics] = []
    examples: list[dict[str, Any]] = []
    for batch in feed.evaluated():
        metrics, each = program(params, batch, anchor)
        parts.append(metrics)
        examples += _told(batch[0], each, inputs.tokenizer)
    return Evaluation(summarise(functools.reduce(merge, parts)), examples, inputs)


def _check(config: RunConfig, method: Method | None, reference: str | None) -> None:
    """What of the settings does not go together, before anything large is read."""
    name = str(config.model.pretrained)
    scores = published_config(name).reward_head
    if reads_score(method) and not scores:
        raise ValueError(
            f"{config.method!r} reads a reward's scores, but {name} is no reward model. Train one with `mi-align "
            "reward`, or take a method for policies, such as 'dpo' or 'sft'."
        )
    if scores and not reads_score(method):
        raise ValueError(
            f"{name} is a reward model, but {config.method!r} reads log-probabilities. Take 'bradley_terry' or "
            "'plackett_luce_reward'."
        )
    if method is not None and method.needs_reference and reference is None:
        without = [row.name for row in METHODS.values() if not row.needs_reference and not reads_score(row)]
        raise ValueError(
            f"{config.method!r} compares with a reference policy, and none is given. Name it by --reference: the model "
            f"that training began from, as a rule. Or take a method without one: {', '.join(without[:4])} or sft."
        )
    if reference is not None and (method is None or scores):
        raise ValueError(f"{config.method!r} compares with no reference policy. Leave --reference out.")


def _with_reference(
    config: RunConfig, method: Method | None, reference: str | None, tick: Tick
) -> tuple[Inputs, np.ndarray | None, Params | None]:
    """Data and policy, and the reference's scores, or where they are not enough its parameters."""
    if reference is None:
        return load_offline(config), None, None
    _check_tokens(str(config.data.tokenizer or config.model.pretrained), reference, config)
    other = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, pretrained=reference, adapter=None),
        data=dataclasses.replace(config.data, tokenizer=config.data.tokenizer or config.model.pretrained),
    )
    inputs = load_offline(other)
    beside, mesh = inputs.model, mesh_of(config)
    params = beside.params if mesh is None else put(beside.params, shardings(beside.params, mesh))
    scores = None
    if not reads_divergence(method):
        program = jax.jit(_scorer(config, beside), compiler_options=ROUNDED)
        way: dict[str, Any] = {"batch": config.batch, "tick": tick}
        scores = score_all(lambda params, part: program(params, place(part, mesh)), params, inputs.train, **way)
        params = None
    inputs = inputs._replace(model=model_of(config, inputs.tokenizer, method))
    if params is not None and inputs.model.graphdef != beside.graphdef:
        raise ValueError(
            f"{config.method!r} reads both models' logits at once, for which they have to be of one shape, but "
            f"{reference} has another than {config.model.pretrained}. Take a method that reads log-probabilities alone."
        )
    return inputs, scores, params


def _check_tokens(tokenizer: str, reference: str, config: RunConfig) -> None:
    """Log-ratios are of the same tokens."""
    try:
        own, other = load_tokenizer(tokenizer), load_tokenizer(reference)
    except FileNotFoundError:  # of weights alone nobody can tell
        return
    if config.data.tokenizer is None and getattr(own, "fingerprint", None) != getattr(other, "fingerprint", None):
        raise ValueError(
            f"{config.model.pretrained} and {reference} have different tokenizers, but log-ratios are of the same "
            "tokens. Give a reference of the same family, or, where ids mean the same, name one by --tokenizer."
        )


def _layout(config: RunConfig, model: Pretrained) -> Any:
    mesh = mesh_of(config)
    return None if mesh is None else head_layout(mesh, model.config.vocab_size, model.config.width)


def _scorer(config: RunConfig, model: Pretrained) -> Any:
    return scorer_of(config, model.graphdef, _layout(config, model))


def _seen_by(config: RunConfig, method: Method | None, model: Pretrained) -> Callable[..., tuple[Metrics, Any]]:
    """(parameters, batch, the reference's parameters) -> metrics of the batch, and numbers of each example."""
    score, layout = _scorer(config, model), _layout(config, model)
    entropy = response_entropy(model.graphdef, layout=layout, compute_dtype=config.model.compute_dtype)

    def supervised(params: Params, batch: Any, anchor: Params | None) -> tuple[Metrics, Any]:
        metrics, each = _supervised(score(params, chosen_only(batch[0])), batch[0])
        return metrics | {"entropy": entropy(params, batch[0])}, each

    if method is None:
        return supervised
    live = score if reads_divergence(method) else None
    read = reader(model.graphdef, method, live=live, layout=layout, compute_dtype=config.model.compute_dtype)
    compare = comparison(score, live=live, read=read, mismatched=reads_mismatched(method))

    def seen(params: Params, batch: Any, anchor: Params | None) -> tuple[Metrics, Any]:
        compared = compare(params, batch, anchor)
        losses = method(compared)
        there = jnp.any(jnp.asarray(batch[0].candidate_mask), axis=-1)
        metrics = metrics_of(method, compared) | {"loss": Mean.of(losses, there)}
        if not reads_score(method):
            metrics["entropy"] = entropy(params, batch[0])
        return metrics, _each(method, compared, losses)

    return seen


def _supervised(logps: jax.Array, batch: PreferenceBatch) -> tuple[Metrics, Any]:
    mask = jnp.asarray(batch.response_mask)[:, :1, 1:]
    total, tokens = masked_sum(logps, mask, axis=-1), jnp.sum(mask, axis=-1)
    each = {"loss": -total[:, 0] / jnp.maximum(tokens[:, 0], 1), "logp": total, "tokens": tokens}
    there = jnp.asarray(batch.candidate_mask)[:, 0]
    return {"loss": Mean.of(-logps, mask), "logp/chosen": Mean.of(total[:, 0], there)}, each


def _each(method: Method, compared: Candidates, losses: jax.Array) -> dict[str, jax.Array]:
    """Of each example its loss, and of each of its candidates where it stands."""
    each = {"loss": losses, "rewards": method.logits(compared)}
    if compared.policy is not None:
        each["logp"] = log_probability(compared, beta=1.0)
    return each if compared.reference is None else each | {"log_ratio": log_ratio(compared)}


def _told(batch: Batch, each: dict[str, jax.Array], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """The examples that are there, as text and numbers."""
    batch, numbers = jax.device_get((batch, each))
    count = next((x.shape[1] for x in numbers.values() if x.ndim == 2), 1)
    for i, there in enumerate(batch.candidate_mask[:, :count]):
        if not there.any():
            continue
        mask = batch.response_mask[i, 0]
        told: dict[str, Any] = {"prompt": tokenizer.decode(batch.tokens[i, 0, : int(mask.argmax())])}
        pairs = zip(batch.tokens[i, :count][there], batch.response_mask[i, :count][there], strict=True)
        told["responses"] = [tokenizer.decode(tokens[kept]) for tokens, kept in pairs]
        if batch.desirable is not None:
            told["desirable"] = bool(batch.desirable[i, 0])
        for name, x in numbers.items():
            told[name] = float(x[i]) if x.ndim == 1 else [float(one) for one in x[i][there]]
        yield told
