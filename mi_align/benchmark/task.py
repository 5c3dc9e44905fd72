"""What every contender computes at one shape: token log-probabilities, or a whole preference loss of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from mi_align import checks
from mi_align.critics import Candidates
from mi_align.logprobs.cases import Case
from mi_align.methods import METHODS, Method

__all__ = ["LOGPS", "NEGATIVES", "Task", "chosen_methods", "logps_task", "method_task"]

#: The name of the task that is no method.
LOGPS = "token_logps"

#: Rejected responses of each prompt, where a method takes several.
NEGATIVES = 4

_PROMPTS = 4
_PROBED_ROWS = 48
_PROBED_TIMES = 4
_SPREAD = 2.0  # standard deviation of the logits


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """Inputs, what is made of the log-probabilities, and a probe on which the truth is cheap.

    Attributes:
      name: `LOGPS`, or the method's.
      case: sizes; its tokens are all positions together.
      dtype: of hidden states and vocabulary.
      hidden: `[*positions, D]`.
      vocabulary: `[V, D]`.
      targets: `[*positions]`.
      outcome: (logps `[*positions]`, argument `[*positions]`) -> what is summed: weighed tokens, or losses.
      argument: what the timed calls get: random weights of tokens, or the response mask.
      probe: the argument on which the gate is run: as the timed one at few positions, 0 or False at all others. The
        program under test runs at its full size, and what comes out depends on these positions alone.
      half: for contenders that score half of the positions: which; the probe's are among them.
      masked: whether the argument is a mask, that contenders may use.
      candidates: responses a prompt.
    """

    name: str
    case: Case
    dtype: str
    hidden: Array
    vocabulary: Array
    targets: Array
    outcome: Callable[[Array, Array], Array]
    argument: Array
    probe: Array
    half: Array | None
    masked: bool
    candidates: int = 0

    @property
    def tokens(self) -> int:
        """Number of positions, those in place of a whole last prompt left out."""
        return math.prod(self.targets.shape)


def _drawn(case: Case, dtype: str, positions: tuple[int, ...], seed: int) -> tuple[Array, Array, Array]:
    """Hidden states, vocabulary and targets such that logits have a standard deviation of 2."""
    rng = np.random.default_rng(seed)
    hidden = rng.standard_normal((*positions, case.features), np.float32)
    vocabulary = rng.standard_normal((case.vocab, case.features), np.float32)
    vocabulary *= _SPREAD / math.sqrt(case.features)
    targets = rng.integers(0, case.vocab, positions, np.int32)
    return jnp.asarray(hidden, jnp.dtype(dtype)), jnp.asarray(vocabulary, jnp.dtype(dtype)), jnp.asarray(targets)


def logps_task(case: Case, dtype: str, *, seed: int = 0) -> Task:
    """Log-probabilities of `case.tokens[0]` positions, summed with random weights."""
    tokens = case.tokens[0]
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(tokens).astype(np.float32)
    probed = np.unique([0, tokens - 1, *rng.choice(tokens, min(_PROBED_ROWS, tokens), replace=False)])
    half = rng.permutation(tokens) < tokens // 2
    probed = probed[half[probed]] if half[probed].any() else probed
    half[probed] = True
    return Task(
        LOGPS,
        case,
        dtype,
        *_drawn(case, dtype, (tokens,), seed),
        outcome=lambda logps, weights: logps * weights,
        argument=jnp.asarray(weights),
        probe=jnp.zeros(tokens, jnp.float32).at[probed].set(weights[probed]),
        half=jnp.asarray(half),
        masked=False,
    )


def method_task(name: str, case: Case, dtype: str, *, seed: int = 0) -> Task:
    """A method's losses from the hidden states of four prompts' responses, about `case.tokens[0]` positions in all.

    Raises:
      ValueError: there is no such method, or it reads more than token log-probabilities, or there are too few tokens.
    """
    method = METHODS[name]
    count = _candidates(method)
    time = case.tokens[0] // (_PROMPTS * count)
    if time < 1:
        raise ValueError(f"{case.tokens[0]} tokens are too few for {_PROMPTS} prompts of {count} responses each.")
    positions = (_PROMPTS, count, time)
    noise = np.random.default_rng(seed + 1).standard_normal(positions, np.float32)
    reference = jnp.asarray(-math.log(case.vocab) - 1 + 0.1 * noise)
    everything = jnp.ones(positions, bool)
    return Task(
        name,
        case.at(math.prod(positions)),
        dtype,
        *_drawn(case, dtype, positions, seed),
        outcome=lambda logps, mask: method(_compared(logps, reference.astype(logps.dtype), mask)),
        argument=everything,
        probe=jnp.zeros(positions, bool)
        .at[..., np.linspace(0, time - 1, min(_PROBED_TIMES, time)).astype(int)]
        .set(True),
        half=None,
        masked=True,
        candidates=count,
    )


def _compared(logps: Array, reference: Array, mask: Array) -> Candidates:
    """What is known of each prompt's candidates; the chosen one has the largest reward."""
    shape = logps.shape[:-1]
    return Candidates(
        policy=logps,
        reference=reference,
        response_mask=mask,
        reward=jnp.broadcast_to(-jnp.arange(shape[-1], dtype=logps.dtype), shape),
        reference_point=jnp.zeros((), logps.dtype),
    )


def _candidates(method: Method) -> int:
    """How many responses a prompt a method is timed with: `1 + NEGATIVES` if it takes them, else 2 or 3."""
    refusals = []
    for count in (1 + NEGATIVES, 2, 3):
        logps = jax.ShapeDtypeStruct((_PROMPTS, count, 2), jnp.float32)
        mask = jax.ShapeDtypeStruct(logps.shape, bool)
        try:
            jax.eval_shape(lambda x, m: method(_compared(x, x, m)), logps, mask)
        except ValueError as error:
            refusals.append(str(error))
        else:
            return count
    raise ValueError(
        f"the method {method.name!r} cannot be timed on token log-probabilities alone: {refusals[1]} "
        "Leave it out of `--methods`."
    )


def chosen_methods(names: str) -> tuple[str, ...]:
    """Comma-separated names of methods, each known and fit to be timed; "none" is none."""
    if names == "none":
        return ()
    chosen = tuple(name.strip() for name in names.split(",") if name.strip())
    for name in chosen:
        if name not in METHODS:
            raise checks.unknown_name("method", name, METHODS)
        _candidates(METHODS[name])
    return chosen
