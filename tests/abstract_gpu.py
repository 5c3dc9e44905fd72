"""Lowering for a GPU where there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from jax.sharding import AbstractMesh


@contextlib.contextmanager
def gpu_in_mind(kind: str = "NVIDIA H100 80GB HBM3") -> Iterator[None]:
    """From JAX 0.11 on, a Triton kernel is lowered only for a device that is there, or that is named."""
    if jax.__version_info__ < (0, 11):
        yield
        return
    from jax.sharding import AbstractDevice

    device = AbstractDevice(device_kind=kind, num_cores=None, platform="gpu")
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("one",), abstract_device=device)):
        yield
