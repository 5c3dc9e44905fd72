"""Trained models as folders that others open: a run's own at its end, and any checkpoint's later."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

from mi_align.data import Tokenizer, load_tokenizer, padding_id, save_tokenizer
from mi_align.models import Pretrained, save_adapter, save_pretrained, with_padding
from mi_align.training.checkpoints import Best, Checkpoints
from mi_align.training.config import RunConfig
from mi_align.training.hosts import fetch, is_first, wait_for_all
from mi_align.training.inputs import method_of, model_of
from mi_align.training.parts import Params, join
from mi_align.training.reference_cache import fingerprint
from mi_align.training.settings import load
from mi_align.training.trained import check_frozen, parts_of

__all__ = ["Exported", "export_checkpoint", "export_model"]


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


class Exported(NamedTuple):
    """A checkpoint's model.

    Attributes:
      step: after which it was.
      folder: of the model.
      adapter: the folder of its adapter; None where it has none.
    """

    step: int
    folder: Path
    adapter: Path | None


def export_checkpoint(
    run: Path, *, step: int | None = None, best: bool = False, folder: Path | None = None
) -> Exported:
    """The model of a run's checkpoint as a folder, also while the run goes on.

    What the checkpoint does not hold, being frozen, is read again where the run read it.

    Args:
      run: the run's `output`.
      step: of the checkpoint. Default: the last one.
      best: take that which the run's `best_by` says is best.
      folder: where it goes. Default: `exports/STEP` in the run's folder.

    Raises:
      FileNotFoundError: this is no run, there is no such checkpoint, or the base that it was trained on is gone.
      FileExistsError: the folder holds a model already.
      ValueError: both or none of the checkpoints is the best one; the base is another; the files do not fit it.
    """
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} has no config.yaml: the `output` of a `mi-align train` was wanted.")
    # However the run was spread, here the model is spread over what there is.
    config = dataclasses.replace(load(RunConfig, run / "config.yaml"), data_parallel=1, fsdp=-1, tensor=1)
    if step is not None and best:
        raise ValueError(f"step {step} and the best one are both asked for: name one of the two.")
    if not (run / "checkpoints").is_dir():
        raise FileNotFoundError(f"{run} has no checkpoint yet.")
    measure = Best(config.keep_best, config.best_by, highest=config.best_is == "highest") if config.keep_best else None
    with Checkpoints(run / "checkpoints", best=measure, read_only=True) as checkpoints:
        step = _chosen(run, config, checkpoints, step, best)
        folder = run / "exports" / str(step) if folder is None else folder
        if any(folder.glob("*.safetensors")):
            raise FileExistsError(f"{folder} holds a model already. Name another folder by --to, or take it away.")
        tokenizer = load_tokenizer(config.data.tokenizer or config.model.pretrained or "bytes")
        model = model_of(config, tokenizer, None if config.on_policy is not None else method_of(config))
        like, frozen = parts_of(config.model, model)
        model = model._replace(params=None)  # what was trained comes in its place
        params, about = checkpoints.parameters(like, step)
        check_frozen(about, None if frozen is None else fingerprint(frozen), checkpoints.folder / str(step))
    adapter = folder / "adapter"
    export_model(model, join(params, frozen), tokenizer, folder, adapter=adapter, base=config.model.pretrained)
    return Exported(step, folder, None if model.lora is None else adapter)


def _chosen(run: Path, config: RunConfig, checkpoints: Checkpoints, step: int | None, best: bool) -> int:
    """The step of the checkpoint that is meant."""
    there = checkpoints.steps()
    if not there:
        raise FileNotFoundError(f"{run} has no checkpoint yet.")
    named = f"{run} has checkpoints of step{'s' * (len(there) > 1)} {', '.join(map(str, there))}"
    if best:
        found = checkpoints.best_step() if config.keep_best else None
        if found is None:
            raise ValueError(
                f"no checkpoint of {run} was measured by `best_by`: `keep_best` is {config.keep_best}. {named}: name "
                "one by --step."
            )
        return found
    if step is not None and step not in there:
        raise FileNotFoundError(f"{named}, but none of step {step}.")
    return there[-1] if step is None else step
