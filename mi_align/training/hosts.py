"""Several hosts, one program: each runs the same command, holds its devices' share of every array, and reads all data.

With a single host everything here does nothing, or what NumPy does.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np

__all__ = ["agree", "connect", "fetch", "is_first", "wait_for_all"]

#: A CPU device waits for the other hosts in a thread of XLA's pool, which by default has one a core or device. A step
#: has independent collectives; when all threads wait, each for one that another host has not begun, none comes.
_CPU_THREADS = 32


def connect() -> None:
    """Join the other hosts; before anything else asks JAX for devices.

    Slurm, Open MPI, Kubernetes and TPU pods are recognised. Elsewhere every host sets `JAX_COORDINATOR_ADDRESS`, the
    first one's host:port, and `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, from 0 on.

    XLA's CPU devices get 32 threads or more, unless `PJRT_NPROC` says how many.

    Raises:
      ValueError: none of these says who the others are.
    """
    os.environ.setdefault("PJRT_NPROC", str(max(_CPU_THREADS, os.cpu_count() or 1)))
    try:
        jax.distributed.initialize(num_processes=_number("JAX_NUM_PROCESSES"), process_id=_number("JAX_PROCESS_ID"))
    except ValueError as error:
        raise ValueError(
            f"the other hosts are not known: {error} Under Slurm, Open MPI and on TPU pods they are found; elsewhere "
            "set JAX_COORDINATOR_ADDRESS (the first one's host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID."
        ) from error


def _number(name: str) -> int | None:
    """A variable of the environment; None where it is not set, and JAX looks for itself."""
    text = os.environ.get(name)
    return None if text is None else int(text)


def is_first() -> bool:
    """Whether this is the host that writes what is written once."""
    return jax.process_index() == 0


def wait_for_all(reason: str) -> None:
    """Go on when all hosts have come here; they have to give the same `reason`."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(reason)


def agree(asked: bool) -> bool:
    """Whether any host has been asked; every host has to call it, and waits for its devices."""
    if jax.process_count() == 1:
        return asked
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(asked))))


def fetch(tree: Any) -> Any:
    """The arrays of a pytree as a host holds them: whole, whichever devices they were on.

    Every host has to call it. One array after another is gathered, so that no device holds them all at once.
    """
    return jax.tree.map(_whole, tree)


def _whole(x: Any) -> np.ndarray:
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
