"""A whole run: score the reference, make steps, evaluate, keep checkpoints, write metrics, export the model."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mi_align.data import Buckets, PreferenceBatch, batch_indices, save_byte_tokenizer, take, trimmed
from mi_align.models import Pretrained, save_adapter, save_pretrained
from mi_align.training.arranging import Arrangement, arrangement
from mi_align.training.checkpoints import Best, Checkpoints, Stop
from mi_align.training.config import RunConfig
from mi_align.training.fitting import reads_mismatched
from mi_align.training.hosts import agree, fetch, is_first, wait_for_all
from mi_align.training.inputs import Inputs, buckets_of, total_steps
from mi_align.training.journal import Journal, Report
from mi_align.training.losses import preference_loss, supervised_loss
from mi_align.training.metrics import Metrics, merge, summarise
from mi_align.training.optimiser import make_optimiser, rate_schedule
from mi_align.training.parts import join
from mi_align.training.readers import reader
from mi_align.training.reference_cache import cached_reference, fingerprint
from mi_align.training.scoring import Batch as Examples
from mi_align.training.scoring import TokenLogps, scorer
from mi_align.training.settings import to_mapping
from mi_align.training.sharding import head_layout, make_mesh, place, put, shardings
from mi_align.training.state import Params, TrainState, follow_policy, init_state
from mi_align.training.step import train_step
from mi_align.training.trained import CompiledStep, compiled_step, parts_of, restored, without_frozen

__all__ = ["Outcome", "Report", "memory_of_step", "run_training", "total_steps"]

#: What a step takes: examples, and the reference's scores of them.
Batch = tuple[Examples, np.ndarray | None]


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      step: how many steps have been made, in this run and those it resumed.
      steps: how many were wanted.
      exported: the folder of the trained model; None if the run was stopped before.
      last: the last numbers.
    """

    step: int
    steps: int
    exported: Path | None
    last: dict[str, float]


@dataclasses.dataclass(frozen=True)
class _Program:
    """Everything that is compiled, and the data it runs over."""

    step: CompiledStep
    evaluate: Callable[[TrainState, Batch], Metrics]
    state: TrainState
    train: Callable[[int], Batch]
    evaluation: Callable[[], Iterator[Batch]]
    rate: optax.Schedule
    frozen_hash: str | None
    facts: dict[str, float]


def run_training(
    config: RunConfig,
    inputs: Inputs,
    *,
    resume: bool = False,
    stop: Stop | None = None,
    report: Report = lambda step, numbers: None,
    tick: Callable[[float], None] = lambda share: None,
) -> Outcome:
    """Train, and leave everything in `config.output`.

    `config.yaml` has the settings, `metrics.jsonl` a line each time metrics are due, `checkpoints/` whole states,
    `model/` at the end the trained model as `transformers` opens it, and `adapter/`, where one was trained, that alone.

    Args:
      config: the settings.
      inputs: from `load_inputs`.
      resume: go on from the last checkpoint in `config.output`; what comes is bit for bit what would have come.
      stop: asks the run to end after the step it is in, with a checkpoint (`stopping`).
      report: is told each line of metrics.
      tick: is told which share of the reference has been scored.

    Raises:
      FileExistsError: `config.output` holds another run, and `resume` is off.
      FileNotFoundError: `resume` is on, and there is no checkpoint.
      FloatingPointError: the loss is not finite.
    """
    output = Path(config.output)
    checkpoints_folder = output / "checkpoints"
    if not resume and (output / "metrics.jsonl").exists():
        raise FileExistsError(f"{output} holds a run already. Pass --resume to go on with it, or another `output`.")
    if resume and not checkpoints_folder.is_dir():
        raise FileNotFoundError(f"{output} has no checkpoint to resume from.")
    if config.keep_best and inputs.evaluation is None and config.best_by.startswith("eval/"):
        raise ValueError(
            f"`keep_best` looks at {config.best_by!r}, but there is no data to evaluate. Set `data.held_out` or "
            "`data.evaluation`."
        )
    wait_for_all("looked at the folder")  # before the first host writes into it
    if is_first():
        output.mkdir(parents=True, exist_ok=True)
        _write_settings(output, config)
    steps = total_steps(config, len(inputs.train.tokens))
    program = _program(config, inputs, steps, output, tick)
    stop = Stop() if stop is None else stop
    best = Best(config.keep_best, config.best_by, highest=config.best_is == "highest")
    with Checkpoints(checkpoints_folder, keep=config.keep, best=best) as checkpoints:
        state = program.state
        if resume:
            state = restored(checkpoints, state, program.frozen_hash)
            if is_first():
                _forget_after(output / "metrics.jsonl", int(state.step))
        with Journal(output, report, sinks=config.log_to, settings=to_mapping(config)) as journal:
            state = _steps(config, program, state, steps, checkpoints, journal, stop)
    done = int(state.step)
    exported = _export(output, config, inputs, state) if done >= steps else None
    return Outcome(done, steps, exported, journal.last)


