"""Hugging Face folders in and out: `config.json` and `*.safetensors`. No pickle is opened, and no code of a model run.

Weights go from the file to the devices piece by piece: each device reads its part of each parameter, so that no host
and no device holds a second copy of the model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray

from mi_align.models.config import DecoderConfig
from mi_align.models.decoder import Decoder
from mi_align.models.families import Weight, decoder_config, family_of, llama_json
from mi_align.models.functional import Params, init_decoder
from mi_align.models.lora import LoraConfig, whole_parameter

__all__ = ["Pretrained", "fresh_llama", "load_pretrained", "save_pretrained"]

#: Bytes of one file, as `transformers` writes them.
SHARD_BYTES = 5 * 10**9
#: What else of a folder goes along when a model is saved beside its source.
COMPANIONS = (
    "tokenizer*",
    "special_tokens_map.json",
    "vocab.*",
    "merges.txt",
    "generation_config.json",
    "chat_template*",
)
#: Tensors in published files that are no parameters, by the end of their names.
NO_PARAMETERS = ("rotary_emb.inv_freq", "attn.bias", "attn.masked_bias")

Sharding = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]


class Pretrained(NamedTuple):
    """A model from a folder.

    Attributes:
      graphdef: the decoder's structure.
      params: its parameters.
      config: its shape.
      source: its `config.json`, parsed.
      folder: where it was; None for a fresh one.
      lora: the adapter that is among the parameters (`models.peft`); None: there is none.
    """

    graphdef: nnx.GraphDef[Decoder]
    params: Params
    config: DecoderConfig
    source: Mapping[str, Any]
    folder: Path | None
    lora: LoraConfig | None = None


def fresh_llama(config: DecoderConfig, key: PRNGKeyArray, *, dtype: jnp.dtype = jnp.float32) -> Pretrained:
    """A freshly drawn decoder that `save_pretrained` can write.

    Raises:
      ValueError: it is no Llama; the fields that no Llama has are named.
    """
    source = llama_json(config)
    graphdef, params = init_decoder(config, key, dtype)
    return Pretrained(graphdef, params, config, source, None)


def load_pretrained(
    name: str | Path,
    *,
    dtype: jnp.dtype | None = None,
    sharding: Sharding | None = None,
    **changes: Any,
) -> Pretrained:
    """A published model of one of the `families.FAMILIES`: a policy, or a reward model (`ForSequenceClassification`).

    Args:
      name: a folder, or the id of a repository on the Hub, from which `config.json`, the safetensors and the
        tokenizer are fetched.
      dtype: of the parameters. Default: as in the file.
      sharding: from the path of a parameter and its shape to where it goes. Default: all on the default device.
      **changes: fields of `DecoderConfig` that do not come from the file, such as `remat="layers"`.

    Raises:
      FileNotFoundError: there is no such folder or file, or no safetensors in it.
      ValueError: the family is unknown here, or the files do not hold exactly its parameters.
    """
    folder = _folder(name)
    source = json.loads((folder / "config.json").read_text())
    family = family_of(source)
    config = dataclasses.replace(decoder_config(source), **changes)
    abstract = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    graphdef, shapes, _ = nnx.split(abstract, nnx.Param, ...)
    with _opened(folder) as tensors:
        wanted = _by_path(shapes)
        table = {w.ours: w for w in family.weights if w.ours in wanted}
        _check_names(folder, table, wanted, tensors, config.layers)
        loaded = {path: _placed(table[path], path, shape, tensors, dtype, sharding) for path, shape in wanted.items()}
    params = nnx.from_flat_state([(key, leaf.replace(loaded[_dotted(key)])) for key, leaf in nnx.to_flat_state(shapes)])
    return Pretrained(graphdef, params, config, source, folder)


def save_pretrained(model: Pretrained, folder: str | Path, *, shard_bytes: int = SHARD_BYTES) -> Path:
    """Write a folder that `transformers` opens: the source's `config.json` and tokenizer, and the parameters.

    An adapter is merged into its matrices, one at a time (`save_adapter` writes it by itself).

    Args:
      model: what `load_pretrained` returned, with other parameters by `_replace(params=…)`.
      folder: is made; files of these names in it are overwritten.
      shard_bytes: the most that one file holds.

    Returns:
      The folder.
    """
    import safetensors.numpy

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = model.params["embedding"].get_value().dtype.name
    config = {**model.source, "torch_dtype" if "torch_dtype" in model.source else "dtype": dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if model.folder is not None and model.folder.resolve() != folder.resolve():
        for companion in (path for pattern in COMPANIONS for path in model.folder.glob(pattern)):
            shutil.copy(companion, folder)
    shards = list(_shards(_theirs(model), shard_bytes))
    names = [
        "model.safetensors" if len(shards) == 1 else f"model-{n:05}-of-{len(shards):05}.safetensors"
        for n in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        safetensors.numpy.save_file(shard, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(x.nbytes for shard in shards for x in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return folder


def _folder(name: str | Path) -> Path:
    folder = Path(name)
    if not folder.is_dir():
        if folder.suffix or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
            raise FileNotFoundError(f"there is no folder {name}, and it is no id on the Hub (owner/name).")
        import huggingface_hub

        patterns = ["config.json", "*.safetensors", "*.safetensors.index.json", *COMPANIONS]
        try:
            folder = Path(huggingface_hub.snapshot_download(str(name), allow_patterns=patterns))
        except OSError as error:
            raise FileNotFoundError(f"there is no folder {name}, and the Hub gave none so named: {error}") from error
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} has no config.json: a folder that `save_pretrained` writes was wanted.")
    if not any(folder.glob("*.safetensors")):
        others = ", ".join(sorted(p.name for p in folder.glob("*.bin"))) or "none"
        raise FileNotFoundError(
            f"{folder} has no *.safetensors (pickled weights, which are not opened: {others}). Save the model with "
            "`safe_serialization=True` first."
        )
    return folder


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[dict[str, Any]]:
    """Each tensor's file, by the tensor's name; nothing is read yet."""
    import ml_dtypes  # noqa: F401  # NumPy then knows bfloat16
    from safetensors import safe_open

    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for path in sorted(folder.glob("*.safetensors")):
            file = stack.enter_context(safe_open(path, "np"))
            tensors |= dict.fromkeys(file.keys(), file)
        yield tensors


def _dotted(key: tuple[Any, ...]) -> str:
    return ".".join(map(str, key))


def _by_path(params: Params) -> dict[str, Any]:
    return {_dotted(key): leaf.get_value() for key, leaf in nnx.to_flat_state(params)}


def _names(weight: Weight, layers: int) -> list[str]:
    return [weight.theirs.format(n) for n in range(layers)] if "{}" in weight.theirs else [weight.theirs]


def _check_names(
    folder: Path, table: Mapping[str, Weight], wanted: Mapping[str, Any], tensors: Mapping[str, Any], layers: int
) -> None:
    """Every parameter is in the files, and nothing in the files is left over."""
    unknown = sorted(set(wanted) - set(table))
    expected = {name for weight in table.values() for name in _names(weight, layers)}
    missing = sorted(expected - set(tensors))
    tied = {"lm_head.weight"}  # some files hold a tied head too
    extra = sorted(n for n in set(tensors) - expected - tied if not n.endswith(NO_PARAMETERS))
    if unknown or missing or extra:
        told = [("lack", missing), ("hold beyond the family's", extra), ("have no name for", unknown)]
        said = "; ".join(f"{verb} {', '.join(names[:4])}{' …' * (len(names) > 4)}" for verb, names in told if names)
        raise ValueError(f"{folder}: the safetensors {said}. Does config.json belong to these files?")


def _placed(
    weight: Weight, path: str, like: Any, tensors: Mapping[str, Any], dtype: Any, sharding: Sharding | None
) -> jax.Array:
    """One parameter, read where it goes."""
    shape = tuple(like.shape)
    stacked = "{}" in weight.theirs
    names = _names(weight, shape[0] if stacked else 1)

    def read(index: Any) -> np.ndarray:
        if stacked:
            layers = [_read(weight, tensors[name], name, index[1:], shape[1:]) for name in names[index[0]]]
            part = np.stack(layers)
        else:
            part = _read(weight, tensors[names[0]], names[0], index, shape)
        return part if dtype is None else part.astype(dtype)

    if sharding is None:
        return jnp.asarray(read((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding(path, shape), read)


def _read(weight: Weight, file: Any, name: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """A part of one tensor, in our orientation."""
    tensor = file.get_slice(name)
    which, parts = weight.part
    wanted = [*shape[:-1], shape[-1] * parts]
    wanted = wanted[::-1] if weight.transposed else wanted
    if list(tensor.get_shape()) != wanted:
        raise ValueError(f"{name} has shape {tensor.get_shape()}, but {wanted} was wanted by config.json.")
    bounds = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
    start, end = bounds[-1]
    bounds[-1] = start + which * shape[-1], end + which * shape[-1]
    slices = tuple(slice(*b) for b in (bounds[::-1] if weight.transposed else bounds))
    part = np.asarray(tensor[slices])
    return part.T if weight.transposed else part


def _theirs(model: Pretrained) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor of the files, one after another."""
    ours, value = _by_path(model.params), whole_parameter(model.graphdef, model.params)
    table = [w for w in family_of(model.source).weights if w.ours in ours]
    for name in dict.fromkeys(w.theirs for w in table):
        weights = sorted((w for w in table if w.theirs == name), key=lambda w: w.part)
        arrays = [value(w.ours) for w in weights]
        for layer, tensor in enumerate(_names(weights[0], model.config.layers)):
            parts = [x[layer] if "{}" in name else x for x in arrays]
            whole = np.concatenate([np.asarray(part) for part in parts], axis=-1)
            yield tensor, np.ascontiguousarray(whole.T if weights[0].transposed else whole)


def _shards(tensors: Iterator[tuple[str, np.ndarray]], most: int) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    for name, tensor in tensors:
        if shard and sum(x.nbytes for x in shard.values()) + tensor.nbytes > most:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard
