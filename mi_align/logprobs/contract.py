"""What a way of making log-probabilities takes and gives: the contract between `api` and the files beside it.

A *way* is a pair of functions. `forward` turns rows (hidden states of kept positions) into sums over the vocabulary,
and `backward` turns coefficients into gradients (that by hidden without the factor `scale`), through

  u_nj = scale · h_n·v_j + bias_j,    z_nj = soft_cap · tanh(u_nj / soft_cap)    (z = u without a cap),

  ∂loss/∂z_nj = t_n·1[j = y_n] + p_nj·(a_n + b_n·(z_nj − top_n) + c_n·p_nj) + m_n,    p_n = softmax(z_n),

the one form that every statistic asked for here has. Everything is measured from a row's largest logit, `top`, because
a normaliser that has it added in has lost the digits of log p where logits are large.

Shape suffixes, here and in the ways: N rows, D features, V vocabulary, R rows of a tile, C vocabulary entries (columns)
of a tile.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from jaxtyping import Array, Float, Int

from mi_align.logprobs.tiles import Tiles

__all__ = ["Coefficients", "Needs", "Plan", "Problem", "RowSums", "Saved"]


class Problem(NamedTuple):
    """The rows of a softmax over the vocabulary.

    Attributes:
      hidden: `[N, D]`.
      vocabulary: `[V, D]`.
      targets: `[N]`; one outside [0, V) is a row whose target is in no entry here (it may be in another shard): z at
        the target is 0 then, and nothing is sent back to a target.
      bias: `[V]`, or None.
      scale: a number that multiplies h·v, or None for 1.
      soft_cap: a number, or None for no cap.
      kept: only the first `kept` rows are wanted, the others may hold anything finite; None for all.
      entries: only the first `entries` of the vocabulary count, none of them if it is ≤ 0; None for all.
    """

    hidden: Float[Array, "N D"]
    vocabulary: Float[Array, "V D"]
    targets: Int[Array, " N"]
    bias: Float[Array, " V"] | None = None
    scale: Float[Array, ""] | None = None
    soft_cap: Float[Array, ""] | None = None
    kept: Int[Array, ""] | None = None
    entries: Int[Array, ""] | None = None


class RowSums(NamedTuple):
    """Sums over the vocabulary, each `[N]`; those after the first three only where statistics are asked for.

    Attributes:
      target_logit: z at the target.
      top: the largest logit; a constant to derivatives, as what is made of it does not depend on its value.
      log_mass: log Σ_j exp(z_j − top), so that log Σ_j exp z_j = top + log_mass.
      gap: Σ_j p_j (z_j − top) ≤ 0.
      sum_squares: Σ_j p_j².
      mean_logit: Σ_j z_j / V.
      argmax: the index of the largest logit; the first of several.
    """

    target_logit: Float[Array, " N"]
    top: Float[Array, " N"]
    log_mass: Float[Array, " N"]
    gap: Float[Array, " N"] | None = None
    sum_squares: Float[Array, " N"] | None = None
    mean_logit: Float[Array, " N"] | None = None
    argmax: Int[Array, " N"] | None = None


class Saved(NamedTuple):
    """What the forward pass leaves beside `RowSums`, each only where asked for.

    Attributes:
      logits: z of as much of the vocabulary as is kept, from its start, `[N, columns]`.
      peaks: the largest z of each row in each tile, `[tiles, N]`.
      pull: Σ_{j ≠ y} p_j ∂z_j/∂u_j v_j, `[N, D]`: all that the hidden gradient needs of the vocabulary.
    """

    logits: Float[Array, "N columns"] | None = None
    peaks: Float[Array, "tiles N"] | None = None
    pull: Float[Array, "N D"] | None = None


class Coefficients(NamedTuple):
    """t, a, b, c and m of the gradient's form, each `[N]`; None stands for zeros."""

    target: Float[Array, " N"] | None = None
    constant: Float[Array, " N"] | None = None
    logit: Float[Array, " N"] | None = None
    probability: Float[Array, " N"] | None = None
    uniform: Float[Array, " N"] | None = None


@dataclasses.dataclass(frozen=True)
class Needs:
    """Which gradients are wanted; what is not costs nothing."""

    hidden: bool = True
    vocabulary: bool = True
    bias: bool = True


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the work is done; static. It changes rounding and cost, never what is computed.

    Attributes:
      tiles: see `tiles.choose`.
      statistics: whether all of `RowSums` is wanted.
      kept_tiles: of how many vocabulary tiles the logits are kept for the backward pass.
      filter_eps: the backward pass skips tiles in which every probability is below it; None skips none.
    """

    tiles: Tiles
    statistics: bool = False
    kept_tiles: int = 0
    filter_eps: float | None = None
