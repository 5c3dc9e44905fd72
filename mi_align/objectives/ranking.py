"""Lists of candidates in order of preference."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mi_align import checks
from mi_align.elementary import scaled_softplus
from mi_align.numerics import fill, masked_sum
from mi_align.objectives._lists import candidates, positions
from mi_align.objectives._public import objective

__all__ = ["plackett_luce_loss"]


@objective(top_k=checks.Range(at_least=1, remedy="It counts the ranks that matter."))
def plackett_luce_loss(
    scores: Float[Array, "*batch n"],
    *,
    where: Bool[Array, "*batch n"] | None = None,
    ties: Bool[Array, "*batch n"] | None = None,
    top_k: int | Int[Array, ""] | None = None,
) -> Float[Array, "*batch"]:
    """Negative log-likelihood of a ranking under the Plackett–Luce model, in nats.

    ℓ = Σ_i [log Σ_{j≥i} e^{s_j} − s_i],  s in order of preference, the best first

    Each stage picks the best of what is left.

    When to choose: full or partial rankings of several responses a prompt. If only the best one is known, use
    `info_nce_loss`.

    Args:
      scores: logits of n candidates, the best first, `[..., n]`, n ≥ 1.
      where: which candidates are in the ranking, `[..., n]`, True = keep. Default all.
      ties: True for a candidate that is level with the kept one before it, `[..., n]`. Each of a level competes with
        its whole level and all below (Breslow's convention), so that their order among themselves means nothing.
        Default none.
      top_k: how many of the kept ranks count, ≥ 1; those below are only competitors. Default all.

    Returns:
      One loss a list, `[...]`, in nats, ≥ 0; half precision comes back as float32. 0 where nothing is kept.

    Raises:
      ValueError: a list is empty, a mask is not of the scores' shape, or `top_k` < 1.
      TypeError: scores are not floating-point, or a mask is not boolean.

    Gradient: ∂ℓ/∂s_k = Σ_{i≤k} p_i(k) − 1, p_i the softmax over candidates i … n; the sum ends at `top_k`, and so does
    the 1.

    Equal to: `info_nce_loss` for `top_k=1`; `bradley_terry_loss` for n = 2 (ledger 17). Shifts of all logits change
    nothing (ledger 46).

    Source: Luce 1959; Plackett 1975; Rafailov et al. 2023 (arXiv 2305.18290), app. A.3; Breslow 1974 for ties. rax's
    `list_mle_loss` sorts by labels first and breaks ties by position.

    >>> import jax.numpy as jnp
    >>> plackett_luce_loss(jnp.array([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])).round(3)
    Array([0.721, 1.792], dtype=float32)
    >>> plackett_luce_loss(jnp.zeros((1, 3)), ties=jnp.array([[False, True, False]])).round(4)
    Array([2.1972], dtype=float32)
    """
    (scores,) = candidates(scores, where)
    checks.mask(ties, scores, name="ties")
    kept = jnp.ones(scores.shape, bool) if where is None else where
    lowest = float(jnp.finfo(scores.dtype).min)
    best, total = _tails(fill(scores, where, lowest), kept)
    scores = fill(scores, where, 0)
    against = scaled_softplus(_next(best, lowest) - scores, _next(total, 0))
    if ties is not None:
        start = _starts_of_levels(ties, kept)
        best, total = (jnp.take_along_axis(x, start, axis=-1) for x in (best, total))
        against = jnp.where(start == positions(scores), against, best - scores + jnp.log(total))
    if top_k is not None:
        checks.integers(top_k=top_k)
    counted = kept if top_k is None else kept & (jnp.cumsum(kept, axis=-1) <= top_k)
    return masked_sum(against, counted, axis=-1)


def _tails(scores: Array, kept: Array) -> tuple[Array, Array]:
    """For every i the largest of s_i … s_n, a constant to derivatives, and Σ_{j≥i} e^{s_j − largest}.

    The two parts stay apart because their sum, log Σ e^{s_j}, would round the largest away from the scores that it is
    compared with.
    """
    best = jax.lax.stop_gradient(scores)
    total = fill(jnp.exp(scores - best), kept, 0)
    return jax.lax.associative_scan(_join, (best, total), reverse=True, axis=scores.ndim - 1)


def _join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    best = jnp.maximum(a[0], b[0])
    return best, a[1] * jnp.exp(a[0] - best) + b[1] * jnp.exp(b[0] - best)


def _next(x: Array, end: float) -> Array:
    """Every entry's successor on the last axis, and `end` for the last."""
    return jnp.concatenate([x[..., 1:], jnp.full_like(x[..., :1], end)], axis=-1)


def _starts_of_levels(ties: Array, kept: Array) -> Array:
    """For every candidate the position of the first kept one on its level."""
    axis = ties.ndim - 1
    opens_level = kept & (~ties | (jnp.cumsum(kept, axis=axis) == 1))
    return jax.lax.cummax(jnp.where(opens_level, positions(ties), 0), axis=axis)