def _steps(
    config: RunConfig,
    program: _Program,
    state: TrainState,
    steps: int,
    checkpoints: Checkpoints,
    journal: Journal,
    stop: Stop,
) -> TrainState:
    """Steps until all are made or the run is asked to end. Numbers are fetched one step late, so that nothing waits."""
    first = int(state.step)
    waiting: Callable[[], None] = _nothing
    journal.begin(first)
    if first == 0:
        journal.write(0, program.facts)
        journal.write(0, _evaluated(program, state))
    for n in range(first, steps):
        batch, done = program.train(n), n + 1
        state, metrics = program.step(state, batch)
        waiting()
        waiting = _nothing
        if done % config.log_every == 0 or done == steps:
            about = {"rate": program.rate(n), "tokens": batch[0].tokens.size, "ended": time.perf_counter()}
            waiting = functools.partial(journal.step, done, metrics, **about)
        ends = done == steps or _asked_to_end(stop, done)
        evaluates = done == steps or _due(done, config.evaluate_every)
        saves = ends or _due(done, config.save_every) or (evaluates and config.keep_best > 0)
        if evaluates or saves:  # before a state is kept, its loss has been looked at
            waiting()
            waiting = _nothing
        numbers: dict[str, float] = {}
        if evaluates:
            numbers = _evaluated(program, state)
            journal.write(done, numbers)
        if saves:
            kept_with_it = {"settings": to_mapping(config), "frozen": program.frozen_hash}
            checkpoints.save(without_frozen(state), kept_with_it, numbers)
        if ends:
            break
    return state


def _nothing() -> None:
    """What waits to be written at first."""


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _asked_to_end(stop: Stop, done: int) -> bool:
    """Several hosts ask each other now and then, not after each step: they wait for their devices to do so."""
    return agree(stop.requested) if done % 8 == 0 or jax.process_count() == 1 else False


def _program(config: RunConfig, inputs: Inputs, steps: int, output: Path, tick: Callable[[float], None]) -> _Program:
    optimiser = make_optimiser(config.optimiser, steps)
    model, method = inputs.model, inputs.method
    mesh = _mesh(config)
    layout = None if mesh is None else head_layout(mesh, model.config.vocab_size, model.config.width)
    score = scorer(model.graphdef, layout=layout)
    devices = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    arrange = arrangement(config, inputs.train, inputs.evaluation, steps=steps, devices=devices)
    params, frozen = parts_of(config.model, model)
    needs = method is not None and method.needs_reference
    live = needs and config.reference == "live"
    reference = jax.tree.map(jnp.copy, params) if live else None
    follow = follow_policy(decay=config.follow_decay, every=config.follow_every) if config.follow_every else None
    if method is None:
        supervised = supervised_loss(score)

        def loss(params: Params, batch: Batch) -> Any:
            return supervised(params, batch[0])
    else:
        anchor = score if live else None
        read = reader(model.graphdef, method, live=anchor, layout=layout)
        loss = preference_loss(score, method, live=anchor, read=read, mismatched=reads_mismatched(method))
    scored = needs and not live
    scores = _reference_scores(config, inputs, score, arrange, output, mesh, tick) if scored else [None, None]
    buckets = buckets_of(config, inputs.train, steps)
    begin = functools.partial(init_state, optimiser=optimiser)
    state = _spread(begin, mesh, _owned(params), reference=reference)
    state = state._replace(frozen=frozen if mesh is None else put(frozen, shardings(frozen, mesh)))
    step = train_step(loss, optimiser, micro_batches=config.micro_batches, follow=follow)
    return _Program(
        step=compiled_step(step, state, mesh),
        evaluate=jax.jit(functools.partial(_evaluate, loss)),
        state=state,
        train=lambda n: place(_batch(inputs.train, scores[0], config, n, arrange, buckets), mesh),
        evaluation=lambda: (place(x, mesh) for x in _evaluation(inputs.evaluation, scores[1], config, arrange)),
        rate=rate_schedule(config.optimiser, steps),
        frozen_hash=None if frozen is None else fingerprint(frozen),
        facts=arrange.facts(),
    )


def _mesh(config: RunConfig) -> Mesh | None:
    """The mesh of the configuration; None for one device."""
    mesh = make_mesh(data=config.data_parallel, fsdp=config.fsdp, tensor=config.tensor)
    return None if mesh.size == 1 else mesh


def _spread(begin: Callable[..., TrainState], mesh: Mesh | None, params: Params, **parts: Params) -> TrainState:
    """The first state, every part of it made where it stays."""
    if mesh is None:
        return begin(params, **parts)
    given = put((params, parts), shardings((params, parts), mesh))
    shapes = jax.eval_shape(lambda given: begin(given[0], **given[1]), given)
    return jax.jit(lambda given: begin(given[0], **given[1]), out_shardings=shardings(shapes, mesh))(given)


