"""Which published models a decoder can be: their configurations and the names of their weights, as data.

A family is known by `model_type` in its `config.json`. Names of weights hold `{}` where the number of the layer stands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mi_align import checks
from mi_align.models.config import COMPUTED, Activation, DecoderConfig, Llama3Scaling

__all__ = ["FAMILIES", "Family", "Weight", "decoder_config", "family_of", "llama_json", "reward_json"]

Json = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One parameter of ours, and where a family keeps it.

    Attributes:
      ours: its path in the decoder's parameters, joined by dots; below `blocks` there is one a layer.
      theirs: its name in their files.
      transposed: whether theirs is the transpose: torch's linear layers hold `[out, in]`, ours `[in, out]`.
      part: which of how many equal parts of theirs, along its last axis, where several parameters are one there.
    """

    ours: str
    theirs: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Family:
    """How to read a `config.json`, and what the weights are called.

    Attributes:
      config: from the parsed file to our shape.
      weights: every parameter that some member of the family has.
      classifier: what `transformers` calls a member with a head of scores.
    """

    config: Callable[[Json], DecoderConfig]
    weights: tuple[Weight, ...]
    classifier: str


def family_of(config: Json) -> Family:
    """The family that a `config.json` names.

    Raises:
      ValueError: there is none of that name here.
    """
    name = str(config.get("model_type"))
    if name not in FAMILIES:
        raise checks.unknown_name("model family (`model_type` in config.json)", name, FAMILIES)
    return FAMILIES[name]


def decoder_config(source: Json) -> DecoderConfig:
    """The shape of the model that a `config.json` is of, with a reward head where it is one of sequence classification.

    Raises:
      ValueError: the family is unknown here, or there are several classes: a reward is one number.
    """
    config = family_of(source).config(source)
    if not any(str(name).endswith(_CLASSIFIES) for name in source.get("architectures") or ()):
        return config
    labels = len(source.get("id2label") or range(2))  # what `transformers` takes where nothing is said
    if labels != 1:
        raise ValueError(f"config.json is of a classifier with {labels} labels, but a reward model has one.")
    return dataclasses.replace(config, reward_head=True)


def reward_json(source: Json) -> dict[str, Any]:
    """The `config.json` of a model whose head has been replaced by a reward head."""
    labels: dict[str, Any] = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
    return {**source, "architectures": [family_of(source).classifier], **labels}


#: The end of the name of a class that gives scores and no tokens.
_CLASSIFIES = "ForSequenceClassification"


