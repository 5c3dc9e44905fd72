"""What a row of the table is: which critic makes the logits, which objective takes them, and how they meet."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from jaxtyping import Array, Float

from mi_align import checks
from mi_align.critics import Candidates

__all__ = ["Method", "Table", "against_rewards", "one_against_rest", "pair", "ranking", "soft_labelled", "unpaired"]

Logits = Float[Array, "*batch C"]
Arrangement = Callable[[Logits, Candidates], tuple[tuple[Any, ...], dict[str, Any]]]


def pair(logits: Logits, candidates: Candidates) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One chosen and one rejected: `objective(positive, negative)`."""
    if logits.shape[-1] != 2:
        raise ValueError(
            f"there are {logits.shape[-1]} candidates a prompt, but this method compares 2: one chosen, one rejected. "
            "For K rejected responses take 'infonce_dpo' or 'mio', for a ranking 'plackett_luce_dpo'."
        )
    return (logits[..., 0], logits[..., 1]), {}


def one_against_rest(logits: Logits, candidates: Candidates) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One chosen against K rejected: `objective(positive, negatives, where=…)`."""
    mask = candidates.candidate_mask
    return (logits[..., 0], logits[..., 1:]), {"where": None if mask is None else mask[..., 1:]}


def ranking(logits: Logits, candidates: Candidates) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """All candidates, best first: `objective(scores, where=…)`."""
    return (logits,), {"where": candidates.candidate_mask}


def soft_labelled(logits: Logits, candidates: Candidates) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """All candidates with an annotator's rewards: `objective(scores, rewards, where=…)`."""
    return (logits, _given(candidates, "reward")), {"where": candidates.candidate_mask}


def unpaired(logits: Logits, candidates: Candidates) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Every candidate by itself, good or bad: `objective(score, desirable)`."""
    return (logits, _given(candidates, "desirable")), {}


def against_rewards(logits: Logits, candidates: Candidates) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Every candidate by itself, regressed on its reward: `objective(score, reward)`."""
    return (logits, _given(candidates, "reward")), {}


def _given(candidates: Candidates, field: str) -> Array:
    value = getattr(candidates, field)
    if value is None:
        raise ValueError(f"`candidates.{field}` is None, but this method needs it, one entry a candidate.")
    return value


#: Keyword arguments of objectives that are data and come from the arrangement.
_ARRANGED = frozenset({"where", "ties"})


