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

from mi_align.data import PreferenceBatch, batch_indices, save_byte_tokenizer, take
from mi_align.models import Pretrained, count_parameters, save_pretrained
from mi_align.training.checkpoints import Checkpoints, Stop
from mi_align.training.config import RunConfig
from mi_align.training.devices import batch_flops, utilisation
from mi_align.training.inputs import Inputs
from mi_align.training.losses import preference_loss, supervised_loss
from mi_align.training.metrics import Metrics, merge, summarise
from mi_align.training.optimiser import make_optimiser, rate_schedule
from mi_align.training.parts import join, partition
from mi_align.training.reference_cache import cached_reference
from mi_align.training.scoring import TokenLogps, scorer
from mi_align.training.settings import to_mapping
from mi_align.training.sharding import head_layout, make_mesh, place, shardings
from mi_align.training.state import Params, TrainState, follow_policy, init_state
from mi_align.training.step import Step, train_step

__all__ = ["Outcome", "Report", "memory_of_step", "run_training", "total_steps"]

#: (step, numbers by name) -> shown; called for every line of metrics.
Report = Callable[[int, dict[str, float]], None]
#: What a step takes: examples, and the reference's scores of them.
Batch = tuple[PreferenceBatch, np.ndarray | None]


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

    step: Step
    evaluate: Callable[[TrainState, Batch], Metrics]
    state: TrainState
    train: Callable[[int], Batch]
    evaluation: Callable[[], Iterator[Batch]]
    rate: optax.Schedule
    flops: Callable[[PreferenceBatch], float]


def total_steps(config: RunConfig, examples: int) -> int:
    """How many steps a run makes."""
    return config.steps if config.steps is not None else max(1, round(config.epochs * examples / config.batch))


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
    `model/` at the end the trained model as `transformers` opens it.

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
    output.mkdir(parents=True, exist_ok=True)
    _write_settings(output, config)
    steps = total_steps(config, len(inputs.train.tokens))
    program = _program(config, inputs, steps, output, tick)
    stop = Stop() if stop is None else stop
    with Checkpoints(checkpoints_folder, keep=config.keep) as checkpoints:
        state = program.state
        if resume:
            state, _ = checkpoints.restore(state)
            _forget_after(output / "metrics.jsonl", int(state.step))
        with (output / "metrics.jsonl").open("a", encoding="utf-8") as lines:
            journal = _Journal(lines, report)
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
    journal: _Journal,
    stop: Stop,
) -> TrainState:
    """Steps until all are made or the run is asked to end. Numbers are fetched one step late, so that nothing waits."""
    first, waiting = int(state.step), None
    journal.begin(first)
    if first == 0:
        journal.write(0, _evaluated(program, state))
    for n in range(first, steps):
        batch, done = program.train(n), n + 1
        state, metrics = program.step(state, batch)
        if waiting is not None:
            journal.write(*waiting)
            waiting = None
        if done % config.log_every == 0 or done == steps:
            about = {"rate": program.rate(n), "tokens": batch[0].tokens.size, "time": time.perf_counter()}
            about["flops"] = program.flops(batch[0])
            waiting = done, {"metrics": metrics, **about}
        ends = stop.requested or done == steps
        evaluates = done == steps or _due(done, config.evaluate_every)
        saves = ends or _due(done, config.save_every)
        if waiting is not None and (evaluates or saves):  # before a state is kept, its loss has been looked at
            journal.write(*waiting)
            waiting = None
        if evaluates:
            journal.write(done, _evaluated(program, state))
        if saves:
            checkpoints.save(state, {"settings": to_mapping(config)})
        if ends:
            break
    return state


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


class _Journal:
    """Lines of metrics: to the file, and to whoever watches."""

    def __init__(self, lines: Any, report: Report) -> None:
        self.last: dict[str, float] = {}
        self._lines, self._report = lines, report
        self._since, self._step = time.perf_counter(), 0

    def begin(self, step: int) -> None:
        """The clock starts."""
        self._since, self._step = time.perf_counter(), step

    def write(self, step: int, found: dict[str, Any]) -> None:
        """One line; `found` holds metrics on the device, or numbers."""
        if not found:
            return
        numbers = summarise(found["metrics"]) if "metrics" in found else dict(found)
        if "metrics" in found:
            each = (found["time"] - self._since) / max(step - self._step, 1)
            numbers |= {
                "learning_rate": float(found["rate"]),
                "seconds_per_step": each,
                "tokens_per_second": found["tokens"] / each,
            } | utilisation(found["flops"], each, jax.devices()[0].device_kind, jax.device_count())
            self._since, self._step = found["time"], step
        self.last |= numbers
        # JSON has no NaN: a number that is none is written as null.
        clean = {name: value if np.isfinite(value) else None for name, value in numbers.items()}
        self._lines.write(json.dumps({"step": step, **clean}) + "\n")
        self._lines.flush()
        self._report(step, numbers)
        if not np.isfinite(numbers.get("loss", 0.0)):
            raise FloatingPointError(
                f"the loss is {numbers['loss']} at step {step}. Lower `optimiser.rate`, or look at the data of this "
                "step; the last checkpoint is as it was."
            )


