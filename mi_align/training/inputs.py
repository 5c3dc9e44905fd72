"""From a run's configuration to what training takes: a model, a tokenizer and data as arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from mi_align import checks
from mi_align.data import (
    Buckets,
    EncodingCounts,
    Preference,
    PreferenceBatch,
    Tokenizer,
    cache_folder,
    cached_encoding,
    load_preferences,
    load_tokenizer,
)
from mi_align.methods import METHODS, Method
from mi_align.models import DecoderConfig, Pretrained, fresh_llama, fresh_reward_head, load_pretrained
from mi_align.models.config import COMPUTED
from mi_align.training.config import DataConfig, RunConfig
from mi_align.training.fitting import Note, arranged, fitted
from mi_align.training.on_policy.estimators import ESTIMATORS
from mi_align.training.readers import reads_divergence, reads_score, reads_vocabulary
from mi_align.training.sharding import mesh_of, spec_of
from mi_align.training.trained import with_adapter

if TYPE_CHECKING:
    from mi_align.training.on_policy.inputs import OnPolicyInputs

__all__ = [
    "SUPERVISED",
    "Inputs",
    "buckets_of",
    "held_out_of",
    "load_inputs",
    "load_offline",
    "method_of",
    "model_of",
    "total_steps",
    "with_head",
]

T = TypeVar("T")

#: Supervised learning: a row of the table, too, whose mean a token couples a batch; `supervised_loss` is the same in
#: totals and weights, which micro-batches add up exactly.
SUPERVISED = "sft"


class Inputs(NamedTuple):
    """What training begins with.

    Attributes:
      model: the policy before the first step, each device holding its part; a run takes over its arrays.
      tokenizer: of the data and of the model.
      tokenizer_name: what `load_tokenizer` was given.
      train: all examples as tokens.
      evaluation: those that training does not see; None: there are none.
      counts: what encoding cut, of training and evaluation data.
      method: the configured row; None for supervised learning.
      faults: rows that were left out, and why.
      notes: what became of the data so that the method can take them.
    """

    model: Pretrained
    tokenizer: Tokenizer
    tokenizer_name: str
    train: PreferenceBatch
    evaluation: PreferenceBatch | None
    counts: tuple[EncodingCounts, ...]
    method: Method | None
    faults: Sequence[str]
    notes: Sequence[str] = ()


def method_of(config: RunConfig) -> Method | None:
    """The configured row of the table; None for supervised learning.

    Raises:
      ValueError: no row has this name, it has no such hyper-parameter, or the settings do not give what it reads.
    """
    if config.method == SUPERVISED:
        if config.hyper:
            raise ValueError(f"`hyper` holds {', '.join(config.hyper)}, but supervised learning has none.")
        return None
    if config.method in ESTIMATORS:
        raise ValueError(
            f"{config.method!r} learns from responses that the policy draws in training. Say how they are rewarded: "
            "`on_policy: {reward: …}`."
        )
    if config.method not in METHODS and not any(config.method in row.aliases for row in METHODS.values()):
        raise checks.unknown_name("method", config.method, METHODS)
    method = METHODS[config.method].configure(**config.hyper)
    if config.evaluate_entropy and reads_score(method):
        raise ValueError(
            f"`evaluate_entropy` is set, but {method.name!r} trains a reward model, which has no distribution over "
            "tokens. Leave it out."
        )
    if reads_divergence(method) and config.reference != "live":
        raise ValueError(
            f"{method.name!r} reads KL(π_ref ‖ π) over the whole vocabulary at each token, which is too much to keep. "
            "Set `reference: live`."
        )
    if config.data.packing != "none" and reads_vocabulary(method):
        raise ValueError(
            f"{method.name!r} reads sums over the vocabulary, for which examples have rows of their own. Set "
            "`data.packing: none`."
        )
    return method


def load_inputs(config: RunConfig) -> Inputs | OnPolicyInputs:
    """Read and encode everything; what can be wrong with it is found here, before anything is trained."""
    if config.on_policy is not None:
        from mi_align.training.on_policy.inputs import load_on_policy  # which stands on this file

        return load_on_policy(config)
    return load_offline(config)


def load_offline(config: RunConfig) -> Inputs:
    """`load_inputs` of a run on the responses that its data hold."""
    method = method_of(config)
    tokens = config.data.tokenizer or config.model.pretrained or "bytes"
    tokenizer = load_tokenizer(tokens)
    faults: list[str] = []
    notes: list[str] = []
    train, evaluation = _preferences(config.data, tokenizer, faults)
    encoded = []
    for part, preferences in (("training", train), ("evaluation", evaluation)):
        if preferences:
            own: list[str] = []
            encoded.append(_encoded(preferences, config, tokenizer, method, own.append))
            notes += [f"{part}: {text}" for text in own]
    model = model_of(config, tokenizer, method)
    batches = [batch for batch, _ in encoded]
    held_out = batches[1] if len(batches) > 1 else None
    buckets = buckets_of(config, batches[0], total_steps(config, len(batches[0].tokens)))
    notes += [] if buckets is None else [f"training: {buckets}"]
    counts = tuple(c for _, c in encoded)
    return Inputs(model, tokenizer, str(tokens), batches[0], held_out, counts, method, faults, notes)


def total_steps(config: RunConfig, examples: int) -> int:
    """How many steps a run makes."""
    if config.steps is not None:
        return config.steps
    each = 1 if config.on_policy is None else config.on_policy.inner_steps
    return each * max(1, round(config.epochs * examples / config.batch))


def buckets_of(config: RunConfig, data: PreferenceBatch, steps: int) -> Buckets | None:
    """The order of batches of similar lengths; None where all are of one length."""
    wanted = config.data.buckets
    return None if not wanted else Buckets.of(data, wanted, batch=config.batch, seed=config.seed, steps=steps)


def _preferences(
    config: DataConfig, tokenizer: Tokenizer, faults: list[str]
) -> tuple[Sequence[Preference], Sequence[Preference]]:
    on_fault: Callable[[str], None] | None = faults.append if config.on_bad_row == "skip" else None
    chat = getattr(tokenizer, "chat", None)
    read = functools.partial(load_preferences, split=config.split, chat=chat, on_fault=on_fault)
    train = read(config.train, limit=config.limit, streaming=config.streaming)
    if config.evaluation is not None:
        return train, read(config.evaluation)
    return held_out_of(config, train)


def held_out_of(config: DataConfig, rows: Sequence[T]) -> tuple[Sequence[T], Sequence[T]]:
    """What is trained on, and the last rows, which are kept for evaluation."""
    if not 0 <= config.held_out < len(rows):
        raise ValueError(f"`held_out` is {config.held_out}, but a number from 0 to {len(rows) - 1} was wanted.")
    return rows[: len(rows) - config.held_out], rows[len(rows) - config.held_out :]


def _encoded(
    preferences: Sequence[Preference], config: RunConfig, tokenizer: Tokenizer, method: Method | None, note: Note
) -> tuple[PreferenceBatch, EncodingCounts]:
    data = config.data
    taken = fitted(preferences, method, negatives=data.negatives, threshold=data.threshold, note=note)
    limits = {"max_prompt": data.max_prompt, "max_response": data.max_response}
    batch, counts = cached_encoding(taken, tokenizer, **limits, folder=cache_folder(data.cache), note=note)
    return arranged(batch, method, note), counts


def model_of(config: RunConfig, tokenizer: Tokenizer, method: Method | None) -> Pretrained:
    """The model before the first step: as the settings name it, with the head that the method reads, and its adapter.

    Raises:
      FileNotFoundError: there is no such folder or file.
      ValueError: the files do not fit, or they are of a reward model, and the method trains a policy.
    """
    model = with_head(_base(config, tokenizer), config, method)
    if model.config.vocab_size < tokenizer.vocab_size:
        named = config.data.tokenizer or config.model.pretrained or "bytes"
        raise ValueError(
            f"the tokenizer {named!r} has {tokenizer.vocab_size:,} ids, but the model's vocabulary has "
            f"{model.config.vocab_size:,}. Name the model's own by `data.tokenizer`."
        )
    return with_adapter(config.model, model, config.seed)


def with_head(model: Pretrained, config: RunConfig, method: Method | None) -> Pretrained:
    """The model with the head that a method reads: a vocabulary's, or a reward's, which is drawn if there is none."""
    if reads_score(method) and not model.config.reward_head:
        return fresh_reward_head(model, jax.random.fold_in(jax.random.key(config.seed), 2))
    if model.config.reward_head and not reads_score(method):
        raise ValueError(
            f"{config.model.pretrained} is a reward model, which predicts no tokens, but {config.method!r} reads "
            "log-probabilities. Give a policy, or take 'bradley_terry' or 'plackett_luce_reward'."
        )
    return model


def _base(config: RunConfig, tokenizer: Tokenizer) -> Pretrained:
    dtype = None if config.model.dtype is None else jnp.dtype(config.model.dtype)
    if config.model.pretrained is not None:
        mesh = mesh_of(config)
        where = None if mesh is None else lambda path, shape: NamedSharding(mesh, spec_of(path, shape, mesh))
        return load_pretrained(config.model.pretrained, dtype=dtype, sharding=where, **config.model.computed)
    known = set(DecoderConfig.__dataclass_fields__) - {"vocab_size", "reward_head", *COMPUTED}
    for name in config.model.shape:
        if name not in known:
            raise checks.unknown_name("setting in `model.shape`", name, known)
    shape = DecoderConfig(vocab_size=tokenizer.vocab_size, **config.model.computed, **config.model.shape)
    return fresh_llama(shape, jax.random.key(config.seed), dtype=dtype or jnp.dtype("float32"))
