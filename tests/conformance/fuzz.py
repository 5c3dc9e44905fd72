"""Every objective on 100,000 inputs, in float32 and in float64, against 50 digits or more.

Logits spread from 1e-6 to ±1e4 with ties, common offsets and rounded differences; lists of 1 to 100,000 candidates,
those of up to 8 under masks with NaN beneath; mean log-probabilities from −1e4 to −1e-12. The truth is the oracle's
line on MPFR's numbers, of as many digits as the line cancels; one example of every chunk is evaluated on mpmath's too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mi_align import critics, elementary, numerics, objectives
from mi_align.critics import Candidates
from mi_align.numerics import Mean
from tests.against_truth import worst_errors
from tests.conformance import inputs
from tests.conformance.cases import LISTS as LIST_NAMES
from tests.conformance.cases import NAMES, seed_of
from tests.conformance.compare import FLUSHED, FLUSHED_BEFORE, SIGNED_SUMS, SORTED, VALUE_ULPS, Worst
from tests.conformance.drawn import BOUNDS, POLICY_GRADIENT
from tests.oracles import NUMERICS, ORACLES

INPUTS = 100_000
CHUNK = 2_500
REGIMES = (*inputs.REGIMES, inputs.RAW)
SHORT = 8
#: How long lists, samples, groups and texts are beyond the short ones: (length, how many of each spread, the spreads).
LISTS = [(1, 500, (3.0, 60.0)), (100, 40, (0.1, 3.0, 60.0)), (1_000, 8, (0.1, 3.0, 60.0))]
LISTS += [(10_000, 2, (60.0,)), (100_000, 1, (3.0,))]
GROUPS = [(2, 500, (3.0,)), (30, 20, (3.0,))]
TOKENS = [(1, 500, (3.0,)), (100, 10, (3.0,)), (1_000, 2, (3.0,))]
#: The formula of a matrix takes N³ steps.
MATRICES = [(16, 2_000, (0.1, 3.0, 60.0)), (100, 20, (0.1, 3.0, 60.0)), (400, 4, (3.0,))]
#: SMILE's derivative to its clip is a plain sum over the sample.
SAMPLES_OF_SMILE = LISTS[:2]
#: Off the grid the bound is so many times the condition number's. Scores of the interpolated bound are taken relative
#: to the row's own, and the rounding of that difference is in all of them; that of 1 − α is in all its derivatives,
#: where it counts 1/(1 − α) ≤ 50 times.
RAW_FACTOR = {"interpolated_bound": 50}

Arrays = dict[str, Any]


class Subject(NamedTuple):
    """What is fuzzed.

    Attributes:
      function: takes the drawn arguments of one example by name.
      formula: its oracle.
      draw: (generator, regime, leading axes, dtype, size) -> arguments.
      known: what `worst_errors` has to know.
    """

    function: Callable[..., Any]
    formula: Callable[..., Any]
    draw: Callable[..., Arrays]
    known: Mapping[str, Any]


class Row(NamedTuple):
    """One line of the table."""

    name: str
    dtype: str
    inputs: int
    value: Worst
    gradient: Worst

    def cells(self) -> list[str]:
        """As text: name, dtype, inputs, and for value and gradient the worst ulp, where, and what was excused."""
        worst = [self.value, self.gradient]
        ulps = [f"{w.plain:.2f}" for w in worst]
        excused = [f"{w.excused:,} ({w.share:.2f})" if w.excused else "—" for w in worst]
        return [self.name, self.dtype, f"{self.inputs:,}", *ulps, *excused, *(_brief(w.plain_at) for w in worst)]


def page(rows: Sequence[Sequence[str]]) -> str:
    """All lines as a page: what was measured, and beneath it where the worst was seen."""
    columns = ["function", "dtype", "inputs", "value", "gradient", "values excused", "slopes excused"]
    table = [columns, ["---"] * 2 + ["---:"] * 5, *(row[:7] for row in rows)]
    places = [["function", "dtype", "worst value at", "worst derivative at"], ["---"] * 4]
    places += [[*row[:2], *(f"`{place}`" for place in row[7:])] for row in rows]
    missing = 2 * len(SUBJECTS) - len(rows)
    note = f"**{missing} rows are missing.**\n\n" if missing > 0 else ""
    return INTRODUCTION + note + _table(table) + "\n## Where the worst were seen\n\n" + _table(places)


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


INTRODUCTION = f"""# Every objective on 100,000 inputs and more

Written by `make test-slow` (`test_fuzz.py`). {__doc__.partition(chr(10))[2].strip()}

