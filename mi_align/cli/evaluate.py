"""`mi-align evaluate`: how a saved model does on data, without training."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mi_align.cli.train import about_data

if TYPE_CHECKING:
    from mi_align.training.config import RunConfig
    from mi_align.training.evaluation import Evaluation

__all__ = ["Evaluate"]


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Print the metrics that a run reports of its evaluation data, of any saved model on any data.

    For policies and for reward models, under any method of the table, or "sft".
    """

    model: str
    """A folder of safetensors, such as RUN/model, or the id of a repository on the Hub."""
    data: str
    """A file, or the id of a data set on the Hub."""
    method: str | None = None
    """A row of the table, or sft. Default: bradley_terry for a reward model, dpo beside a reference, else sft."""
    reference: str | None = None
    """The policy that the method compares with, as a rule the one that training began from: a folder or a Hub id."""
    adapter: str | None = None
    """A folder with an adapter of the model in PEFT's format, such as RUN/adapter."""
    hyper: tuple[str, ...] = ()
    """The method's hyper-parameters, such as beta=0.2."""
    output: Path | None = None
    """Write a line of JSON for each example: its prompt, its responses, its loss, rewards and log-probabilities."""
    json: bool = False
    """Print the metrics as one line of JSON."""
    split: str = "train"
    """Of a data set on the Hub."""
    limit: int | None = None
    """Take the first so many rows only."""
    skip_bad_rows: bool = False
    """Leave rows out that cannot be used, instead of stopping at the first; they are counted."""
    negatives: int | None = None
    """So many rejected responses a prompt, borrowed from other prompts where it has fewer."""
    threshold: float | None = None
    """Scores above it make a response desirable, for methods that read labels."""
    tokenizer: str | None = None
    """"bytes", a folder or a Hub id. Default: the model's own."""
    max_prompt: int = 512
    """Most tokens of a prompt, which loses its beginning."""
    max_response: int = 512
    """Most tokens of a response, which loses its end."""
    batch: int = 16
    """Examples that are scored at a time."""
    dtype: str | None = None
    """Of the parameters, float32 or bfloat16. Default: as in the files."""

    def run(self) -> int:
        """Load, score, print."""
        from mi_align.training.evaluation import evaluate

        config = self._config()
        if self.output is not None and not self.output.absolute().parent.is_dir():
            raise FileNotFoundError(f"there is no folder {self.output.absolute().parent} for --output.")
        came = evaluate(config, reference=self.reference)
        if self.output is not None:
            lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in came.examples)
            self.output.write_text("".join(lines), encoding="utf-8")
        if self.json:
            about = {"model": self.model, "data": self.data, "method": config.method, "examples": len(came.examples)}
            print(json.dumps(about | came.numbers))
        else:
            print(*_told(config, came), sep="\n")
        return 0

    def _config(self) -> RunConfig:
        """The settings of a run that would have this model evaluated on these data."""
        from mi_align.models import published_config
        from mi_align.training.config import RunConfig
        from mi_align.training.settings import from_mapping, load

        method = self.method
        if method is None:
            rewards = published_config(self.model).reward_head
            method = "bradley_terry" if rewards else "sft" if self.reference is None else "dpo"
        data = {name: getattr(self, name) for name in ("split", "limit", "negatives", "threshold", "tokenizer")}
        data |= {"train": self.data, "max_prompt": self.max_prompt, "max_response": self.max_response}
        data["on_bad_row"] = "skip" if self.skip_bad_rows else "error"
        model = {"pretrained": self.model, "adapter": self.adapter, "dtype": self.dtype}
        settings: dict[str, Any] = {"data": data, "model": model, "method": method, "batch": self.batch}
        if self.hyper:
            bad = next((text for text in self.hyper if "=" not in text), None)
            if bad is not None:
                raise ValueError(f"--hyper has {bad!r}, but name=value, such as beta=0.2, was wanted.")
            settings["hyper"] = load(_Hyper, None, [f"hyper.{text}" for text in self.hyper]).hyper
        return from_mapping(RunConfig, settings)


@dataclasses.dataclass(frozen=True)
class _Hyper:
    """Numbers by name, as a run's settings have them."""

    hyper: dict[str, float] = dataclasses.field(default_factory=dict)


def _told(config: RunConfig, came: Evaluation) -> list[str]:
    """The report in lines."""
    lines = [f"{config.method}: {config.model.pretrained} on {len(came.examples):,} examples of {config.data.train}"]
    lines += [line.removeprefix("training: ") for line in about_data(came.inputs)]
    width = max(map(len, came.numbers))
    return [*lines, *(f"{name:{width}}  {value:,.6g}" for name, value in came.numbers.items())]
