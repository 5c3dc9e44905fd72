"""Row sums over a mesh of devices, out of what any way does within one.

Shards of the vocabulary give sums that combine to those of the whole: the normaliser by a collective maximum and sum,
the target's logit from the one shard that has it. Backwards a shard needs nothing of the others but that normaliser and
the coefficients. Both passes are a `shard_map` each, and what the forward pass leaves stays on its device.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from mi_align.logprobs import joined
from mi_align.logprobs.contract import Plan, Problem, RowSums
from mi_align.logprobs.joined import Inputs, Residuals, Slopes, Way
from mi_align.logprobs.layout import Layout
from mi_align.logprobs.shards import Place, across, part, ring
from mi_align.numerics import as_float

__all__ = ["row_sums"]


@dataclasses.dataclass(frozen=True)
class _Job:
    """All that is static: who works where, and on how large a vocabulary before padding."""

    layout: Layout
    way: Way
    plan: Plan
    vocab: int
    padded: bool


def row_sums(layout: Layout, way: Way, plan: Plan, inputs: Inputs) -> RowSums:
    """`joined.row_sums` with positions and the vocabulary spread over `layout.mesh`; the plan is a device's."""
    rows, vocab = inputs.hidden.shape[0], inputs.vocabulary.shape[0]
    if inputs.vocabulary.shape[1] % layout.size(layout.features):
        raise ValueError(
            f"`vocabulary` has shape {list(inputs.vocabulary.shape)}, whose features do not divide over "
            f"{layout.size(layout.features)} devices of {layout.features}. Spread its rows instead, which are padded: "
            f"Layout(head=P({layout.rows + layout.features}))."
        )
    more_rows, more_entries = -rows % layout.size(layout.tokens), -vocab % layout.size(layout.rows)
    inputs = inputs._replace(
        hidden=_grown(inputs.hidden, more_rows),
        targets=_grown(inputs.targets, more_rows),
        where=_grown(inputs.where, more_rows),
        vocabulary=_grown(inputs.vocabulary, more_entries),
        bias=_grown(inputs.bias, more_entries),
    )
    sums = _row_sums(_Job(layout, way, plan, vocab, more_entries > 0), inputs)
    return jax.tree.map(lambda x: x[:rows], sums) if more_rows else sums


def _grown(x: Any, more: int) -> Any:
    return x if x is None or not more else jnp.pad(x, ((0, more),) + ((0, 0),) * (x.ndim - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _row_sums(job: _Job, inputs: Inputs) -> RowSums:
    def local(inputs: Inputs) -> RowSums:
        return joined.undifferentiated(*_here(job, inputs))

    return _mapped(job.layout, local, (_specs(job.layout),), _tokens(job.layout))(inputs)


def _forward(job: _Job, primals: Inputs) -> tuple[RowSums, Any]:
    inputs, needs = joined.changing(primals)

    def local(inputs: Inputs) -> tuple[RowSums, Residuals]:
        sums, residuals = joined.forward(*_here(job, inputs), needs)
        problem: Any = residuals.problem._asdict() | {"vocabulary": None, "bias": None}  # what travelled comes again
        return sums, jax.tree.map(lambda x: x[None], residuals._replace(problem=Problem(**problem)))

    out = _tokens(job.layout), P(job.layout.mesh.axis_names)  # the latter: each device's own, one after another
    sums, residuals = _mapped(job.layout, local, (_specs(job.layout),), out)(inputs)
    return sums, (inputs.vocabulary, inputs.bias, residuals)


def _backward(job: _Job, saved: Any, cotangents: RowSums) -> tuple[Inputs]:
    layout, specs = job.layout, _specs(job.layout)

    def local(vocabulary: Array, bias: Array | None, residuals: Residuals, cotangents: RowSums) -> Inputs:
        residuals = jax.tree.map(lambda x: x[0], residuals)
        way, _, vocabulary, bias = _assembled(job, vocabulary, bias)
        residuals = residuals._replace(problem=residuals.problem._replace(vocabulary=vocabulary, bias=bias))
        slopes = joined.backward(way, job.plan, residuals, cotangents)
        return joined.cast(_home(layout, slopes), residuals.static.dtypes)

    into = specs.vocabulary, specs.bias, P(layout.mesh.axis_names), _tokens(layout)
    return (_mapped(layout, local, into, specs)(*saved, joined.known(cotangents)),)


_row_sums.defvjp(_forward, _backward, symbolic_zeros=True)


def _mapped(layout: Layout, function: Callable[..., Any], into: Any, out: Any) -> Callable[..., Any]:
    # No derivative is taken through it, so what is and is not equal on all devices need not be tracked.
    return jax.shard_map(function, mesh=layout.mesh, in_specs=into, out_specs=out, check_vma=False)


def _tokens(layout: Layout) -> P:
    return P(layout.tokens or None)


def _specs(layout: Layout) -> Inputs:
    tokens, rows = _tokens(layout), P(layout.rows or None)
    return Inputs._make((tokens, layout.head, tokens, rows, P(), P(), tokens))


def _here(job: _Job, inputs: Inputs) -> tuple[Way, Plan, Inputs]:
    """Within a `shard_map`: what `joined` wants, on the vocabulary's rows of this device."""
    way, first, vocabulary, bias = _assembled(job, inputs.vocabulary, inputs.bias)
    return way, job.plan, inputs._replace(vocabulary=vocabulary, bias=bias, targets=inputs.targets - first)


def _assembled(job: _Job, vocabulary: Array, bias: Array | None) -> tuple[Way, int | Array, Array, Array | None]:
    """The way of this device, the entry from which its targets count, and the part of the head that it works on."""
    layout = job.layout
    block = vocabulary.shape[0] * layout.size(layout.moving_rows)
    first = jax.lax.axis_index(layout.staying) * block if layout.staying else 0
    place = Place(first, job.vocab, job.padded)
    if layout.travel == "ring":
        (axis,) = layout.moving_rows
        return across(ring(job.way, axis, layout.size((axis,)), place), layout.staying), first, vocabulary, bias
    vocabulary = _gathered(_gathered(vocabulary, layout.features, 1), layout.moving_rows, 0)
    return across(part(job.way, place), layout.staying), first, vocabulary, _gathered(bias, layout.moving_rows, 0)


def _gathered(x: Any, axes: tuple[str, ...], dimension: int) -> Any:
    return x if x is None or not axes else jax.lax.all_gather(x, axes, axis=dimension, tiled=True)


def _home(layout: Layout, slopes: Slopes) -> Slopes:
    """Gradients summed over all devices, each part where the array's is; after a ring they are there already."""
    gathered = layout.travel == "gather"

    def home(x: Any, by_dimension: tuple[tuple[str, ...], ...]) -> Any:
        if x is None:
            return None
        (x,), left = as_float(x), set(layout.tokens)
        for dimension, axes in enumerate(by_dimension):
            left -= set(axes)
            if axes and gathered:
                x = jax.lax.psum_scatter(x, axes, scatter_dimension=dimension, tiled=True)
        return _summed(x, tuple(name for name in layout.tokens if name in left))

    return Slopes(
        hidden=_summed(slopes.hidden, layout.staying),
        vocabulary=home(slopes.vocabulary, (layout.moving_rows, layout.features)),
        bias=home(slopes.bias, (layout.moving_rows,)),
        scale=_summed(slopes.scale, layout.tokens + layout.staying),
    )


def _summed(x: Any, axes: tuple[str, ...]) -> Any:
    return x if x is None or not axes else jax.lax.psum(x, axes)
