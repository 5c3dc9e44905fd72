"""TRL's DPOTrainer at the shapes and batches of `device_step.py`: the other side of the ratio, on the same GPU.

    python benchmarks/device_trl.py --write           models of 0.5B and 1.5B parameters; a toy one on a CPU

A fresh Qwen2 of `transformers`' with parameters in float32, computed in bfloat16, a live reference, AdamW, clipping:
TRL's defaults else, which make every layer again in the backward pass. Needs torch, transformers and trl.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX only tells the device's name here

import numpy as np
import torch
from datasets import Dataset
from device_step import MODELS
from transformers import Qwen2Config, Qwen2ForCausalLM, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.train_step_trl import padding_tokenizer
from mi_align.benchmark import harness

STEPS, WARM = 8, 3


class _Trainer(DPOTrainer):
    """The trainer, given tokens for text."""

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class _Clock(TrainerCallback):
    """Seconds of each step, once the device has done it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        _synchronise()
        self.began = time.perf_counter()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        _synchronise()
        self.seconds.append(time.perf_counter() - self.began)

    def on_log(self, *args: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured(name: str) -> dict[str, Any]:
    """One row."""
    shape, pairs, length = MODELS[name]
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Trainer(
            model=_model(shape),
            ref_model=_model(shape),
            args=_options(folder, pairs),
            train_dataset=_data(shape["vocab_size"], pairs, length),
            processing_class=padding_tokenizer(),
            callbacks=[clock],
        )
        trainer.train()
    seconds = harness.median(clock.seconds[WARM:])
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    row = {"model": name, "pairs": pairs, "time": length, "seconds": seconds, "samples": clock.seconds}
    return row | {"tokens_per_second": 2 * pairs * length / seconds, "peak": peak, "loss": clock.losses[0]}


def _model(shape: dict[str, Any]) -> Qwen2ForCausalLM:
    width, heads = shape["width"], shape["heads"]
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=shape["vocab_size"],
                hidden_size=width,
                num_hidden_layers=shape["layers"],
                num_attention_heads=heads,
                num_key_value_heads=shape.get("kv_heads", heads),
                intermediate_size=shape.get("mlp_width", 4 * width),
                tie_word_embeddings=True,
            )
        )


def _options(folder: str, pairs: int) -> DPOConfig:
    return DPOConfig(
        output_dir=folder,
        per_device_train_batch_size=pairs,
        max_steps=STEPS,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
    )


def _data(vocabulary: int, pairs: int, length: int) -> Dataset:
    drawn = np.random.default_rng(0).integers(3, vocabulary, (pairs * STEPS, 3, length // 2)).tolist()
    columns = zip(("prompt_ids", "chosen_ids", "rejected_ids"), zip(*drawn, strict=True), strict=True)
    return Dataset.from_dict({name: list(values) for name, values in columns})


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    return harness.markdown(
        rows,
        {
            "model": lambda row: row["model"],
            "pairs × tokens": lambda row: f"{row['pairs']} × {row['time']}",
            "ms a step": lambda row: f"{1e3 * row['seconds']:,.1f}",
            "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
            "peak, GiB": lambda row: f"{row['peak'] / 2**30:.1f}" if row["peak"] else "",
            "first loss": lambda row: f"{row['loss']:.4f}",
        },
    )


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, help="default: all but the toy; on a CPU the toy")
    parser.add_argument("--write", action="store_true", help="keep the results under benchmarks/results")
    parser.add_argument("--output", type=Path, help="the folder to keep them in")
    told = parser.parse_args()
    names = told.models or [name for name in MODELS if (name == "toy") != torch.cuda.is_available()]
    rows = [measured(name) for name in names]
    print(table(rows))
    if told.write:
        folder = told.output or Path(__file__).parent / "results" / harness.device_name()
        print(f"written: {harness.write('step-trl', rows, table(rows), folder)}")


if __name__ == "__main__":
    main()
