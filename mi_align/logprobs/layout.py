"""Where tokens and the vocabulary matrix live on a mesh of devices."""

from __future__ import annotations

import dataclasses
import math

from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

__all__ = ["TRAVELS", "Layout"]

#: How a part of the vocabulary matrix comes to tokens that are spread over the same axis; see `Layout.travel`.
TRAVELS = ("gather", "ring")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How hidden states and the vocabulary matrix are spread over a mesh; hashable, so static under `jit`.

    An axis of the mesh has one of three parts to play:

      - in `tokens` only: each of its devices has other tokens, and all of the vocabulary that its place on the other
        axes gives it (`data`);
      - in `head` only: each has other rows of the vocabulary, which stay where they are; only numbers, a few a token,
        cross between devices (`tensor`);
      - in both: what is spread of the vocabulary has to travel to the tokens, as `travel` says (`fsdp`).

    Tokens need not divide evenly, nor need rows of the vocabulary: both are padded.

    Attributes:
      mesh: its axes must be of type `Auto`.
      tokens: axes over which positions are spread (the batch; `[batch, time]` is cut after flattening, so an axis
        should divide the batch), first the slowest.
      head: of the vocabulary matrix `[vocab, features]`, as `P("tensor", "fsdp")` or `P(("tensor", "fsdp"))`. Axes of
        features must be among `tokens`; of rows, those that stay come before those that travel.
      travel: "gather": a device assembles all that is spread over the travelling axes, in the forward and again in the
        backward pass, and gradients are summed straight into their parts. "ring": parts, which must be rows, pass from
        device to device, so that none holds more than two; nothing is kept from step to step, and
        `memory_budget` and `filter_eps` have no effect.

    Raises:
      ValueError: an axis is unknown, named twice, of another type than `Auto`, or cannot travel as asked.

    >>> import jax
    >>> mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    >>> layout = Layout(mesh, tokens=("data", "fsdp"), head=P("tensor", "fsdp"))
    >>> layout.staying, layout.travelling
    (('tensor',), ('fsdp',))
    """

    mesh: Mesh
    tokens: tuple[str, ...]
    head: P
    travel: str = "gather"

    def __post_init__(self) -> None:
        """Refuse what no program can follow."""
        object.__setattr__(self, "tokens", _names(self.tokens))
        if len(self.head) > 2:
            raise ValueError(f"`head` is {self.head}, but a spec of [vocab, features] was wanted: two entries at most.")
        if self.travel not in TRAVELS:
            raise ValueError(f"`travel` is {self.travel!r}, but one of {', '.join(map(repr, TRAVELS))} was wanted.")
        for where, names in (("tokens", self.tokens), ("head", self.rows + self.features)):
            self._check_axes(where, names)
        if not set(self.features) <= set(self.tokens):
            raise ValueError(
                f"`head` spreads features over {self.features}, but tokens over {self.tokens}: axes of features must "
                "be among those of tokens. Spread rows of the vocabulary over a tensor axis: P('tensor', 'fsdp')."
            )
        if self.rows != self.staying + self.moving_rows:
            raise ValueError(
                f"`head` spreads rows over {self.rows}, of which {self.moving_rows} travel: those that stay were "
                f"wanted first, P({self.staying + self.moving_rows})."
            )
        if self.travel == "ring" and (self.features or len(self.moving_rows) != 1):
            raise ValueError(
                f"`travel` is 'ring' and `head` {self.head}, but rows spread over one axis of tokens were wanted: "
                "P('fsdp') or P(('tensor', 'fsdp')). Pass travel='gather' for any other."
            )

    def _check_axes(self, where: str, names: tuple[str, ...]) -> None:
        axes = dict(zip(self.mesh.axis_names, self.mesh.axis_types, strict=True))
        if unknown := [name for name in names if name not in axes]:
            raise ValueError(f"`{where}` names {unknown}, but the mesh has the axes {list(axes)}.")
        if len(set(names)) < len(names):
            raise ValueError(f"`{where}` names an axis twice: {names}.")
        if others := [name for name in names if axes[name] != AxisType.Auto]:
            raise ValueError(
                f"the axes {others} of `mesh` are of type {axes[others[0]].name}, but Auto was wanted: "
                "jax.make_mesh(shape, names, axis_types=(jax.sharding.AxisType.Auto,) * len(names))."
            )

    @property
    def rows(self) -> tuple[str, ...]:
        """Axes over which rows of the vocabulary matrix are spread."""
        return _names(self.head[0]) if len(self.head) else ()

    @property
    def features(self) -> tuple[str, ...]:
        """Axes over which its columns are spread."""
        return _names(self.head[1]) if len(self.head) > 1 else ()

    @property
    def staying(self) -> tuple[str, ...]:
        """Axes whose devices keep their rows of the vocabulary."""
        return tuple(name for name in self.rows if name not in self.tokens)

    @property
    def moving_rows(self) -> tuple[str, ...]:
        """Axes over which rows are spread that have to travel."""
        return tuple(name for name in self.rows if name in self.tokens)

    @property
    def travelling(self) -> tuple[str, ...]:
        """All axes along which parts of the vocabulary travel."""
        return self.moving_rows + self.features

    def size(self, names: tuple[str, ...]) -> int:
        """The number of devices along axes."""
        return math.prod(self.mesh.shape[name] for name in names)

    def share(self, positions: int, vocab: int) -> tuple[int, int]:
        """How many positions and vocabulary entries a device works on at a time, padding included."""
        entries = -(-vocab // self.size(self.rows))
        gathered = 1 if self.travel == "ring" else self.size(self.moving_rows)
        return -(-positions // self.size(self.tokens)), entries * gathered


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
