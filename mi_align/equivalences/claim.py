"""What a claim is: two functions of the same drawn inputs, a relation between them, and a twin that must fail."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["Claim", "Kind"]

Inputs = Any  # a pytree of arrays: one sample, without a batch axis
Side = Callable[[Inputs], Float[Array, "..."]]


class Kind(enum.StrEnum):
    """How a claim's two sides are compared, and what its `tolerance` bounds.

    EXACT: left = right on every sample, and so are their derivatives; bounds the worst |left − right| / scale.
    INEQUALITY: left ≤ right on every sample; bounds how far below 0 the slack (right − left) / scale may fall.
    OPTIMUM: EXACT, where one side runs an optimiser to convergence (values only; the residual is one of the entries).
    ASYMPTOTIC: each side is measured on `grid`; bounds the difference of the two fitted log–log slopes.
    MONTE_CARLO: E[left − right] = 0; bounds |mean| in standard errors.
    """

    EXACT = "exact"
    INEQUALITY = "inequality"
    OPTIMUM = "optimum"
    ASYMPTOTIC = "asymptotic"
    MONTE_CARLO = "monte carlo"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
    """One line of the ledger. The engine in `certify` vmaps, jits and chunks it; a claim is pure data.

    Attributes:
      id: the ledger's number and letter, `"13a"`.
      title: the claim in a few plain words.
      statement: the claim in LaTeX, without dollar signs.
      kind: how the two sides are compared.
      draw: key -> inputs, ONE sample: a pytree of float arrays (integers and bools may be in it; they get no
        derivative). The engine vmaps it.
      left: inputs -> a number or an array.
      right: inputs -> the same shape; for an INEQUALITY the larger side.
      twin: `right` with one thing wrong; the comparison with it must fail. In float64.
      slip: what is wrong in the twin, in words.
      source: where the claim comes from (paper and equation, or "derived here").
      derivatives: how many orders of derivative with respect to the inputs are certified too: 0, 1 or 2. EXACT only.
      tolerance: what the comparison may leave, by dtype name; missing dtypes take the kind's default.
      why: the reason for the tolerance, where it is not the kind's default.
      samples: at most so many samples (expensive claims, or exhaustive ones); None: as many as the user asked for.
      grid: x-values of an ASYMPTOTIC claim.
      figure: the name of the picture that says more than the number, if any.
    """

    id: str
    title: str
    statement: str
    kind: Kind
    draw: Callable[[PRNGKeyArray], Inputs]
    left: Side
    right: Side
    twin: Side
    slip: str
    source: str
    derivatives: int = 1
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=dict)
    why: str = ""
    samples: int | None = None
    grid: tuple[float, ...] = ()
    figure: str | None = None
