"""TRL's DPOTrainer, and a step of DPO written by hand, both on `transformers`' Llama."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from benchmarks.train_step_case import CASE, STEPS, Evidence, Probe

__all__ = ["run"]


def run(name: str, folder: Path, threads: int, probe: Probe, *, evidence: bool) -> Evidence | None:
    """All steps; with `evidence` also what the gates look at."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    tokens = torch.from_numpy(np.load(folder / "data.npz")["tokens"]).long()
    rows = tokens.transpose(0, 1).reshape(-1, tokens.shape[-1])  # all chosen, then all rejected, as TRL has them
    with torch.no_grad():
        scored = _logps(model, rows) if evidence else None

    def keep(model: Any) -> None:
        where = folder / f"gradient-{name.replace(', ', '-').replace(' ', '-')}"
        if evidence and not where.exists():
            where.mkdir()
            (where / "config.json").write_text((folder / "model" / "config.json").read_text())
            slopes = {key: p.grad.contiguous() for key, p in model.named_parameters()}
            safetensors.torch.save_file(slopes, where / "model.safetensors")

    steps = _trainer if name.startswith("TRL") else _by_hand
    losses = steps(model, rows, "cached" in name or "precomputed" in name, probe, keep, folder)
    if scored is None:
        return None
    return Evidence(np.array(losses), scored.reshape(2, -1).T.numpy())


def _logps(model: Any, rows: torch.Tensor) -> torch.Tensor:
    """log π of each response, from all logits."""
    logits = model(rows).logits[:, :-1]
    logps = torch.gather(logits.log_softmax(-1), 2, rows[:, 1:, None])[..., 0]
    return logps[:, CASE.prompt - 1 :].sum(-1)


def _by_hand(
    model: Any, rows: torch.Tensor, cached: bool, probe: Probe, keep: Callable[[Any], None], folder: Path
) -> list[float]:
    reference = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    optimiser = torch.optim.AdamW(model.parameters(), lr=CASE.rate, weight_decay=0.0)
    with torch.no_grad():
        known = _logps(reference, rows) if cached else None
    losses = []
    for _ in range(STEPS):
        probe.begin()
        with torch.no_grad():
            before = _logps(reference, rows) if known is None else known
        chosen, rejected = (_logps(model, rows) - before).chunk(2)
        loss = -torch.nn.functional.logsigmoid(CASE.beta * (chosen - rejected)).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CASE.clip)
        keep(model)
        optimiser.step()
        losses.append(loss.item())
        probe.end()
    return losses


class _Watch(TrainerCallback):
    """The probe around the trainer's own steps."""

    def __init__(self, probe: Probe, keep: Callable[[Any], None]) -> None:
        self.probe, self.keep, self.losses = probe, keep, []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.probe.begin()

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        self.keep(model)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.probe.end()

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def _trainer(
    model: Any, rows: torch.Tensor, cached: bool, probe: Probe, keep: Callable[[Any], None], folder: Path
) -> list[float]:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    chosen, rejected = rows.chunk(2)
    data = Dataset.from_dict(
        {
            "prompt_ids": chosen[:, : CASE.prompt].tolist(),
            "chosen_ids": chosen[:, CASE.prompt :].tolist(),
            "rejected_ids": rejected[:, CASE.prompt :].tolist(),
        }
    )
    options = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=CASE.pairs,
        max_steps=STEPS,
        learning_rate=CASE.rate,
        lr_scheduler_type="constant",
        max_grad_norm=CASE.clip,
        beta=CASE.beta,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        precompute_ref_log_probs=cached,
    )
    watch = _Watch(probe, keep)
    trainer = DPOTrainer(
        model=model, args=options, train_dataset=data, processing_class=_tokenizer(), callbacks=[watch]
    )
    trainer.train()
    return watch.losses[:STEPS]


def _tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that is asked for its padding alone: the data are tokens already."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    made = json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": words, "unk_token": "<pad>"}}
    )
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(made), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