Value and gradient are the worst error in units in the last place, of every result and every partial derivative, among
those that no condition number excuses: up to {4} and {8} (values: EXO's pair loss {VALUE_ULPS["exo_pair_loss"]},
Savage's {VALUE_ULPS["savage_loss"]}, for which `compare.py` gives the reason). *Excused* are results that rounding the
arguments by half an ulp moves further than that; in brackets the worst error among them, as a share of
`ulps · ε · Σ |x ∂f/∂x|`, the condition number's bound (50 times that for raw inputs of the interpolated bound: see
`RAW_FACTOR`).

"""


def fuzz(name: str, dtype: type, number: int = INPUTS) -> Row:
    """The worst of `number` short inputs of a subject, and of its long ones."""
    subject, value, gradient, total = SUBJECTS[name], Worst(), Worst(), 0
    rng = np.random.default_rng(seed_of("fuzz", name, np.dtype(dtype)))
    chunks = math.ceil(number / (CHUNK * len(REGIMES)))
    plan = [(regime, min(CHUNK, number), None) for regime in REGIMES for _ in range(chunks)]
    plan += [(r, rows, n) for n, rows, spreads in SIZES.get(name, []) for r in spreads if number >= INPUTS]
    for regime, rows, size in plan:
        drawn = subject.draw(rng, regime, (rows,), dtype, size)
        factor = RAW_FACTOR.get(name, 1) if regime == inputs.RAW else 1
        seen = worst_errors(subject.function, drawn, formula=subject.formula, slack=factor, **subject.known)
        value, gradient, total = value.merge(seen[0]), gradient.merge(seen[1]), total + rows
    return Row(name, np.dtype(dtype).name, total, value, gradient)


def _brief(arguments: Mapping[str, Any], length: int = 90) -> str:
    def brief(x: Any) -> str:
        if isinstance(x, list):
            shown = ", ".join(brief(entry) for entry in x[:8])
            return f"[{shown}{', …' if len(x) > 8 else ''}]"
        return repr(x)

    text = ", ".join(f"{name}={brief(x)}" for name, x in arguments.items())
    return text if len(text) <= length else f"{text[:length]}…"


# ------------------------------------------------------------------------------------------------------------ subjects


def _from_signature(name: str) -> Subject:
    """An objective of pairs, lists or single responses."""
    objective = getattr(objectives, name)
    hidden = {n for n in inputs.shapes(objective) if inputs.hidden_by_mask(objective, n)}

    def draw(
        rng: np.random.Generator, regime: float | str, batch: tuple[int, ...], dtype: type, size: int | None
    ) -> Arrays:
        sizes = dict.fromkeys(inputs.SIZES, size or SHORT)
        drawn = inputs.draw(objective, rng, regime, batch=batch, dtype=dtype, sizes=sizes)
        shared = {n for n, axes in inputs.shapes(objective).items() if axes is None and np.ndim(drawn[n]) == 0}
        drawn |= {n: np.full(batch, drawn[n]) for n in shared if not isinstance(drawn[n], int)}
        return _under_mask(drawn, rng, hidden) if hidden and size is None else drawn

    known = {
        "levels": inputs.LOGITS,
        "hidden": hidden,
        "in_order": name in SORTED,
        "differences": SIGNED_SUMS.get(name, ()),
        "value_ulps": VALUE_ULPS.get(name, 4),
        "flushed": FLUSHED_BEFORE.get(name, FLUSHED),
    }
    return Subject(objective, ORACLES[name], draw, known)


def _under_mask(drawn: Arrays, rng: np.random.Generator, hidden: set[str]) -> Arrays:
    """One to all entries of each list are kept, at random places; NaN is under the mask."""
    shape = drawn[min(hidden)].shape
    rank = rng.permuted(np.tile(np.arange(shape[-1]), (*shape[:-1], 1)), axis=-1)
    where = rank < rng.integers(1, shape[-1] + 1, (*shape[:-1], 1))
    if "weights" in hidden:  # those of what is kept sum to 1
        kept = np.where(where, drawn["weights"], 0)
        drawn = drawn | {"weights": kept / kept.sum(-1, keepdims=True, dtype=kept.dtype)}
    covered = {n: np.where(where, drawn[n], np.nan if drawn[n].dtype.kind == "f" else False) for n in hidden}
    return drawn | {n: x.astype(drawn[n].dtype) for n, x in covered.items()} | {"where": where}


def _from_table(name: str) -> Subject:
    """An objective that reduces over samples, groups or tokens."""
    draw, known = (BOUNDS | POLICY_GRADIENT)[name]
    return Subject(_number_of(getattr(objectives, name)), ORACLES[name], draw, known)


def _number_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a `Mean` turned into its value."""

    @functools.wraps(function)
    def valued(**arguments: Any) -> Any:
        result = function(**arguments)
        return result.value() if isinstance(result, Mean) else result

    return valued


