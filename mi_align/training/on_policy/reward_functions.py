"""Where rewards come from: a function by its name or file, a folder of a reward model; and what they have to be."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from mi_align import checks
from mi_align.data import Prompt, solve
from mi_align.plugins import line_in, load_module

__all__ = ["BUILT_IN", "Reward", "RewardFunction", "arithmetic", "load_reward_function"]

#: (prompts, responses) -> a number each. One with a third argument is given the rows that the prompts came from.
RewardFunction = Callable[..., Any]
#: (prompts, responses) -> rewards that have been looked at, float32.
Reward = Callable[[Sequence[Prompt], Sequence[str]], Float[np.ndarray, "responses"]]


def arithmetic(prompts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "responses"]:
    """1 for the right answer to a sum like "37+48=", 0 for anything else.

    >>> arithmetic(["37+48=", "37+48="], ["85", "75"]).tolist()
    [1.0, 0.0]
    """
    return np.array([float(response == solve(prompt)) for prompt, response in zip(prompts, responses, strict=True)])


BUILT_IN: Mapping[str, RewardFunction] = {"arithmetic": arithmetic}


def load_reward_function(name: str) -> Reward:
    """The reward that `on_policy.reward` names, with its results looked at.

    Args:
      name: one of `BUILT_IN`; `package.module:function`; `path.py:function`; or the folder of a reward model.

    Raises:
      ValueError: there is no such function.
      FileNotFoundError: there is no such file or folder.
    """
    return _checked(name, _found(name))


def _found(name: str) -> RewardFunction:
    if name in BUILT_IN:
        return BUILT_IN[name]
    if Path(name).is_dir():
        return _of_model(name)
    place, colon, function = name.rpartition(":")
    if not colon or not place or not function:
        if "/" in name:
            raise FileNotFoundError(f"there is no folder {name!r} of a reward model, which `on_policy.reward` names.")
        raise ValueError(
            f"`on_policy.reward` is {name!r}, but {', '.join(map(repr, BUILT_IN))}, `package.module:function`, "
            "`path.py:function` or the folder of a reward model was wanted."
        )
    module = load_module(Path(place), "a reward") if place.endswith(".py") else _imported(place)
    found = getattr(module, function, None)
    if not callable(found):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise checks.unknown_name(f"function in {place}", function, known)
    return found


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"`on_policy.reward` names the module {module!r}, but {error}. Give the path of its file, which ends in "
            ".py, or install it."
        ) from None


def _of_model(folder: str) -> RewardFunction:
    rewards = _imported("mi_align.training.rewards")
    return rewards.load_reward(folder)


def _checked(name: str, function: RewardFunction) -> Reward:
    rows_too = _takes_rows(function)

    def reward(prompts: Sequence[Prompt], responses: Sequence[str]) -> Float[np.ndarray, "responses"]:
        texts = [prompt.text for prompt in prompts]
        rows = ([prompt.row for prompt in prompts],) if rows_too else ()
        try:
            came = function(texts, list(responses), *rows)
        except Exception as error:
            code = getattr(function, "__code__", None)
            at = "" if code is None else f" ({code.co_filename}{line_in(error, code.co_filename)})"
            raise ValueError(
                f"the reward {name!r}{at} failed: {type(error).__name__}: {error}. {_told(len(texts))}, the first: "
                f"{_pair(texts[0], responses[0])}"
            ) from error
        return _numbers(name, came, texts, responses)

    return reward


def _takes_rows(function: RewardFunction) -> bool:
    """Whether it has a third argument without a default, or any number of them."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return len(places) > 2 and places[2].default is inspect.Parameter.empty


def _numbers(name: str, came: Any, texts: Sequence[str], responses: Sequence[str]) -> Float[np.ndarray, "responses"]:
    try:
        numbers = np.asarray(came, np.float32)
    except (TypeError, ValueError):
        raise ValueError(
            f"the reward {name!r} gave {_short(came)}, but {_told(len(texts))} and as many numbers were wanted. "
            f"The first: {_pair(texts[0], responses[0])}"
        ) from None
    if numbers.shape != (len(texts),):
        raise ValueError(
            f"the reward {name!r} gave numbers of shape {list(numbers.shape)}, but one for each of "
            f"{len(texts)} responses was wanted: [{len(texts)}]. The first: {_pair(texts[0], responses[0])}"
        )
    wrong = np.flatnonzero(~np.isfinite(numbers))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(
            f"the reward {name!r} gave {numbers[i]} for {_pair(texts[i], responses[i])}, but a finite number was "
            "wanted."
        )
    return numbers


def _told(count: int) -> str:
    return f"there were {count} responses"


def _pair(prompt: str, response: str) -> str:
    return f"prompt {_short(prompt)}, response {_short(response)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]} … {text[-60:]}"
