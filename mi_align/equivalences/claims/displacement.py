"""Ledger 31–33: when training on a preference lowers the probability of the preferred response itself."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences import dynamics
from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.methods import METHODS

__all__ = ["CLAIMS"]

_RESPONSES, _FEATURES, _STEPS = 4, 2, 60
_ENOUGH = 100_000  # each sample differentiates a policy
_RATES = tuple(2.0**-k for k in range(4, 12))
_PAIR = np.asarray([[0, 1]])
#: One pair (0, 1), and nine copies of another (2, 3) whose chosen response takes mass away from everything else.
_CROWD = np.asarray([[0, 1]] + [[2, 3]] * 9)
_SOURCE = "derived here; the phenomenon: Razin et al. 2024 (arXiv 2410.08847), Pal et al. 2024 (arXiv 2402.13228)"


def _log_linear(key: PRNGKeyArray) -> Inputs:
    """A log-linear policy away from its reference, and β."""
    normal, beta = jax.random.split(key)
    drawn = jax.random.normal(normal, (_RESPONSES * (_FEATURES + 1) + _FEATURES,))
    features, reference, parameters = jnp.split(drawn, (_RESPONSES * _FEATURES, _RESPONSES * (_FEATURES + 1)))
    return {
        "features": features.reshape(_RESPONSES, _FEATURES),
        "reference": reference,
        "parameters": parameters,
        "beta": jax.random.uniform(beta, minval=0.1, maxval=2.0),
    }


def _tabular(key: PRNGKeyArray) -> Inputs:
    """The same with a feature of its own for each response."""
    drawn = _log_linear(key)
    parameters = jax.random.normal(jax.random.fold_in(key, 1), (_RESPONSES,))
    return {"reference": drawn["reference"], "beta": drawn["beta"], "parameters": parameters}


def _dominated(key: PRNGKeyArray) -> Inputs:
    """A tabular policy, at its reference, that gives the crowd's chosen response at least 98 percent."""
    x = _tabular(key)
    reference = jnp.tanh(x["reference"]).at[2].add(8.0)
    return {**x, "reference": reference, "parameters": jnp.zeros_like(x["parameters"])}


def _features(x: Inputs) -> Array:
    """The drawn features; the identity for a tabular policy, which has none."""
    return x.get("features", jnp.eye(_RESPONSES, dtype=x["parameters"].dtype))


def _task(x: Inputs, comparisons: np.ndarray = _PAIR) -> dynamics.Task:
    return dynamics.Task(_features(x), jax.nn.log_softmax(x["reference"]), jnp.asarray(comparisons))


def _first_step(method: str, comparisons: np.ndarray = _PAIR) -> Callable[[Inputs], Array]:
    """x -> how fast log π(y_w) moves, per unit of learning rate, in the direction that the method's gradient gives."""

    def rate(x: Inputs) -> Array:
        task = _task(x, comparisons)
        loss = dynamics.loss_of(task, lambda c: METHODS[method](c, beta=x["beta"]))
        step = -jax.grad(loss)(x["parameters"])
        return jax.jvp(lambda theta: dynamics.log_policy(task, theta)[0], (x["parameters"],), (step,))[1]

    return rate


def _beyond_first_order(x: Inputs) -> Array:
    """|Δ log π(y_w) − η rate| of one DPO step, for each learning rate η."""
    task, start = _task(x), x["parameters"]
    loss = dynamics.loss_of(task, lambda c: METHODS["dpo"](c, beta=x["beta"]))

    def moved(rate: Array) -> Array:
        end = dynamics.descend(loss, start, learning_rate=rate, record=(1,))[0]
        return dynamics.log_policy(task, end)[0] - dynamics.log_policy(task, start)[0]

    rates = jnp.asarray(_RATES, start.dtype)
    return jnp.abs(jax.vmap(moved)(rates) - rates * _dpo_rate(x))


