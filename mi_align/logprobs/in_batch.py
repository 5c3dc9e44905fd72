"""InfoNCE with the rest of the batch as negatives, for critics ⟨x, y⟩ of two embeddings, without the B × B scores.

It stands here, not in `objectives`, because those take scores and this must not have them: the loss is the negated
log-probability of picking one's own partner, `token_logps` of x over y as the vocabulary. There is no formula in this
file but that sentence; tiles, gradients and meshes of devices are those of `token_logps`. Where both directions are
wanted, `both_ways` makes them of the same tiles.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mi_align import checks
from mi_align.logprobs.api import Scalar, token_logps
from mi_align.logprobs.both_ways import both_ways
from mi_align.logprobs.layout import Layout
from mi_align.numerics import accumulation_dtype, count, fill

__all__ = ["in_batch_clip_loss", "in_batch_info_nce_bound", "in_batch_info_nce_loss"]


def in_batch_info_nce_loss(
    x: Float[Array, "batch features"],
    y: Float[Array, "batch features"],
    *,
    scale: Scalar = 1.0,
    where: Bool[Array, " batch"] | None = None,
    implementation: str = "auto",
    layout: Layout | None = None,
) -> Float[Array, " batch"]:
    """Cross-entropy of finding each x's own y among those of the whole batch, in nats; examples depend on each other.

    ℓ_i = −s_ii + log Σ_j exp s_ij,  s_ij = scale · ⟨x_i, y_j⟩

    When to choose: two encoders, negatives for nothing, and a batch so large that its B² scores would not fit: memory
    is O(B·D) and one tile. `objectives.info_nce_loss` is for scores that exist, or negatives of an example's own.

    Args:
      x: one embedding an example, `[batch, features]`; normalise them before, if cosines are meant.
      y: their partners, `[batch, features]`.
      scale: the inverse temperature; differentiable, so that it may be learned (CLIP's exp(t)). Default 1.
      where: which examples count, as x and as anyone's y, `[batch]`, True = keep. Default: all.
      implementation: as in `token_logps`.
      layout: where the two are spread over devices: x over `tokens`, and y, as the vocabulary, over `head`. Mostly
        `Layout(mesh, ("data",), P("data"))`, by which every device assembles all of y, or the same with
        `travel="ring"`, by which it never has more than two parts. Default: one device.

    Returns:
      One loss an example, `[batch]`, in nats, ≥ 0; 0 with no gradient under the mask, whatever is there. Half
      precision is accumulated in, and comes back as, float32; float64 is kept.

    Raises:
      ValueError: x and y are not `[batch, features]` of one shape, or the mask not `[batch]`.
      TypeError: embeddings are not floating-point, or the mask is not boolean.

    Gradient: with p_ij = exp s_ij / Σ_k exp s_ik, ∂Σℓ/∂x_i = scale · (Σ_j p_ij y_j − y_i) and
    ∂Σℓ/∂y_j = scale · (Σ_i p_ij x_i − x_j); also in `scale`. Backwards, and once.

    Equal to: `objectives.info_nce_loss(s_ii, s_ij of j ≠ i)`, to the rounding of the scores.

    Source: van den Oord et al. 2018 (arXiv 1807.03748), eq. 4; Oh Song et al. 2016 (arXiv 1511.06452), the batch as
    negatives.

    >>> import jax.numpy as jnp
    >>> in_batch_info_nce_loss(jnp.eye(3), jnp.eye(3), scale=2.0).round(4)
    Array([0.2395, 0.2395, 0.2395], dtype=float32)
    """
    _check(x, y, where, scale)
    y = jnp.asarray(y)
    bias = None if where is None else fill(jnp.zeros(y.shape[0], accumulation_dtype(x, y)), where, -jnp.inf)
    y = fill(y, None if where is None else where[:, None], 0)
    own = jnp.arange(y.shape[0])
    logps = token_logps(
        x, y, own, where=where, bias=bias, logit_scale=scale, implementation=implementation, layout=layout
    )
    return -logps


def in_batch_info_nce_bound(
    x: Float[Array, "batch features"],
    y: Float[Array, "batch features"],
    *,
    scale: Scalar = 1.0,
    where: Bool[Array, " batch"] | None = None,
    implementation: str = "auto",
    layout: Layout | None = None,
) -> Float[Array, " batch"]:
    """InfoNCE's lower bound on mutual information from a batch of pairs, one term of its mean, in nats.

    I_i = log B − `in_batch_info_nce_loss`, with B the number of examples that are kept; it cannot exceed log B.

    Args, shapes and errors are those of `in_batch_info_nce_loss`.

    Returns:
      One term an example, `[batch]`, in nats; 0 with no gradient under the mask.

    Gradient: that of the loss, negated.

    Equal to: `objectives.info_nce_bound` with the others' y as negatives.

    Source: van den Oord et al. 2018 (arXiv 1807.03748); Poole et al. 2019 (arXiv 1905.06922), eq. 10.

    >>> import jax.numpy as jnp
    >>> in_batch_info_nce_bound(jnp.eye(3), jnp.eye(3), scale=2.0).round(4)
    Array([0.8591, 0.8591, 0.8591], dtype=float32)
    """
    loss = in_batch_info_nce_loss(x, y, scale=scale, where=where, implementation=implementation, layout=layout)
    return fill(jnp.log(jnp.maximum(count(loss, where), 1)) - loss, where, 0)


def in_batch_clip_loss(
    x: Float[Array, "batch features"],
    y: Float[Array, "batch features"],
    *,
    scale: Scalar = 1.0,
    where: Bool[Array, " batch"] | None = None,
    layout: Layout | None = None,
) -> Float[Array, " batch"]:
    """The mean of `in_batch_info_nce_loss` from x to y and from y to x: CLIP's loss, in nats.

    ℓ_i = −s_ii + ½ log Σ_j exp s_ij + ½ log Σ_j exp s_ji

    Args, shapes and errors are those of `in_batch_info_nce_loss`. On one device both directions are made in one pass,
    with half the products of two; with a `layout` in two, for the second of which x is the vocabulary.

    Returns:
      One loss an example, `[batch]`, in nats, ≥ 0; 0 with no gradient under the mask.

    Gradient: half of either direction's.

    Source: Radford et al. 2021 (arXiv 2103.00020), figure 3.

    >>> import jax.numpy as jnp
    >>> loss = in_batch_clip_loss(jnp.eye(3), jnp.array([[1.0, 0, 0], [1, 0, 0], [0, 0, 1]]))
    >>> print(f"{loss.mean():.3f}")
    0.861
    """
    if layout is None:
        _check(x, y, where, scale)
        came = both_ways(jnp.asarray(x), jnp.asarray(y), scale, where)
        return (came.rows + came.columns) / 2
    there = in_batch_info_nce_loss(x, y, scale=scale, where=where, layout=layout)
    back = in_batch_info_nce_loss(y, x, scale=scale, where=where, layout=layout)
    return (there + back) / 2


def _check(x: Any, y: Any, where: Any, scale: Any) -> None:
    checks.number("scale", scale, checks.Range(remedy="It multiplies ⟨x, y⟩."))
    checks.floating(x=x, y=y)
    if jnp.ndim(x) != 2 or jnp.shape(x) != jnp.shape(y) or 0 in jnp.shape(x):
        raise ValueError(
            f"`x` has shape {list(jnp.shape(x))} and `y` {list(jnp.shape(y))}, but [batch, features] was wanted of "
            "both: one embedding an example, partners in the same row, and at least one of them."
        )
    checks.mask(where, x[:, 0], of="the examples")
