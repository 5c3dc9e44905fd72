"""`mi-align generate`: what a model says, from a folder and prompts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

__all__ = ["Generate"]

#: Prompts are padded to a multiple of it, so that few shapes are compiled.
_MULTIPLE = 32


@dataclasses.dataclass(frozen=True)
class Generate:
    """Sample responses of a model that `train` has left, or of a published one.

    Prints each prompt with its responses, or a line of JSON each with `--json`.
    """

    model: str
    """A folder of safetensors, such as RUN/model, or the id of a repository on the Hub."""
    adapter: Path | None = None
    """A folder with an adapter of it in PEFT's format, such as RUN/adapter."""
    prompts: tuple[str, ...] = ()
    """Prompts."""
    file: Path | None = None
    """More of them, one a line."""
    tokenizer: str | None = None
    """"bytes", a folder or a Hub id. Default: the model's own."""
    samples: int = 1
    """Responses for each prompt."""
    max_new: int = 128
    """The most tokens that a response has."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    """Draw among so many likeliest tokens."""
    top_p: float | None = None
    """Draw among the likeliest tokens that have this probability together."""
    seed: int = 0
    """Of the draws."""
    json: bool = False
    """Print JSON lines: prompt, response, logp (nats), finished."""

    def run(self) -> int:
        """Load, sample, print."""
        import jax
        import jax.numpy as jnp
        import numpy as np

        from mi_align.data import load_tokenizer
        from mi_align.models import generate, load_adapter, load_pretrained

        texts = [*self.prompts, *([] if self.file is None else self.file.read_text(encoding="utf-8").splitlines())]
        if not texts:
            raise ValueError("there is no prompt. Pass --prompts TEXT …, or --file with one a line.")
        model, tokenizer = load_pretrained(self.model), load_tokenizer(self.tokenizer or self.model)
        model = model if self.adapter is None else load_adapter(model, self.adapter)
        ids = [np.append(tokenizer.bos_id, tokenizer.encode(text)) for text in texts]
        time = -(-max(map(len, ids)) // _MULTIPLE) * _MULTIPLE
        prompts = np.full((len(ids), time), tokenizer.eos_id, np.int32)
        for row, one in zip(prompts, ids, strict=True):
            row[: len(one)] = one
        came = jax.device_get(
            generate(
                model.graphdef,
                model.params,
                jnp.asarray(prompts),
                jnp.asarray([len(one) for one in ids]),
                jax.random.key(self.seed),
                max_new=self.max_new,
                samples=self.samples,
                temperature=self.temperature,
                top_k=self.top_k,
                top_p=self.top_p,
                stop=(tokenizer.eos_id,),
                pad_id=tokenizer.eos_id,
            )
        )
        for text, tokens, masks, logps in zip(texts, came.tokens, came.mask, came.logps, strict=True):
            responses = []
            for token, mask, logp in zip(tokens, masks, logps, strict=True):
                kept = token[mask]
                finished = bool(kept.size and kept[-1] == tokenizer.eos_id)
                words = tokenizer.decode(kept[:-1] if finished else kept)
                responses.append({"response": words, "logp": float(logp.sum()), "finished": finished})
            self._show(text, responses)
        return 0

    def _show(self, prompt: str, responses: list[dict[str, object]]) -> None:
        if self.json:
            print(*(json.dumps({"prompt": prompt, **r}, ensure_ascii=False) for r in responses), sep="\n")
        else:
            print(f"▸ {prompt}", *(f"  {r['response']}" for r in responses), sep="\n")
