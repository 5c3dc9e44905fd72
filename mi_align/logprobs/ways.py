"""The ways of making log-probabilities that there are, and which one a platform gets."""

from __future__ import annotations

import jax

from mi_align import checks
from mi_align.logprobs import chunked
from mi_align.logprobs.joined import Way
from mi_align.logprobs.pallas_ways import PALLAS_WAYS

__all__ = ["CHOICE", "REFERENCE", "WAYS", "chosen"]

#: The plain way's name; it has no hand-written gradient and is not in `WAYS`.
REFERENCE = "reference"

#: Every way with a hand-written gradient, by its name in `implementation=`.
WAYS: dict[str, Way] = {
    "chunked": Way("chunked", chunked.forward, chunked.backward, chunked.padded_rows),
    **PALLAS_WAYS,
}

#: What `implementation="auto"` takes, by platform, where its arguments suit a kernel; else, and elsewhere, "chunked".
#: The GPU's is ahead of it on an H100; the TPU's was compiled, but never timed.
CHOICE = {"cpu": "chunked", "gpu": "pallas_gpu", "tpu": "chunked"}


def chosen(implementation: str, *, suits: bool) -> str:
    """The name of a way; for "auto" the platform's, which may be a kernel only where the arguments suit one."""
    if implementation == "auto":
        way = CHOICE.get(jax.default_backend(), "chunked")
        return way if way not in PALLAS_WAYS or (suits and _has_matrix_units()) else "chunked"
    if implementation not in {*WAYS, REFERENCE}:
        raise checks.unknown_name("implementation", implementation, {*WAYS, REFERENCE, "auto"})
    return implementation


def _has_matrix_units() -> bool:
    """Whether this GPU multiplies bfloat16 in hardware: NVIDIA's from Ampere on."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    return capability.replace(".", "").isdigit() and float(capability) >= 8
