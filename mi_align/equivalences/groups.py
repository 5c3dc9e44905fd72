"""Groups of samples from a policy over a handful of responses: every group that can be drawn, with its probability.

An expectation over samples is then a finite sum, and a claim about it can be checked to the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlog1py, xlogy
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from mi_align.equivalences.claim import Inputs
from mi_align.objectives import group_advantage, grpo_loss, kl_regularised_value

__all__ = [
    "all_groups",
    "between",
    "binomial_law",
    "expected_grpo_step",
    "expected_step",
    "group_chances",
    "judged_policy",
    "normals",
    "regularised_optimum",
    "reward_group",
    "success_gradient",
    "verdicts",
]

GroupLoss = Callable[[Array, Array], Array]


def all_groups(responses: int, size: int) -> Float[np.ndarray, "groups size responses"]:
    """Every sequence of `size` responses, each response as a row of the identity."""
    indices = np.indices((responses,) * size).reshape(size, -1).T
    return np.eye(responses)[indices]


def group_chances(log_policy: Float[Array, "responses"], size: int) -> Float[Array, "groups"]:
    """The probability of each of `all_groups` under independent sampling."""
    counts = all_groups(len(log_policy), size).sum(axis=1)
    return jnp.exp(jnp.asarray(counts, log_policy.dtype) @ log_policy)


def expected_step(
    loss: GroupLoss, logits: Float[Array, "responses"], reward: Float[Array, "responses"], *, size: int
) -> Float[Array, "responses"]:
    """What gradient descent on `loss` does to the policy's logits on average over every group it can sample.

    Args:
      loss: the log-probabilities of every group's responses, relative to those that the responses were sampled with,
        and their rewards -> one loss a group.
      logits: the policy's, which also samples.
      reward: of each response.
      size: how many responses a group has.

    Returns:
      −E[∂ℓ/∂logits], the responses held fixed while differentiating, as a training step does.
    """
    groups = jnp.asarray(all_groups(len(logits), size), logits.dtype)
    rewards = groups @ reward.astype(logits.dtype)
    pull = -jax.grad(lambda log_ratio: jnp.sum(loss(log_ratio, rewards)))(jnp.zeros_like(rewards))
    push = jnp.einsum("m,mg,mgn->n", group_chances(jax.nn.log_softmax(logits), size), pull, groups)
    return push - jnp.sum(push) * jax.nn.softmax(logits)


def expected_grpo_step(x: Inputs, *, size: int) -> Float[Array, "responses"]:
    """GRPO's expected step on a `judged_policy` that samples; one token an answer, population deviation, ε = 0."""

    def loss(log_ratio: Array, reward: Array) -> Array:
        advantage = group_advantage(reward, correction=0.0, eps=0.0)
        new = log_ratio[..., None]
        return jnp.mean(grpo_loss(new, jnp.zeros_like(new), advantage), axis=-1)

    return expected_step(loss, x["logits"], x["right"], size=size)


def success_gradient(x: Inputs) -> tuple[Float[Array, ""], Float[Array, "responses"]]:
    """p, a `judged_policy`'s chance of being right, and ∂p/∂logits = π (r − p)."""
    policy = jax.nn.softmax(x["logits"])
    p = jnp.sum(policy * x["right"])
    return p, policy * (x["right"] - p)


def binomial_law(p: Float[Array, "*batch"], trials: int) -> Float[Array, "*batch counts"]:
    """The probabilities of 0 … `trials` successes."""
    count = jnp.arange(trials + 1, dtype=p.dtype)
    log_ways = jnp.asarray([math.log(math.comb(trials, c)) for c in range(trials + 1)], p.dtype)
    right, wrong = xlogy(count, p[..., None]), xlog1py(trials - count, -p[..., None])
    return jnp.exp(log_ways + right + wrong)


def regularised_optimum(
    logits: Float[Array, "responses"],
    log_reference: Float[Array, "responses"],
    reward: Float[Array, "responses"],
    *,
    beta: Float[Array, ""],
) -> Float[Array, "responses"]:
    """log π* of E_π[r] − β KL(π ‖ π_ref), by one step of mirror ascent at rate 1/β from the policy `logits`.

    The step π ↦ π e^{v/β}, v the library's `kl_regularised_value` of each response, lands there from any policy.
    """
    logp = jax.nn.log_softmax(logits)
    value = kl_regularised_value(logp, log_reference, reward.astype(logp.dtype), beta=beta)
    return jax.nn.log_softmax(logp + value / beta)


def verdicts(noise: Float[Array, ""], responses: int) -> Bool[Array, "responses"]:
    """Which responses are right: any of them, but neither all nor none; from one standard normal number."""
    codes = np.arange(1, 2**responses - 1)
    table = (codes[:, None] >> np.arange(responses)) & 1 > 0
    return jnp.asarray(table)[between(0, len(codes), noise).astype(int)]


def between(low: float | Array, high: float | Array, noise: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Standard normal numbers carried into the open interval (low, high)."""
    return low + (high - low) * jax.nn.sigmoid(2 * noise)


def normals(key: PRNGKeyArray, **shapes: tuple[int, ...]) -> dict[str, Float[Array, "..."]]:
    """Nearly normal arrays by name, of mean 0, variance 1 and below 3.5, all from one call: a call is dear to compile.

    A number is the sum of four uniform ones, the quarters of one random word; that costs a tenth of what the inverse of
    the normal law does. The word's own value fills the digits that the sum leaves empty.
    """
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    words = jax.random.bits(key, (int(ends[-1]),), jnp.uint64)
    quarters = sum(((words >> 16 * i) & 0xFFFF).astype(jnp.int32) for i in range(4))
    rest = words.astype(jnp.int64).astype(float) * 2.0**-64
    parts = jnp.split(math.sqrt(3) * 2.0**-16 * (quarters - 2 * 0xFFFF + rest), ends[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def judged_policy(responses: int) -> Callable[[PRNGKeyArray], Inputs]:
    """A draw: a policy's `logits`, which responses are `right`, and `beta`."""

    def draw(key: PRNGKeyArray) -> Inputs:
        x = normals(key, logits=(responses,), right=(), beta=())
        return {"logits": x["logits"], "right": verdicts(x["right"], responses), "beta": between(0.1, 2.0, x["beta"])}

    return draw


def reward_group(key: PRNGKeyArray) -> Inputs:
    """A draw: a group's `reward` and `where`; the first two are kept, and differ by enough to divide by."""
    x = normals(key, reward=(6,), where=(6,))
    first = x["reward"][1] + 0.5 + jnp.abs(x["reward"][0])
    return {"reward": 2 * x["reward"].at[0].set(first), "where": (x["where"] > 0).at[:2].set(True)}
