"""From tasks and contenders to rows: judge each, then time the right ones in turn with the machine's ceilings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mi_align.benchmark import harness, roofline
from mi_align.benchmark.gate import Gate, Verdict
from mi_align.benchmark.program import PASSES, Contender, Memory, Pass, Program, Skipped, measured_memory
from mi_align.benchmark.task import Task

__all__ = ["Row", "measure"]

#: What is done at the moment, for a progress bar.
Say = Callable[[str], None]
#: One line of the table, as JSON's types; `report.FIELDS` says what the fields are.
Row = dict[str, Any]

_OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "out of memory", "Out of memory", "can't allocate memory")


class _Entry(NamedTuple):
    contender: Contender
    program: Program
    verdict: Verdict
    memory: Memory | None


def measure(task: Task, contenders: Sequence[Contender], *, budget: float, say: Say = lambda _: None) -> Iterator[Row]:
    """The rows of a task, each as soon as it is known; a wrong contender's has no times.

    Args:
      task: what is computed.
      contenders: who computes it.
      budget: seconds of samples of the slowest contender, in each pass; three rounds are run in any case.
      say: is told what is going on.
    """
    say(f"{_title(task)}: float64")
    gate = Gate(task)
    for which in PASSES:
        entries: dict[str, _Entry] = {}
        for contender in (c for c in contenders if which in c.passes):
            say(f"{_title(task)}, {which}: {contender.name}")
            entry = _judged(gate, contender, which)
            if isinstance(entry, str):
                yield _head(task, contender, which) | {"status": "skipped", "reason": entry}
            elif entry.verdict.right:
                entries[contender.name] = entry
            else:
                yield _head(task, contender, which) | {"status": "wrong"} | _verdict(entry.verdict)
        yield from _timed(task, which, entries, budget, say)


def _title(task: Task) -> str:
    return f"{task.name} at {task.case}"


def _judged(gate: Gate, contender: Contender, which: Pass) -> _Entry | str:
    """A contender with its verdict, or why it cannot be run."""
    try:
        program = contender.prepare(gate.task, which)
        memory = measured_memory(program, gate.task.argument)
        return _Entry(contender, program, gate.judge(program.run(gate.task.probe)), memory)
    except Skipped as reason:
        return str(reason)
    except RuntimeError as error:  # XLA's and torch's own
        if any(sign in str(error) for sign in _OUT_OF_MEMORY):
            return "it ran out of memory"
        raise


def _timed(task: Task, which: Pass, entries: Mapping[str, _Entry], budget: float, say: Say) -> Iterator[Row]:
    if not entries:
        return
    calls = roofline.runs(task, which)
    for call in calls.values():  # compiles; the contenders have run already
        call()
    calls |= {f"@{name}": _call(entry.program, task) for name, entry in entries.items()}
    samples = harness.seconds_of(
        calls, budget=budget, warm_up=0, tick=lambda n: say(f"{_title(task)}, {which}: round {n}")
    )
    ceilings = roofline.ceilings(task, which, samples)
    for name, entry in entries.items():
        yield _row(task, which, entry, samples[f"@{name}"], ceilings)
    yield _head(task, None, which) | {
        "status": "ceiling",
        "samples": {name: samples[name] for name in (*roofline.products(which), "copy")},
        "product_seconds": ceilings.seconds,
        "flops_per_second": _flops(task, which) / sum(ceilings.seconds.values()),
        "bytes_per_second": ceilings.bytes_per_second,
    }


def _call(program: Program, task: Task) -> Callable[[], Any]:
    return lambda: program.run(task.argument)


def _flops(task: Task, which: Pass, contender: Contender | None = None) -> int:
    frozen, tokens = _work(task, contender)
    return roofline.least_flops(tokens, task.case.features, task.case.vocab, which, frozen=frozen)


def _work(task: Task, contender: Contender | None) -> tuple[bool, int]:
    """Whether the head is frozen, and how many positions are scored."""
    if contender is None:
        return False, task.tokens
    kept = int(task.half.sum()) if contender.half and task.half is not None else task.tokens
    return contender.frozen, kept


def _head(task: Task, contender: Contender | None, which: Pass) -> Row:
    case = task.case
    return {
        "task": task.name,
        "shape": case.name,
        "tokens": task.tokens,
        "features": case.features,
        "vocabulary": case.vocab,
        "soft_cap": case.soft_cap,
        "candidates": task.candidates or None,
        "dtype": task.dtype,
        "pass": which,
        "implementation": None if contender is None else contender.name,
    }


def _verdict(verdict: Verdict) -> Row:
    """Its numbers; infinities as text, which JSON has no number for."""
    plain = {name: x if x < float("inf") else str(x) for name, x in verdict.errors.items()}
    return {"errors": plain, "allowed": verdict.allowed}


def _row(task: Task, which: Pass, entry: _Entry, samples: Sequence[float], ceilings: roofline.Ceilings) -> Row:
    frozen, tokens = _work(task, entry.contender)
    took, flops = harness.median(samples), _flops(task, which, entry.contender)
    itemsize = task.hidden.dtype.itemsize
    moved = roofline.least_bytes(tokens, task.case.features, task.case.vocab, which, itemsize, frozen=frozen)
    share = tokens / task.tokens
    limit = share * sum(ceilings.seconds[name] for name in roofline.products(which, frozen=frozen))
    again = share * ceilings.seconds["logits"] if which == "gradient" and entry.contender.recomputes else None
    return _head(task, entry.contender, which) | {
        "status": "right",
        **_verdict(entry.verdict),
        "scored_tokens": tokens,
        "frozen": frozen,
        "seconds": took,
        "spread": [min(samples), max(samples)],
        "samples": list(samples),
        "compile_seconds": entry.program.compile_seconds,
        "memory_bytes": None if entry.memory is None else entry.memory.bytes,
        "memory_source": None if entry.memory is None else entry.memory.source,
        "tokens_per_second": tokens / took,
        "flops": flops,
        "flops_per_second": flops / took,
        "share_of_products": limit / took,
        "share_of_products_recomputing": None if again is None else (limit + again) / took,
        "bytes": moved,
        "bytes_per_second": moved / took,
        "share_of_copy": moved / took / ceilings.bytes_per_second,
    }
