"""The step of `mi_align.training`, as a run compiles it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_step_case import CASE, STEPS, Contender, Evidence, Probe, slug
from mi_align.data import PreferenceBatch
from mi_align.methods import METHODS
from mi_align.models import Pretrained, load_pretrained, save_pretrained
from mi_align.training import ROUNDED, init_state, preference_loss, scorer, summarise, train_step
from mi_align.training.config import OptimiserConfig
from mi_align.training.optimiser import make_optimiser

__all__ = ["compiled", "examples", "run"]


def run(row: Contender, folder: Path, threads: int, probe: Probe, *, evidence: bool) -> Evidence | None:
    """All steps; with `evidence` also what the gates look at."""
    model = load_pretrained(folder / "model")
    step, loss, state, given = compiled(row, model, examples(folder))
    score = jax.jit(_scorer(row, model), compiler_options=ROUNDED)
    scored = np.asarray(given[1] if given[1] is not None else score(model.params, given[0]))
    if evidence:
        slope = jax.jit(jax.grad(lambda params: loss(params, given)[0].value()))(model.params)
        save_pretrained(model._replace(params=slope), folder / f"gradient-{slug(row.name)}")
    losses = []
    for _ in range(STEPS):
        probe.begin()
        state, metrics = step(state, given)
        losses.append(summarise(metrics)["loss"])
        jax.block_until_ready(state)
        probe.end()
    return Evidence(np.array(losses), scored.sum(-1)) if evidence else None


def examples(folder: Path) -> PreferenceBatch:
    """The batch."""
    tokens = np.load(folder / "data.npz")["tokens"]
    mask = np.broadcast_to(np.arange(tokens.shape[-1]) >= CASE.prompt, tokens.shape)
    return PreferenceBatch(tokens, mask, np.ones(tokens.shape[:2], bool))


def compiled(row: Contender, model: Pretrained, batch: PreferenceBatch) -> tuple[Any, Any, Any, Any]:
    """The step, its loss, its first state, and what it is given: the batch and the reference's scores."""
    logps = _scorer(row, model)
    loss = preference_loss(logps, METHODS["dpo"].configure(beta=CASE.beta), live=logps if row.live else None)
    given = batch, None if row.live else np.asarray(jax.jit(logps, compiler_options=ROUNDED)(model.params, batch))
    config = OptimiserConfig(rate=CASE.rate, schedule="constant", warmup=0.0, clip=CASE.clip)
    optimiser = make_optimiser(config, STEPS)
    step = jax.jit(train_step(loss, optimiser, micro_batches=row.parts), donate_argnums=0, compiler_options=ROUNDED)
    reference = jax.tree.map(jnp.copy, model.params) if row.live else None
    state = init_state(jax.tree.map(jnp.copy, model.params), optimiser, reference=reference)
    return step, loss, state, given


def _scorer(row: Contender, model: Pretrained) -> Any:
    return scorer(model.graphdef, memory_budget=row.memory_budget)
