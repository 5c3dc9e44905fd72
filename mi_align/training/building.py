"""The program of a run, whatever its responses come from, and what a step of it needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from mi_align.training.config import RunConfig
from mi_align.training.inputs import Inputs, total_steps
from mi_align.training.on_policy.inputs import OnPolicyInputs
from mi_align.training.on_policy.program import build_on_policy
from mi_align.training.program import Program, build_program

__all__ = ["memory_of_step", "program_of"]


def program_of(
    config: RunConfig,
    inputs: Inputs | OnPolicyInputs,
    steps: int,
    *,
    output: Path,
    tick: Callable[[float], None] = lambda share: None,
) -> Program:
    """The program over responses of the data, or over the policy's own; `build_program` has the arguments."""
    if isinstance(inputs, OnPolicyInputs):
        return build_on_policy(config, inputs, steps)
    return build_program(config, inputs, steps, output=output, tick=tick)


def memory_of_step(config: RunConfig, inputs: Inputs | OnPolicyInputs) -> str:
    """What the compiled step needs, in words: its arguments (parameters, optimiser, batch) and what it makes beside."""
    steps = total_steps(config, len(inputs.train.tokens))
    longest = dataclasses.replace(config, reference="live", data=dataclasses.replace(config.data, buckets=None))
    program = program_of(longest, inputs, steps, output=Path(config.output))
    live = ", with a live reference" if program.state.reference is not None else ""
    used = program.lowered().compile().memory_analysis()
    mib = 2**20
    return (
        f"a step{live}: {used.argument_size_in_bytes / mib:,.0f} MiB of parameters, optimiser and "
        f"batch, {used.temp_size_in_bytes / mib:,.0f} MiB beside them"
    )
