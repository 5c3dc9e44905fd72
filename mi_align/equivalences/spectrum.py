"""Eigenvalues of small symmetric matrices, as plain array operations.

Not by `jnp.linalg.eigh`: on a CPU it is a LAPACK call, whose batch JAX 0.10 hands out, in parts, to the threads of the
pool that it occupies one of, and waits. When as many such calls are under way as the pool has threads, all wait for
ever; claims make several of them in one program and run in threads. Rotations in the plane need no pool, and of
matrices of a few rows they are as exact and as fast.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["Spectrum", "spectrum"]

#: Sweeps over all pairs of rows, beside one a row. Once small, off-diagonal entries shrink quadratically: 4 rows
#: have converged after six sweeps, 12 rows after eleven, with eigenvalues that are equal after fourteen.
_SWEEPS = 4


class Spectrum(NamedTuple):
    """Eigenvalues, in no particular order, and their eigenvectors: `directions[:, i]` belongs to `values[i]`."""

    values: Float[Array, "n"]
    directions: Float[Array, "n n"]


def spectrum(matrix: Float[Array, "n n"]) -> Spectrum:
    """The eigenvalues and eigenvectors of a symmetric matrix of a dozen rows at most, by Jacobi's rotations.

    Args:
      matrix: symmetric, `[n, n]`; `vmap` it for a batch.

    Source: Golub & Van Loan, Matrix Computations (4th ed.), algorithm 8.5.2, in cyclic order.

    >>> import jax.numpy as jnp
    >>> jnp.sort(spectrum(jnp.array([[2.0, 1.0], [1.0, 2.0]])).values)
    Array([1., 3.], dtype=float32)
    """
    n = matrix.shape[0]
    pairs = np.asarray(list(itertools.combinations(range(n), 2))).reshape(-1, 2)
    start = (matrix, jnp.eye(n, dtype=matrix.dtype))
    if not len(pairs):
        return Spectrum(jnp.diagonal(matrix), start[1])

    def rotated(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, directions = state
        p, q = jnp.asarray(pairs)[k % len(pairs)]
        cos, sin = _rotation(a[p, p], a[q, q], a[p, q])
        a = _turned(_turned(a, p, q, cos, sin).T, p, q, cos, sin)
        return a, _turned(directions.T, p, q, cos, sin).T

    diagonal, directions = jax.lax.fori_loop(0, (_SWEEPS + n) * len(pairs), rotated, start)
    return Spectrum(jnp.diagonal(diagonal), directions)


def _rotation(first: Array, second: Array, between: Array) -> tuple[Array, Array]:
    """Cosine and sine of the smaller angle that makes [[first, between], [between, second]] diagonal."""
    is_diagonal = between == 0
    ratio = (second - first) / (2 * jnp.where(is_diagonal, 1, between))
    tangent = jnp.where(ratio < 0, -1, 1) / (jnp.abs(ratio) + jnp.hypot(1, ratio))
    tangent = jnp.where(is_diagonal, 0, tangent)
    cos = 1 / jnp.hypot(1, tangent)
    return cos, tangent * cos


def _turned(a: Array, p: Array, q: Array, cos: Array, sin: Array) -> Array:
    """The matrix with its rows p and q turned into each other."""
    return a.at[p].set(cos * a[p] - sin * a[q]).at[q].set(sin * a[p] + cos * a[q])
