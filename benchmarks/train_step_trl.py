"""TRL's DPOTrainer on the same tokens: its own loop, its own collator, its own loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trl.kernels.chunked_logprob as kernel
import trl.trainer.utils as utils
from datasets import Dataset
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.train_step_case import CASE, STEPS, Contender, Evidence, Probe
from benchmarks.train_step_torch import Keep, keeper, load_rows

__all__ = ["padding_tokenizer", "run"]

#: Tiles of the patched trainer, rows and entries of the vocabulary.
TILE = 1024, 4096


def run(row: Contender, folder: Path, threads: int, probe: Probe, *, evidence: bool) -> Evidence | None:
    """All steps; with `evidence` also what the gates look at."""
    torch.set_num_threads(threads)
    if row.patched:
        _patch()
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    rows = load_rows(folder)
    watch = _Watch(probe, keeper(row, folder) if evidence else None)
    trainer = _Trainer(
        rows,
        model=model,
        args=_options(row, folder),
        train_dataset=_data(rows),
        processing_class=padding_tokenizer(),
        callbacks=[watch],
    )
    seen: list[torch.Tensor] = []
    if evidence:  # what the trainer itself computes: the sums of its first pass in training
        trainer.model.register_forward_hook(lambda module, given, out: seen.append(out.log_probs.detach().sum(-1)))
    trainer.train()
    if not trainer.looked:
        raise AssertionError("TRL's trainer did not come by `compute_loss`: nobody looked at its first batch.")
    return Evidence(np.array(watch.losses[:STEPS]), seen[0].reshape(2, -1).T.numpy()) if evidence else None


class _Trainer(DPOTrainer):
    """The trainer, given tokens for text; it looks whether its first batch is the one that everybody has."""

    def __init__(self, rows: torch.Tensor, **options: Any) -> None:
        self.rows, self.looked = rows, False
        super().__init__(**options)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.looked:
            response = torch.arange(self.rows.shape[1]).expand_as(self.rows) >= CASE.prompt
            assert torch.equal(inputs["input_ids"], self.rows), "TRL's first batch has other tokens"
            assert torch.equal(inputs["completion_mask"].bool(), response), "TRL's first batch has another mask"
            assert bool(inputs["attention_mask"].all()), "TRL's first batch hides tokens"
            self.looked = True
        return super().compute_loss(model, inputs, *args, **kwargs)


class _Watch(TrainerCallback):
    """The probe around the trainer's own steps."""

    def __init__(self, probe: Probe, keep: Keep | None) -> None:
        self.probe, self.keep, self.losses = probe, keep, []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self.probe.begin()

    def on_pre_optimizer_step(self, *args: Any, model: Any, **kwargs: Any) -> None:
        if self.keep is not None:
            self.keep(model)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.probe.end()

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def _options(row: Contender, folder: Path) -> DPOConfig:
    """TRL's defaults but for what the case says; its default of bfloat16 is float32 here."""
    more = {"gradient_checkpointing": False} if row.patched else {}
    return DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=CASE.pairs,
        train_sampling_strategy="sequential",
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
        disable_tqdm=True,
        precompute_ref_log_probs=not row.live,
        **more,
    )


def _patch() -> None:
    """Smaller tiles, and no scores of prompts, which TRL leaves out where Triton is."""
    kernel.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE = TILE
    utils._use_triton = lambda device: True  # asked there only whether prompts are left out


def _data(rows: torch.Tensor) -> Dataset:
    chosen, rejected = rows.chunk(2)
    return Dataset.from_dict(
        {
            "prompt_ids": chosen[:, : CASE.prompt].tolist(),
            "chosen_ids": chosen[:, CASE.prompt :].tolist(),
            "rejected_ids": rejected[:, CASE.prompt :].tolist(),
        }
    )


def padding_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that is asked for its padding alone: the data are tokens already."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<pad>"}
    made = Tokenizer.from_str(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
