"""A model without weights: its structure and the shapes of its parameters, from a `config.json` alone."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mi_align.models.config import DecoderConfig
from mi_align.models.decoder import Decoder
from mi_align.models.families import decoder_config, llama_json
from mi_align.models.functional import Params, init_decoder
from mi_align.models.hugging_face import Pretrained

__all__ = ["abstract_decoder", "abstract_llama", "abstract_pretrained", "published_config"]


def published_config(name: str | Path, **changes: Any) -> DecoderConfig:
    """The shape of a published model.

    Args:
      name: a folder with a `config.json`, or the id of a repository on the Hub, from which that file alone is fetched.
      **changes: fields of `DecoderConfig` that do not come from the file, such as `remat="layers"`.

    Raises:
      FileNotFoundError: there is no such folder or file.
      ValueError: the family is unknown here.
    """
    source = _published(name)
    return dataclasses.replace(decoder_config(source), **changes)


def abstract_pretrained(name: str | Path, dtype: jnp.dtype = jnp.bfloat16, **changes: Any) -> Pretrained:
    """What `load_pretrained` returns, with shapes in the place of arrays; only `config.json` is read.

    Args:
      name: as of `published_config`, whose errors it raises.
      dtype: of the parameters.
      **changes: fields of `DecoderConfig`, as there.
    """
    config = published_config(name, **changes)
    return Pretrained(*abstract_decoder(config, dtype), config, _published(name), None)


def abstract_llama(config: DecoderConfig, dtype: jnp.dtype = jnp.float32) -> Pretrained:
    """What `fresh_llama` returns, with shapes in the place of arrays."""
    return Pretrained(*abstract_decoder(config, dtype), config, llama_json(config), None)


def _published(name: str | Path) -> dict[str, Any]:
    path = Path(name) / "config.json"
    if not path.exists():
        if Path(name).is_dir() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
            raise FileNotFoundError(f"there is no {path}, and {name} is no id on the Hub (owner/name).")
        import huggingface_hub

        try:
            path = Path(huggingface_hub.hf_hub_download(str(name), "config.json"))
        except OSError as error:
            raise FileNotFoundError(f"there is no folder {name}, and the Hub gave none so named: {error}") from error
    return json.loads(path.read_text(encoding="utf-8"))


def abstract_decoder(config: DecoderConfig, dtype: jnp.dtype = jnp.float32) -> tuple[nnx.GraphDef[Decoder], Params]:
    """What `init_decoder` returns, with a `jax.ShapeDtypeStruct` in the place of each array."""
    return jax.eval_shape(functools.partial(init_decoder, config, dtype=dtype), jax.random.key(0))
