"""A way's forward and backward joined into one differentiable function of rows, with masked rows packed away."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array

from mi_align.logprobs.contract import Coefficients, Needs, Plan, Problem, RowSums, Saved
from mi_align.numerics import fill

__all__ = [
    "Inputs",
    "Residuals",
    "Slopes",
    "Way",
    "backward",
    "cast",
    "changing",
    "forward",
    "known",
    "row_sums",
    "undifferentiated",
]


@dataclasses.dataclass(frozen=True)
class Way:
    """One way of making row sums and their gradients; see `contract` for what the two functions owe each other.

    Attributes:
      name: as in `implementation=`.
      forward: (problem, plan, pull=…, keep=…) -> (RowSums, Saved), with `Saved.pull` if asked for.
      backward: (problem, sums, coefficients, plan, saved, needs) -> gradients; nothing is `saved` where the forward
        pass was asked to keep nothing.
      padded_rows: (number of rows, tiles) -> the number that it wants to be given.
      pulls: whether it has a use for `pull=True`, which needs each row's target among its entries.
    """

    name: str
    forward: Callable[..., tuple[RowSums, Saved]]
    backward: Callable[..., tuple[Array | None, Array | None, Array | None]]
    padded_rows: Callable[..., int]
    pulls: bool = True


#: Those of hidden, vocabulary, bias and scale.
Dtypes = tuple[jnp.dtype | None, ...]


class Slopes(NamedTuple):
    """Gradients of `Inputs`, None where not needed; that in hidden is in the accumulation dtype until `cast`."""

    hidden: Array | None
    vocabulary: Array | None
    bias: Array | None
    scale: Array | None


class Inputs(NamedTuple):
    """What is differentiated, and what goes with it: `Problem` before packing."""

    hidden: Array
    vocabulary: Array
    targets: Array
    bias: Array | None
    scale: Array | None
    soft_cap: Array | None
    where: Array | None


class _Packing(NamedTuple):
    """`order` brings the kept rows to the front, in their order; `rank` undoes it. None: nothing is moved."""

    order: Array | None
    rank: Array | None
    where: Array | None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Static:
    """What the backward pass has to know of the forward pass beside arrays, and what shapes alone decide."""

    rows: int
    dtypes: Dtypes


class Residuals(NamedTuple):
    """What the forward pass leaves to the backward pass, in packed order.

    Its structure is the same whatever is being differentiated. Two calls that share a compiled program, one with
    another frozen part than the other, share what JAX remembers of this structure too, and the later one's would be
    read into the earlier one's backward pass. Hence what differs between them is told by the shapes of arrays, which
    belong to a call: an array of shape `_NOTHING` in `saved` stands for None, and the lengths of `asked`, 0 or 1, say
    which gradients are needed and whether the head is frozen.
    """

    problem: Problem
    packing: _Packing
    sums: RowSums
    saved: Saved
    asked: Array
    static: _Static


_NOTHING = (0,) * 5


def _sealed(saved: Saved) -> Saved:
    return Saved._make(jnp.zeros(_NOTHING, bool) if x is None else x for x in saved)


def _unsealed(saved: Saved) -> Saved:
    return Saved._make(None if x is None or x.shape == _NOTHING else x for x in saved)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def row_sums(way: Way, plan: Plan, inputs: Inputs) -> RowSums:
    """Sums over the vocabulary of each row, 0 under the mask; differentiable in hidden, vocabulary, bias and scale.

    Which of these are being differentiated is known when the forward pass is traced, and nothing is done for the
    others. With the vocabulary and bias constant, as under LoRA or below a frozen head, the forward pass also makes
    Σ_j p_j v_j, and the backward pass needs no matrix product.
    """
    return undifferentiated(way, plan, inputs)


def undifferentiated(way: Way, plan: Plan, inputs: Inputs) -> RowSums:
    """`row_sums` where nobody asks for a derivative, and nothing is made for one."""
    problem, packing = _pack(way, plan, inputs)
    sums, _ = way.forward(problem, plan, pull=False, keep=False)
    return _unpack(_filled(sums, problem), packing, inputs.hidden.shape[0])


def _forward(way: Way, plan: Plan, primals: Inputs) -> tuple[RowSums, Residuals]:
    inputs, needs = changing(primals)
    return forward(way, plan, inputs, needs)


def _backward(way: Way, plan: Plan, residuals: Residuals, cotangents: RowSums) -> tuple[Inputs]:
    return (cast(backward(way, plan, residuals, known(cotangents)), residuals.static.dtypes),)


row_sums.defvjp(_forward, _backward, symbolic_zeros=True)


def changing(primals: Inputs) -> tuple[Inputs, Needs]:
    """The values of inputs that came with symbolic zeros, and which gradients are wanted."""
    changes = jax.tree.map(lambda x: x.perturbed, primals, is_leaf=_is_primal)
    if changes.soft_cap:
        raise ValueError(
            "`soft_cap`, or `temperature` beside one, is being differentiated, which only the plain way can. Pass "
            "implementation='reference', or `jax.lax.stop_gradient` of it."
        )
    needs = Needs(bool(changes.hidden or changes.scale), bool(changes.vocabulary), bool(changes.bias))
    return jax.tree.map(lambda x: x.value, primals, is_leaf=_is_primal), needs


def forward(way: Way, plan: Plan, inputs: Inputs, needs: Needs) -> tuple[RowSums, Residuals]:
    """`row_sums`, and what `backward` wants."""
    frozen = way.pulls and not (plan.statistics or needs.vocabulary or needs.bias)
    problem, packing = _pack(way, plan, inputs)
    sums, saved = way.forward(problem, plan, pull=frozen, keep=not frozen)
    sums, saved = _filled((sums, saved), problem) if frozen else (_filled(sums, problem), saved)
    differentiated = (inputs.hidden, inputs.vocabulary, inputs.bias, inputs.scale)
    dtypes = tuple(None if x is None else x.dtype for x in differentiated)
    static = _Static(inputs.hidden.shape[0], dtypes)
    asked = jnp.zeros([int(x) for x in (needs.hidden, needs.vocabulary, needs.bias, frozen)], bool)
    residuals = Residuals(problem, packing, sums, _sealed(saved), asked, static)
    return _unpack(sums, packing, static.rows), residuals


def known(cotangents: RowSums) -> RowSums:
    """Cotangents with None where they are known to be zero."""
    zero = [isinstance(x, SymbolicZero) or x is None or x.dtype == jax.dtypes.float0 for x in cotangents]
    return RowSums._make(None if z else x for x, z in zip(cotangents, zero, strict=True))


def backward(way: Way, plan: Plan, residuals: Residuals, cotangents: RowSums) -> Slopes:
    """Gradients from cotangents of `row_sums`, None for those that are zero."""
    problem, packing, sums, sealed, asked, static = residuals
    saved, needs, frozen = _unsealed(sealed), Needs(*map(bool, asked.shape[:3])), bool(asked.shape[3])
    coefficients = _coefficients(_packed_cotangents(cotangents, packing, problem), sums, problem.vocabulary.shape[0])
    if frozen:
        assert saved.pull is not None
        slopes: tuple[Array | None, ...] = (_from_pull(problem, sums, coefficients, saved.pull), None, None)
    else:
        slopes = way.backward(problem, sums, coefficients, plan, saved, needs)
    d_hidden, d_vocabulary, d_bias = slopes
    d_scale = None
    if d_hidden is not None and problem.scale is not None:  # z depends on scale · h, by which d_hidden is so far
        d_scale = jnp.sum(problem.hidden * d_hidden)
        d_hidden = d_hidden * problem.scale
    d_hidden = None if d_hidden is None else _rows_back(d_hidden, packing, static.rows)
    return Slopes(d_hidden, d_vocabulary, d_bias, d_scale)


def cast(slopes: Slopes, dtypes: Dtypes) -> Inputs:
    """Gradients in the dtypes of what they are gradients of; None for all that has none."""
    pairs = zip(slopes, dtypes, strict=True)
    came = Slopes._make(None if d is None or dtype is None else d.astype(dtype) for d, dtype in pairs)
    return Inputs._make((came.hidden, came.vocabulary, None, came.bias, came.scale, None, None))


def _is_primal(x: Any) -> bool:
    return isinstance(x, jax.custom_derivatives.CustomVJPPrimal)


def _pack(way: Way, plan: Plan, inputs: Inputs) -> tuple[Problem, _Packing]:
    """Kept rows to the front, in a number of rows that the way takes; NaN under the mask goes no further."""
    where, rows = inputs.where, inputs.hidden.shape[0]
    more = way.padded_rows(rows, plan.tiles) - rows
    if where is None:
        hidden, targets = (_grown(x, more) for x in (inputs.hidden, inputs.targets))
        kept, packing = None, _Packing(None, None, None)
    else:
        before, kept = jnp.cumsum(where), jnp.sum(where)
        rank = jnp.where(where, before - 1, kept + jnp.arange(rows) - before)
        order = _grown(jnp.zeros_like(rank).at[rank].set(jnp.arange(rows), unique_indices=True), more)
        front = jnp.arange(rows + more) < kept
        hidden = jnp.where(front[:, None], inputs.hidden[order], 0)
        targets = jnp.where(front, inputs.targets[order], 0)
        packing = _Packing(order, rank, where)
    return (
        Problem(hidden, inputs.vocabulary, targets, inputs.bias, inputs.scale, inputs.soft_cap, kept),
        packing,
    )


def _grown(x: Array, more: int) -> Array:
    return jnp.pad(x, ((0, more),) + ((0, 0),) * (x.ndim - 1)) if more else x


def _filled(tree: Any, problem: Problem) -> Any:
    """0 in all rows from `kept` on, which no tile or only part of one has visited."""
    if problem.kept is None:
        return tree
    front = jnp.arange(problem.hidden.shape[0]) < problem.kept
    return jax.tree.map(lambda x: jnp.where(jnp.expand_dims(front, tuple(range(1, x.ndim))), x, 0), tree)


def _unpack(tree: Any, packing: _Packing, rows: int) -> Any:
    return jax.tree.map(lambda x: _rows_back(x, packing, rows), tree)


def _rows_back(x: Array, packing: _Packing, rows: int) -> Array:
    """Rows where they came from, 0 under the mask."""
    if packing.rank is None or packing.where is None:
        return x[:rows]
    back = x[packing.rank]
    return fill(back, jnp.expand_dims(packing.where, tuple(range(1, x.ndim))), 0)


def _packed_cotangents(cotangents: RowSums, packing: _Packing, problem: Problem) -> RowSums:
    """Cotangents in packed order, 0 where a row is masked or padding."""

    def pack(x: Array | None) -> Array | None:
        if x is None:
            return None
        if packing.order is None:
            return _grown(x, problem.hidden.shape[0] - x.shape[0])
        return _filled(x[packing.order], problem)

    return RowSums._make(pack(x) for x in cotangents)


def _coefficients(cotangents: RowSums, sums: RowSums, vocab: int) -> Coefficients:
    """t, a, b, c and m of ∂loss/∂z = t·1[target] + p·(a + b·(z − top) + c·p) + m.

    From ∂L/∂z_j = p_j for the log-mass, ∂G/∂z_j = p_j (1 + z_j − top − G) for the gap and ∂S/∂z_j = 2 p_j (p_j − S) for
    S = Σ p².
    """
    constant, logit, probability = cotangents.log_mass, None, None
    if cotangents.gap is not None and sums.gap is not None:
        logit = cotangents.gap
        constant = _sum(constant, logit * (1 - sums.gap))
    if cotangents.sum_squares is not None and sums.sum_squares is not None:
        probability = 2 * cotangents.sum_squares
        constant = _sum(constant, -probability * sums.sum_squares)
    uniform = None if cotangents.mean_logit is None else cotangents.mean_logit / vocab
    return Coefficients(cotangents.target_logit, constant, logit, probability, uniform)


def _sum(x: Array | None, y: Array) -> Array:
    return y if x is None else x + y


def _from_pull(problem: Problem, sums: RowSums, coefficients: Coefficients, pull: Array) -> Array:
    """The gradient by scale·h from what the forward pass made: (t + a·p_y)·z'_y·v_y + a·Σ_{j≠y} p_j·z'_j·v_j."""
    t, a = coefficients.target, coefficients.constant
    chosen = problem.vocabulary.at[problem.targets].get(mode="fill", fill_value=0, wrap_negative_indices=False)
    chosen = chosen.astype(pull.dtype)
    if problem.soft_cap is not None:
        chosen = chosen * (1 - jnp.square(sums.target_logit / problem.soft_cap))[:, None]
    at_target = jnp.zeros_like(sums.target_logit) if t is None else t
    d_hidden = jnp.zeros_like(pull)
    if a is not None:
        at_target = at_target + a * jnp.exp(sums.target_logit - sums.top - sums.log_mass)
        d_hidden = a[:, None] * pull
    return d_hidden + at_target[:, None] * chosen
