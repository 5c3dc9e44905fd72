"""pass@k: how likely at least one of k samples is right, from n samples of which c were."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mi_align import checks

__all__ = ["pass_at_k"]


Count = int | Int[Array, "*#batch"] | Int[np.ndarray, "*#batch"]


def pass_at_k(correct: Count, total: Count, k: Count) -> Float[Array, "*batch"]:
    """Unbiased estimate of the chance that at least one of k samples is right, from n samples of which c were right.

    pass@k = 1 − C(n−c, k) / C(n, k) = 1 − Π_{i=n−c+1}^{n} (1 − k/i)

    It is the share of right answers at k = 1, and whether there was one at k = n. The estimate that first comes to
    mind, 1 − (1 − c/n)ᵏ, is too low on average.

    The arguments broadcast against each other: `pass_at_k(correct[:, None], total, jnp.arange(1, total + 1))` is one
    curve a prompt. The chance is built up one sample at a time from terms that are not negative, so that no factorial
    overflows and small chances keep their digits: relative error below 3 min(c, k) ulp.

    Args:
      correct: c, how many samples were right; integers, 0 ≤ c ≤ n.
      total: n, how many samples were drawn; integers, at least 1.
      k: how many samples one may try; integers, 1 ≤ k ≤ n.

    Returns:
      The estimates, in [0, 1], in JAX's default floating-point dtype.

    Raises:
      TypeError: a count is not an integer.
      ValueError: a count is out of range. Concrete Python and NumPy numbers are looked at; traced ones, and arrays on a
        device, are not.

    Gradient: none, the arguments are counts.

    Equal to: 1 − (1 − p)ᵏ on average over c ~ Binomial(n, p) (ledger 41).

    Source: Chen et al. 2021 (arXiv 2107.03374), eq. 1, whose code multiplies 1 − k/i and subtracts from 1 at the end:
    the digits of small chances are lost there.

    >>> pass_at_k(3, 10, 2).round(4)
    Array(0.5333, dtype=float32)
    """
    checks.integers(correct=correct, total=total, k=k)
    checks.number("total", total, checks.Range(at_least=1))
    checks.number("correct", correct, checks.Range(at_least=0))
    checks.number("k", k, checks.Range(at_least=1))
    checks.no_more_than("total", total, correct=correct, k=k)
    return _pass_at_k(correct, total, k)


@jax.jit
def _pass_at_k(correct: Array, total: Array, k: Array) -> Float[Array, "*batch"]:
    correct, total, k = jnp.broadcast_arrays(correct, total, k)
    # Of k draws the next is right with chance c/(n − j) if j were wrong; of c right answers, likewise, the next is
    # drawn with chance k/(n − j) if j were not. Both end at the same chance: the shorter way is taken.
    steps, share = jnp.minimum(correct, k), jnp.maximum(correct, k)

    def take_one(j: Array, passed: Array) -> Array:
        hit = share.astype(passed.dtype) / jnp.maximum(total - j, 1).astype(passed.dtype)
        return jnp.where(j < steps, passed + (1 - passed) * hit, passed)

    return jax.lax.fori_loop(0, jnp.max(steps, initial=0), take_one, jnp.zeros(steps.shape, float))