def _program(config: RunConfig, inputs: Inputs, steps: int, output: Path, tick: Callable[[float], None]) -> _Program:
    optimiser = make_optimiser(config.optimiser, steps)
    model, method = inputs.model, inputs.method
    mesh = _mesh(config)
    layout = None if mesh is None else head_layout(mesh, model.config.vocab_size, model.config.width)
    score = scorer(
        model.graphdef,
        layout=layout,
        compute_dtype=config.model.compute_dtype,
        exact_start=config.model.exact_start,
    )
    wanted = config.model.trained
    params, frozen = model.params, None
    if wanted:
        params, frozen = partition(model.params, lambda path: path.startswith(wanted))
        if not jax.tree.leaves(params):
            raise ValueError(f"`model.trained` is {list(wanted)}, but no parameter's path begins so.")
    needs = method is not None and method.needs_reference
    live = needs and config.reference == "live"
    reference = jax.tree.map(jnp.copy, params) if live else None
    follow = follow_policy(decay=config.follow_decay, every=config.follow_every) if config.follow_every else None
    if method is None:
        supervised = supervised_loss(score)

        def loss(params: Params, batch: Batch) -> Any:
            return supervised(params, batch[0])
    else:
        loss = preference_loss(score, method, live=score if live else None)
    scores = _reference_scores(config, inputs, score, output, mesh, tick) if needs and not live else [None, None]
    begin = functools.partial(init_state, optimiser=optimiser)
    state = _spread(begin, mesh, _owned(params), frozen=_owned(frozen), reference=reference)
    step = train_step(loss, optimiser, micro_batches=config.micro_batches, follow=follow)
    # Without being told, the compiler may lay the new state out otherwise, and the second step would compile again.
    out = None if mesh is None else (shardings(state, mesh), None)
    return _Program(
        step=jax.jit(step, donate_argnums=0, out_shardings=out),
        evaluate=jax.jit(functools.partial(_evaluate, loss)),
        state=state,
        train=lambda n: place(_batch(inputs.train, scores[0], config, n), mesh),
        evaluation=lambda: (place(batch, mesh) for batch in _evaluation(inputs.evaluation, scores[1], config)),
        rate=rate_schedule(config.optimiser, steps),
        flops=functools.partial(batch_flops, model.config, count_parameters(model.params), live=live),
    )


def _mesh(config: RunConfig) -> Mesh | None:
    """The mesh of the configuration; None for one device."""
    mesh = make_mesh(data=config.data_parallel, fsdp=config.fsdp, tensor=config.tensor)
    return None if mesh.size == 1 else mesh


def _spread(begin: Callable[..., TrainState], mesh: Mesh | None, params: Params, **parts: Params) -> TrainState:
    """The first state, every part of it made where it stays."""
    if mesh is None:
        return begin(params, **parts)
    given = jax.device_put((params, parts), shardings((params, parts), mesh))
    shapes = jax.eval_shape(lambda given: begin(given[0], **given[1]), given)
    return jax.jit(lambda given: begin(given[0], **given[1]), out_shardings=shardings(shapes, mesh))(given)


def _owned(params: Params) -> Params:
    """A copy: the step gives back the memory of what it is given, and the model that was read is its reader's."""
    return jax.tree.map(jnp.copy, params)


def _reference_scores(
    config: RunConfig,
    inputs: Inputs,
    score: TokenLogps,
    output: Path,
    mesh: Mesh | None,
    tick: Callable[[float], None],
) -> list[np.ndarray | None]:
    """The reference's log-probabilities of training and evaluation data, from the cache or made now."""
    found: list[np.ndarray | None] = []
    params = inputs.model.params
    params = params if mesh is None else jax.device_put(params, shardings(params, mesh))
    program = jax.jit(score)

    def compiled(params: Params, batch: PreferenceBatch) -> jax.Array:
        return program(params, place(batch, mesh))

    rules = {"soft_cap": inputs.model.config.logit_soft_cap, "jax": jax.__version__, "device": jax.default_backend()}
    rules |= {"compute_dtype": config.model.compute_dtype}
    for data in (inputs.train, inputs.evaluation):
        if data is None:
            found.append(None)
            continue
        size = config.batch // config.micro_batches
        found.append(
            cached_reference(compiled, params, data, batch=size, folder=output / "reference", rules=rules, tick=tick)
        )
    return found


def _batch(data: PreferenceBatch, scores: np.ndarray | None, config: RunConfig, step: int) -> Batch:
    picked = batch_indices(len(data.tokens), config.batch, seed=config.seed, step=step)
    return take(data, picked), None if scores is None else scores[picked]


def _evaluation(data: PreferenceBatch | None, scores: np.ndarray | None, config: RunConfig) -> Iterator[Batch]:
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
        yield part, None if scores is None else scores[picked % len(data.tokens)]


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
    trained: Pretrained = inputs.model._replace(params=join(state.params, state.frozen))
    folder = save_pretrained(trained, output / "model")
    if inputs.tokenizer_name == "bytes":
        save_byte_tokenizer(folder)
    return folder


def memory_of_step(config: RunConfig, inputs: Inputs) -> str:
    """What the compiled step needs, in words: its arguments (parameters, optimiser, batch) and what it makes beside."""
    steps = total_steps(config, len(inputs.train.tokens))
    program = _program(
        dataclasses.replace(config, reference="live"), inputs, steps, Path(config.output), lambda _: None
    )
    used = program.step.lower(program.state, program.train(0)).compile().memory_analysis()  # type: ignore[attr-defined]
    mib = 2**20
    return (
        f"a step, with a live reference: {used.argument_size_in_bytes / mib:,.0f} MiB of parameters, optimiser and "
        f"batch, {used.temp_size_in_bytes / mib:,.0f} MiB beside them"
    )
