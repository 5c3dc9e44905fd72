"""Rows of fixed length that hold several preferences each, a prompt once for all its candidates or once for each.

A *group* is a prompt and what follows it; in a row, groups lie one after the other:

    tokens     p p p a a b b b | q q a a b |
    group      1 1 1 1 1 1 1 1   2 2 2 2 2   0 …       0: padding
    branch     0 0 0 1 1 2 2 2   0 0 1 1 2   0 …       0: prompt; 1 + c: what candidate c adds to it
    positions  0 1 2 3 4 3 4 5   0 1 2 3 2   0 …       every branch goes on from the prompt's end
    previous   · 0 1 2 3 2 5 6   · 8 9 10 9  ·         every branch's first token is predicted by the prompt's last

A token sees its own group's prompt and its own branch, up to itself, and so is computed as if it stood in a sequence of
its own. Rows are made up in *packs* of the same number of examples, so that a batch may be cut into micro-batches and
spread over devices: nothing in a pack points outside it, and all packs have one shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mi_align.data.batches import PreferenceBatch

__all__ = ["PackedBatch", "Packing", "chosen_only", "first_fit_decreasing", "pack", "plan_packing"]


class Packing(NamedTuple):
    """The one shape that all packs of a run have.

    Attributes:
      examples: preferences in a pack.
      rows: rows of a pack.
      length: places in a row.
      shared: whether a prompt stands once for all its candidates; otherwise each is a group of its own.
      fill: share of all places that hold a token, over the packs that this was planned for.
    """

    examples: int
    rows: int
    length: int
    shared: bool
    fill: float = 0.0


class PackedBatch(NamedTuple):
    """Preferences in rows; a pytree. P packs of R rows of L places; B examples of C candidates of up to T tokens.

    Attributes:
      tokens: what stands at each place; 0 on padding.
      positions: of each token in its own sequence, from 0.
      group: which group of its row a token belongs to, from 1; 0 on padding.
      branch: 0 on what a group's candidates share, 1 + c on what candidate c adds.
      previous: the place, in its row, of the token before it in its own sequence, which predicts it.
      scored: True on the tokens of responses, each of which stands once.
      places: where the token t + 1 of a candidate is, among the R · L places of its pack; 0 outside responses.
      response_mask: True on the response's tokens, as in the `PreferenceBatch` that was packed.
      candidate_mask: which candidates are there, as in it.
      desirable: labels, as in it.
      reward: scores, as in it.
      margin: how much better the chosen one is, as in it.
    """

    tokens: Int[np.ndarray, "P R L"]
    positions: Int[np.ndarray, "P R L"]
    group: Int[np.ndarray, "P R L"]
    branch: Int[np.ndarray, "P R L"]
    previous: Int[np.ndarray, "P R L"]
    scored: Bool[np.ndarray, "P R L"]
    places: Int[np.ndarray, "B C T-1"]
    response_mask: Bool[np.ndarray, "B C T"]
    candidate_mask: Bool[np.ndarray, "B C"]
    desirable: Bool[np.ndarray, "B C"] | None = None
    reward: Float[np.ndarray, "B C"] | None = None
    margin: Float[np.ndarray, " B"] | None = None


def plan_packing(
    data: Iterable[tuple[PreferenceBatch, Int[np.ndarray, "packs examples"]]],
    *,
    shared: bool,
    length: int | None = None,
) -> Packing:
    """The fewest rows a pack into which every one of the given packs goes, so that one program serves all of them.

    Args:
      data: data sets, and which of their examples each pack holds; −1 for an example that is left out.
      shared: whether a prompt stands once for all its candidates.
      length: places in a row. Default: as many as the longest group has tokens.

    Raises:
      ValueError: a group is longer than a row.
    """
    parts = [(_groups(batch, shared).sizes, indices) for batch, indices in data]
    longest = max(1, *(int(sizes.max(initial=0)) for sizes, _ in parts))
    length = longest if length is None else length
    for sizes, _ in parts:
        _refuse_longer(sizes, length)
    rows, used, packs = 1, 0, 0
    for sizes, indices in parts:
        for picked in indices:
            inside = np.where(picked[:, None] < 0, 0, sizes[picked]).ravel()
            rows = max(rows, len(first_fit_decreasing(inside, length)))
            used, packs = used + int(inside.sum()), packs + 1
    return Packing(indices.shape[1], rows, length, shared, used / max(packs * rows * length, 1))


def first_fit_decreasing(sizes: Int[np.ndarray, " items"], capacity: int) -> list[list[int]]:
    """Which items share a bin: each, from the largest on, goes into the first bin that has room; those of 0 into none.

    It takes at most 11/9 of the fewest bins, and 2/3 of one.

    >>> first_fit_decreasing(np.array([2, 5, 0, 4, 1]), 6)
    [[1, 4], [3, 0]]

    Source: Johnson 1973; the bound, Dósa 2007.
    """
    bins: list[list[int]] = []
    room = np.empty(np.count_nonzero(sizes), np.int64)
    for item in np.argsort(-sizes, kind="stable"):
        if sizes[item] == 0:
            break
        fits = np.flatnonzero(room[: len(bins)] >= sizes[item])
        if fits.size:
            at = int(fits[0])
        else:
            at = len(bins)
            bins.append([])
            room[at] = capacity
        bins[at].append(int(item))
        room[at] -= sizes[item]
    return bins


def pack(batch: PreferenceBatch, packing: Packing) -> PackedBatch:
    """A batch in rows, deterministically; every token of a candidate that has a response is there.

    Raises:
      ValueError: the batch is not so many whole packs, a group is longer than a row, or a pack needs more rows.
    """
    count, candidates, time = batch.tokens.shape
    if count % packing.examples:
        raise ValueError(
            f"the batch has {count} examples, but whole packs of `examples` = {packing.examples} were wanted."
        )
    groups = _groups(batch, packing.shared)
    _refuse_longer(groups.sizes, packing.length)
    shape = (count // packing.examples, packing.rows, packing.length)
    tokens, positions, group, branch = (np.zeros(shape, np.int32) for _ in range(4))
    previous = np.broadcast_to(np.arange(packing.length, dtype=np.int32), shape).copy()
    places, scored = np.zeros((count, candidates, time - 1), np.int32), np.zeros(shape, bool)
    packed = PackedBatch(tokens, positions, group, branch, previous, scored, places, *batch[1:])
    for number in range(shape[0]):
        for row, items in enumerate(_rows(groups.sizes, packing, number)):
            end = 0
            for name, (example, which) in enumerate(items, start=1):
                start, end = end, end + int(groups.sizes[example, which])
                group[number, row, start:end] = name
                members = range(candidates) if packing.shared else (which,)
                parts = _parts(groups, example, which, members)
                _lay(packed, batch, example, parts, (number, row, start))
    return packed


def chosen_only(batch: PreferenceBatch | PackedBatch) -> PreferenceBatch | PackedBatch:
    """The chosen responses alone; the rejected ones stay in the rows of a packed batch, but are not scored."""
    response, there = batch.response_mask[:, :1], batch.candidate_mask[:, :1]
    if isinstance(batch, PackedBatch):
        scored = batch.scored & (batch.branch == 1)
        return PackedBatch(*batch[:5], scored, batch.places[:, :1], response, there)
    return PreferenceBatch(batch.tokens[:, :1], response, there)


class _Groups(NamedTuple):
    """How long everything is. S groups an example: one, or one for each candidate.

    Attributes:
      heads: tokens that the candidates of a group share, `[B, S]`.
      sizes: tokens of a group, `[B, S]`; 0 where it has no response.
      ends: tokens of a candidate, `[B, C]`; 0 where it has no response.
    """

    heads: np.ndarray
    sizes: np.ndarray
    ends: np.ndarray


def _groups(batch: PreferenceBatch, shared: bool) -> _Groups:
    """Candidates share what all their prompts begin with: the prompt as a rule, and less than it where a token spans
    the boundary of prompt and response, or truncation cut them differently. What is left of a prompt is the branch's.
    """
    mask, time = batch.response_mask, batch.tokens.shape[-1]
    there: np.ndarray = np.any(mask, axis=-1)
    begins = np.where(there, mask.argmax(axis=-1), 0)
    ends = np.where(there, time - mask[..., ::-1].argmax(axis=-1), 0)
    if not shared:
        return _Groups(begins, ends, ends)
    first = np.take_along_axis(batch.tokens, there.argmax(axis=-1)[:, None, None], axis=1)
    alike = (batch.tokens == first) & (np.arange(time) < begins[..., None])
    everywhere = np.all(alike | ~there[..., None], axis=1) & there.any(axis=-1, keepdims=True)
    heads = np.logical_and.accumulate(everywhere, axis=-1).sum(axis=-1)
    sizes = heads + np.where(there, ends - heads[:, None], 0).sum(axis=-1)
    return _Groups(heads[:, None], sizes[:, None], ends)


def _refuse_longer(sizes: np.ndarray, length: int) -> None:
    if sizes.max(initial=0) > length:
        example = int(sizes.max(axis=1).argmax())
        raise ValueError(
            f"example {example} has a group of {sizes[example].max()} tokens, but a row has {length} places, and a "
            "group is whole in one row. Make rows longer, or prompts and responses shorter."
        )


def _rows(sizes: np.ndarray, packing: Packing, number: int) -> list[list[tuple[int, int]]]:
    """The groups in each row of a pack, as (example, which of its groups)."""
    first = number * packing.examples
    inside = sizes[first : first + packing.examples]
    rows = first_fit_decreasing(inside.ravel(), packing.length)
    if len(rows) > packing.rows:
        raise ValueError(
            f"pack {number} needs {len(rows)} rows of {packing.length} places, but has {packing.rows}. Plan over all "
            "packs that will be made (`plan_packing`)."
        )
    return [[(first + item // sizes.shape[1], item % sizes.shape[1]) for item in items] for items in rows]


class _Part(NamedTuple):
    """The tokens from `begin` to `end` of a candidate, as branch number `branch`."""

    branch: int
    candidate: int
    begin: int
    end: int


def _parts(groups: _Groups, example: int, which: int, members: Iterable[int]) -> list[_Part]:
    """What a group consists of: what its members share, then what each of them adds."""
    head, ends = int(groups.heads[example, which]), groups.ends[example]
    branches = [_Part(1 + c, c, head, int(ends[c])) for c in members if ends[c]]
    return [_Part(0, branches[0].candidate, 0, head), *branches]


def _lay(
    packed: PackedBatch, batch: PreferenceBatch, example: int, parts: list[_Part], start: tuple[int, int, int]
) -> None:
    """Write one group into a row, from a place on."""
    pack, row, at = start
    length, last = packed.tokens.shape[-1], at + parts[0].end - 1  # where what they share ends
    for part in parts:
        offsets = np.arange(part.end - part.begin)
        here = (pack, row, at + offsets)
        packed.tokens[here] = batch.tokens[example, part.candidate, part.begin : part.end]
        packed.positions[here] = part.begin + offsets
        packed.branch[here] = part.branch
        packed.previous[here] = np.where(offsets > 0, at + offsets - 1, max(last if part.branch else at, 0))
        if part.branch:
            wanted = batch.response_mask[example, part.candidate, part.begin : part.end]
            scored = offsets[wanted & (part.begin + offsets > 0)]  # nothing predicts a token at position 0
            packed.scored[pack, row, at + scored] = True
            packed.places[example, part.candidate, part.begin + scored - 1] = row * length + at + scored
        at += len(offsets)
