"""The sizes at which log-probabilities are tested and timed: those of real models, and small ones for a CPU."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from mi_align import checks

__all__ = ["CASES", "MODELS", "TOYS", "Case", "case_named"]


@dataclasses.dataclass(frozen=True)
class Case:
    """One softmax over a vocabulary.

    Attributes:
      name: whose it is.
      features: width of the hidden states, D.
      vocab: rows of the vocabulary matrix, V, padding rows included.
      tokens: numbers of positions to time it at; the first is the default.
      soft_cap: of the logits, if there is one.
    """

    name: str
    features: int
    vocab: int
    tokens: tuple[int, ...]
    soft_cap: float | None = None

    def at(self, tokens: int) -> Case:
        """The same at one number of positions."""
        return dataclasses.replace(self, tokens=(tokens,))

    def __str__(self) -> str:
        """Name and sizes."""
        return f"{self.name} {self.tokens[0]}×{self.features}×{self.vocab}"


def _model(name: str, features: int, vocab: int, soft_cap: float | None = None) -> Case:
    return Case(name, features, vocab, (8_192, 2_048, 16_384, 32_768, 65_536), soft_cap)


#: Hidden size and vocabulary of published checkpoints (`config.json`: hidden_size, vocab_size).
MODELS = (
    _model("gpt2", 768, 50_257),
    _model("qwen2.5-0.5b", 896, 151_936),
    _model("gemma-2-2b", 2_304, 256_000, soft_cap=30.0),
    _model("mistral-7b", 4_096, 32_000),
    _model("qwen2.5-7b", 3_584, 152_064),
    _model("llama-3-8b", 4_096, 128_256),
)

#: `toy` is what the targets for two CPU cores are stated at; the others divide into no tile.
TOYS = (
    Case("toy", 512, 32_768, (2_048,)),
    Case("small", 192, 8_191, (1_024,)),
    Case("tiny", 64, 1_009, (256,)),
    Case("tiny-capped", 48, 1_013, (200,), soft_cap=5.0),
)

CASES: Mapping[str, Case] = {case.name: case for case in (*MODELS, *TOYS)}

_SIZES = re.compile(r"(\d+)x(\d+)x(\d+)")


def case_named(text: str) -> Case:
    """`"llama-3-8b"`, `"llama-3-8b:2048"` with other tokens, or sizes of one's own: `"2048x512x32768"`.

    Returns:
      a case at one number of positions.

    Raises:
      ValueError: there is no such case, or a size is no positive number.

    >>> str(case_named("gpt2:4096")), str(case_named("64x32x1000"))
    ('gpt2 4096×768×50257', 'own 64×32×1000')
    """
    sizes = _SIZES.fullmatch(text)
    if sizes:
        tokens, features, vocab = map(int, sizes.groups())
        if min(tokens, features, vocab) < 1:
            raise ValueError(f"shape {text!r}: tokens, features and vocabulary entries of at least 1 were wanted.")
        return Case("own", features, vocab, (tokens,))
    name, colon, tokens_text = text.partition(":")
    if name not in CASES:
        raise checks.unknown_name("shape", name, CASES)
    if not colon:
        return CASES[name].at(CASES[name].tokens[0])
    if not tokens_text.isdigit() or int(tokens_text) < 1:
        raise ValueError(f"shape {text!r}: a number of tokens was wanted after the colon, such as {name}:2048.")
    return CASES[name].at(int(tokens_text))
