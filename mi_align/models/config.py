"""The shape of a decoder: a value, checked when it is made."""

from __future__ import annotations

import dataclasses
from typing import Literal

__all__ = ["COMPUTED", "Activation", "DecoderConfig", "Llama3Scaling"]

#: Fields of `DecoderConfig` that say how a decoder is computed, and not which one it is.
COMPUTED = ("remat", "attention")

Activation = Literal["silu", "gelu", "gelu_tanh"]
Norm = Literal["rms", "layer"]
Remat = Literal["none", "layers", "dots"]
AttentionKernel = Literal["auto", "xla", "cudnn", "splash"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """How Llama 3.1 stretches rotary positions: slow frequencies are divided, fast ones kept, those between blended.

    Attributes:
      factor: by which wavelengths above `original_length / low` grow.
      low: wavelengths above `original_length / low` are slow.
      high: wavelengths below `original_length / high` are fast.
      original_length: the context, in tokens, that the model was first trained on.
    """

    factor: float
    low: float
    high: float
    original_length: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder-only transformer of the Llama, Qwen, Mistral, Gemma and GPT-2 kind.

    The defaults are a Llama: RMSNorm, rotary positions, SwiGLU, no bias.

    Attributes:
      vocab_size: number of token ids, V.
      width: features of the residual stream, D.
      layers: number of blocks, L.
      heads: query heads.
      kv_heads: key and value heads, a divisor of `heads`; None: as many as `heads`.
      head_features: features of one head, an even number (rotary positions turn pairs); None: `width // heads`.
      mlp_width: features inside a feed-forward layer; None: 8/3 of `width`, rounded up to a multiple of 8, which
        makes SwiGLU's three matrices as large as the usual two.
      activation: of the feed-forward layer.
      gated: whether activation(gate x) multiplies up x; otherwise activation(up x) goes down alone.
      norm: "rms", or "layer" with a shift (GPT-2).
      norm_epsilon: added to the mean square before its root is taken.
      norm_offset: whether a norm multiplies by 1 + scale (Gemma).
      post_norms: whether what attention and feed-forward add is normalised too (Gemma).
      qk_norm: whether queries and keys are, head by head (Qwen 3, Gemma 3).
      qkv_bias, out_bias, mlp_bias: which linear maps add one.
      learned_positions: how many positions have a learned vector (GPT-2) in the place of rotary ones; None: rotary.
      rope_base: base of the rotary frequencies; larger for longer contexts.
      rope_divisor: by which rotary positions are divided ("linear" scaling).
      rope_scaling: Llama 3's, or None.
      window: how many tokens back a windowed layer sees, itself included; None: no layer is windowed.
      windowed: which layers are, one flag a layer; None: all, if there is a window.
      window_rope_base: base in windowed layers, whose positions are never divided or scaled; None: as in the others.
      attention_soft_cap: c of scores c·tanh(s/c) (Gemma 2), or None.
      attention_scale: what multiplies q·k; None: 1 / sqrt(features of a head).
      embedding_scale: what multiplies embeddings on their way in (Gemma: sqrt(width)), rounded to their dtype.
      tied_head: whether the vocabulary matrix of the head is the embedding table itself.
      logit_soft_cap: c of logits c·tanh(u/c) (Gemma 2), or None; `logprobs` applies it, not the decoder.
      remat: what the backward pass makes again: "none", all inside "layers", or all but matrix products ("dots").
      reward_head: whether a linear map to one number a token, `score`, stands in the place of the vocabulary's head.
      attention: the kernel of rows that hold one sequence each: "auto" is cuDNN's flash attention on a GPU in half
        precision, JAX's Splash attention on a TPU, and else XLA's, which holds the scores (`models.attention`).
    """

    vocab_size: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None
    head_features: int | None = None
    mlp_width: int | None = None
    activation: Activation = "silu"
    gated: bool = True
    norm: Norm = "rms"
    norm_epsilon: float = 1e-6
    norm_offset: bool = False
    post_norms: bool = False
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    learned_positions: int | None = None
    rope_base: float = 10_000.0
    rope_divisor: float = 1.0
    rope_scaling: Llama3Scaling | None = None
    window: int | None = None
    windowed: tuple[bool, ...] | None = None
    window_rope_base: float | None = None
    attention_soft_cap: float | None = None
    attention_scale: float | None = None
    embedding_scale: float = 1.0
    tied_head: bool = True
    logit_soft_cap: float | None = None
    remat: Remat = "none"
    reward_head: bool = False
    attention: AttentionKernel = "auto"

    def __post_init__(self) -> None:
        """Refuse a shape that no decoder can have."""
        counts = ("vocab_size", "width", "layers", "heads", "key_value_heads", "feed_forward_width", "head_width")
        for name in (*counts, "window", "learned_positions"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but at least 1 was wanted.")
        if self.head_features is None and (self.width % self.heads or self.head_width % 2):
            raise ValueError(
                f"`width` is {self.width} and `heads` {self.heads}, but every head needs the same even number of "
                f"features: `width` has to be a multiple of {2 * self.heads}, or `head_features` given."
            )
        if self.head_width % 2:
            raise ValueError(f"`head_features` is {self.head_features}, but an even number was wanted.")
        if self.heads % self.key_value_heads:
            raise ValueError(f"`kv_heads` is {self.kv_heads}, but a divisor of `heads` = {self.heads} was wanted.")
        if self.windowed is not None and (self.window is None or len(self.windowed) != self.layers):
            raise ValueError(
                f"`windowed` has {len(self.windowed)} flags and `window` is {self.window}, but one flag for each of "
                f"{self.layers} layers and a window were wanted."
            )

    @property
    def head_width(self) -> int:
        """Features of one head."""
        return self.width // self.heads if self.head_features is None else self.head_features

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def feed_forward_width(self) -> int:
        """Features inside a feed-forward layer."""
        return 8 * -(-self.width // 3) if self.mlp_width is None else self.mlp_width

    @property
    def windowed_layers(self) -> tuple[bool, ...]:
        """Which layers see no further than the window."""
        return (self.window is not None,) * self.layers if self.windowed is None else self.windowed
