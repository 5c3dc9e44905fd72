"""Preference learning in miniature, against closed forms, SciPy and mpmath."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import optimize, special

from mi_align import METHODS
from mi_align.equivalences import dynamics, studies, toys
from mi_align.objectives import bradley_terry_loss

pytestmark = pytest.mark.usefixtures("x64")

DPO, MIO = METHODS["dpo"].configure(beta=1.0), METHODS["mio"].configure(beta=1.0)


def random_task(rng: np.random.Generator) -> tuple[dynamics.Task, np.ndarray]:
    """Five responses with three features, two comparisons with two rejected responses each, and some parameters."""
    log_reference = special.log_softmax(rng.normal(size=5))
    comparisons = np.array([[0, 1, 4], [3, 2, 0]])
    task = dynamics.Task(jnp.asarray(rng.normal(size=(5, 3))), jnp.asarray(log_reference), jnp.asarray(comparisons))
    return task, rng.normal(size=3)


def numpy_policy(task: dynamics.Task, theta: np.ndarray) -> np.ndarray:
    return special.softmax(np.asarray(task.log_reference) + np.asarray(task.features) @ theta)


def test_the_policy_is_the_tilted_reference(rng: np.random.Generator) -> None:
    task, theta = random_task(rng)
    reference = np.exp(np.asarray(task.log_reference))
    weight = reference * np.exp(np.asarray(task.features) @ theta)
    np.testing.assert_allclose(np.exp(dynamics.log_policy(task, theta)), weight / weight.sum(), rtol=1e-13)
    expected = np.log(weight / weight.sum() / reference)
    np.testing.assert_allclose(dynamics.log_ratio(task, theta), expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(dynamics.log_ratio(task, jnp.zeros(3)), np.zeros(5), rtol=0, atol=1e-15)


def test_log_ratios_keep_their_digits_where_the_policy_has_hardly_moved(rng: np.random.Generator) -> None:
    task, theta = random_task(rng)
    theta = 1e-9 * theta
    centred = np.asarray(task.features) - np.exp(np.asarray(task.log_reference)) @ np.asarray(task.features)
    # To first order the log-ratio is ⟨θ, φ − φ̄⟩; the second order is 1e-18.
    np.testing.assert_allclose(dynamics.log_ratio(task, theta), centred @ theta, rtol=0, atol=1e-15)


def test_a_method_sees_the_comparisons_with_the_chosen_response_first(rng: np.random.Generator) -> None:
    task, theta = random_task(rng)
    ratio = np.log(numpy_policy(task, theta)) - np.asarray(task.log_reference)
    scores = 0.7 * ratio[np.asarray(task.comparisons)]
    expected = (special.logsumexp(scores, axis=1) - scores[:, 0]).mean()
    loss = dynamics.loss_of(task, METHODS["infonce_dpo"].configure(beta=0.7))(theta)
    np.testing.assert_allclose(loss, expected, rtol=1e-13)


def test_descent_on_a_quadratic_is_the_geometric_series() -> None:
    curvature, start, rate, record = jnp.array([0.5, 2.0]), jnp.array([3.0, -1.0]), 0.3, (1, 2, 7, 40)
    path = dynamics.descend(lambda x: curvature @ x**2 / 2, start, learning_rate=rate, record=record)
    expected = [np.asarray(start) * (1 - rate * np.asarray(curvature)) ** step for step in record]
    np.testing.assert_allclose(path, expected, rtol=1e-13)


def test_iterate_records_after_exactly_the_steps_asked_for() -> None:
    assert dynamics.iterate(lambda x: x + 1, jnp.zeros(()), (3, 4, 10, 11)).tolist() == [3, 4, 10, 11]


def test_log_spaced_steps_increase_from_one_to_the_last() -> None:
    steps = dynamics.log_spaced(400_000, 50)
    assert steps[0] == 1 and steps[-1] == 400_000 and len(steps) <= 50
    assert all(a < b for a, b in itertools.pairwise(steps))
    ratios = np.diff(np.log(steps[-20:]))
    np.testing.assert_allclose(ratios, np.log(400_000) / 49, rtol=1e-3)  # steps are whole numbers


def test_small_steps_follow_the_flow_that_lambert_solves() -> None:
    """dθ/dt = σ(−θ) from 0 is θ + e^θ = 1 + t, so θ = 1 + t − W(e^{1+t})."""
    task, rate, record = toys.LATE_DECLINE.task, 1e-3, (200, 1000, 5000, 20_000)
    theta = dynamics.train(task, DPO, learning_rate=rate, record=record).parameters[:, 0]
    time = rate * np.asarray(record)
    flow = 1 + time - special.lambertw(np.exp(1 + time)).real
    # Euler's global error: at most half the step times the greatest drift's change, below rate / 8 here.
    np.testing.assert_allclose(theta, flow, rtol=0, atol=rate / 8)
    assert np.all(theta > flow)


def test_training_starts_where_it_is_told_to() -> None:
    toy = toys.LATE_DECLINE
    whole = dynamics.train(toy.task, MIO, learning_rate=toy.learning_rate, record=(50, 80))
    rest = dynamics.train(toy.task, MIO, learning_rate=toy.learning_rate, record=(30,), start=whole.parameters[0])
    np.testing.assert_allclose(rest.parameters[0], whole.parameters[1], rtol=1e-14)


def test_a_history_is_consistent(rng: np.random.Generator) -> None:
    task, _ = random_task(rng)
    history = dynamics.train(task, METHODS["infonce_dpo"].configure(beta=0.5), learning_rate=0.2, record=(5, 90))
    assert history.step.tolist() == [5, 90]
    np.testing.assert_allclose(jnp.exp(history.log_policy).sum(1), np.ones(2), rtol=1e-13)
    expected = [numpy_policy(task, np.asarray(theta)) for theta in history.parameters]
    np.testing.assert_allclose(np.exp(history.log_policy), expected, rtol=1e-12)


def test_the_late_decline_peaks_where_the_class_does() -> None:
    reference = np.asarray(toys.LATE_DECLINE.reference)

    def below(theta: float) -> float:
        return -(theta - np.log(reference @ np.exp(theta * np.array([1.0, 0.0, 2.0]))))

    found = optimize.minimize_scalar(below, bracket=(0.5, 2.0), tol=1e-12)
    assert found.x == pytest.approx(0.5 * np.log(13), abs=1e-6)
    assert -found.fun == pytest.approx(0.414675, abs=5e-7)
    curves = studies.learning_curves(toys.LATE_DECLINE, ("dpo", "mio"), steps=500, also=tuple(range(1, 401)))
    for name, step in (("dpo", 194), ("mio", 345)):
        chosen = curves[name].log_ratio[:, 0]
        assert curves[name].step[chosen.argmax()] == step
        assert chosen.max() == pytest.approx(-found.fun, abs=1e-7)


def test_the_late_decline_has_the_numbers_it_is_known_by() -> None:
    toy = toys.LATE_DECLINE
    history = dynamics.train(toy.task, DPO, learning_rate=toy.learning_rate, record=(1000, 5000, 400_000))
    np.testing.assert_allclose(history.log_ratio[:, 0], [-0.217, -1.635, -5.991], rtol=0, atol=5e-4)
    assert float(jnp.exp(history.log_policy[-1, 2])) == pytest.approx(0.999, abs=5e-4)


def test_mio_settles_where_mpmath_finds_its_gradient_zero() -> None:
    reference = [mpmath.mpf(p) for p in ("0.30", "0.65", "0.05")]

    def loss(theta: mpmath.mpf) -> mpmath.mpf:
        normaliser = reference[0] * mpmath.exp(theta) + reference[1] + reference[2] * mpmath.exp(2 * theta)
        a, c = theta - mpmath.log(normaliser), -mpmath.log(normaliser)
        softplus = lambda x: mpmath.log(1 + mpmath.exp(x))  # noqa: E731
        return softplus(-a) + softplus(a) / 2 + softplus(c) / 2

    with mpmath.workdps(30):
        root = mpmath.findroot(lambda theta: mpmath.diff(loss, theta), 2.2)
        curvature = mpmath.diff(loss, root, 2)
    assert curvature > 0
    history = dynamics.train(toys.LATE_DECLINE.task, MIO, learning_rate=0.02, record=(20_000,))
    assert float(history.parameters[0, 0]) == pytest.approx(float(root), abs=1e-12)
    assert float(root) == pytest.approx(2.220, abs=5e-4)
    np.testing.assert_allclose(history.log_ratio[0, :2], [0.1849, -2.0356], rtol=0, atol=5e-5)
    np.testing.assert_allclose(np.exp(history.log_policy[0]), [0.361, 0.085, 0.554], rtol=0, atol=5e-4)


def test_mio_settles_on_near_duplicates_where_scipy_finds_the_minimum() -> None:
    toy = toys.NEAR_DUPLICATES
    features, reference = np.asarray(toy.features), np.asarray(toy.reference)

    def loss(theta: np.ndarray) -> float:
        ratio = features @ theta - special.logsumexp(features @ theta, b=reference)
        softplus = np.logaddexp(0, [[-ratio[0], ratio[0], ratio[i]] for i in (1, 2)])
        return float((softplus @ [1, 0.5, 0.5]).mean())

    found = optimize.minimize(loss, [10.0, 10.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-15})
    level = (features @ found.x - special.logsumexp(features @ found.x, b=reference))[0]
    history = dynamics.train(toy.task, MIO, learning_rate=toy.learning_rate, record=(100_000,))
    assert level == pytest.approx(0.3009, abs=5e-4)
    # The last .0003 nats take longer than the run: the second feature's curvature is of order .01².
    assert float(history.log_ratio[0, 0]) == pytest.approx(level, abs=5e-4)


def test_the_displacement_criterion_is_the_rate_of_the_chosen_response(rng: np.random.Generator) -> None:
    task, theta = random_task(rng)
    task = task._replace(comparisons=task.comparisons[1:, :2])
    after = dynamics.descend(dynamics.loss_of(task, DPO), jnp.asarray(theta), learning_rate=1e-6, record=(1,))[0]
    ratio = np.log(numpy_policy(task, theta)) - np.asarray(task.log_reference)
    pull = special.expit(ratio[2] - ratio[3])
    moved = (np.log(numpy_policy(task, np.asarray(after))) - np.log(numpy_policy(task, theta)))[3] / 1e-6
    criterion = dynamics.displacement_criterion(task, theta)
    # Finite difference: a second-order term of 1e-6 and cancellation of 1e-16/1e-6.
    np.testing.assert_allclose(moved, pull * criterion[0], rtol=0, atol=1e-4)


def test_the_criterion_of_the_collapse_toy_is_as_stated() -> None:
    assert float(dynamics.displacement_criterion(toys.COLLAPSE.task, jnp.zeros(3))[0]) == pytest.approx(-0.366)


def test_ches_is_the_definition_token_by_token(rng: np.random.Generator) -> None:
    chosen, rejected = rng.normal(size=(4, 3)), rng.normal(size=(7, 3))
    cross = sum(high @ low for high in chosen for low in rejected)
    own = sum(high @ other for high in chosen for other in chosen)
    assert float(dynamics.ches_score(chosen, rejected)) == pytest.approx(cross - own, rel=1e-12)
    normalised = dynamics.length_normalised_ches_score(chosen, rejected)
    assert float(normalised) == pytest.approx(cross / 28 - own / 16, rel=1e-12)


def test_a_toy_normalises_its_reference() -> None:
    toy = toys.Toy(
        responses=("a", "b"),
        features=((1.0,), (0.5,)),
        reference=(3.0, 1.0),
        comparisons=((1, 0),),
        learning_rate=0.1,
        steps=10,
    )
    np.testing.assert_allclose(np.exp(toy.task.log_reference), [0.75, 0.25], rtol=1e-15)
    assert toy.task.comparisons.tolist() == [[1, 0]]


def test_the_number_of_steps_follows_the_flow() -> None:
    """Gradient flow from a uniform policy needs (K−1)/K [K − 1 + 2 log(K−1) − 1/(K−1)]; discrete steps a few more."""
    for answers in (10, 57, 300):
        others = answers - 1
        flow = others / answers * (others + 2 * np.log(others) - 1 / others)
        assert 0 < int(studies.steps_to_solve(answers)) - flow < 0.02 * flow + 1.5


def test_descent_directions_point_down() -> None:
    grid = np.array([-1.0, 0.3, 2.0])
    da, dc = studies.descent_directions(bradley_terry_loss, grid, grid[:2])
    a, c = np.meshgrid(grid, grid[:2])
    np.testing.assert_allclose(da, special.expit(c - a), rtol=1e-14)
    np.testing.assert_allclose(dc, -special.expit(c - a), rtol=1e-14)


def test_the_mean_bias_of_batches_agrees_with_simulation(rng: np.random.Generator) -> None:
    bias = studies.batch_bias(rare=0.3, gap=1.0, largest=16)
    high = rng.binomial(16, 0.3, size=400_000)
    normaliser = 0.7 + 0.3 * np.e
    simulated = np.log(normaliser) - np.log(1 + high / 16 * (np.e - 1))
    assert bias.size[-1] == 16
    assert abs(simulated.mean() - bias.exact[-1]) < 5 * simulated.std() / np.sqrt(len(high))
    assert bias.predicted[-1] == pytest.approx(0.21 * (np.e - 1) ** 2 / (32 * normaliser**2))


def test_float32_misses_the_third_decimal_of_a_long_run() -> None:
    """Why the studies switch double precision on."""
    toy = toys.LATE_DECLINE
    exact = dynamics.train(toy.task, DPO, learning_rate=toy.learning_rate, record=(400_000,)).parameters
    with jax.enable_x64(False):
        rough = dynamics.train(toy.task, DPO, learning_rate=toy.learning_rate, record=(400_000,)).parameters
    assert abs(float(exact[0, 0]) - float(rough[0, 0])) > 1e-3
