"""The step of `mi_align.training`, as a run compiles it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.train_step_case import CASE, STEPS, Evidence, Probe
from mi_align.data import PreferenceBatch
from mi_align.methods import METHODS
from mi_align.models import load_pretrained, save_pretrained
from mi_align.training import init_state, preference_loss, scorer, summarise, train_step
from mi_align.training.config import OptimiserConfig
from mi_align.training.optimiser import make_optimiser

__all__ = ["run"]


def run(name: str, folder: Path, threads: int, probe: Probe, *, evidence: bool) -> Evidence | None:
    """All steps; with `evidence` also what the gates look at."""
    model = load_pretrained(folder / "model")
    tokens = np.load(folder / "data.npz")["tokens"]
    mask = np.broadcast_to(np.arange(tokens.shape[-1]) >= CASE.prompt, tokens.shape)
    batch = PreferenceBatch(tokens, mask, np.ones(tokens.shape[:2], bool))
    exact, live = "exact start" in name, "live" in name
    logps = scorer(model.graphdef, exact_start=exact)
    loss = preference_loss(logps, METHODS["dpo"].configure(beta=CASE.beta), live=logps if live else None)
    scored = np.asarray(jax.jit(logps)(model.params, batch))
    given: Any = batch, None if live else scored
    if evidence:
        _keep_gradient(model, loss, given, folder / f"gradient-{name.replace(', ', '-').replace(' ', '-')}")
    config = OptimiserConfig(rate=CASE.rate, schedule="constant", warmup=0.0, clip=CASE.clip)
    optimiser = make_optimiser(config, STEPS)
    step = jax.jit(train_step(loss, optimiser, micro_batches=1 if exact else CASE.pairs // 2), donate_argnums=0)
    reference = jax.tree.map(jnp.copy, model.params) if live else None
    state, losses = init_state(jax.tree.map(jnp.copy, model.params), optimiser, reference=reference), []
    for _ in range(STEPS):
        probe.begin()
        state, metrics = step(state, given)
        losses.append(summarise(metrics)["loss"])
        jax.block_until_ready(state)
        probe.end()
    return Evidence(np.array(losses), scored.sum(-1)) if evidence else None


def _keep_gradient(model: Any, loss: Any, given: Any, folder: Path) -> None:
    slope = jax.jit(jax.grad(lambda params: loss(params, given)[0].value()))(model.params)
    save_pretrained(model._replace(params=slope), folder)
