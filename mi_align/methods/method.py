"""What a row of the table is: which critic makes the logits, which objective takes them, and how they meet."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mi_align import checks
from mi_align.critics import Candidates
from mi_align.methods.arrangements import per_candidate

__all__ = ["Frozen", "Method", "Table", "UnknownMethod"]

Part = Callable[..., Array]
V = TypeVar("V")

#: Keyword-only parameters of objectives that are data: arrangements pass them.
_DATA = frozenset({"axis", "axis_name", "reference_point", "ties", "where"})


class Frozen(Mapping[str, V], Generic[V]):
    """A mapping that does not change; it copies and pickles."""

    def __init__(self, entries: Mapping[str, V]) -> None:
        """These entries, in their order."""
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> V:
        """The entry called `name`."""
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        """The names, in order."""
        return iter(self._entries)

    def __len__(self) -> int:
        """How many entries there are."""
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        """Whether the entries are the same; arrays by their numbers."""
        if not isinstance(other, Mapping):
            return NotImplemented
        return self.keys() == other.keys() and all(_same(value, other[name]) for name, value in self.items())

    __hash__ = None  # type: ignore[assignment]  # what it holds need not have one

    def __repr__(self) -> str:
        """As a dictionary."""
        return repr(self._entries)


def _same(x: Any, y: Any) -> bool:
    arrays = (np.ndarray, jax.Array)
    return bool(np.array_equal(x, y)) if isinstance(x, arrays) or isinstance(y, arrays) else bool(x == y)


class _Parts(NamedTuple):
    """A method's functions, without the numbers: what a program is compiled for."""

    critic: Part
    objective: Part
    arrange: Part
    weight: Part | None
    regulariser: Part | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """A critic, an objective and how they meet: one row of the table. Call it for a loss an example.

        loss = weight(candidates) · arrange(objective, critic(candidates), candidates) + regulariser(logits, candidates)

    The parts are plain functions. Each takes those of the hyper-parameters that it names among its keyword-only
    parameters, so that one name is one number for all of them. A row of your own is `Method(…)` or
    `dataclasses.replace(METHODS["dpo"], …)`. Methods are constants to JAX: equal parts and numbers are equal methods,
    which hash, and which `jit` takes as static arguments.

    Attributes:
      name: what the table calls it.
      critic: `critic(candidates, *, …)` -> logits `[*batch, C]`.
      objective: logits -> losses; what its arguments are is up to `arrange`.
      arrange: `arrange(objective, logits, candidates, *, …)` -> losses `[*batch]`: `pair`, `one_against_rest`, ….
      defaults: hyper-parameters and their values. Those of the functions' own defaults need not be named.
      weight: `weight(candidates, *, …)` -> a factor of each example's preference loss, `[*batch]` or a number.
      regulariser: `regulariser(logits, candidates, *, …)` -> what is added to each example's loss, `[*batch]`.
      needs_reference: whether a reference policy's log-probabilities are read.
      couples_batch: whether an example's loss depends on the rest of its batch, so that micro-batches change it.
      source: where it comes from.
      aliases: what the wider world calls it; TRL's `loss_type` first, where it has one.
      note: where this row departs from its source or from TRL, and what else one has to know.
    """

    name: str
    critic: Part
    objective: Part
    arrange: Part
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    weight: Part | None = None
    regulariser: Part | None = None
    needs_reference: bool = True
    couples_batch: bool = False
    source: str = ""
    aliases: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        """Freeze the defaults, and look at their names and ranges."""
        self._check(self.defaults)
        object.__setattr__(self, "defaults", Frozen(self.defaults))

    def configure(self, **hyper: Any) -> Method:
        """The same method with other hyper-parameters.

        Args:
          **hyper: numbers, or arrays with a number an example.

        Raises:
          ValueError: the method has no hyper-parameter of that name (the nearest is named), or a value is out of range.
          TypeError: a value is not a real number.

        >>> from mi_align import METHODS
        >>> METHODS["dpo"].configure(beta=0.2).defaults["beta"]
        0.2
        """
        self._check(hyper, wait=True)
        return dataclasses.replace(self, defaults={**self.defaults, **hyper})

    def logits(self, candidates: Candidates, **hyper: Any) -> Float[Array, "*batch C"]:
        """The critic's logits, `[*batch, C]`; hyper-parameters that only other parts take may be given too."""
        return _logits(self.critic, candidates, _of_critic(self.critic, self._complete(candidates, hyper)))

    def __call__(self, candidates: Candidates, **hyper: Any) -> Float[Array, "*batch"]:
        """The loss of each example.

        Compiled once for a method's parts and a shape, whatever the hyper-parameters' values.

        Args:
          candidates: what is known of the C candidates of each prompt; fields that no part reads stay None.
          **hyper: hyper-parameters, e.g. `beta=0.2`; they win over the method's own, and may be traced.

        Returns:
          One loss an example, `[*batch]`, float32 or wider; the caller reduces.

        Raises:
          ValueError: a field that the method reads is None or has a wrong shape, the number of candidates is not one
            that it can take, or a hyper-parameter is unknown or out of range.
          TypeError: `candidates` are none, or a dtype or a hyper-parameter's type is wrong.

        >>> import jax.numpy as jnp
        >>> from mi_align import METHODS, Candidates
        >>> pair = Candidates.from_sequences(jnp.array([[-12.0, -15.0]]), jnp.array([[-13.0, -14.5]]))
        >>> METHODS["dpo"](pair, beta=0.2).round(4)
        Array([0.5544], dtype=float32)
        """
        return _losses(self._parts(), candidates, self._complete(candidates, hyper))

    def hyper_parameters(self) -> frozenset[str]:
        """The names that `configure` and calls accept."""
        return frozenset().union(*(_keywords(part) for part in self._parts() if part is not None)) - _DATA

    def _parts(self) -> _Parts:
        return _Parts(self.critic, self.objective, self.arrange, self.weight, self.regulariser)

    def _complete(self, candidates: Candidates, hyper: Mapping[str, Any]) -> dict[str, Any]:
        """All hyper-parameters of a call whose arguments have been looked at."""
        if not isinstance(candidates, Candidates):
            raise TypeError(
                f"`candidates` is of type {type(candidates).__name__}, but `Candidates` was wanted. For log-"
                "probabilities of whole responses, chosen first: `Candidates.from_sequences(policy, reference)`."
            )
        if self.needs_reference and candidates.reference is None:
            raise ValueError(
                f"`candidates.reference` is None, but {self.name!r} compares with a reference policy. Pass its token "
                "log-probabilities, or take a method without one, such as 'simpo', 'cpo' or 'dpo_reference_free'."
            )
        self._check(hyper)
        whole = {**self.defaults, **hyper}
        arrays = {name: value for name, value in whole.items() if jnp.ndim(value)}
        if arrays:
            checks.broadcastable(candidates.batch_shape, **arrays)
        return whole

    def _check(self, hyper: Mapping[str, Any], *, wait: bool = False) -> None:
        known = self.hyper_parameters()
        for name, value in hyper.items():
            if name not in known:
                raise checks.unknown_name(f"hyper-parameter of {self.name!r}", name, known)
            if value is not None:
                own = [getattr(part, "ranges", {}).get(name) for part in self._parts()]
                checks.number(name, value, next(filter(None, own), None), wait=wait)