def _owned(params: Params) -> Params:
    """A copy: the step gives back the memory of what it is given, and the model that was read is its reader's."""
    return jax.tree.map(jnp.copy, params)


def _reference_scores(
    config: RunConfig,
    inputs: Inputs,
    score: TokenLogps,
    arrange: Arrangement,
    output: Path,
    mesh: Mesh | None,
    tick: Callable[[float], None],
) -> list[np.ndarray | None]:
    """The reference's log-probabilities of training and evaluation data, from the cache or made now."""
    found: list[np.ndarray | None] = []
    params = inputs.model.params
    params = params if mesh is None else put(params, shardings(params, mesh))
    program = jax.jit(score)

    def compiled(params: Params, batch: Any) -> jax.Array:
        return program(params, place(arrange(batch), mesh))

    rules: dict[str, Any] = {
        "soft_cap": inputs.model.config.logit_soft_cap,
        "jax": jax.__version__,
        "device": jax.default_backend(),
    }
    rules |= arrange.rules()
    for data in (inputs.train, inputs.evaluation):
        if data is None:
            found.append(None)
            continue
        size = config.batch // config.micro_batches
        found.append(
            cached_reference(compiled, params, data, batch=size, folder=output / "reference", rules=rules, tick=tick)
        )
    return found


def _batch(
    data: PreferenceBatch,
    scores: np.ndarray | None,
    config: RunConfig,
    step: int,
    arrange: Arrangement,
    buckets: Buckets | None,
) -> Batch:
    if buckets is not None:
        picked, length = buckets.batch(step)
        return trimmed(take(data, picked), length), None if scores is None else scores[picked][..., : length - 1]
    picked = batch_indices(len(data.tokens), config.batch, seed=config.seed, step=step)
    return arrange(take(data, picked)), None if scores is None else scores[picked]


def _evaluation(
    data: PreferenceBatch | None, scores: np.ndarray | None, config: RunConfig, arrange: Arrangement
) -> Iterator[Batch]:
    """All of the evaluation data in order; the last batch is filled up with examples that have no candidates."""
    if data is None:
        return
    for first in range(0, len(data.tokens), config.batch):
        picked = np.arange(first, first + config.batch)
        there = picked < len(data.tokens)
        part = take(data, picked % len(data.tokens))
        part = part._replace(
            candidate_mask=part.candidate_mask & there[:, None],
            response_mask=part.response_mask & there[:, None, None],
        )
        yield arrange(part), None if scores is None else scores[picked % len(data.tokens)]


def _evaluate(loss: Any, state: TrainState, batch: Batch) -> Metrics:
    anchor = () if state.reference is None else (join(state.reference, state.frozen),)
    mean, metrics = loss(join(state.params, state.frozen), batch, *anchor)
    return metrics | {"loss": mean}


def _evaluated(program: _Program, state: TrainState) -> dict[str, float]:
    """The metrics of the whole evaluation data, `eval/` before their names."""
    parts = [program.evaluate(state, batch) for batch in program.evaluation()]
    if not parts:
        return {}
    return {f"eval/{name}": value for name, value in summarise(functools.reduce(merge, parts)).items()}


def _write_settings(output: Path, config: RunConfig) -> None:
    import yaml

    (output / "config.yaml").write_text(yaml.safe_dump(to_mapping(config), sort_keys=False), encoding="utf-8")


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps that are made again: a run that was killed wrote some after its last checkpoint."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")


def _export(output: Path, config: RunConfig, inputs: Inputs, state: TrainState) -> Path:
    """The trained model and its tokenizer, as `transformers` and `load_pretrained` open them."""
    trained: Pretrained = inputs.model._replace(params=fetch(join(state.params, state.frozen)))
    folder = output / "model"
    if is_first():
        if trained.lora is not None:
            save_adapter(trained, output / "adapter", base=config.model.pretrained)
        save_pretrained(trained, folder)
        if inputs.tokenizer_name == "bytes":
            save_byte_tokenizer(folder)
    wait_for_all("exported")
    return folder


def memory_of_step(config: RunConfig, inputs: Inputs) -> str:
    """What the compiled step needs, in words: its arguments (parameters, optimiser, batch) and what it makes beside."""
    steps = total_steps(config, len(inputs.train.tokens))
    longest = dataclasses.replace(config, reference="live", data=dataclasses.replace(config.data, buckets=None))
    program = _program(longest, inputs, steps, Path(config.output), lambda _: None)
    used = program.step.lower(program.state, program.train(0)).compile().memory_analysis()
    mib = 2**20
    return (
        f"a step, with a live reference: {used.argument_size_in_bytes / mib:,.0f} MiB of parameters, optimiser and "
        f"batch, {used.temp_size_in_bytes / mib:,.0f} MiB beside them"
    )
