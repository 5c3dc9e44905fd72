"""A step of DPO written by hand in torch, on `transformers`' Llama: the judge of all others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM

from benchmarks.train_step_case import CASE, STEPS, Contender, Evidence, Probe, slug

__all__ = ["Keep", "keeper", "load_rows", "run"]

#: Told the model when its gradient is there, clipped or not.
Keep = Callable[[Any], None]


def run(row: Contender, folder: Path, threads: int, probe: Probe, *, evidence: bool) -> Evidence | None:
    """All steps; with `evidence` also what the gates look at."""
    torch.set_num_threads(threads)
    model, reference = (AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32) for _ in range(2))
    rows = load_rows(folder)
    optimiser = torch.optim.AdamW(model.parameters(), lr=CASE.rate, weight_decay=0.0)
    with torch.no_grad():
        known = _logps(reference, rows)
    keep = keeper(row, folder) if evidence else None
    losses = []
    for _ in range(STEPS):
        probe.begin()
        with torch.no_grad():
            before = _logps(reference, rows) if row.live else known
        chosen, rejected = (_logps(model, rows) - before).chunk(2)
        loss = -torch.nn.functional.logsigmoid(CASE.beta * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CASE.clip)
        if keep is not None:
            keep(model)
        optimiser.step()
        optimiser.zero_grad()  # here, so that the gradient's memory is the step's own, as it is everywhere else
        losses.append(loss.item())
        probe.end()
    return Evidence(np.array(losses), known.reshape(2, -1).T.numpy()) if evidence else None


def load_rows(folder: Path) -> torch.Tensor:
    """All chosen sequences, then all rejected ones, as TRL has them."""
    tokens = torch.from_numpy(np.load(folder / "data.npz")["tokens"]).long()
    return tokens.transpose(0, 1).reshape(-1, tokens.shape[-1])


def keeper(row: Contender, folder: Path) -> Keep:
    """What writes the first gradient it is told of as a folder of weights; scaled as it is, for cosines."""
    where = folder / f"gradient-{slug(row.name)}"

    def keep(model: Any) -> None:
        if not where.exists():
            where.mkdir()
            (where / "config.json").write_text((folder / "model" / "config.json").read_text())
            slopes = {key: p.grad.contiguous() for key, p in model.named_parameters()}
            safetensors.torch.save_file(slopes, where / "model.safetensors")

    return keep


def _logps(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """log π of each response, from all logits."""
    logits = model(rows).logits[:, :-1]
    logps = torch.gather(logits.log_softmax(-1), 2, rows[:, 1:, None])[..., 0]
    return logps[:, CASE.prompt - 1 :].sum(-1)
