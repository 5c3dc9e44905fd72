"""What devices can do, as data, and which share of it a step uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mi_align.data import PreferenceBatch
from mi_align.models import DecoderConfig

__all__ = ["CHIPS", "Chip", "batch_flops", "token_flops", "utilisation"]

GIB = 2**30


class Chip(NamedTuple):
    """One device, as JAX counts them.

    Attributes:
      flops: the most operations a second in bfloat16 matrix products, without sparsity.
      memory: bytes of its main memory.
    """

    flops: float
    memory: int


#: By `device_kind` of JAX. Source: cloud.google.com/tpu/docs, NVIDIA's data sheets (SXM parts).
CHIPS: Mapping[str, Chip] = {
    "TPU v5 lite": Chip(197e12, 16 * GIB),
    "TPU v5": Chip(459e12, 95 * GIB),
    "TPU v6 lite": Chip(918e12, 32 * GIB),
    "TPU7x": Chip(1153e12, 96 * GIB),  # JAX counts each half of the chip
    "NVIDIA A100-SXM4-40GB": Chip(312e12, 40 * GIB),
    "NVIDIA A100-SXM4-80GB": Chip(312e12, 80 * GIB),
    "NVIDIA H100 80GB HBM3": Chip(989e12, 80 * GIB),
    "NVIDIA H200": Chip(989e12, 141 * GIB),
}


def token_flops(config: DecoderConfig, parameters: int, time: int) -> float:
    """Operations of one token's forward pass in a sequence of `time` tokens, as the model defines them.

    2N + 4 · layers · time · heads · features of a head: N are the parameters in matrix products, so all but an
    embedding table that is only looked up. Attention counts as if it saw all tokens, and what is made again in the
    backward pass does not count: the convention of model FLOPs.

    Source: Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), appendix B.
    """
    looked_up = 0 if config.tied_head and not config.reward_head else config.vocab_size * config.width
    attention = 4 * config.layers * time * config.heads * config.head_width
    return 2.0 * (parameters - looked_up) + attention


def batch_flops(config: DecoderConfig, parameters: int, batch: PreferenceBatch, *, live: bool = False) -> float:
    """Operations of a step over a batch, its padding included: three forward passes, and one of a live reference."""
    return (3 + live) * batch.tokens.size * token_flops(config, parameters, batch.tokens.shape[-1])


def utilisation(flops: float, seconds: float, kind: str, devices: int) -> dict[str, float]:
    """Metrics of one step: `flops`, those of the model a second, and `mfu`, their share of what the devices can do.

    `mfu` is left out where the kind of device is not in `CHIPS`, as a CPU is not.

    >>> utilisation(459e12, 2.0, "TPU v5", 1)
    {'flops': 229500000000000.0, 'mfu': 0.5}
    """
    rate = flops / seconds
    chip = CHIPS.get(kind)
    return {"flops": rate} if chip is None else {"flops": rate, "mfu": rate / (devices * chip.flops)}
