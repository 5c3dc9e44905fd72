"""Adapters of published models, fresh or in PEFT's files: `adapter_config.json` and `adapter_model.safetensors`.

What is written here PEFT loads, and the other way round. GPT-2 keeps query, key and value in one matrix, `c_attn`,
whose adapter has one A in PEFT and three here. Three different ones are written as one of three times the rank, whose B
is zero where an A does not belong; that is taken apart again when it is read.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray

from mi_align.models.families import Weight, family_of
from mi_align.models.hugging_face import Pretrained
from mi_align.models.lora import Factors, LoraConfig, adapter_of, add_adapter, init_adapter, matrices

__all__ = ["fresh_adapter", "load_adapter", "save_adapter"]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: What PEFT puts before the names of the base's modules.
PREFIX = "base_model.model."
#: A reward's head, which is no low-rank change but stands there whole.
SCORE = f"{PREFIX}score.weight"
#: Settings of PEFT's that change the function, and the values under which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "lora_bias": (False,),
    "alora_invocation_tokens": (None,),
    "target_parameters": (None, []),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "use_qalora": (False,),
    "use_bdlora": (None,),
    # The others change the base as they begin, so that their factors go with another one.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


def fresh_adapter(model: Pretrained, lora: LoraConfig, key: PRNGKeyArray) -> Pretrained:
    """The model with an adapter that changes nothing yet; its own arrays are held, not copied.

    Raises:
      ValueError: one of the targets is the name of no matrix of this family.
    """
    paths = matrices(_weights(model), lora.targets)
    adapter = init_adapter(model.params, paths, lora.rank, key)
    graphdef, params = add_adapter(model.graphdef, model.params, adapter, scale=lora.scale)
    return model._replace(graphdef=graphdef, params=params, lora=lora)


def save_adapter(model: Pretrained, folder: str | Path, *, base: str | None = None) -> Path:
    """Write the model's adapter, without the model, as PEFT's `PeftModel.from_pretrained` and `load_adapter` read it.

    Args:
      model: with an adapter.
      folder: is made; files of these names in it are overwritten.
      base: what the files call the model, a folder or an id on the Hub. Default: the folder where it was read.

    Returns:
      The folder.

    Raises:
      ValueError: the model has no adapter.
    """
    import safetensors.numpy

    adapter = adapter_of(model.params)
    if model.lora is None or not adapter:
        raise ValueError("this model has no adapter to save. Give it one by `fresh_adapter` or `load_adapter`.")
    table = _modules(model)
    chosen = [module for module in table if module.paths[0] in adapter]
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    for module, target in zip(chosen, _targets(chosen, table), strict=True):
        a, b = _joined([adapter[path] for path in module.paths])
        ranks[target] = a.shape[-1]
        for layer, name in enumerate(module.names(len(a))):
            tensors[f"{name}.lora_A.weight"] = np.ascontiguousarray(a[layer].T)
            tensors[f"{name}.lora_B.weight"] = np.ascontiguousarray(b[layer].T)
    if model.config.reward_head:
        tensors[SCORE] = np.asarray(model.params["score"].get_value())
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "base_model_name_or_path": base or (None if model.folder is None else str(model.folder)),
        "fan_in_fan_out": not all(module.transposed for module in chosen),
        **_told(model.lora, ranks),
        **(_TELLS_REWARDS if model.config.reward_head else {}),
    }
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def load_adapter(model: Pretrained, folder: str | Path) -> Pretrained:
    """The model with the adapter in a folder, in float32; its own arrays are held, not copied.

    A reward model takes over the head that is saved beside the adapter, if there is one.

    Raises:
      FileNotFoundError: there is no `adapter_config.json` with `adapter_model.safetensors`.
      ValueError: the model has an adapter already; or the files hold none of LoRA, one that does what adapters here do
        not, or one for another model, such as a reward model's for a policy.
    """
    import ml_dtypes  # noqa: F401  # NumPy then knows bfloat16
    import safetensors.numpy

    if model.lora is not None:
        raise ValueError("this model has an adapter already: merge it first (`merge_adapter`), or read the base again.")
    folder = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: a folder that `save_adapter` or PEFT writes was wanted.")
    lora = _understood(json.loads((folder / CONFIG).read_text(encoding="utf-8")), folder)
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    adapter: dict[str, Factors] = {}
    table = _modules(model)
    chosen = [m for m in table if any(f"{name}.lora_A.weight" in tensors for name in m.names(model.config.layers))]
    for module in chosen:
        factors = _stacked(tensors, module.names(model.config.layers), folder)
        adapter |= zip(module.paths, _parted(factors, len(module.paths), lora.rank, module.name), strict=True)
    score = tensors.pop(SCORE, None) if model.config.reward_head else None
    if SCORE in tensors:
        raise ValueError(f"{folder} is the adapter of a reward model. Give it one, or take a method that trains such.")
    if tensors or not adapter:
        extra = next(iter(tensors), "nothing")
        raise ValueError(f"{folder}: {WEIGHTS} holds {extra}, which is no adapter of a matrix of this model.")
    lora = dataclasses.replace(lora, targets=tuple(dict.fromkeys(_targets(chosen, table))))
    params = model.params if score is None else _with_score(model.params, score, folder)
    graphdef, params = add_adapter(model.graphdef, params, adapter, scale=lora.scale)
    return model._replace(graphdef=graphdef, params=params, lora=lora)


def _with_score(params: Any, score: np.ndarray, folder: Path) -> Any:
    """The parameters with another reward head."""
    flat = dict(nnx.to_flat_state(params))
    own = flat["score",].get_value()
    if score.shape != own.shape:
        raise ValueError(f"{folder}: score.weight has shape {list(score.shape)}, but {list(own.shape)} was wanted.")
    flat["score",] = flat["score",].replace(jnp.asarray(score, own.dtype))
    return nnx.from_flat_state(list(flat.items()))


# --- Names


class _Module(NamedTuple):
    """A matrix of theirs, and the paths of those that it is here: three for GPT-2's `c_attn`, else one."""

    name: str
    paths: tuple[str, ...]
    transposed: bool

    def names(self, layers: int) -> list[str]:
        """What the files call it in each layer."""
        return [PREFIX + self.name.format(layer) for layer in range(layers)]


