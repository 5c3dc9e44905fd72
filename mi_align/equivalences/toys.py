"""Small settings in which preference learning goes wrong, each with the numbers that it is known by.

A `Toy` is plain data; `toy.task` is what `dynamics.train` takes.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from mi_align.equivalences.dynamics import Task

__all__ = ["COLLAPSE", "LATE_DECLINE", "NEAR_DUPLICATES", "Toy"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy:
    """A task with names and the settings that its known numbers belong to.

    Attributes:
      responses: what each response stands for.
      features: φ, a tuple a response.
      reference: π_ref, up to a factor.
      comparisons: indices of responses, the chosen one first.
      learning_rate: step size of plain gradient descent on the mean loss over the comparisons, from θ = 0.
      steps: how many steps.
      beta: β of every method on it.
    """

    responses: tuple[str, ...]
    features: tuple[tuple[float, ...], ...]
    reference: tuple[float, ...]
    comparisons: tuple[tuple[int, ...], ...]
    learning_rate: float
    steps: int
    beta: float = 1.0

    @property
    def task(self) -> Task:
        """The task as arrays, in the precision that is switched on."""
        reference = np.asarray(self.reference, float)
        return Task(
            jnp.asarray(np.asarray(self.features, float)),
            jnp.asarray(np.log(reference / reference.sum())),
            jnp.asarray(np.asarray(self.comparisons, np.int32)),
        )


#: The cleanest late decline (ledger 34). A third response has twice the chosen one's feature, so ever larger margins
#: hand it all the mass. Class maximum of the chosen log-ratio: .414675, at θ = ½ log 13.
LATE_DECLINE = Toy(
    responses=("chosen", "rejected", "other"),
    features=((1.0,), (0.0,), (2.0,)),
    reference=(0.30, 0.65, 0.05),
    comparisons=((0, 1),),
    learning_rate=0.02,
    steps=400_000,
)

#: Displacement from the first step on: the rejected response is the chosen one exaggerated, and eight others share
#: nothing with either. `displacement_criterion` is −.366.
COLLAPSE = Toy(
    responses=("chosen", "rejected", *(f"other {i}" for i in range(1, 9))),
    features=((1.0, 0.0, 0.0), (1.5, 0.3, 0.0), *(((0.0, 0.0, 0.0),) * 8)),
    reference=(0.1,) * 10,
    comparisons=((0, 1),),
    learning_rate=0.05,
    steps=20_000,
)

#: Rejected responses that nearly copy the chosen one: they share its content (first feature) and differ by .1 and .2
#: in one detail (second feature). Margins can only grow through that detail, of which two other responses have ten
#: times as much: one without the content, one, rare, with it.
NEAR_DUPLICATES = Toy(
    responses=("chosen", "near duplicate", "next duplicate", "detail alone", "detail overdone", "unrelated"),
    features=((1.0, 0.1), (1.0, 0.0), (1.0, -0.1), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)),
    reference=(0.1, 0.1, 0.1, 0.022, 0.00005, 0.67795),
    comparisons=((0, 1), (0, 2)),
    learning_rate=0.15,
    steps=100_000,
)
