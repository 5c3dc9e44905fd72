"""Ledger 24–34: what the claims' closed forms say, held against SciPy, NumPy and stated numbers.

That both sides of every claim agree, and that its twin does not, is the ledger's own business; here the sides are held
against authorities from outside, so that they cannot agree on something wrong.
"""

from __future__ import annotations

import importlib

import jax
import latex2mathml.converter
import numpy as np
import pytest
from scipy import optimize, special

from mi_align.equivalences.certify import certify
from mi_align.equivalences.claim import Claim, Kind
from mi_align.equivalences.figures import FIGURES

MODULES = (
    "starvation",
    "starvation_control",
    "preference_family",
    "soft_labels",
    "learned_prior",
    "displacement",
    "late_decline",
    "collapse",
)
CLAIMS: dict[str, Claim] = {
    claim.id: claim
    for module in MODULES
    for claim in importlib.import_module(f"mi_align.equivalences.claims.{module}").CLAIMS
}

pytestmark = pytest.mark.usefixtures("x64")


def sides(identifier: str, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """One drawn input of a claim, and both its sides there."""
    claim = CLAIMS[identifier]
    x, left, right = jax.jit(lambda key: (x := claim.draw(key), claim.left(x), claim.right(x)))(jax.random.key(seed))
    return {k: np.asarray(v) for k, v in x.items()}, np.asarray(left), np.asarray(right)


def both(identifier: str, expected: np.ndarray | float, seed: int = 0, atol: float = 1e-12) -> None:
    """Both sides of a claim are what an authority says."""
    _, left, right = sides(identifier, seed)
    np.testing.assert_allclose(left, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(right, expected, rtol=0, atol=atol)


def test_the_claims_cover_the_numbers_24_to_34() -> None:
    assert {int(identifier[:2]) for identifier in CLAIMS} == set(range(24, 35))


def test_negative_controls_are_among_the_claims() -> None:
    controls = {identifier for identifier, claim in CLAIMS.items() if claim.title.startswith("Negative control")}
    assert controls >= {"26c", "26d", "32b", "34n"}


@pytest.mark.parametrize("identifier", CLAIMS)
def test_statements_are_typeset_and_figures_exist(identifier: str) -> None:
    claim = CLAIMS[identifier]
    assert "<mtext>\\" not in latex2mathml.converter.convert(claim.statement)
    assert claim.slip and claim.source
    assert claim.figure is None or claim.figure in FIGURES
    assert (len(claim.grid) > 2) == (claim.kind is Kind.ASYMPTOTIC)


@pytest.mark.parametrize("identifier", ["24c", "25g", "26d", "28f", "31c", "34e", "34p"])
def test_a_claim_holds_and_its_twin_fails(identifier: str) -> None:
    certificate = certify(CLAIMS[identifier], samples=500)
    assert certificate.holds, certificate
    assert certificate.twin_fails, certificate


def test_policy_gradients_are_those_of_finite_differences() -> None:
    x, left, right = sides("25a")
    value = lambda logits: special.softmax(logits) @ x["reward"]  # noqa: E731
    numeric = optimize.approx_fprime(x["logits"], value, 1e-7)
    np.testing.assert_allclose(left, numeric, rtol=0, atol=1e-6)
    np.testing.assert_allclose(right, numeric, rtol=0, atol=1e-6)


def test_silent_groups_are_as_frequent_as_in_simulation(rng: np.random.Generator) -> None:
    x, left, right = sides("25g", seed=3)
    successes = rng.binomial(5, x["p"], size=400_000)
    silent = np.mean((successes == 0) | (successes == 5))
    error = 5 * np.sqrt(silent * (1 - silent) / 400_000)
    assert abs(left - silent) < error and abs(right - silent) < error


def test_population_gradients_are_those_of_finite_differences() -> None:
    x, left_dv, right_dv = sides("26a")
    _, left_js, right_js = sides("26b")
    claim_inputs = CLAIMS["26b"].draw(jax.random.key(0))
    np.testing.assert_array_equal(claim_inputs["joint"], x["joint"])
    p, q = (np.bincount(index, minlength=4) / 6 for index in (x["joint"][0], x["marginal"]))
    dv = lambda t: p @ t - special.logsumexp(t, b=q)  # noqa: E731
    js = lambda t: -p @ np.logaddexp(0, -t) - q @ np.logaddexp(0, t)  # noqa: E731
    for bound, found in ((dv, (left_dv, right_dv)), (js, (left_js, right_js))):
        numeric = optimize.approx_fprime(x["T"], bound, 1e-7)
        for side in found:
            np.testing.assert_allclose(side, numeric, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("identifier", "score"),
    [
        ("27a", lambda u, alpha: np.log(u)),
        ("27b", lambda u, alpha: -1 / u),
        ("27c", lambda u, alpha: np.log(2 * u / (1 + u))),
        ("27d", lambda u, alpha: (1 - u**-alpha) / alpha),
        ("27e", lambda u, alpha: (u**-alpha - 1) / -alpha),
    ],
)
def test_scores_of_other_divergences(identifier: str, score) -> None:
    x, _, _ = sides(identifier, seed=2)
    chosen, rejected = score(np.exp(x["z"]), x["alpha"])
    both(identifier, np.logaddexp(0, -x["beta"] * (chosen - rejected)), seed=2)


def test_soft_label_losses_are_scipys_relative_entropies() -> None:
    x, _, _ = sides("28a")
    p, q = special.softmax(x["s"]), special.softmax(x["r"])
    both("28a", special.rel_entr(p, q).sum())
    x, _, _ = sides("28b")
    p, q = special.softmax(x["s"]), special.softmax(x["r"])
    both("28b", special.rel_entr(q, p).sum() + special.entr(q).sum())
    x, _, _ = sides("28c")
    win = special.expit(x["s"][0] - x["s"][1])
    both("28c", special.rel_entr([win, 1 - win], [1 - x["e"], x["e"]]).sum())
    x, _, _ = sides("28e")
    p, q = special.softmax(x["s"]), special.softmax(x["r"])
    both("28e", special.rel_entr(p, q).sum() + special.rel_entr(q, p).sum())


def test_the_generators_are_least_where_scipy_finds_them() -> None:
    generators = (lambda t: t * np.log(t), lambda t: np.log(t) ** 2)
    options = {"xatol": 1e-9}
    least = [optimize.minimize_scalar(f, bounds=(0.05, 3), method="bounded", options=options).x for f in generators]
    both("27h", np.asarray(least), atol=1e-6)


def test_the_information_that_a_prior_leaves_is_the_entropies_difference() -> None:
    x, left, right = sides("29d", seed=1)
    prompt, policy = special.softmax(x["prompt"]), special.softmax(x["policy"], axis=1)
    information = special.entr(prompt @ policy).sum() - prompt @ special.entr(policy).sum(1)
    np.testing.assert_allclose([left, right], [information] * 2, rtol=0, atol=1e-9)


def test_the_learned_prior_is_the_best_that_scipy_finds() -> None:
    x, left, _ = sides("29e", seed=1)
    prompt = special.softmax(x["prompt"])

    def negative_value(logits: np.ndarray) -> float:
        normaliser = special.logsumexp(special.log_softmax(logits) + x["reward"] / x["beta"], axis=1)
        return -float(x["beta"] * (prompt @ normaliser))

    starts = np.random.default_rng(0).normal(size=(5, 4))
    best = min(optimize.minimize(negative_value, start, method="BFGS").fun for start in starts)
    assert left == pytest.approx(-best, abs=1e-3)  # the alternation's own tolerance


def test_nwj_po_is_the_stated_formula() -> None:
    x, _, _ = sides("30a", seed=4)
    both("30a", np.exp(x["rejected"]) - x["chosen"], seed=4)


@pytest.mark.parametrize("identifier", ["31a", "31b", "32a"])
def test_first_step_rates_are_those_of_finite_differences(identifier: str) -> None:
    x, left, right = sides(identifier, seed=5)
    features = x.get("features", np.eye(4))
    log_reference = special.log_softmax(x["reference"])

    def log_policy(theta: np.ndarray) -> np.ndarray:
        return special.log_softmax(log_reference + features @ theta)

    def loss(theta: np.ndarray) -> float:
        a, c = x["beta"] * (log_policy(theta) - log_reference)[:2]
        if identifier == "31b":
            return np.logaddexp(0, -a) + np.logaddexp(0, a) / 2 + np.logaddexp(0, c) / 2
        return np.logaddexp(0, c - a)

    start = x["parameters"]
    slope = optimize.approx_fprime(start, loss, 1e-7)
    moved = (log_policy(start - 1e-6 * slope)[0] - log_policy(start + 1e-6 * slope)[0]) / 2e-6
    np.testing.assert_allclose([left, right], [moved] * 2, rtol=0, atol=1e-5)


def test_many_pairs_displace_what_one_pair_cannot() -> None:
    _, zero, fall = sides("32d")
    assert zero == 0 and fall > 0.03


def test_ches_of_a_pair_by_loops() -> None:
    x, _, _ = sides("33a")
    cross = sum(float(h @ g) for h in x["chosen"] for g in x["rejected"])
    own = sum(float(h @ g) for h in x["chosen"] for g in x["chosen"])
    both("33a", cross - own)
    x, _, _ = sides("33b")
    cross = sum(float(h @ g) for h in x["chosen"] for g in x["rejected"])
    own = sum(float(h @ g) for h in x["chosen"] for g in x["chosen"])
    both("33b", cross / 6 - own / 4)


@pytest.mark.parametrize(
    ("identifier", "numbers"),
    [
        ("34f", [[194, 345, 158], [0.4147, 0.4147, 0.4147]]),
        ("34g", [-0.217, -1.635, -5.991, 0.999]),
        ("34h", [2.220, 0.1849, -2.0356, 0.361, 0.085, 0.554]),
        ("34k", [-0.366]),
        ("34l", [-8.328, -14.143]),
        ("34m", [-0.179, 0.625]),
        ("34n", [-0.187, -20.624]),
        ("34o", [[0.0741, -0.0824], [-3.010, -3.765], [-35.598, -39.977]]),
        ("34p", [0.2985, 0.3006]),
    ],
)
def test_the_toys_have_the_numbers_they_are_known_by(identifier: str, numbers) -> None:
    _, left, right = sides(identifier)
    np.testing.assert_allclose(left, numbers, rtol=0, atol=6e-4)
    np.testing.assert_allclose(right, numbers, rtol=0, atol=6e-4)


def test_bco_settles_where_it_is_said_to() -> None:
    _, left, right = sides("34i")
    np.testing.assert_allclose([left[:2], right[:2]], [[2.116, 0.2315]] * 2, rtol=0, atol=5e-4)


def test_the_class_maximum_is_that_of_scipy() -> None:
    x, left, right = sides("34b", seed=6)
    chosen, rejected, other = x["reference"]
    below = lambda t: np.log(chosen * np.exp(t) + rejected + other * np.exp(2 * t)) - t  # noqa: E731
    best = -optimize.minimize_scalar(below, bracket=(-3, 3)).fun
    np.testing.assert_allclose([left, right], [best] * 2, rtol=0, atol=1e-12)


def test_the_scalar_recursion_is_the_plain_loop() -> None:
    x, left, right = sides("34c", seed=7)
    theta, seen = 0.0, {}
    for step in range(1, 1001):
        theta += float(x["rate"]) * special.expit(-theta)
        seen[step] = theta
    np.testing.assert_allclose(left[:3], [seen[10], seen[100], seen[1000]], rtol=1e-13)
    np.testing.assert_allclose(right[:3], [seen[10], seen[100], seen[1000]], rtol=1e-13)