def _weights(model: Pretrained) -> list[Weight]:
    """The matrices that this member of the family has."""
    adapted = {path for path in _dotted_paths(model.params) if path.endswith(".kernel")}
    return [w for w in family_of(model.source).weights if w.ours in adapted]


def _dotted_paths(params: Any) -> list[str]:
    return [".".join(map(str, key)) for key, _ in nnx.to_flat_state(params)]


def _modules(model: Pretrained) -> list[_Module]:
    weights = sorted(_weights(model), key=lambda w: w.part)
    return [
        _Module(
            name.removesuffix(".weight"),
            tuple(w.ours.removesuffix(".kernel") for w in weights if w.theirs == name),
            next(w.transposed for w in weights if w.theirs == name),
        )
        for name in dict.fromkeys(w.theirs for w in weights)
    ]


def _targets(chosen: Sequence[_Module], table: Sequence[_Module]) -> list[str]:
    """Their shortest names that mean no other module: `q_proj`; `mlp.c_proj` where `attn.c_proj` has no adapter."""

    def last(module: _Module, parts: int) -> str:
        return ".".join(module.name.split(".")[-parts:])

    return [last(m, 1 if all(o in chosen for o in table if last(o, 1) == last(m, 1)) else 2) for m in chosen]


# --- Settings


def _told(lora: LoraConfig, ranks: Mapping[str, int]) -> dict[str, Any]:
    """The adapter in PEFT's words; a rank that is k times the adapter's has an α that gives the same scale."""
    times = {target: rank // lora.rank for target, rank in ranks.items() if rank != lora.rank}
    alphas = {target: lora.alpha * (math.sqrt(k) if lora.rslora else k) for target, k in times.items()}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": _whole(lora.alpha),
        "use_rslora": lora.rslora,
        "target_modules": list(dict.fromkeys(ranks)),
        "rank_pattern": {target: ranks[target] for target in times},
        "alpha_pattern": {target: _whole(alpha) for target, alpha in alphas.items()},
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "inference_mode": True,
    }


