"""What a run on its own responses begins with: prompts as arrays, a model, a reward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax

from mi_align import checks
from mi_align.data import (
    EncodingCounts,
    Prompt,
    PromptBatch,
    Tokenizer,
    encode_prompts,
    load_prompts,
    load_tokenizer,
)
from mi_align.methods import METHODS, Method
from mi_align.models import Pretrained
from mi_align.training.inputs import SUPERVISED, held_out_of, model_of
from mi_align.training.on_policy.config import OnPolicyConfig
from mi_align.training.on_policy.estimators import ESTIMATORS, advantage_of, hyper_of
from mi_align.training.on_policy.pairs import check_pairs
from mi_align.training.on_policy.reward_functions import Reward, load_reward_function

if TYPE_CHECKING:
    from mi_align.training.config import RunConfig

__all__ = ["OnPolicyInputs", "load_on_policy", "needs_reference", "pairwise_method", "settings_of"]


class OnPolicyInputs(NamedTuple):
    """As `training.inputs.Inputs`, with prompts in the place of preferences.

    Attributes:
      model: the policy before the first step; a run takes over its arrays.
      tokenizer: of the data and of the model.
      tokenizer_name: what `load_tokenizer` was given.
      train: prompts.
      evaluation: those that training does not see; None: there are none.
      counts: what encoding cut.
      method: the configured row of a pairwise method; None for a policy gradient.
      reward: of responses.
      faults: rows that were left out, and why.
      notes: what else became of the data.
    """

    model: Pretrained
    tokenizer: Tokenizer
    tokenizer_name: str
    train: PromptBatch
    evaluation: PromptBatch | None
    counts: tuple[EncodingCounts, ...]
    method: Method | None
    reward: Reward
    faults: Sequence[str]
    notes: Sequence[str] = ()


def settings_of(config: RunConfig) -> OnPolicyConfig:
    """The part of a run's settings that this room is about.

    Raises:
      ValueError: there is none.
    """
    if config.on_policy is None:
        raise ValueError(f"{config.method!r} learns from its own responses. Add `on_policy: {{reward: …}}`.")
    return config.on_policy


def pairwise_method(config: RunConfig) -> Method | None:
    """The configured row of the table; None for a policy gradient, whose settings have been looked at then.

    Raises:
      ValueError: neither has this name, or settings do not go together.
    """
    own = settings_of(config)
    if config.method in ESTIMATORS:
        advantage_of(config.method, own.advantage, samples=own.samples, responses=own.samples * config.batch)
        hyper_of(config.method, config.hyper, longest=own.max_new_tokens)
        if own.inner_steps > 1 and not ESTIMATORS[config.method].reuses:
            raise ValueError(
                f"`on_policy.inner_steps` is {own.inner_steps}, but {config.method!r} is right on fresh responses "
                "alone. Set it to 1, or take 'ppo', which weighs them by π/π_old."
            )
        return None
    if config.method == SUPERVISED or not _is_row(config.method):
        names = {**ESTIMATORS, **METHODS}
        raise checks.unknown_name("method with `on_policy`", config.method, names)
    method = METHODS[config.method].configure(**config.hyper)
    check_pairs(method, own.samples)
    if own.kl_weight or own.advantage is not None:
        raise ValueError(
            f"`on_policy.kl_weight` and `on_policy.advantage` are a policy gradient's, but the method is "
            f"{method.name!r}, whose own price of KL is `hyper.beta`. Leave them out."
        )
    return method


def _is_row(name: str) -> bool:
    return name in METHODS or any(name in row.aliases for row in METHODS.values())


def needs_reference(config: RunConfig, method: Method | None) -> bool:
    """Whether a run cannot do without the reference's log-probabilities."""
    return settings_of(config).kl_weight > 0 if method is None else method.needs_reference


def load_on_policy(config: RunConfig) -> OnPolicyInputs:
    """Read and encode everything; what can be wrong with it is found here, before anything is trained.

    Raises:
      ValueError: settings do not go together, or what they name is not what was wanted.
    """
    if jax.process_count() > 1:
        raise ValueError("runs with `on_policy` are of one host so far, with all its devices.")
    method = pairwise_method(config)
    if needs_reference(config, method) and config.reference != "live":
        raise ValueError(
            f"{config.method!r} compares responses with a reference that nobody has scored yet: they are new in each "
            "step. Set `reference: live`."
        )
    reward = load_reward_function(settings_of(config).reward)
    name = config.data.tokenizer or config.model.pretrained or "bytes"
    tokenizer = load_tokenizer(name)
    faults: list[str] = []
    parts = _prompts(config, tokenizer, faults)
    encoded = [encode_prompts(p, tokenizer, max_prompt=config.data.max_prompt) for p in parts if p]
    counts = tuple(EncodingCounts(len(batch.tokens), cut, 0, 0) for batch, cut in encoded)
    evaluation = encoded[1][0] if len(encoded) > 1 else None
    model = model_of(config, tokenizer, method)
    return OnPolicyInputs(model, tokenizer, str(name), encoded[0][0], evaluation, counts, method, reward, faults)


def _prompts(config: RunConfig, tokenizer: Tokenizer, faults: list[str]) -> tuple[Sequence[Prompt], Sequence[Prompt]]:
    data = config.data
    on_fault: Callable[[str], None] | None = faults.append if data.on_bad_row == "skip" else None
    chat = getattr(tokenizer, "chat", None)
    read = functools.partial(load_prompts, split=data.split, chat=chat, on_fault=on_fault)
    train = read(data.train, limit=data.limit, streaming=data.streaming)
    return (train, read(data.evaluation)) if data.evaluation is not None else held_out_of(data, train)
