"""The plain way: all logits at once. It is what every faster way is measured against.

It is differentiated by JAX, forwards, backwards and more than once. Shape suffixes: N rows, D features, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from mi_align.logprobs.contract import Problem, RowSums
from mi_align.numerics import as_float, fill, log_sum_exp, pivot

__all__ = ["row_sums"]


def row_sums(problem: Problem, where: Bool[Array, " N"] | None = None, *, statistics: bool = False) -> RowSums:
    """Sums over the vocabulary of each row, from `[N, V]` logits; those of a zero hidden state under the mask.

    Args:
      problem: its `kept` and `entries` are not looked at.
      where: rows that are wanted.
      statistics: whether all of `RowSums` is wanted.
    """
    hidden_ND, vocabulary_VD = as_float(problem.hidden, problem.vocabulary)
    hidden_ND = fill(hidden_ND, None if where is None else where[:, None], 0)
    z_NV = jnp.einsum("nd,vd->nv", hidden_ND, vocabulary_VD, precision=jax.lax.Precision.HIGHEST)
    z_NV = z_NV if problem.scale is None else z_NV * problem.scale
    z_NV = z_NV if problem.bias is None else z_NV + problem.bias.astype(z_NV.dtype)[None, :]
    if problem.soft_cap is not None:
        z_NV = problem.soft_cap * jnp.tanh(z_NV / problem.soft_cap)
    chosen_N = jnp.take_along_axis(z_NV, problem.targets[:, None], axis=-1)[:, 0]
    top_N1 = pivot(z_NV, axis=-1)
    below_NV = z_NV - top_N1
    log_mass_N = log_sum_exp(below_NV, axis=-1)
    sums = RowSums(chosen_N, top_N1[:, 0], log_mass_N)
    if not statistics:
        return sums
    p_NV = jnp.exp(below_NV - log_mass_N[:, None])
    return sums._replace(
        gap=jnp.sum(p_NV * jnp.where(p_NV > 0, below_NV, 0), axis=-1),
        sum_squares=jnp.sum(jnp.square(p_NV), axis=-1),
        mean_logit=jnp.mean(z_NV, axis=-1),
        argmax=jnp.argmax(z_NV, axis=-1).astype(jnp.int32),
    )
