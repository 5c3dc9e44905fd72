"""A saved reward model as a function from texts to numbers: what sampling is rewarded by, and lists are ranked by."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from mi_align.data import Preference, encode_preferences, load_tokenizer, take, trimmed
from mi_align.models import load_pretrained
from mi_align.training.scoring import reward_scorer

__all__ = ["RewardFunction", "load_reward"]

#: (prompts, responses) -> the reward of each response, float32.
RewardFunction = Callable[[Sequence[str], Sequence[str]], Float[np.ndarray, " responses"]]

#: The shortest length to which texts are padded.
_SHORTEST = 32


def load_reward(
    folder: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
    max_prompt: int | None = None,
    max_response: int | None = None,
    batch: int = 32,
) -> RewardFunction:
    """The reward model in a folder, or of the Hub, as a function from prompts and responses to rewards.

    A text is BOS, prompt, response and EOS, as in training, and is read at its last token. Texts of similar lengths are
    scored together: there is one program for each power of two among lengths, and among numbers of texts up to `batch`.

    Args:
      folder: of safetensors, with a tokenizer, such as RUN/model; or the id of a repository on the Hub.
      tokenizer: "bytes", a folder or a Hub id. Default: the folder's own.
      dtype: of the parameters. Default: as in the files.
      max_prompt: most tokens of a prompt, which loses its beginning. Default: any number.
      max_response: most tokens of a response, which loses its end. Default: any number.
      batch: the most texts that are scored at a time.

    Returns:
      A function of as many prompts as responses; no text may be longer than the positions that the model has learned.

    Raises:
      FileNotFoundError: there is no such folder, or no tokenizer in it.
      ValueError: it is no reward model.
    """
    model = load_pretrained(folder, dtype=None if dtype is None else jnp.dtype(dtype))
    if not model.config.reward_head:
        raise ValueError(f"{folder} is no reward model: it has no head of scores. Train one with `mi-align reward`.")
    words = load_tokenizer(folder if tokenizer is None else tokenizer)
    limits = {"max_prompt": max_prompt or sys.maxsize, "max_response": max_response or sys.maxsize}
    scores = jax.jit(reward_scorer(model.graphdef))
    longest = model.config.learned_positions

    def reward(prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, " responses"]:
        if len(prompts) != len(responses):
            raise ValueError(f"there are {len(prompts)} prompts, but {len(responses)} responses: one each was wanted.")
        came = np.zeros(len(responses), np.float32)
        if not len(responses):
            return came
        texts = [Preference(*text, ()) for text in zip(prompts, responses, strict=True)]
        encoded, _ = encode_preferences(texts, words, **limits)
        time = encoded.tokens.shape[-1]
        lengths = time - encoded.response_mask[:, 0, ::-1].argmax(axis=-1)
        order = np.argsort(lengths, kind="stable")
        size = min(batch, _power_of_two(len(order)))
        for first in range(0, len(order), size):
            picked = order[first : first + size]
            filled = np.resize(picked, size)  # the last ones come again until they are as many
            bucket = max(_SHORTEST, _power_of_two(int(lengths[picked].max())))
            bucket = bucket if longest is None else min(bucket, max(longest, int(lengths[picked].max())))
            part = trimmed(take(encoded, filled), bucket)
            room = ((0, 0), (0, 0), (0, bucket - part.tokens.shape[-1]))
            part = part._replace(tokens=np.pad(part.tokens, room), response_mask=np.pad(part.response_mask, room))
            came[picked] = np.asarray(scores(model.params, part))[: len(picked), 0]
        return came

    return reward


def _power_of_two(number: int) -> int:
    """The smallest one that is no smaller."""
    return 1 << max(number - 1, 0).bit_length()