def _closed_form(x: Inputs) -> tuple[Array, Array, Array, Array, Array]:
    """π, φ_w − φ̄, φ_l − φ̄, and the implicit rewards a and c, by plain arithmetic on probabilities."""
    reference = jnp.exp(x["reference"]) / jnp.sum(jnp.exp(x["reference"]))
    features = _features(x)
    weight = reference * jnp.exp(features @ x["parameters"])
    policy = weight / jnp.sum(weight)
    centred = features - (policy @ features)[None, :]
    reward = x["beta"] * jnp.log(policy / reference)
    return policy, centred[0], centred[1], reward[0], reward[1]


def _moved(x: Inputs, chosen_pull: Array, rejected_push: Array) -> Array:
    """β [k_w ‖φ_w − φ̄‖² − k_l ⟨φ_w − φ̄, φ_l − φ̄⟩]."""
    _, chosen, rejected, _, _ = _closed_form(x)
    return x["beta"] * (chosen_pull * (chosen @ chosen) - rejected_push * (chosen @ rejected))


def _dpo_rate(x: Inputs) -> Array:
    _, _, _, a, c = _closed_form(x)
    return _moved(x, jax.nn.sigmoid(c - a), jax.nn.sigmoid(c - a))


def _mio_rate(x: Inputs, chosen_factor: float = 1.5) -> Array:
    _, _, _, a, c = _closed_form(x)
    return _moved(x, 1 - chosen_factor * jax.nn.sigmoid(a), jax.nn.sigmoid(c) / 2)


def _criterion(x: Inputs) -> Array:
    return dynamics.displacement_criterion(_task(x), x["parameters"])[0]


def _tabular_rate(x: Inputs, sign: float = 1.0) -> Array:
    """β σ(c − a) (1 − π_w + π_l)."""
    policy, _, _, a, c = _closed_form(x)
    return x["beta"] * jax.nn.sigmoid(c - a) * (1 - policy[0] + sign * policy[1])


def _tabular_path(x: Inputs) -> Array:
    """The chosen log-probability along gradient descent on DPO, the start included."""
    task = _task(x)
    path = dynamics.descend(
        dynamics.loss_of(task, lambda c: METHODS["dpo"](c, beta=x["beta"])),
        x["parameters"],
        learning_rate=0.5,
        record=tuple(range(1, _STEPS + 1)),
    )
    return jax.vmap(lambda theta: dynamics.log_policy(task, theta)[0])(jnp.vstack([x["parameters"], path]))


def _crowd_rate(x: Inputs, crowd: float = 9.0) -> Array:
    """(β/10) [σ(c−a)(1 − π₀ + π₁) − 9 σ(c'−a')(π₂ − π₃)]."""
    policy, _, _, a, c = _closed_form(x)
    reward = x["beta"] * (jnp.log(policy) - jax.nn.log_softmax(x["reference"]))
    own = jax.nn.sigmoid(c - a) * (1 - policy[0] + policy[1])
    others = jax.nn.sigmoid(reward[3] - reward[2]) * (policy[2] - policy[3])
    return x["beta"] / 10 * (own - crowd * others)


def _hidden(key: PRNGKeyArray) -> Inputs:
    """Hidden states of a chosen response of two tokens and a rejected one of three."""
    states = jax.random.normal(key, (5, _FEATURES))
    return {"chosen": states[:2], "rejected": states[2:]}


def _similarities(x: Inputs, between: float, within: float) -> Array:
    """Σ_{k,k'} ⟨h⁺_k, h⁻_k'⟩ / between − Σ_{k,k'} ⟨h⁺_k, h⁺_k'⟩ / within, token by token."""
    cross, own = x["chosen"] @ x["rejected"].T, x["chosen"] @ x["chosen"].T
    return jnp.sum(cross) / between - jnp.sum(own) / within


