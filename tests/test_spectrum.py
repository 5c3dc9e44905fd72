"""Eigenvalues of small symmetric matrices, beside NumPy's."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mi_align.equivalences.spectrum import spectrum


def _hessians_of_softmax(rng: np.random.Generator, batch: int, n: int) -> np.ndarray:
    """diag(p) − p pᵀ: what the ledger's Hessians look like; eigenvalues over many magnitudes, one of them 0."""
    p = np.exp(3 * rng.standard_normal((batch, n)))
    p /= p.sum(-1, keepdims=True)
    return np.eye(n) * p[:, None] - p[:, :, None] * p[:, None]


def _random(rng: np.random.Generator, batch: int, n: int) -> np.ndarray:
    a = rng.standard_normal((batch, n, n))
    return a + a.swapaxes(1, 2)


def _with_equal_eigenvalues(rng: np.random.Generator, batch: int, n: int) -> np.ndarray:
    q = np.linalg.qr(rng.standard_normal((batch, n, n)))[0]
    values = np.where(np.arange(n) % 2, 1.0, -2.0)
    return np.einsum("bij,j,bkj->bik", q, values, q)


@pytest.mark.parametrize("draw", [_hessians_of_softmax, _random, _with_equal_eigenvalues], ids=lambda f: f.__name__)
@pytest.mark.parametrize("n", [1, 2, 3, 5, 12])
def test_values_and_directions_are_numpys(draw, n: int, rng: np.random.Generator, x64: None) -> None:
    a = draw(rng, 300, n)
    values, directions = (np.asarray(x) for x in jax.jit(jax.vmap(spectrum))(a))
    rounding = 8 * n * np.finfo(float).eps  # a sweep turns each row n times
    allowed = rounding * n * np.abs(a).max()
    np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(a), rtol=0, atol=allowed)
    np.testing.assert_allclose(np.einsum("bij,bj,bkj->bik", directions, values, directions), a, rtol=0, atol=allowed)
    np.testing.assert_allclose(
        directions.swapaxes(1, 2) @ directions, np.broadcast_to(np.eye(n), a.shape), rtol=0, atol=n * rounding
    )


def test_a_diagonal_matrix_is_left_as_it_is() -> None:
    values, directions = spectrum(np.diag(np.asarray([3.0, -1.0, 0.0], np.float32)))
    np.testing.assert_array_equal(values, [3, -1, 0])
    np.testing.assert_array_equal(directions, np.eye(3))
