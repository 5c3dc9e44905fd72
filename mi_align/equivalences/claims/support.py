"""Ledger 39 and 40: what a KL penalty keeps of the reference, and where GRPO with such a penalty comes to rest."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from mi_align.equivalences.claim import Claim, Inputs, Kind
from mi_align.equivalences.groups import between, normals, regularised_optimum, verdicts
from mi_align.objectives import group_advantage, kl_k1

__all__ = ["CLAIMS"]

_RESPONSES, _GROUP = 4, 6
_MROUEH = "Mroueh 2025 (arXiv 2503.06639)"


def _rewarded(key: PRNGKeyArray) -> Inputs:
    """A policy, its reference, real rewards, which responses are right, and which the reference can produce."""
    x = normals(
        key, logits=(_RESPONSES,), reference=(_RESPONSES,), reward=(_RESPONSES,), right=(), produced=(), beta=()
    )
    return {
        "logits": x["logits"],
        "reference": x["reference"],
        "reward": x["reward"],
        "right": verdicts(x["right"], _RESPONSES),
        "produced": verdicts(x["produced"], _RESPONSES),
        "beta": between(0.2, 2.0, x["beta"]),
    }


def _trained(key: PRNGKeyArray) -> Inputs:
    """The same for GRPO: how many answers of the last group were right, and ε."""
    x = normals(key, logits=(_RESPONSES,), reference=(_RESPONSES,), right=(), count=(), beta=(), eps=())
    return {
        "logits": x["logits"],
        "reference": x["reference"],
        "right": verdicts(x["right"], _RESPONSES),
        "count": between(1, _GROUP, x["count"]).astype(int),
        "beta": between(0.3, 2.0, x["beta"]),
        "eps": between(0.001, 0.1, x["eps"]),
    }


def _on_support(x: Inputs) -> Array:
    """log π_ref without the responses that it cannot produce."""
    return jax.nn.log_softmax(jnp.where(x["produced"], x["reference"], -jnp.inf))


def _optimum(x: Inputs) -> Array:
    """log π* for real rewards."""
    return regularised_optimum(x["logits"], jax.nn.log_softmax(x["reference"]), x["reward"], beta=x["beta"])


def _tilted(reference: Array, x: Inputs) -> Array:
    """π_ref e^{r/β} / Z by plain arithmetic on probabilities."""
    weight = reference * jnp.exp(x["reward"] / x["beta"])
    return weight / jnp.sum(weight)


def _supported_reference(x: Inputs, elsewhere: float) -> Array:
    """π_ref as probabilities, with `elsewhere` for each response that it cannot produce."""
    weight = jnp.where(x["produced"], jnp.exp(x["reference"]), 0)
    return jnp.where(x["produced"], weight / jnp.sum(weight), elsewhere)


def _log_odds(law: Array, right: Array) -> Array:
    """logit of the probability that a response is right."""
    return jnp.log(jnp.sum(law * right)) - jnp.log(jnp.sum(law * ~right))


def _binary_optimum(x: Inputs) -> Array:
    log_reference = jax.nn.log_softmax(x["reference"])
    return jnp.exp(regularised_optimum(x["logits"], log_reference, x["right"], beta=x["beta"]))


def _after_group(x: Inputs, log_reference: Array) -> Array:
    """The success rate of the policy that is best for the last group's advantages, under the KL penalty."""
    rewards = (jnp.arange(_GROUP) < x["count"]).astype(x["eps"].dtype)
    advantage = group_advantage(rewards, correction=0.0, eps=x["eps"])
    each = jnp.where(x["right"], advantage[0], advantage[-1])
    return jnp.sum(jnp.exp(regularised_optimum(x["logits"], log_reference, each, beta=x["beta"])) * x["right"])


def _boost(x: Inputs) -> Array:
    """1/(√(p̂(1 − p̂)) + ε) of the last group: how far apart right and wrong advantages are."""
    share = x["count"] / jnp.asarray(_GROUP, x["eps"].dtype)
    return 1 / (jnp.sqrt(share * (1 - share)) + x["eps"])


def _reference_odds(x: Inputs) -> Array:
    return _log_odds(jnp.exp(x["reference"]), x["right"])


def _wrong_only(x: Inputs) -> Array:
    """log π_ref of a reference that produces no right answer."""
    return jax.nn.log_softmax(jnp.where(x["right"], -jnp.inf, x["reference"]))


def _lift(logit: Array, x: Inputs) -> Array:
    """1/(β √(p(1 − p) + ε)) at p = σ(logit)."""
    return 1 / (x["beta"] * jnp.sqrt(jax.nn.sigmoid(logit) * jax.nn.sigmoid(-logit) + x["eps"]))


def _resting_odds(x: Inputs) -> Array:
    """logit of a fixed point of the map, by bisection between the reference and the largest possible lift."""
    start = _reference_odds(x)

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = (bounds[0] + bounds[1]) / 2
        above = start + _lift(middle, x) > middle
        return jnp.where(above, middle, bounds[0]), jnp.where(above, bounds[1], middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (start, start + 1 / (x["beta"] * jnp.sqrt(x["eps"]))))
    return (low + high) / 2


def _at_rest(x: Inputs) -> tuple[Array, Array]:
    """A fixed point p, and the success rate of the policy that is best for the advantages at p."""
    logit = _resting_odds(x)
    p = jax.nn.sigmoid(logit)
    advantage = (x["right"] - p) * _lift(logit, x) * x["beta"]
    best = regularised_optimum(x["logits"], jax.nn.log_softmax(x["reference"]), advantage, beta=x["beta"])
    return p, jnp.sum(jnp.exp(best) * x["right"])


