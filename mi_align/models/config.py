"""The shape of a decoder: a value, checked when it is made."""

from __future__ import annotations

import dataclasses

__all__ = ["DecoderConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The shape of a decoder-only transformer with RMSNorm, rotary positions and SwiGLU.

    Attributes:
      vocab_size: number of token ids, V.
      width: features of the residual stream, D.
      layers: number of blocks.
      heads: query heads; each has `width // heads` features, an even number (rotary positions turn pairs).
      kv_heads: key and value heads, a divisor of `heads`; None: as many as `heads`.
      mlp_width: features inside a feed-forward layer; None: 8/3 of `width`, rounded up to a multiple of 8, which
        makes SwiGLU's three matrices as large as the usual two.
      rope_base: base of the rotary frequencies; larger for longer contexts.
      norm_epsilon: added to the mean square before its root is taken.
      tied_head: whether the vocabulary matrix of the head is the embedding table itself.
    """

    vocab_size: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None
    mlp_width: int | None = None
    rope_base: float = 10_000.0
    norm_epsilon: float = 1e-6
    tied_head: bool = True

    def __post_init__(self) -> None:
        """Refuse a shape that no decoder can have."""
        for name in ("vocab_size", "width", "layers", "heads", "key_value_heads", "feed_forward_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but at least 1 was wanted.")
        if self.width % self.heads or self.head_width % 2:
            raise ValueError(
                f"`width` is {self.width} and `heads` {self.heads}, but every head needs the same even number of "
                f"features: `width` has to be a multiple of {2 * self.heads}."
            )
        if self.heads % self.key_value_heads:
            raise ValueError(f"`kv_heads` is {self.kv_heads}, but a divisor of `heads` = {self.heads} was wanted.")

    @property
    def head_width(self) -> int:
        """Features of one head."""
        return self.width // self.heads

    @property
    def key_value_heads(self) -> int:
        """Number of key and value heads."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def feed_forward_width(self) -> int:
        """Features inside a feed-forward layer."""
        return 8 * -(-self.width // 3) if self.mlp_width is None else self.mlp_width
