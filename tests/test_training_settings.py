"""Settings: what is written is what is meant, and everything else is named with its whole path."""

from __future__ import annotations

from pathlib import Path

import pytest

from mi_align.training.config import RunConfig
from mi_align.training.settings import from_mapping, load, to_mapping

LEAST = ["data.train=pairs.jsonl"]


def test_a_file_and_overrides_make_settings_and_settings_make_them_again(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("method: mio\nhyper: {beta: 1}\ndata:\n  train: a.jsonl\nmodel:\n  shape: {width: 32}\n")
    config = load(
        RunConfig, file, ["optimiser.rate=1e-4", "data.train=b.jsonl", "model.trained=[blocks, norm]", "steps=7"]
    )
    assert (config.method, config.data.train, config.steps) == ("mio", "b.jsonl", 7)
    assert config.hyper == {"beta": 1.0} and isinstance(config.hyper["beta"], float)
    assert config.optimiser.rate == 1e-4  # which YAML 1.1 reads as text
    assert config.model.shape == {"width": 32} and config.model.trained == ("blocks", "norm")
    assert from_mapping(RunConfig, to_mapping(config)) == config
    for word in ("off", "No", "true", "False"):  # YAML 1.1 reads the first two as false
        wanted = {"true": True, "False": False}.get(word, word)
        assert load(RunConfig, None, [*LEAST, f"model.shape.x={word}"]).model.shape["x"] == wanted
    assert load(RunConfig, None, [*LEAST, "data.cache=off"]).data.cache == "off"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methd=dpo", "no setting called 'methd'. Did you mean 'method'"),
        ("optimiser.rat=1", "no setting in `optimiser` called 'rat'. Did you mean 'rate'"),
        ("optimiser.rate=fast", r"`optimiser.rate` is 'fast' \(str\), but a number"),
        ("batch=2.5", r"`batch` is 2.5 \(float\), but a whole number"),
        ("batch=true", r"`batch` is True \(bool\), but a whole number"),
        ("optimiser.schedule=cosin", "no value of `optimiser.schedule` called 'cosin'. Did you mean 'cosine'"),
        ("optimiser=3", r"`optimiser` is 3 \(int\), but a mapping of settings"),
        ("hyper.beta=x", r"`hyper.beta` is 'x' \(str\), but a number"),
        ("batch=0", "the settings: `batch` is 0, but at least 1"),
        ("micro_batches=3", "`micro_batches` is 3, but a divisor of `batch` = 16"),
        ("optimiser.rate=0", "optimiser: `rate` is 0.0, but a finite number > 0"),
        ("follow_every=2", "`reference` is .cached.. Set `reference: live`"),
        ("steps", "'steps' is no override: `key.of.part=value`"),
        ("method.name=dpo", "`method.name` cannot be set: `method` is 'mio'"),
        ("steps=[1", "is no YAML"),
    ],
)
def test_what_is_wrong_is_named_with_its_path_and_the_nearest_name(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(RunConfig, None, [*LEAST, "method=mio", override])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the setting `data` is missing"):
        load(RunConfig, None, [])
    with pytest.raises(ValueError, match=r"the setting `data.train` is missing"):
        load(RunConfig, None, ["data.limit=3"])
    with pytest.raises(FileNotFoundError, match=r"no file '.*run.yaml'"):
        load(RunConfig, tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text("- 1\n")
    with pytest.raises(ValueError, match=r"run.yaml holds \[1\] \(list\), but a mapping"):
        load(RunConfig, tmp_path / "run.yaml")
