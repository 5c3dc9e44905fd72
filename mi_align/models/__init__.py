"""Language models: decoders of published families in Flax NNX, used as pure functions of their parameters."""

from mi_align.models.abstract import abstract_decoder, abstract_llama, abstract_pretrained, published_config
from mi_align.models.config import DecoderConfig, Llama3Scaling
from mi_align.models.decoder import Cache, Decoder, Segments
from mi_align.models.families import FAMILIES, Family, Weight
from mi_align.models.functional import (
    cast,
    count_parameters,
    hidden_states,
    init_decoder,
    packed_logps,
    response_logps,
    vocabulary_matrix,
)
from mi_align.models.hugging_face import Pretrained, fresh_llama, load_pretrained, save_pretrained
from mi_align.models.lora import LoraConfig, add_adapter, init_adapter, is_adapter, matrices, merge_adapter
from mi_align.models.peft import fresh_adapter, load_adapter, save_adapter
from mi_align.models.reward import fresh_reward_head, with_padding
from mi_align.models.sampling import Generated, empty_cache, filter_logits, generate

__all__ = [
    "FAMILIES",
    "Cache",
    "Decoder",
    "DecoderConfig",
    "Family",
    "Generated",
    "Llama3Scaling",
    "LoraConfig",
    "Pretrained",
    "Segments",
    "Weight",
    "abstract_decoder",
    "abstract_llama",
    "abstract_pretrained",
    "add_adapter",
    "cast",
    "count_parameters",
    "empty_cache",
    "filter_logits",
    "fresh_adapter",
    "fresh_llama",
    "fresh_reward_head",
    "generate",
    "hidden_states",
    "init_adapter",
    "init_decoder",
    "is_adapter",
    "load_adapter",
    "load_pretrained",
    "matrices",
    "merge_adapter",
    "packed_logps",
    "published_config",
    "response_logps",
    "save_adapter",
    "save_pretrained",
    "vocabulary_matrix",
    "with_padding",
]