def llama_json(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of a decoder that is a Llama: what a fresh one is saved with.

    Raises:
      ValueError: it is none; the fields that no Llama has are named.
    """
    source = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "intermediate_size": config.feed_forward_width,
        "hidden_act": {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.activation],
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.qkv_bias,
        "mlp_bias": config.mlp_bias,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "max_position_embeddings": _UNBOUNDED,
        "dtype": "float32",
    }
    computed = {name: getattr(config, name) for name in COMPUTED}
    again = dataclasses.asdict(dataclasses.replace(FAMILIES["llama"].config(source), **computed))
    told = dataclasses.asdict(config) | {
        "kv_heads": config.key_value_heads,
        "head_features": config.head_width,
        "mlp_width": config.feed_forward_width,
    }
    other = [name for name, value in told.items() if again[name] != value]
    if other:
        raise ValueError(f"no Llama has this {', '.join(f'`{name}`' for name in other)}: such a model cannot be saved.")
    return source


#: Rotary positions have no last one; `transformers` wants a number.
_UNBOUNDED = 131_072


# --- Configurations


_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise checks.unknown_name("activation", name, _ACTIVATIONS)
    return _ACTIVATIONS[name]


def _common(c: Json) -> dict[str, Any]:
    """What all but GPT-2 call by the same names."""
    return {
        "vocab_size": c["vocab_size"],
        "width": c["hidden_size"],
        "layers": c["num_hidden_layers"],
        "heads": c["num_attention_heads"],
        "kv_heads": c.get("num_key_value_heads"),
        "head_features": c.get("head_dim"),
        "mlp_width": c["intermediate_size"],
        "activation": _activation(c.get("hidden_activation") or c.get("hidden_act", "silu")),
        "norm_epsilon": c.get("rms_norm_eps", 1e-6),
        "tied_head": c.get("tie_word_embeddings", False),
    }


def _rotary(c: Json, default_base: float = 10_000.0) -> dict[str, Any]:
    """Base and scaling, from `rope_parameters` as new files have them, or `rope_theta` and `rope_scaling`."""
    rope: dict[str, Any] = {**(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {})}
    kind = rope.get("rope_type", rope.get("type", "default"))
    base: Any = rope.get("rope_theta", c.get("rope_theta", default_base))
    found: dict[str, Any] = {"rope_base": float(base)}
    if kind == "linear":
        found["rope_divisor"] = float(rope["factor"])
    elif kind == "llama3":
        found["rope_scaling"] = Llama3Scaling(
            factor=float(rope["factor"]),
            low=float(rope["low_freq_factor"]),
            high=float(rope["high_freq_factor"]),
            original_length=int(rope["original_max_position_embeddings"]),
        )
    elif kind != "default":
        raise checks.unknown_name("rotary scaling (`rope_type`)", kind, ("default", "linear", "llama3"))
    return found


def _windows(c: Json) -> dict[str, Any]:
    """Which layers see a window, from `layer_types`."""
    kinds = c.get("layer_types") or []
    windowed = tuple(kind == "sliding_attention" for kind in kinds)
    return {"window": c["sliding_window"], "windowed": windowed} if any(windowed) else {}


def _llama(c: Json) -> DecoderConfig:
    bias = bool(c.get("attention_bias", False))
    mlp_bias = bool(c.get("mlp_bias", False))
    return DecoderConfig(**_common(c), **_rotary(c), qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)


def _mistral(c: Json) -> DecoderConfig:
    return DecoderConfig(**_common(c), **_rotary(c), window=c.get("sliding_window"))


def _qwen2(c: Json) -> DecoderConfig:
    windows = _windows(c)
    if not windows and c.get("use_sliding_window") and c.get("sliding_window"):
        first = c.get("max_window_layers", c["num_hidden_layers"])
        flags = tuple(layer >= first for layer in range(c["num_hidden_layers"]))
        windows = {"window": c["sliding_window"], "windowed": flags}
    return DecoderConfig(**_common(c), **_rotary(c), **windows, qkv_bias=True)


def _qwen3(c: Json) -> DecoderConfig:
    bias = bool(c.get("attention_bias", False))
    return dataclasses.replace(_qwen2(c), qkv_bias=bias, out_bias=bias, qk_norm=True)


def _gemma(c: Json) -> dict[str, Any]:
    bias = bool(c.get("attention_bias", False))
    return {
        **_common({"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh", **c}),
        "norm_offset": True,
        "embedding_scale": c["hidden_size"] ** 0.5,
        "qkv_bias": bias,
        "out_bias": bias,
    }


def _gemma2(c: Json) -> DecoderConfig:
    layers = c["num_hidden_layers"]
    types = c.get("layer_types") or ["full_attention" if n % 2 else "sliding_attention" for n in range(layers)]
    return DecoderConfig(
        **_gemma(c),
        **_rotary(c),
        **_windows({**c, "layer_types": types}),
        post_norms=True,
        attention_soft_cap=c.get("attn_logit_softcapping"),
        attention_scale=c["query_pre_attn_scalar"] ** -0.5,
        logit_soft_cap=c.get("final_logit_softcapping"),
    )


def _gemma3(c: Json) -> DecoderConfig:
    layers, every = c["num_hidden_layers"], c.get("sliding_window_pattern") or c.get("_sliding_window_pattern") or 6
    types = c.get("layer_types") or [
        "sliding_attention" if (n + 1) % every else "full_attention" for n in range(layers)
    ]
    rope = c.get("rope_parameters") or {}
    near = rope.get("sliding_attention", {}).get("rope_theta", c.get("rope_local_base_freq", 10_000.0))
    far = {**c, "rope_parameters": rope.get("full_attention")}
    return DecoderConfig(
        **_gemma(c),
        **_rotary(far, 1_000_000.0),
        **_windows({**c, "layer_types": types}),
        window_rope_base=float(near),
        post_norms=True,
        qk_norm=True,
        attention_soft_cap=c.get("attn_logit_softcapping"),
        attention_scale=c["query_pre_attn_scalar"] ** -0.5,
        logit_soft_cap=c.get("final_logit_softcapping"),
    )


def _gpt2(c: Json) -> DecoderConfig:
    if c.get("scale_attn_by_inverse_layer_idx") or not c.get("scale_attn_weights", True):
        raise ValueError("config.json scales attention by layer or not at all, which no decoder here does.")
    return DecoderConfig(
        vocab_size=c["vocab_size"],
        width=c["n_embd"],
        layers=c["n_layer"],
        heads=c["n_head"],
        mlp_width=c.get("n_inner") or 4 * c["n_embd"],
        activation=_activation(c.get("activation_function", "gelu_new")),
        gated=False,
        norm="layer",
        norm_epsilon=c.get("layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        learned_positions=c["n_positions"],
        tied_head=c.get("tie_word_embeddings", True),
    )


# --- Names of weights


def _linear(ours: str, theirs: str) -> tuple[Weight, ...]:
    return (
        Weight(f"blocks.{ours}.kernel", f"model.layers.{{}}.{theirs}.weight", transposed=True),
        Weight(f"blocks.{ours}.bias", f"model.layers.{{}}.{theirs}.bias"),
    )


def _norm(ours: str, theirs: str) -> Weight:
    return Weight(f"blocks.{ours}.scale", f"model.layers.{{}}.{theirs}.weight")


_SHARED = (
    Weight("embedding", "model.embed_tokens.weight"),
    Weight("norm.scale", "model.norm.weight"),
    Weight("head", "lm_head.weight"),
    Weight("score", "score.weight"),
    *_linear("attention.query", "self_attn.q_proj"),
    *_linear("attention.key", "self_attn.k_proj"),
    *_linear("attention.value", "self_attn.v_proj"),
    *_linear("attention.out", "self_attn.o_proj"),
    *_linear("feed_forward.gate", "mlp.gate_proj"),
    *_linear("feed_forward.up", "mlp.up_proj"),
    *_linear("feed_forward.down", "mlp.down_proj"),
    _norm("attention.query_norm", "self_attn.q_norm"),
    _norm("attention.key_norm", "self_attn.k_norm"),
    _norm("attention_norm", "input_layernorm"),
)
_LLAMA = (*_SHARED, _norm("feed_forward_norm", "post_attention_layernorm"))
_GEMMA = (
    *_SHARED,
    _norm("attention_post_norm", "post_attention_layernorm"),
    _norm("feed_forward_norm", "pre_feedforward_layernorm"),
    _norm("feed_forward_post_norm", "post_feedforward_layernorm"),
)


def _both(ours: str, theirs: str, **options: Any) -> tuple[Weight, ...]:
    """A matrix, which GPT-2 does not transpose, and its bias."""
    names = [("kernel", "weight"), ("bias", "bias")]
    return tuple(Weight(f"blocks.{ours}.{a}", f"transformer.h.{{}}.{theirs}.{b}", **options) for a, b in names)


def _layer_norm(ours: str, theirs: str) -> tuple[Weight, ...]:
    return Weight(f"{ours}.scale", f"transformer.{theirs}.weight"), Weight(
        f"{ours}.shift", f"transformer.{theirs}.bias"
    )


_GPT2 = (
    Weight("embedding", "transformer.wte.weight"),
    Weight("positions", "transformer.wpe.weight"),
    Weight("head", "lm_head.weight"),
    Weight("score", "score.weight"),
    *_layer_norm("norm", "ln_f"),
    *_layer_norm("blocks.attention_norm", "h.{}.ln_1"),
    *_layer_norm("blocks.feed_forward_norm", "h.{}.ln_2"),
    *(
        w
        for n, name in enumerate(("query", "key", "value"))
        for w in _both(f"attention.{name}", "attn.c_attn", part=(n, 3))
    ),
    *_both("attention.out", "attn.c_proj"),
    *_both("feed_forward.up", "mlp.c_fc"),
    *_both("feed_forward.down", "mlp.c_proj"),
)

#: By `model_type`.
FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, _LLAMA, f"Llama{_CLASSIFIES}"),
    "mistral": Family(_mistral, _LLAMA, f"Mistral{_CLASSIFIES}"),
    "qwen2": Family(_qwen2, _LLAMA, f"Qwen2{_CLASSIFIES}"),
    "qwen3": Family(_qwen3, _LLAMA, f"Qwen3{_CLASSIFIES}"),
    "gemma2": Family(_gemma2, _GEMMA, f"Gemma2{_CLASSIFIES}"),
    "gemma3_text": Family(_gemma3, _GEMMA, f"Gemma3Text{_CLASSIFIES}"),
    "gpt2": Family(_gpt2, _GPT2, f"GPT2{_CLASSIFIES}"),
}