@functools.cache
def _hyper_parameters(function: Callable[..., Any]) -> frozenset[str]:
    """Names of a function's keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


@dataclasses.dataclass(frozen=True, eq=False)
class Method:
    """A critic + an objective (+ a regulariser): one row of the table. Call it to get a loss an example.

    The parts are plain functions; each takes from the hyper-parameters those that it names among its keyword-only
    arguments. A row of your own is `Method(...)` or `dataclasses.replace(METHODS["dpo"], ...)`.

    Attributes:
      name: what the table calls it.
      critic: candidates -> logits, `[..., 1+K]`.
      objective: logits -> a loss an example.
      arrange: how a prompt's logits become the objective's arguments: `pair`, `one_against_rest`, `ranking`, ….
      source: where it comes from, and where it departs from that.
      defaults: hyper-parameters and their values.
      regulariser: candidates -> a penalty an example, added to the loss.
      weight: candidates -> a constant factor an example, multiplied to the loss.
      needs_reference: whether a reference policy's log-probabilities are looked at.
      aliases: what the wider world calls it (TRL's `loss_type` first, where it has one).
    """

    name: str
    critic: Callable[..., Logits]
    objective: Callable[..., Array]
    arrange: Arrangement
    source: str
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    regulariser: Callable[..., Array] | None = None
    weight: Callable[..., Array] | None = None
    needs_reference: bool = True
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Freeze the defaults."""
        object.__setattr__(self, "defaults", MappingProxyType(dict(self.defaults)))

    def _identity(self) -> tuple[Any, ...]:
        values = (getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "defaults")
        return (*values, tuple(sorted(self.defaults.items())))

    def __eq__(self, other: object) -> bool:
        """Equal parts and equal hyper-parameters: a configured method is a fine static argument of `jit`."""
        return isinstance(other, Method) and self._identity() == other._identity()

    def __hash__(self) -> int:
        """By parts and hyper-parameters."""
        return hash(self._identity())

    def configure(self, **hyper: float) -> Method:
        """The same method with other hyper-parameters.

        Raises:
          ValueError: the method has no hyper-parameter of that name (the nearest is named), or a value is out of range.
          TypeError: a value is not a number.
        """
        self._check(hyper)
        return dataclasses.replace(self, defaults={**self.defaults, **hyper})

    def logits(self, candidates: Candidates, **hyper: Any) -> Logits:
        """The critic's logits, `[..., 1+K]`."""
        self._check(hyper)
        return self._part(self.critic, {**self.defaults, **hyper}, candidates)

    def __call__(self, candidates: Candidates, **hyper: Any) -> Float[Array, "*batch"]:
        """The loss of each example; hyper-parameters given here win over the method's own and may be traced.

        Args:
          candidates: log-probabilities of 1+K responses to each prompt.
          **hyper: hyper-parameters, e.g. `beta=0.2`.

        Returns:
          One loss a prompt, `[...]`; one a response, `[..., C]`, for methods on single responses.

        Raises:
          ValueError: a field that the method needs is None, there are too many candidates, or a hyper-parameter is
            unknown or out of range.
        """
        self._check(hyper)
        hyper = {**self.defaults, **hyper}
        arguments, masks = self.arrange(self._part(self.critic, hyper, candidates), candidates)
        loss = self._part(self.objective, hyper, *arguments, **masks)
        if self.weight is not None:
            loss = self._part(self.weight, hyper, candidates) * loss
        if self.regulariser is not None:
            loss = loss + self._part(self.regulariser, hyper, candidates)
        return loss

    def hyper_parameters(self) -> frozenset[str]:
        """Names that `configure` and calls accept."""
        parts = (self.critic, self.objective, self.regulariser, self.weight)
        names = frozenset().union(*(_hyper_parameters(part) for part in parts if part is not None))
        return (names | self.defaults.keys()) - _ARRANGED

    def _check(self, hyper: Mapping[str, Any]) -> None:
        for name, value in hyper.items():
            if name not in self.hyper_parameters():
                raise checks.unknown_name(f"hyper-parameter of {self.name!r}", name, self.hyper_parameters())
            ranges = getattr(self.objective, "ranges", {})
            checks.number(name, value, ranges.get(name))

    @staticmethod
    def _part(part: Callable[..., Array], hyper: Mapping[str, Any], *arguments: Any, **masks: Any) -> Array:
        wanted = _hyper_parameters(part)
        return part(*arguments, **{k: v for k, v in hyper.items() if k in wanted}, **masks)


class Table(Mapping[str, Method]):
    """Methods by name; an unknown name is an error that says which one may have been meant."""

    def __init__(self, *rows: Method) -> None:
        """A table of these rows, whose names must differ."""
        self._rows = {row.name: row for row in rows}
        if len(self._rows) < len(rows):
            names = [row.name for row in rows]
            raise ValueError(f"two methods share a name: {sorted({n for n in names if names.count(n) > 1})}")

    def __getitem__(self, name: str) -> Method:
        """The method called `name`."""
        if name not in self._rows:
            raise checks.unknown_name("method", name, self._rows)
        return self._rows[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The method called `name`, or `default`."""
        return self._rows.get(name, default)

    def __contains__(self, name: object) -> bool:
        """Whether there is a method called `name`."""
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        """The names, in the table's order."""
        return iter(self._rows)

    def __len__(self) -> int:
        """How many methods there are."""
        return len(self._rows)