def _log_odds(mean_logp: jax.Array) -> jax.Array:
    """The log-odds critic of one response with this mean log-probability."""
    return critics.log_odds(Candidates.from_sequences(mean_logp[None], length=jnp.ones(1)))[0]


def _elementwise(*names: str, **others: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> Any:
    """Logits, and other arguments from (generator, shape)."""

    def draw(
        rng: np.random.Generator, regime: float | str, batch: tuple[int, ...], dtype: type, size: int | None
    ) -> Arrays:
        drawn = {name: inputs.logits(rng, regime, batch, dtype) for name in names}
        return drawn | {name: other(rng, batch).astype(dtype) for name, other in others.items()}

    return draw


def _sample(
    rng: np.random.Generator, regime: float | str, batch: tuple[int, ...], dtype: type, size: int | None
) -> Arrays:
    drawn = {"x": inputs.logits(rng, regime, (*batch, size or SHORT), dtype)}
    return drawn if size else _under_mask(drawn, rng, {"x"})


def _sample_and_peak(*arguments: Any) -> Arrays:
    drawn = _sample(*arguments)
    return drawn | {"centre": np.nanmax(drawn["x"], axis=-1)}


def _below_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Log-probabilities from −1e4 to −1e-12."""
    return -(10.0 ** rng.uniform(-12, 4, shape))


def _above_minus_one(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.maximum(np.expm1(rng.normal(0, 10.0 ** rng.uniform(-8, 1, shape))), -1 + 1e-6)


BUILDING_BLOCKS: dict[str, tuple[Callable[..., Any], Callable[..., Arrays], dict[str, Any]]] = {
    **{
        name: (getattr(elementary, name), _elementwise("x"), {})
        for name in ("sigmoid", "softplus", "log_sigmoid", "expm1", "exp_excess")
    },
    "log1mexp": (elementary.log1mexp, _elementwise(x=_below_zero), {}),
    "log1p": (elementary.log1p, _elementwise(x=_above_minus_one), {}),
    "sigmoid_difference": (elementary.sigmoid_difference, _elementwise("x", "y"), {}),
    "bernoulli_kl": (elementary.bernoulli_kl, _elementwise("p", "q"), {"value_ulps": VALUE_ULPS["exo_pair_loss"]}),
    "scaled_softplus": (
        elementary.scaled_softplus,
        _elementwise("x", scale=lambda rng, shape: 10.0 ** rng.uniform(0, 5, shape)),
        {},
    ),
    **{
        name: (functools.partial(getattr(numerics, name), axis=-1), _sample, {"hidden": {"x"}})
        for name in ("masked_sum", "masked_mean", "mean_expm1")
    },
    "centred_log_mean_exp": (
        functools.partial(numerics.centred_log_mean_exp, axis=-1),
        _sample_and_peak,
        {"hidden": {"x"}},
    ),
    "log_odds": (_log_odds, _elementwise(mean_logp=_below_zero), {}),
}

#: Where an example has a length.
SIZES: dict[str, list[tuple[int, int, tuple[float, ...]]]] = {
    **dict.fromkeys([*LIST_NAMES, *BOUNDS], LISTS),
    "aot_loss": GROUPS,
    "smile_bound": SAMPLES_OF_SMILE,
    "interpolated_bound": MATRICES,
    **dict.fromkeys(["centred_advantage", "rloo_advantage", "group_advantage", "rloo_loss"], GROUPS),
    **dict.fromkeys(["grpo_loss", "dr_grpo_loss", "dapo_loss", "bnpo_loss", "gspo_loss", "cispo_loss"], TOKENS),
    **{name: LISTS for name, (_, draw, _) in BUILDING_BLOCKS.items() if draw in (_sample, _sample_and_peak)},
}
SUBJECTS: dict[str, Subject] = {
    **{name: _from_signature(name) for name in NAMES},
    **{name: _from_table(name) for name in BOUNDS | POLICY_GRADIENT},
    **{name: Subject(f, NUMERICS[name], draw, known) for name, (f, draw, known) in BUILDING_BLOCKS.items()},
}
