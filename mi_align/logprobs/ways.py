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

#: What `implementation="auto"` takes, by platform: the Pallas kernels were compiled for theirs, but timed on none.
CHOICE = {"cpu": "chunked", "gpu": "chunked", "tpu": "chunked"}


def chosen(implementation: str) -> str:
    """The name of a way, for "auto" that of the platform's."""
    if implementation == "auto":
        return CHOICE.get(jax.default_backend(), "chunked")
    if implementation not in {*WAYS, REFERENCE}:
        raise checks.unknown_name("implementation", implementation, {*WAYS, REFERENCE, "auto"})
    return implementation