@functools.lru_cache(maxsize=1024)
def _keywords(part: Part) -> frozenset[str]:
    """Names of a function's keyword-only parameters."""
    parameters = inspect.signature(part).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def _own(part: Part, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the hyper-parameters that a part takes."""
    return {name: hyper[name] for name in hyper if name in _keywords(part)}


def _of_critic(critic: Part, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a critic takes: what is one number an example is one for each of its candidates."""
    return {name: per_candidate(value) for name, value in _own(critic, hyper).items()}


@functools.partial(jax.jit, static_argnums=0)
def _logits(critic: Part, candidates: Candidates, hyper: Mapping[str, Any]) -> Array:
    return critic(candidates, **hyper)


@functools.partial(jax.jit, static_argnums=0)
def _losses(parts: _Parts, candidates: Candidates, hyper: Mapping[str, Any]) -> Array:
    logits = parts.critic(candidates, **_of_critic(parts.critic, hyper))
    objective = functools.partial(parts.objective, **_own(parts.objective, hyper))
    loss = parts.arrange(objective, logits, candidates, **_own(parts.arrange, hyper))
    if parts.weight is not None:
        loss = parts.weight(candidates, **_own(parts.weight, hyper)) * loss
    if parts.regulariser is not None:
        loss = loss + parts.regulariser(logits, candidates, **_own(parts.regulariser, hyper))
    return loss


class UnknownMethod(KeyError, ValueError):
    """No method has that name; the message says which one may have been meant."""

    def __str__(self) -> str:
        """The message, without the quotes that `KeyError` puts around it."""
        return str(self.args[0])


class Table(Frozen[Method]):
    """Methods by name. Join tables of your own with `Table([*METHODS.values(), mine])`, or keep a plain dictionary."""

    def __init__(self, rows: Iterable[Method]) -> None:
        """A table of these rows, whose names must differ."""
        rows = tuple(rows)
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            raise ValueError(f"two methods share a name: {sorted({n for n in names if names.count(n) > 1})}.")
        super().__init__({row.name: row for row in rows})

    def __getitem__(self, name: str) -> Method:
        """The method called `name`; the error for an unknown one knows what others call ours."""
        if name in self._entries:
            return self._entries[name]
        here = [repr(row.name) for row in self._entries.values() if name in row.aliases]
        if here:
            raise UnknownMethod(f"there is no method called {name!r}: here it is {' or '.join(here)}.")
        raise UnknownMethod(str(checks.unknown_name("method", name, self._entries)))
