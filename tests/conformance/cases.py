"""Every objective evaluated once on a batch that holds all regimes, with what the truth says about it.

One compiled function an objective and dtype gives values, gradients and Hessian-vector products; the tests look at its
results from different sides, and call it again with other contents of the same shape.
"""

from __future__ import annotations

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

import mi_align.objectives as objectives
from mi_align.objectives import anchored, contrastive, generalised, order, pairwise, ranking, unpaired, weighted
from tests.conformance import inputs
from tests.conformance.compare import drop
from tests.oracles import ORACLES
from tests.precise import Truth

#: The objectives whose inputs `inputs` draws from their signatures: those of pairs, lists and single responses. Bounds
#: and policy gradients, which reduce over samples and tokens, are compared with the same oracles in tests of their own.
ROOMS = (pairwise, generalised, order, anchored, contrastive, weighted, ranking, unpaired)
#: A statistic of the batch rather than an objective.
SEPARATE = {"kto_reference_point"}
NAMES = sorted({name for room in ROOMS for name in room.__all__} - SEPARATE)
LISTS = [name for name in NAMES if inputs.masks(getattr(objectives, name))]
ROWS_PER_REGIME = 4

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One objective on one batch.

    Attributes:
      arguments: what was drawn, by name; `where…` included.
      differentiable: the names that get a derivative.
      directions: what the Hessian is multiplied with.
      run: arguments -> (values, gradient of their sum, Hessian of their sum times the directions, in float64).
    """

    name: str
    dtype: type
    arguments: Arrays
    differentiable: tuple[str, ...]
    directions: Arrays
    run: Callable[[Mapping[str, Any]], tuple[np.ndarray, Arrays, Arrays]]

    @property
    def objective(self) -> Callable[..., Any]:
        return getattr(objectives, self.name)

    @functools.cached_property
    def result(self) -> tuple[np.ndarray, Arrays, Arrays]:
        return self.run(self.arguments)

    @functools.cached_property
    def truths(self) -> list[Truth]:
        """The truth about every row."""
        digits = 50 if self.dtype == np.float32 else 330
        examples = inputs.examples(self.objective, self.arguments)
        return [
            Truth(ORACLES[self.name], drop(self.objective, e), range_digits=digits, levels=inputs.LOGITS)
            for e in examples
        ]


def seed_of(*parts: Any) -> int:
    return zlib.crc32(" ".join(map(str, parts)).encode())


@functools.cache
def case(name: str, dtype: type = np.float64, size: int | None = None, regimes: tuple = inputs.REGIMES) -> Case:
    """The objective `name` on a batch with all regimes; lists are `size` long, or as long as `inputs.SIZES` says."""
    objective = getattr(objectives, name)
    rng = np.random.default_rng(seed_of(name, np.dtype(dtype), size))
    sizes = inputs.SIZES if size is None else dict.fromkeys(inputs.SIZES, size)
    drawn = [inputs.draw(objective, rng, r, batch=(ROWS_PER_REGIME,), dtype=dtype, sizes=sizes) for r in regimes]
    shared = {n for n, axes in inputs.shapes(objective).items() if axes is None}
    arguments = {n: drawn[0][n] if n in shared else np.concatenate([d[n] for d in drawn]) for n in drawn[0]}
    differentiable = tuple(n for n in arguments if n not in shared and arguments[n].dtype.kind == "f")
    rows = ROWS_PER_REGIME * len(regimes)
    arguments |= {n: inputs.draw_mask(rng, (rows, sizes[a[0]])) for n, a in inputs.masks(objective).items()}
    directions = {n: rng.normal(size=arguments[n].shape).astype(dtype) for n in differentiable}
    # Second derivatives take the longest to compile; they are looked at in float64 and at one size only.
    second = dtype == np.float64 and size is None
    run = _compiled(objective, differentiable, directions if second else {}, dtype == np.float64)
    return Case(name, dtype, arguments, differentiable, directions, run)


def _compiled(
    objective: Callable[..., Any], differentiable: tuple[str, ...], directions: Arrays, double: bool
) -> Callable[..., Any]:
    def total(varied: Arrays, fixed: Arrays) -> tuple[jax.Array, jax.Array]:
        values = objective(**varied, **fixed)
        return values.sum(), values

    @jax.jit
    def everything(varied: Arrays, fixed: Arrays) -> Any:
        gradient = functools.partial(jax.grad(total, has_aux=True), fixed=fixed)
        if not directions:
            slopes, values = gradient(varied)
            return values, slopes, {}
        (slopes, values), (bends, _) = jax.jvp(gradient, (varied,), (directions,))
        return values, slopes, bends

    def run(arguments: Mapping[str, Any]) -> tuple[np.ndarray, Arrays, Arrays]:
        varied = {n: arguments[n] for n in differentiable}
        fixed = {n: x for n, x in arguments.items() if n not in differentiable}
        with jax.enable_x64(double):
            return jax.tree.map(np.asarray, everything(varied, fixed))

    return run
