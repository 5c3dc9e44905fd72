"""A run's step compiled ahead of time for TPUs that are not there: does it fit, and what to change when it does not.

Parameters, optimiser and batch are shapes alone, so that a model of any size is looked at on a laptop. The compiler is
the TPU's own, from `jax[tpu]`; nothing is run.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mi_align.data import PreferenceBatch
from mi_align.methods import Method
from mi_align.models import DecoderConfig, Pretrained, abstract_llama, abstract_pretrained, count_parameters
from mi_align.training.config import RunConfig
from mi_align.training.devices import CHIPS
from mi_align.training.fitting import reads_labels, reads_mismatched, reads_rewards
from mi_align.training.inputs import method_of, with_head
from mi_align.training.optimiser import make_optimiser
from mi_align.training.program import loss_of, scorer_of, scores_live
from mi_align.training.sharding import head_layout, make_mesh, shardings
from mi_align.training.state import init_state
from mi_align.training.step import train_step
from mi_align.training.trained import compiled_step, parts_of, with_adapter

__all__ = ["StepMemory", "compile_step", "devices_of", "shapes_of", "state_bytes", "told"]

#: Ids of bytes, with BOS and EOS: the vocabulary of a fresh model without a tokenizer of its own.
_BYTES = 258


class StepMemory(NamedTuple):
    """What a compiled step needs on each device, in bytes.

    Attributes:
      parameters: how many the model has.
      devices: how many devices.
      kind: of each of them.
      arguments: parameters, optimiser, reference and batch.
      temporaries: what the step makes beside them; None where the compiler refused.
      capacity: what a device has; None where that is not known.
      refusal: the compiler's sentence, where it found no room.
    """

    parameters: int
    devices: int
    kind: str
    arguments: int
    temporaries: int | None
    capacity: int | None
    refusal: str | None = None

    @property
    def fits(self) -> bool | None:
        """Whether there is room; None where the capacity is not known."""
        if self.temporaries is None:
            return False
        return None if self.capacity is None else self.arguments + self.temporaries <= self.capacity


def devices_of(topology: str) -> list[Any]:
    """The devices of a named topology, `v5e:4x4` or `v5p:2x2x1`.

    Raises:
      RuntimeError: the TPU's compiler is not installed.
      ValueError: it knows no such topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise RuntimeError(
            'the TPU\'s compiler is not installed. Install it with `pip install "jax[tpu]"`; no TPU is needed.'
        )
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it asks the network which machine it is on
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is opened, so that several may compile at once
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(topology, "tpu").devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as problem:
        raise ValueError(
            f"`topology` is {topology!r}, but one such as v5e:4x4, v5p:2x2x1 or v6e:2x2 was wanted "
            f"({str(problem).splitlines()[0][:120]})."
        ) from problem


def shapes_of(config: RunConfig) -> Pretrained:
    """A run's model, with its adapter, as shapes: from `config.json` or the settings. No weights are touched."""
    how = config.model
    if how.pretrained is not None:
        base = abstract_pretrained(how.pretrained, jnp.dtype(how.dtype or "bfloat16"), **how.computed)
    elif config.data.tokenizer in (None, "bytes"):
        shape = DecoderConfig(vocab_size=_BYTES, **how.computed, **how.shape)
        base = abstract_llama(shape, jnp.dtype(how.dtype or "float32"))
    else:
        raise ValueError("`model.shape` with a tokenizer of its own has no vocabulary yet: name `model.pretrained`.")
    kept: dict[str, Pretrained] = {}

    def adapted(params: Any) -> Any:
        model = with_head(base._replace(params=params), config, method_of(config))
        kept["model"] = with_adapter(how, model, config.seed)
        return kept["model"].params

    params = jax.eval_shape(adapted, base.params)
    return kept["model"]._replace(params=params)


def compile_step(config: RunConfig, devices: list[Any]) -> StepMemory:
    """Compile a run's step for these devices, which need not be there, and ask what it needs.

    Raises:
      ValueError: the mesh does not make up their number, or does not divide the batch.
    """
    mesh = make_mesh(data=config.data_parallel, fsdp=config.fsdp, tensor=config.tensor, devices=devices)
    step, state, batch = _step(config, mesh)
    kind = devices[0].device_kind
    chip = CHIPS.get(kind)
    counts = count_parameters((state.params, state.frozen)), mesh.size, kind
    lowered = compiled_step(step, state, mesh).lower(state, batch)
    capacity = None if chip is None else chip.memory
    try:
        used: Any = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as problem:
        if "RESOURCE_EXHAUSTED" not in str(problem):
            raise
        return StepMemory(*counts, _bytes((state, batch)), None, capacity, _sentence(str(problem)))
    return StepMemory(*counts, used.argument_size_in_bytes, used.temp_size_in_bytes, capacity)