CLAIMS: tuple[Claim, ...] = (
    Claim(
        id="39a",
        title="What the reference cannot produce, the optimum cannot either",
        statement=r"\pi^*(y) = \frac{\pi_{\mathrm{ref}}(y)\,e^{r(y)/\beta}}{Z}, \qquad"
        r" \pi_{\mathrm{ref}}(y) = 0 \;\Rightarrow\; \pi^*(y) = 0",
        kind=Kind.EXACT,
        draw=_rewarded,
        left=lambda x: jnp.exp(regularised_optimum(x["logits"], _on_support(x), x["reward"], beta=x["beta"])),
        right=lambda x: _tilted(_supported_reference(x, 0.0), x),
        twin=lambda x: _tilted(_supported_reference(x, 1e-6), x),
        slip="a millionth of probability for each response that the reference cannot produce",
        source="Rafailov et al. 2023 (arXiv 2305.18290), eq. 4",
        derivatives=0,
    ),
    Claim(
        id="39b",
        title="The optimum stays within a factor of the reference that the reward's range sets",
        statement=r"\left|\log\frac{\pi^*(y)}{\pi_{\mathrm{ref}}(y)}\right| \le \frac{\max r - \min r}{\beta}",
        kind=Kind.INEQUALITY,
        draw=_rewarded,
        left=lambda x: jnp.abs(kl_k1(_optimum(x), jax.nn.log_softmax(x["reference"]))),
        right=lambda x: jnp.full_like(x["reward"], jnp.ptp(x["reward"]) / x["beta"]),
        twin=lambda x: jnp.full_like(x["reward"], jnp.ptp(x["reward"]) / (2 * x["beta"])),
        slip="half the range",
        source="derived here",
    ),
    Claim(
        id="39c",
        title="The odds law: a binary reward adds 1/β to the log-odds of being right",
        statement=r"\operatorname{logit} p^* = \operatorname{logit} p_{\mathrm{ref}} + \frac1\beta",
        kind=Kind.EXACT,
        draw=_rewarded,
        left=lambda x: _log_odds(_binary_optimum(x), x["right"]),
        right=lambda x: _reference_odds(x) + 1 / x["beta"],
        twin=lambda x: _reference_odds(x) + x["beta"],
        slip="β instead of 1/β",
        source=f"derived here; {_MROUEH}",
        derivatives=2,
    ),
    Claim(
        id="40a",
        title="One round of GRPO with a KL penalty, in closed form",
        statement=r"p_n = \sigma\Bigl(\operatorname{logit} p_{\mathrm{ref}} +"
        r" \frac{1}{\beta\,(\sqrt{p_{n-1}(1-p_{n-1})} + \varepsilon)}\Bigr)",
        kind=Kind.EXACT,
        draw=_trained,
        left=lambda x: _after_group(x, jax.nn.log_softmax(x["reference"])),
        right=lambda x: jax.nn.sigmoid(_reference_odds(x) + _boost(x) / x["beta"]),
        twin=lambda x: jax.nn.sigmoid(_reference_odds(x) + 1 / x["beta"]),
        slip="the odds law of the bare reward: not standardised",
        source=f"{_MROUEH}, with ε beside the root, where the library has it; there it is under the root",
    ),
    Claim(
        id="40b",
        title="Nothing grows from a reference that is never right",
        statement=r"p_{\mathrm{ref}} = 0 \;\Rightarrow\; p_n = 0",
        kind=Kind.EXACT,
        draw=_trained,
        left=lambda x: _after_group(x, _wrong_only(x)),
        right=lambda x: jnp.zeros_like(x["eps"]),
        twin=lambda x: jax.nn.sigmoid(jnp.log(1e-6) + _boost(x) / x["beta"]),
        slip="a millionth of probability for right answers in the reference",
        source=_MROUEH,
        derivatives=0,
    ),
    Claim(
        id="40c",
        title="GRPO with a KL penalty comes to rest above its reference, by a known margin at least",
        statement=r"\operatorname{logit} p_{\mathrm{ref}} + \frac{1}{\beta\sqrt{1/4 + \varepsilon}}"
        r" \le \operatorname{logit} p_\infty",
        kind=Kind.INEQUALITY,
        draw=_trained,
        left=lambda x: _reference_odds(x) + 1 / (x["beta"] * jnp.sqrt(0.25 + x["eps"])),
        right=_resting_odds,
        twin=lambda x: _resting_odds({**x, "beta": 2 * x["beta"]}),
        slip="the fixed point for twice the β",
        source=f"{_MROUEH} for p∞ > p_ref; the margin derived here",
        samples=200_000,
    ),
    Claim(
        id="40d",
        title="Where GRPO comes to rest, its policy is the best one for its own advantages",
        statement=r"\pi \propto \pi_{\mathrm{ref}}\,e^{A/\beta},\quad A = \frac{r - p}{\sqrt{p(1-p)+\varepsilon}}"
        r" \quad\Rightarrow\quad \Pr_\pi[r = 1] = p \;\text{ at } p = p_\infty",
        kind=Kind.OPTIMUM,
        draw=_trained,
        left=lambda x: _at_rest(x)[1],
        right=lambda x: _at_rest(x)[0],
        twin=lambda x: jax.nn.sigmoid(_reference_odds(x) + 1 / x["beta"]),
        slip="the optimum of the bare reward",
        source=_MROUEH,
        samples=200_000,
    ),
)
