"""The engine: what holds is certified, what is off by a millionth is not, and nothing slips through as NaN."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.equivalences import Claim, Kind, certify, certify_all
from mi_align.equivalences.certify import _is_known
from mi_align.objectives import bradley_terry_loss


def _pair(key: jax.Array) -> dict[str, jax.Array]:
    a, c = 3 * jax.random.normal(key, (2,))
    return {"a": a, "c": c}


TRUE = Claim(
    id="t1",
    title="Bradley–Terry in closed form",
    statement=r"\ell = \log(1 + e^{c - a})",
    kind=Kind.EXACT,
    draw=_pair,
    left=lambda x: bradley_terry_loss(x["a"], x["c"]),
    right=lambda x: jnp.logaddexp(0, x["c"] - x["a"]),
    twin=lambda x: jnp.logaddexp(0, (1 + 1e-6) * (x["c"] - x["a"])),
    slip="the margin off by a millionth",
    source="test",
    derivatives=2,
)


def variant(**changes: object) -> Claim:
    return dataclasses.replace(TRUE, **changes)


def test_an_identity_holds_and_its_twin_off_by_a_millionth_fails():
    certificate = certify(TRUE, samples=5_000)
    assert certificate.holds
    assert certificate.twin_fails
    assert certificate.passed
    assert 0 < certificate.error < 1e-12
    assert 1e-10 < certificate.twin_error < 1e-4
    assert certificate.samples == 5_000


def test_sides_that_agree_in_value_but_not_in_gradient_do_not_hold():
    def detached(x: dict[str, jax.Array]) -> jax.Array:
        return jax.lax.stop_gradient(TRUE.right(x))

    assert not certify(variant(right=detached), samples=100).holds
    assert certify(variant(right=detached, derivatives=0), samples=100).holds


def test_sides_that_agree_in_gradient_but_not_in_hessian_do_not_hold():
    def frozen_slope(x: dict[str, jax.Array]) -> jax.Array:
        slopes = jax.lax.stop_gradient(jax.grad(TRUE.right)(x))
        return jax.lax.stop_gradient(TRUE.right(x)) + sum(
            slopes[k] * (x[k] - jax.lax.stop_gradient(x[k])) for k in ("a", "c")
        )

    assert certify(variant(right=frozen_slope, derivatives=1), samples=100).holds
    assert not certify(variant(right=frozen_slope, derivatives=2), samples=100).holds


def test_one_nan_among_thousands_of_samples_fails():
    def rare(x: dict[str, jax.Array]) -> jax.Array:
        return jnp.where(x["a"] > 8, jnp.nan, TRUE.right(x))

    certificate = certify(variant(right=rare, derivatives=0), samples=20_000)
    assert not certificate.holds
    assert math.isinf(certificate.error)
    assert certificate.worst["a"] > 8


def test_the_worst_input_is_the_one_that_makes_the_worst_error():
    def off(x: dict[str, jax.Array]) -> jax.Array:
        return TRUE.left(x) + 1e-3 * jnp.abs(x["c"])

    certificate = certify(variant(right=off, derivatives=0), samples=10_000)
    a, c = (float(certificate.worst[k]) for k in ("a", "c"))
    left = math.log1p(math.exp(c - a)) if c < a else c - a + math.log1p(math.exp(a - c))
    right = left + 1e-3 * abs(c)
    assert certificate.error == pytest.approx((right - left) / max(1, right), rel=1e-9)


def test_samples_beyond_a_claims_own_limit_are_not_drawn():
    assert certify(variant(samples=7), samples=1_000).samples == 7


def test_the_last_chunk_is_not_padded_with_samples_that_count():
    """A MONTE_CARLO claim's count is the number of samples asked for, though chunks are larger."""
    claim = variant(
        kind=Kind.MONTE_CARLO,
        left=lambda x: x["a"],
        right=lambda x: jnp.zeros_like(x["a"]),
        twin=lambda x: jnp.ones_like(x["a"]),
        derivatives=0,
    )
    certificate = certify(claim, samples=10_001)
    assert certificate.holds
    # The twin is off by 1 where one sample's standard deviation is 3: 1/(3/√n) standard errors, within their noise.
    assert certificate.twin_error == pytest.approx(math.sqrt(10_001) / 3, rel=0.1)


def test_an_inequality_may_be_slack_but_not_violated():
    claim = variant(
        kind=Kind.INEQUALITY,
        left=lambda x: jnp.maximum(x["c"] - x["a"], 0),
        right=lambda x: bradley_terry_loss(x["a"], x["c"]),
        twin=lambda x: bradley_terry_loss(x["a"], x["c"]) - 1e-6,
        derivatives=0,
    )
    certificate = certify(claim, samples=20_000)
    assert certificate.holds
    assert certificate.error <= 1e-12
    assert not certify(variant(kind=Kind.INEQUALITY, left=claim.right, right=claim.left), samples=100).holds


def test_a_rate_is_read_off_the_grid():
    grid = (1.0, 10.0, 100.0)
    claim = variant(
        kind=Kind.ASYMPTOTIC,
        left=lambda x: 5 * jnp.asarray(grid) ** -2,
        right=lambda x: jnp.asarray(grid) ** -2.0,
        twin=lambda x: jnp.asarray(grid) ** -1.0,
        grid=grid,
        derivatives=0,
        samples=1,
    )
    certificate = certify(claim)
    assert certificate.holds
    assert certificate.twin_error == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_twins_are_judged_in_float64_only(dtype: str):
    certificate = certify(TRUE, samples=1_000, dtype=dtype)
    assert certificate.holds
    assert certificate.twin_fails is None
    assert certificate.passed


def test_equal_seeds_give_equal_certificates_and_other_seeds_other_inputs():
    first, again, other = (certify(TRUE, samples=1_000, seed=seed) for seed in (3, 3, 4))
    assert first.error == again.error
    np.testing.assert_equal(first.worst, again.worst)
    assert float(first.worst["a"]) != float(other.worst["a"])


def test_a_claim_that_raises_fails_and_the_others_go_on():
    def broken(x: dict[str, jax.Array]) -> jax.Array:
        raise ZeroDivisionError("no such thing")

    bad, good = sorted(certify_all([TRUE, variant(id="t0", right=broken)], samples=100, workers=2), key=lambda c: c.id)
    assert not bad.holds
    assert bad.worst == "ZeroDivisionError: no such thing"
    assert good.passed


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"no dtype called 'float46'.*Did you mean 'float64'"):
        certify(TRUE, dtype="float46")
    with pytest.raises(ValueError, match="`samples` is 0"):
        certify(TRUE, samples=0)


def test_a_compile_option_that_this_xla_lacks_is_left_out() -> None:
    assert _is_known("xla_backend_optimization_level", 0)
    assert not _is_known("xla_no_such_option", True)