def state_bytes(config: RunConfig) -> tuple[int, int]:
    """Parameters of a run's model, and the bytes of its whole state, counted from shapes for any devices."""
    mesh = make_mesh(devices=jax.devices()[:1])
    _, state, _ = _step(config, mesh)
    return count_parameters((state.params, state.frozen)), _bytes(state)


def _step(config: RunConfig, mesh: Mesh) -> tuple[Any, Any, Any]:
    """The step, and the shapes of its state and its batch, each with where it lives."""
    model, method = shapes_of(config), method_of(config)
    layout = head_layout(mesh, model.config.vocab_size, model.config.width)
    loss = loss_of(config, method, model.graphdef, scorer_of(config, model.graphdef, layout), layout)
    live = scores_live(config, method)
    params, frozen = parts_of(config.model, model)
    optimiser = make_optimiser(config.optimiser, config.steps or 1000)
    begin = functools.partial(init_state, optimiser=optimiser)
    state = jax.eval_shape(begin, params, frozen=frozen, reference=params if live else None)
    step = train_step(loss, optimiser, micro_batches=config.micro_batches)
    cached = method is not None and method.needs_reference and not live
    return step, _placed(state, shardings(state, mesh)), _batch(config, mesh, method, scored=cached)


def _batch(config: RunConfig, mesh: Mesh, method: Method | None, *, scored: bool) -> Any:
    """The longest batch that the data can make."""
    spread = mesh.shape["data"] * mesh.shape["fsdp"]
    part = config.batch // config.micro_batches
    if part % spread:
        raise ValueError(
            f"`batch` / `micro_batches` is {part}, which the {spread} devices along data and fsdp do not divide."
        )
    number = _candidates(config, method)
    tokens = (config.batch, number, config.data.max_prompt + config.data.max_response)
    each = tokens[:2]
    fields: dict[str, Any] = {
        "tokens": jax.ShapeDtypeStruct(tokens, jnp.int32),
        "response_mask": jax.ShapeDtypeStruct(tokens, jnp.bool_),
        "candidate_mask": jax.ShapeDtypeStruct(each, jnp.bool_),
        "desirable": jax.ShapeDtypeStruct(each, jnp.bool_) if method and reads_labels(method) else None,
        "reward": jax.ShapeDtypeStruct(each, jnp.float32) if method and reads_rewards(method) else None,
    }
    given = PreferenceBatch(**fields), jax.ShapeDtypeStruct((*each, tokens[2] - 1), jnp.float32) if scored else None
    return _placed(given, jax.tree.map(lambda _: NamedSharding(mesh, P(("data", "fsdp"))), given))


def _candidates(config: RunConfig, method: Method | None) -> int:
    """How many sequences an example has."""
    if method is None:
        return 1
    if reads_labels(method):
        return 1 + reads_mismatched(method)
    return 1 + (config.data.negatives or 1)


def _placed(tree: Any, where: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)


def _bytes(tree: Any) -> int:
    """What one device holds of it."""
    total = 0
    for x in jax.tree.leaves(tree):
        size = x.dtype.itemsize
        for n in x.sharding.shard_shape(x.shape):
            size *= n
        total += size
    return total


def _sentence(text: str) -> str:
    """What the compiler lacks, without its advice."""
    found = re.search(r"Used [\d.]+\w? of [\d.]+\w? \w+|Ran out of memory[^.]*\.", text)
    return found.group(0) if found else text.splitlines()[0][:200]


def told(memory: StepMemory, config: RunConfig) -> str:
    """The report in words, with the remedy where there is no room."""
    gib = 2**30
    each = f"{memory.parameters:,} parameters; each of {memory.devices} × {memory.kind}: "
    each += f"{memory.arguments / gib:.2f} GiB of arguments"
    if memory.temporaries is not None:
        each += f", {memory.temporaries / gib:.2f} GiB of temporaries"
    if memory.capacity is not None:
        each += f", of {memory.capacity / gib:.0f} GiB"
    if memory.fits is None:
        return f"{each}; what such a device has is not known here"
    if memory.fits:
        return f"{each}: it fits"
    refused = f" ({memory.refusal})" if memory.refusal else ""
    return f"{each}: it does NOT fit{refused}. {_remedy(memory, config)}"


def _remedy(memory: StepMemory, config: RunConfig) -> str:
    """What takes away most of what is too much."""
    advice = []
    if config.fsdp in (-1, memory.devices) and memory.capacity is not None and memory.arguments > memory.capacity:
        return "The state alone is too large: take more devices, `model.dtype: bfloat16`, or `reference: cached`."
    if config.fsdp not in (-1, memory.devices) and config.tensor < memory.devices:
        advice.append("raise `fsdp`, over which parameters and optimiser are spread")
    if config.model.remat != "layers":
        advice.append("set `model.remat: layers`")
    if config.micro_batches < config.batch:
        advice.append("raise `micro_batches`")
    return "Try, in this order: " + "; ".join(advice or ["more devices", "a smaller `batch`"]) + "."
