"""Language models: decoders of published families in Flax NNX, used as pure functions of their parameters."""

from mi_align.models.abstract import abstract_decoder, published_config
from mi_align.models.config import DecoderConfig, Llama3Scaling
from mi_align.models.decoder import Cache, Decoder
from mi_align.models.families import FAMILIES, Family, Weight
from mi_align.models.functional import (
    cast,
    count_parameters,
    hidden_states,
    init_decoder,
    response_logps,
    vocabulary_matrix,
)
from mi_align.models.hugging_face import Pretrained, fresh_llama, load_pretrained, save_pretrained
from mi_align.models.sampling import Generated, empty_cache, filter_logits, generate

__all__ = [
    "FAMILIES",
    "Cache",
    "Decoder",
    "DecoderConfig",
    "Family",
    "Generated",
    "Llama3Scaling",
    "Pretrained",
    "Weight",
    "abstract_decoder",
    "cast",
    "count_parameters",
    "empty_cache",
    "filter_logits",
    "fresh_llama",
    "generate",
    "hidden_states",
    "init_decoder",
    "load_pretrained",
    "published_config",
    "response_logps",
    "save_pretrained",
    "vocabulary_matrix",
]
