"""Data: preferences as text, from a file, the hub or a generator, and as batches of tokens.

Reading files needs Hugging Face `datasets`, which is imported when the first file is read and not before.
"""

from mi_align.data.arithmetic import arithmetic_preferences, solve
from mi_align.data.batches import EncodingCounts, PreferenceBatch, batch_indices, encode_preferences, take
from mi_align.data.buckets import Buckets, Pass, one_pass, trimmed
from mi_align.data.formats import LAYOUTS, read_rows, split_dialogue
from mi_align.data.grain_batches import grain_batches
from mi_align.data.hub_tokenizer import (
    HubTokenizer,
    load_tokenizer,
    padding_id,
    save_byte_tokenizer,
    save_tokenizer,
)
from mi_align.data.packing import PackedBatch, Packing, chosen_only, first_fit_decreasing, pack, plan_packing
from mi_align.data.preference import Preference, borrow_negatives
from mi_align.data.prompts import Prompt, PromptBatch, encode_prompts, read_prompts
from mi_align.data.sources import load_preferences, load_prompts
from mi_align.data.token_cache import cache_folder, cached_encoding
from mi_align.data.tokenizer import ByteTokenizer, Tokenizer
from mi_align.data.unpaired import labelled, mismatched, side_by_side

__all__ = [
    "LAYOUTS",
    "Buckets",
    "ByteTokenizer",
    "EncodingCounts",
    "HubTokenizer",
    "PackedBatch",
    "Packing",
    "Pass",
    "Preference",
    "PreferenceBatch",
    "Prompt",
    "PromptBatch",
    "Tokenizer",
    "arithmetic_preferences",
    "batch_indices",
    "borrow_negatives",
    "cache_folder",
    "cached_encoding",
    "chosen_only",
    "encode_preferences",
    "encode_prompts",
    "first_fit_decreasing",
    "grain_batches",
    "labelled",
    "load_preferences",
    "load_prompts",
    "load_tokenizer",
    "mismatched",
    "one_pass",
    "pack",
    "padding_id",
    "plan_packing",
    "read_prompts",
    "read_rows",
    "save_byte_tokenizer",
    "save_tokenizer",
    "side_by_side",
    "solve",
    "split_dialogue",
    "take",
    "trimmed",
]
