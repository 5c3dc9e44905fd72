"""Where a run's arrays live on a mesh of devices: rules by the names of parameters.

A mesh has three axes. Over `data` and `fsdp` the examples of a batch are spread; over `fsdp` the parameters are, too,
and gathered layer by layer; over `tensor` the features inside a layer and the vocabulary are, and stay there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mi_align.logprobs import Layout
from mi_align.training.config import RunConfig
from mi_align.training.parts import path_of

__all__ = ["AXES", "RULES", "Rules", "head_layout", "make_mesh", "mesh_of", "place", "put", "shardings", "spec_of"]

AXES = ("data", "fsdp", "tensor")

#: The end of a parameter's path -> how it is spread; the first that fits. Moments' paths end like their parameter's.
Rules = Sequence[tuple[str, P]]
RULES: Rules = (
    (r"(^|\.)(embedding|head)$", P("tensor", "fsdp")),
    (r"attention\.(query|key|value)\.kernel$", P(None, "fsdp", "tensor")),
    (r"attention\.out\.kernel$", P(None, "tensor", "fsdp")),
    (r"feed_forward\.(gate|up)\.kernel$", P(None, "fsdp", "tensor")),
    (r"feed_forward\.down\.kernel$", P(None, "tensor", "fsdp")),
    (r"(query|key|value|gate|up)\.bias$", P(None, "tensor")),
    # An adapter's factors follow their matrix; between them there is the rank, which is not spread.
    (r"(query|key|value|gate|up)\.lora\.a$", P(None, "fsdp", None)),
    (r"(query|key|value|gate|up)\.lora\.b$", P(None, None, "tensor")),
    (r"(out|down)\.lora\.a$", P(None, "tensor", None)),
    (r"(out|down)\.lora\.b$", P(None, None, "fsdp")),
)


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the axes `data`, `fsdp` and `tensor`.

    Args:
      data: devices along that axis; −1, for one of the three: what the others leave.
      fsdp: the same.
      tensor: the same.
      devices: which ones. Default: all.

    Raises:
      ValueError: the axes do not make up the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    open_axes = [name for name, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(open_axes) > 1 or known < 1 or len(devices) % known or (not open_axes and known != len(devices)):
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(
            f"the mesh's axes are {told}, but {len(devices)} devices were to be spread over them: their product has to "
            "be that number, where one of them may be -1, what the others leave."
        )
    shape = [len(devices) // known if size == -1 else size for size in sizes.values()]
    return Mesh(np.asarray(devices).reshape(shape), AXES, axis_types=(AxisType.Auto,) * 3)


def mesh_of(config: RunConfig) -> Mesh | None:
    """The mesh of a run over all devices; None where there is one."""
    mesh = make_mesh(data=config.data_parallel, fsdp=config.fsdp, tensor=config.tensor)
    return None if mesh.size == 1 else mesh


def spec_of(path: str, shape: tuple[int, ...], mesh: Mesh, rules: Rules = RULES) -> P:
    """How one array is spread; along an axis whose devices do not divide it, it is not."""
    spec = next((spec for pattern, spec in rules if re.search(pattern, path)), P())
    if len(spec) != len(shape):  # factored moments, for one, have fewer axes than their parameter
        return P()
    return P(
        *(name if name is None or n % mesh.shape[name] == 0 else None for name, n in zip(spec, shape, strict=True))
    )


def shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """A sharding for each leaf of a pytree of arrays or shapes: parameters, or a whole `TrainState`."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, x: NamedSharding(mesh, spec_of(path_of(keys), tuple(x.shape), mesh, rules)), tree
    )


def place(batch: Any, mesh: Mesh | None) -> Any:
    """A pytree of host arrays on the devices, its examples spread over `data` and `fsdp`; None stays None.

    With several hosts each gives the whole batch, of which it sends its own devices their share.

    Raises:
      ValueError: the devices do not divide the examples.
    """
    if mesh is None:
        return batch
    spread = mesh.shape["data"] * mesh.shape["fsdp"]
    for x in jax.tree.leaves(batch):
        if x.shape[0] % spread:
            raise ValueError(
                f"the batch has {x.shape[0]} examples, which the {spread} devices along data and fsdp do not divide. "
                "Change `batch`, or the mesh."
            )
    return put(batch, NamedSharding(mesh, P(("data", "fsdp"))))


def put(tree: Any, where: Any) -> Any:
    """A pytree of arrays that every host holds, on devices of all hosts.

    `jax.device_put` would send all of them to all hosts to compare them.

    Args:
      tree: arrays; those that are spread already are laid out anew.
      where: a sharding for all of them, or a pytree of shardings.
    """
    where = jax.tree.map(lambda _: where, tree) if isinstance(where, jax.sharding.Sharding) else where
    return jax.tree.map(_put, tree, where)


def _put(x: Any, where: jax.sharding.Sharding) -> jax.Array:
    if where.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
        return jax.device_put(x, where)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, where, lambda index: whole[index])


def head_layout(mesh: Mesh, vocab: int, features: int) -> Layout:
    """The layout of the loss that goes with `RULES`: vocabulary over `tensor`, tokens over `data` and `fsdp`."""
    return Layout(mesh, tokens=("data", "fsdp"), head=spec_of("head", (vocab, features), mesh))
