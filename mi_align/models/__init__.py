"""Language models: a small decoder in Flax NNX, used as pure functions of its parameters."""

from mi_align.models.config import DecoderConfig
from mi_align.models.decoder import Decoder
from mi_align.models.functional import (
    cast,
    count_parameters,
    hidden_states,
    init_decoder,
    response_logps,
    vocabulary_matrix,
)

__all__ = [
    "Decoder",
    "DecoderConfig",
    "cast",
    "count_parameters",
    "hidden_states",
    "init_decoder",
    "response_logps",
    "vocabulary_matrix",
]