def _summed_features(x: Inputs) -> Inputs:
    """A policy on responses ±Σh⁺, ±Σh⁻ at its uniform reference: features are summed hidden states, their mean is 0."""
    high, low = jnp.sum(x["chosen"], axis=0), jnp.sum(x["rejected"], axis=0)
    features = jnp.stack([high, low, -high, -low])
    return {
        "features": features,
        "reference": jnp.zeros_like(features[:, 0]),
        "parameters": jnp.zeros_like(high),
        "beta": jnp.ones_like(high[0]),
    }


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="31a",
        title="What one small DPO step does to the chosen response",
        statement=r"\frac{d \log\pi(y_w)}{d\eta} = \beta\,\sigma(c-a)\,"
        r"\langle\phi_w-\bar\phi,\ \phi_w-\phi_l\rangle",
        kind=Kind.EXACT,
        draw=_log_linear,
        left=_first_step("dpo"),
        right=_dpo_rate,
        twin=lambda x: _dpo_rate({**x, "features": x["features"].at[1].add(1e-3)}),
        slip="a rejected feature that is 0.001 off",
        source=_SOURCE,
        derivatives=0,
        samples=_ENOUGH,
    ),
    Claim(
        id="31b",
        title="What one small MIO step does to the chosen response",
        statement=r"\frac{d \log\pi(y_w)}{d\eta} = \beta\left[k_w\lVert\phi_w-\bar\phi\rVert^2 -"
        r" k_l\langle\phi_w-\bar\phi,\ \phi_l-\bar\phi\rangle\right],"
        r"\quad k_w = 1-\tfrac32\sigma(a),\ k_l = \tfrac12\sigma(c)",
        kind=Kind.EXACT,
        draw=_log_linear,
        left=_first_step("mio"),
        right=_mio_rate,
        twin=lambda x: _mio_rate(x, chosen_factor=1.0),
        slip="the chosen response left out of the marginal, which is BCO's pull",
        source=_SOURCE,
        derivatives=0,
        samples=_ENOUGH,
    ),
    Claim(
        id="31c",
        title="The displacement criterion: DPO's step lowers the chosen response exactly when it is negative",
        statement=r"\operatorname{sign}\frac{d \log\pi(y_w)}{d\eta} ="
        r" \operatorname{sign}\,\langle\phi_w-\bar\phi,\ \phi_w-\phi_l\rangle",
        kind=Kind.INEQUALITY,
        draw=_log_linear,
        left=lambda x: jnp.zeros_like(x["beta"]),
        right=lambda x: _first_step("dpo")(x) * _criterion(x),
        twin=lambda x: _first_step("dpo")(x) * (_criterion(x) - 0.1),
        slip="the criterion shifted by 0.1",
        source=_SOURCE,
        samples=_ENOUGH,
    ),
    Claim(
        id="31d",
        title="What a finite step does beyond that is of second order",
        statement=r"\log\pi_{\theta+\eta g}(y_w) - \log\pi_\theta(y_w) - \eta\,\frac{d\log\pi(y_w)}{d\eta}"
        r" = \Theta(\eta^2)",
        kind=Kind.ASYMPTOTIC,
        draw=_log_linear,
        left=_beyond_first_order,
        right=lambda x: jnp.square(jnp.asarray(_RATES, x["beta"].dtype)),
        twin=lambda x: jnp.asarray(_RATES, x["beta"].dtype),
        slip="first order",
        source="derived here",
        samples=1000,
        grid=_RATES,
    ),
    Claim(
        id="32a",
        title="A tabular policy on one pair: the chosen log-probability's rate",
        statement=r"\frac{d \log\pi(y_w)}{d\eta} = \beta\,\sigma(c-a)\,(1-\pi(y_w)+\pi(y_l))",
        kind=Kind.EXACT,
        draw=_tabular,
        left=_first_step("dpo"),
        right=_tabular_rate,
        twin=lambda x: _tabular_rate(x, sign=-1.0),
        slip="the sign of the rejected response's probability",
        source="derived here",
        derivatives=0,
        samples=_ENOUGH,
    ),
    Claim(
        id="32b",
        title="Negative control: a tabular policy on one pair cannot show displacement",
        statement=r"\log\pi_t(y_w) \le \log\pi_{t+1}(y_w)\quad\text{along all of DPO's gradient descent}",
        kind=Kind.INEQUALITY,
        draw=_tabular,
        left=lambda x: _tabular_path(x)[:-1],
        right=lambda x: _tabular_path(x)[1:],
        twin=lambda x: 2 * _tabular_path(x)[:-1] - _tabular_path(x)[1:],
        slip="every increment mirrored",
        source="derived here",
        samples=64,
    ),
    Claim(
        id="32c",
        title="Many pairs on a tabular policy: the rate of one pair's chosen log-probability",
        statement=r"\frac{d \log\pi(y_0)}{d\eta} = \frac{\beta}{10}\left[k\,(1-\pi_0+\pi_1) - 9 k'(\pi_2-\pi_3)\right]"
        r"\quad\text{for one pair } (0,1) \text{ and nine } (2,3)",
        kind=Kind.EXACT,
        draw=_tabular,
        left=_first_step("dpo", _CROWD),
        right=_crowd_rate,
        twin=lambda x: _crowd_rate(x, crowd=8.0),
        slip="eight other pairs instead of nine",
        source="derived here",
        derivatives=0,
        samples=_ENOUGH,
    ),
    Claim(
        id="32d",
        title="Many pairs displace even in a tabular policy",
        statement=r"\pi_2 \approx 1:\quad \frac{d \log\pi(y_0)}{d\eta} \le 0"
        r"\quad\text{for one pair } (0,1) \text{ and nine } (2,3)",
        kind=Kind.INEQUALITY,
        draw=_dominated,
        left=lambda x: jnp.zeros_like(x["beta"]),
        right=lambda x: -_first_step("dpo", _CROWD)(x),
        twin=lambda x: -_first_step("dpo", _CROWD[:2])(x),
        slip="one pair (2, 3) instead of nine",
        source="derived here",
        samples=_ENOUGH,
    ),
    Claim(
        id="33a",
        title="CHES is a sum of similarities, token by token",
        statement=r"\mathrm{CHES} = \sum_{k,k'}\langle h^+_k, h^-_{k'}\rangle"
        r" - \sum_{k,k'}\langle h^+_k, h^+_{k'}\rangle",
        kind=Kind.EXACT,
        draw=_hidden,
        left=lambda x: dynamics.ches_score(x["chosen"], x["rejected"]),
        right=lambda x: _similarities(x, 1.0, 1.0),
        twin=lambda x: _similarities(x, -1.0, -1.0),
        slip="the sign",
        source="Razin et al. 2024 (arXiv 2410.08847), definition 2",
    ),
    Claim(
        id="33b",
        title="Length-normalised CHES divides by the numbers of tokens",
        statement=r"\overline{\mathrm{CHES}} = \frac{1}{|y^+||y^-|}\sum_{k,k'}\langle h^+_k, h^-_{k'}\rangle -"
        r" \frac{1}{|y^+|^2}\sum_{k,k'}\langle h^+_k, h^+_{k'}\rangle",
        kind=Kind.EXACT,
        draw=_hidden,
        left=lambda x: dynamics.length_normalised_ches_score(x["chosen"], x["rejected"]),
        right=lambda x: _similarities(x, 6.0, 4.0),
        twin=lambda x: _similarities(x, 6.0, 6.0),
        slip="the second term divided by both lengths",
        source="Razin et al. 2024 (arXiv 2410.08847)",
    ),
    Claim(
        id="33c",
        title="Where features are summed hidden states of mean 0, DPO displaces as CHES says",
        statement=r"\bar\phi = 0:\quad \frac{d \log\pi(y^+)}{d\eta} = -\frac{\beta}{2}\,\mathrm{CHES}(y^+, y^-)",
        kind=Kind.EXACT,
        draw=_hidden,
        left=lambda x: _first_step("dpo")(_summed_features(x)),
        right=lambda x: -_similarities(x, 1.0, 1.0) / 2,
        twin=lambda x: -_similarities(x, 6.0, 4.0) / 2,
        slip="the length-normalised score",
        source="derived here from 31a",
        derivatives=0,
        samples=_ENOUGH,
    ),
)
