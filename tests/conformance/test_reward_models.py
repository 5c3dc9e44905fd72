"""Reward models beside `AutoModelForSequenceClassification` and `peft`: the same folders, the same scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.data import ByteTokenizer, PreferenceBatch
from mi_align.models import (
    DecoderConfig,
    LoraConfig,
    Pretrained,
    fresh_adapter,
    fresh_llama,
    fresh_reward_head,
    is_adapter,
    load_adapter,
    load_pretrained,
    save_adapter,
    save_pretrained,
)
from mi_align.training.exporting import export_model
from mi_align.training.parts import path_of
from mi_align.training.rewards import load_reward
from mi_align.training.scoring import reward_scorer
from tests.conformance.test_transformers import MODELS, SMALL

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

every_model = pytest.mark.parametrize("name", MODELS)
LENGTHS = np.array([23, 7, 15])
PAD = SMALL["pad_token_id"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Randomly drawn reward models of theirs, biases and norms too, and where they were saved."""
    made = {}
    for name, (kind, changes) in MODELS.items():
        torch.manual_seed(0)
        config = getattr(transformers, kind)(**(SMALL | changes), num_labels=1)
        model = transformers.AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        folder = tmp_path_factory.mktemp("model")
        model.save_pretrained(folder)
        made[name] = model, folder
    return made


def padded_tokens() -> np.ndarray:
    """Texts of several lengths, padded on the right."""
    tokens = np.random.default_rng(0).integers(3, 97, (len(LENGTHS), LENGTHS.max()))
    return np.where(np.arange(LENGTHS.max()) < LENGTHS[:, None], tokens, PAD)


def scores_of_theirs(model: Any, tokens: np.ndarray) -> np.ndarray:
    mask = np.arange(tokens.shape[1]) < LENGTHS[:, None]
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).logits[:, 0].numpy()


def scores_of_ours(model: Pretrained, tokens: np.ndarray, lengths: np.ndarray = LENGTHS) -> np.ndarray:
    place = np.arange(tokens.shape[1])
    response = (place >= 3) & (place < lengths[:, None])
    batch = PreferenceBatch(tokens[:, None], response[:, None], np.ones((len(tokens), 1), bool))
    with jax.default_matmul_precision("highest"):
        return np.asarray(reward_scorer(model.graphdef)(model.params, batch))[:, 0]


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@every_model
def test_scores_of_texts_padded_on_the_right_agree(name: str, folders: dict) -> None:
    theirs, folder = folders[name]
    tokens, ours = padded_tokens(), load_pretrained(folder)
    wanted = scores_of_theirs(theirs, tokens)
    assert_close(scores_of_ours(ours, tokens), wanted)
    with pytest.raises(AssertionError):  # one token earlier it would be another number
        assert_close(scores_of_ours(ours, tokens, LENGTHS - 1), wanted)


@every_model
def test_a_folder_of_ours_is_opened_by_theirs_bit_by_bit(name: str, folders: dict, tmp_path: Path) -> None:
    theirs, folder = folders[name]
    save_pretrained(load_pretrained(folder), tmp_path, shard_bytes=20_000)
    back = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    pairs = zip(theirs.state_dict().items(), back.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@every_model
def test_a_policy_with_a_fresh_head_is_opened_as_a_reward_model(name: str, tmp_path: Path) -> None:
    kind, changes = MODELS[name]
    torch.manual_seed(1)
    policy = transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**(SMALL | changes)))
    policy.save_pretrained(tmp_path / "policy")
    ours = fresh_reward_head(load_pretrained(tmp_path / "policy"), jax.random.key(0))
    save_pretrained(ours, tmp_path / "reward")
    opened = transformers.AutoModelForSequenceClassification
    theirs, told = opened.from_pretrained(tmp_path / "reward", attn_implementation="eager", output_loading_info=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (theirs.config.num_labels, theirs.config.architectures) == (1, [type(theirs).__name__])
    tokens = padded_tokens()
    assert_close(scores_of_ours(ours, tokens), scores_of_theirs(theirs.eval(), tokens))


@pytest.mark.parametrize(("name", "targets"), [("llama", ("q_proj", "v_proj")), ("gpt2", ("all-linear",))])
def test_an_adapter_with_its_head_is_opened_by_peft_and_back(
    name: str, targets: tuple[str, ...], folders: dict, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    _, folder = folders[name]
    model = fresh_adapter(load_pretrained(folder), LoraConfig(rank=3, alpha=7, targets=targets), jax.random.key(2))
    drawn = np.random.default_rng(3)

    def moved(keys: tuple, x: jax.Array) -> jax.Array:
        path = path_of(keys)
        if is_adapter(path):
            return x + jnp.asarray(0.1 * drawn.normal(size=x.shape), x.dtype)
        return 2 * x if path == "score" else x

    model = model._replace(params=jax.tree_util.tree_map_with_path(moved, model.params))
    save_adapter(model, tmp_path / "adapter", base=str(folder))
    base = transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = padded_tokens()
    wanted = scores_of_theirs(adapted, tokens)
    assert_close(scores_of_ours(model, tokens), wanted)
    adapted.save_pretrained(tmp_path / "again")
    assert_close(scores_of_ours(load_adapter(load_pretrained(folder), tmp_path / "again"), tokens), wanted)


def test_texts_padded_by_the_exported_tokenizer_get_the_scores_of_ours(tmp_path: Path) -> None:
    shape = DecoderConfig(vocab_size=258, width=32, layers=2, heads=4)
    model = fresh_reward_head(fresh_llama(shape, jax.random.key(0)), jax.random.key(1))
    export_model(model, model.params, ByteTokenizer(), tmp_path, adapter=tmp_path / "adapter", base=None)
    prompts, responses = ["3+4=", "What is 12+30? ", ""], ["7", "It is forty-two.", "an answer without a prompt"]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id == theirs.config.pad_token_id != tokenizer.eos_token_id
    texts = [
        tokenizer.bos_token + prompt + response + tokenizer.eos_token
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[:, 0].numpy()
    assert_close(load_reward(tmp_path)(prompts, responses), wanted)
