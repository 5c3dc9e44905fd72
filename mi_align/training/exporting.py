"""Trained models as folders that others open: a run's own at its end, and any checkpoint's later."""

from __future__ import annotations

from pathlib import Path

from mi_align.data import Tokenizer, padding_id, save_tokenizer
from mi_align.models import Pretrained, save_adapter, save_pretrained, with_padding
from mi_align.training.hosts import fetch, is_first, wait_for_all
from mi_align.training.parts import Params

__all__ = ["export_model"]


def export_model(
    model: Pretrained, params: Params, tokenizer: Tokenizer, folder: Path, *, adapter: Path, base: str | None
) -> Path:
    """Write the trained model and its tokenizer, as `transformers` and `load_pretrained` open them.

    A reward model's padding is a token that ends no response, as `transformers` reads the last one that is no padding.

    Args:
      model: before training.
      params: after it, on devices of any host.
      tokenizer: of the data.
      folder: of the model; is made.
      adapter: where the adapter goes by itself, if the model has one.
      base: what its files call the model that it is an adapter of.

    Returns:
      `folder`.
    """
    trained = model._replace(params=fetch(params))
    if is_first():
        if trained.lora is not None:
            save_adapter(trained, adapter, base=base)
        rewards = trained.config.reward_head
        if rewards:
            trained = with_padding(trained, padding_id(tokenizer))
        save_pretrained(trained, folder)
        save_tokenizer(tokenizer, folder, padded=rewards)
    wait_for_all("exported")
    return folder