_TELLS_REWARDS = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}


def _whole(number: float) -> float | int:
    return int(number) if float(number).is_integer() else number


def _understood(config: Mapping[str, Any], folder: Path) -> LoraConfig:
    """The settings of an adapter, if they are those of one that can be had here."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"{folder}: {CONFIG} is of a {config.get('peft_type')!r} adapter, but 'LORA' was wanted.")
    for name, neutral in NEUTRAL.items():
        if name in config and config[name] not in neutral:
            raise ValueError(f"{folder}: {CONFIG} has {name} = {config[name]!r}, which adapters here do not know.")
    whole = set(config.get("modules_to_save") or ())
    if not whole <= {"score", "classifier"}:  # PEFT's names for the head of a classifier
        raise ValueError(f"{folder}: {CONFIG} has modules_to_save = {sorted(whole)}, which adapters here do not know.")
    rslora = bool(config.get("use_rslora", False))
    lora = LoraConfig(rank=int(config["r"]), alpha=float(config["lora_alpha"]), rslora=rslora)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for target in {*ranks, *alphas}:
        rank, alpha = int(ranks.get(target, lora.rank)), float(alphas.get(target, lora.alpha))
        if not math.isclose(dataclasses.replace(lora, rank=rank, alpha=alpha).scale, lora.scale, rel_tol=1e-12):
            raise ValueError(
                f"{folder}: {CONFIG} scales {target!r} (`rank_pattern`, `alpha_pattern`) otherwise than the rest; one "
                "scale for all was wanted."
            )
    return lora


# --- Factors


def _stacked(tensors: dict[str, np.ndarray], names: Sequence[str], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """A and B of all layers in our orientation, taken out of `tensors`."""

    def taken(which: str) -> np.ndarray:
        found = []
        for name in names:
            key = f"{name}.lora_{which}.weight"
            if key not in tensors:
                raise ValueError(f"{folder}: {WEIGHTS} lacks {key}; an adapter of every layer or of none was wanted.")
            found.append(tensors.pop(key).T.astype(np.float32))
        return np.stack(found)

    return taken("A"), taken("B")


def _joined(parts: Sequence[Factors]) -> tuple[np.ndarray, np.ndarray]:
    """One pair of factors for matrices that are side by side in theirs: with their one A, or all of theirs stacked."""
    firsts, seconds = ([np.asarray(x) for x in factor] for factor in zip(*parts, strict=True))
    if all(np.array_equal(a, firsts[0]) for a in firsts):
        return firsts[0], np.concatenate(seconds, axis=-1)
    blocks = [[b if i == j else np.zeros_like(b) for j, b in enumerate(seconds)] for i in range(len(seconds))]
    return np.concatenate(firsts, axis=-1), np.block(blocks)


def _parted(factors: tuple[np.ndarray, np.ndarray], parts: int, rank: int, name: str) -> Iterator[Factors]:
    """What `_joined` made one of."""
    a, b = factors
    columns = np.split(b, parts, axis=-1)
    if a.shape[-1] == rank:
        yield from (Factors(jnp.asarray(a), jnp.asarray(part)) for part in columns)
        return
    rows = [np.split(column, parts, axis=1) for column in columns] if a.shape[-1] == parts * rank else []
    if not rows or any(block.any() for j, column in enumerate(rows) for i, block in enumerate(column) if i != j):
        raise ValueError(f"the adapter of {name} has rank {a.shape[-1]}, but {rank}, that of all, was wanted.")
    for own, column, j in zip(np.split(a, parts, axis=-1), rows, range(parts), strict=True):
        yield Factors(jnp.asarray(own), jnp.asarray(column[j]))
