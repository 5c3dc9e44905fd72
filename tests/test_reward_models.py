"""Reward models: what their head reads, what their data hold, and the folders that they leave."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mi_align.data import (
    ByteTokenizer,
    Preference,
    arithmetic_preferences,
    encode_preferences,
    load_tokenizer,
    pack,
    padding_id,
    plan_packing,
    read_rows,
    save_byte_tokenizer,
    save_tokenizer,
)
from mi_align.methods import METHODS
from mi_align.models import (
    DecoderConfig,
    LoraConfig,
    Pretrained,
    fresh_adapter,
    fresh_llama,
    fresh_reward_head,
    hidden_states,
    is_adapter,
    load_adapter,
    load_pretrained,
    save_adapter,
    save_pretrained,
    vocabulary_matrix,
    with_padding,
)
from mi_align.training import preference_loss, rewards, summarise
from mi_align.training.config import RunConfig
from mi_align.training.exporting import export_model
from mi_align.training.fitting import fitted
from mi_align.training.inputs import method_of
from mi_align.training.readers import reader, reads_score
from mi_align.training.scoring import reward_scorer
from mi_align.training.settings import load
from mi_align.training.trained import parts_of

SHAPE = DecoderConfig(vocab_size=258, width=16, layers=1, heads=2)


@pytest.fixture(scope="module")
def policy() -> Pretrained:
    return fresh_llama(SHAPE, jax.random.key(0))


@pytest.fixture(scope="module")
def model(policy: Pretrained) -> Pretrained:
    return fresh_reward_head(policy, jax.random.key(1))


@pytest.fixture(scope="module")
def batch():
    return encode_preferences(arithmetic_preferences(6, negatives=2, seed=1), ByteTokenizer())[0]


def score(model: Pretrained, batch) -> np.ndarray:
    return np.asarray(_score(model.graphdef, model.params, batch))


@functools.partial(jax.jit, static_argnums=0)
def _score(graphdef, params, batch):
    return reward_scorer(graphdef)(params, batch)


def leaves(model: Pretrained) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(model.params)]


def test_a_score_is_the_head_times_the_state_of_the_responses_last_token(model: Pretrained, batch) -> None:
    hidden = np.asarray(hidden_states(model.graphdef, model.params, batch.tokens), np.float64)
    weight = np.asarray(model.params["score"].get_value(), np.float64)[0]
    last = batch.tokens.shape[-1] - 1 - batch.response_mask[..., ::-1].argmax(axis=-1)
    wanted = np.array([[hidden[b, c, last[b, c]] @ weight for c in range(3)] for b in range(6)])
    np.testing.assert_allclose(score(model, batch), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shared", [False, True])
def test_packed_responses_get_the_scores_that_they_get_alone(model: Pretrained, batch, shared: bool) -> None:
    packing = plan_packing([(batch, np.arange(6).reshape(2, 3))], shared=shared, length=72)
    np.testing.assert_allclose(score(model, pack(batch, packing)), score(model, batch), rtol=1e-5, atol=1e-6)


def test_margins_and_centring_enter_the_loss_as_written(model: Pretrained) -> None:
    rows = [
        {**p._asdict(), "margin": 0.5 * i - 0.3} for i, p in enumerate(arithmetic_preferences(4, negatives=1, seed=2))
    ]
    preferences = read_rows(rows, rows[0], source="rows")
    batch, _ = encode_preferences(preferences, ByteTokenizer())
    method = METHODS["bradley_terry"].configure(centring_weight=0.07)
    read = reader(model.graphdef, method, live=None)
    loss, metrics = jax.jit(preference_loss(_no_policy, method, read=read))(model.params, (batch, None))
    plus, minus = np.asarray(score(model, batch), np.float64).T
    margin = np.array([-0.3, 0.2, 0.7, 1.2])
    wanted = np.mean(np.log1p(np.exp(-(plus - minus - margin))) + 0.07 * (plus + minus) ** 2)
    np.testing.assert_allclose(loss.value(), wanted, rtol=1e-5)
    seen = summarise(metrics)
    np.testing.assert_allclose(seen["rewards/margins"], np.mean(plus - minus), rtol=1e-4, atol=1e-6)
    assert seen["rewards/accuracies"] == np.mean(plus > minus)
    assert not any(name.startswith(("logp", "log_ratio")) for name in seen)


def _no_policy(params, batch):
    raise AssertionError("a reward model has no log-probabilities")


def test_margins_are_all_there_or_none(policy: Pretrained) -> None:
    told: list[str] = []
    some = [Preference(f"{i}", "a", ("b",), margin=None if i == 1 else 2.0 * i) for i in range(3)]
    way = {"negatives": None, "threshold": None, "note": told.append}
    with pytest.raises(ValueError, match="2 of 3 preferences have a number as `margin`, which 'bradley_terry' takes"):
        fitted(some, METHODS["bradley_terry"], **way)
    fitted([some[0], some[2]], METHODS["bradley_terry"], **way)
    assert told == ["margins from 0 to 4 are taken from the data"]
    assert fitted(some, METHODS["dpo"], **way), "what a method does not read need not be there"
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "margin": value} for value in ("large", None, True, 1)]
    assert [p.margin for p in read_rows(rows, rows[0], source="rows")] == [None, None, None, 1.0]


def test_a_reward_model_comes_back_from_its_folder_bit_by_bit(model: Pretrained, tmp_path: Path) -> None:
    save_pretrained(model, tmp_path)
    again = load_pretrained(tmp_path)
    assert again.config.reward_head and all(map(np.array_equal, leaves(model), leaves(again)))
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["architectures"] == ["LlamaForSequenceClassification"] and len(told["id2label"]) == 1
    told["id2label"]["1"] = "another"
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="a classifier with 2 labels, but a reward model has one"):
        load_pretrained(tmp_path)


def test_a_head_of_scores_says_no_tokens_and_is_one(policy: Pretrained, model: Pretrained) -> None:
    with pytest.raises(ValueError, match="this is a reward model, which scores responses and predicts no tokens"):
        vocabulary_matrix(model.graphdef, model.params)
    with pytest.raises(ValueError, match="has a reward head"):
        fresh_reward_head(model, jax.random.key(2))
    adapted = fresh_adapter(policy, LoraConfig(rank=2), jax.random.key(2))
    with pytest.raises(ValueError, match="has an adapter: merge it first"):
        fresh_reward_head(adapted, jax.random.key(2))
    assert {name for name, row in METHODS.items() if reads_score(row)} == {"bradley_terry", "plackett_luce_reward"}


def test_a_fresh_head_has_variance_one_over_features_and_one(policy: Pretrained) -> None:
    drawn = [fresh_reward_head(policy, jax.random.key(i)).params["score"].get_value() for i in range(25)]
    assert abs(17 * np.mean(np.square(drawn)) - 1) < 4 * np.sqrt(2 / 400)


def test_an_adapter_takes_its_head_along(policy: Pretrained, model: Pretrained, tmp_path: Path) -> None:
    adapted = fresh_adapter(model, LoraConfig(rank=2, targets=("q_proj",)), jax.random.key(3))
    trained, frozen = parts_of(None, adapted)  # type: ignore[arg-type]  # an adapter needs no setting
    paths = {jax.tree_util.keystr(keys) for keys, _ in jax.tree_util.tree_leaves_with_path(trained)}
    assert len(paths) == 3 and sum("score" in path for path in paths) == 1
    assert not any("score" in jax.tree_util.keystr(k) for k, _ in jax.tree_util.tree_leaves_with_path(frozen))
    save_adapter(adapted, tmp_path, base="base")
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["task_type"] == "SEQ_CLS" and told["modules_to_save"] == ["score"]
    other = fresh_reward_head(policy, jax.random.key(8))
    again = load_adapter(other, tmp_path)
    assert all(map(np.array_equal, leaves(adapted), leaves(again)))
    with pytest.raises(ValueError, match="is the adapter of a reward model"):
        load_adapter(policy, tmp_path)
    assert is_adapter("blocks.attention.query.lora.a")


def test_padding_is_a_token_that_ends_no_response(model: Pretrained, tmp_path: Path) -> None:
    export_model(model, model.params, ByteTokenizer(), tmp_path, adapter=tmp_path / "adapter", base=None)
    tokenizer, config = load_tokenizer(tmp_path), json.loads((tmp_path / "config.json").read_text())
    assert tokenizer.pad_id == config["pad_token_id"] == 258 != tokenizer.eos_id
    assert config["vocab_size"] == 259 and not np.any(load_pretrained(tmp_path).params["embedding"].get_value()[258])
    # A second time there is a padding token: nothing grows any more, and the model is the same to the bit.
    again = load_pretrained(tmp_path)
    export_model(again, again.params, tokenizer, tmp_path / "b", adapter=tmp_path / "adapter", base=None)
    assert all(map(np.array_equal, leaves(again), leaves(load_pretrained(tmp_path / "b"))))
    assert (tmp_path / "b" / "tokenizer.json").read_text() == (tmp_path / "tokenizer.json").read_text()


def test_a_tokenizers_own_padding_is_kept_unless_it_is_its_end(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path)
    assert padding_id(load_tokenizer(tmp_path)) == 258, "its padding is its EOS"
    told = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"pad_token": "<|bos|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(told))
    own = load_tokenizer(tmp_path)
    assert padding_id(own) == 257
    (tmp_path / "b").mkdir()
    save_tokenizer(own, tmp_path / "b", padded=True)
    assert load_tokenizer(tmp_path / "b").vocab_size == 258


def test_an_adapted_models_embedding_grows_beside_its_adapter(model: Pretrained, tmp_path: Path) -> None:
    adapted = fresh_adapter(model, LoraConfig(rank=2, targets=("q_proj",)), jax.random.key(3))
    grown = with_padding(adapted, 259)
    assert grown.params["embedding"].get_value().shape == (260, 16)
    tokens = np.arange(10)[None]
    np.testing.assert_array_equal(
        hidden_states(grown.graphdef, grown.params, tokens), hidden_states(model.graphdef, model.params, tokens)
    )


# --- As a function of texts


@pytest.fixture(scope="module")
def folder(model: Pretrained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    return export_model(model, model.params, ByteTokenizer(), folder, adapter=folder / "adapter", base=None)


def test_texts_are_scored_as_in_training_whatever_stands_beside_them(
    folder: Path, model: Pretrained, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []

    def counted(graphdef):
        of_batch = reward_scorer(graphdef)

        def traced(params, batch):
            shapes.append(batch.tokens.shape)
            return of_batch(params, batch)

        return traced

    monkeypatch.setattr(rewards, "reward_scorer", counted)
    reward = rewards.load_reward(folder, batch=4)
    pairs = arithmetic_preferences(7, negatives=1, seed=5)
    prompts, responses = [p.prompt for p in pairs], [p.chosen for p in pairs]
    prompts, responses = [*prompts, "a long prompt " * 9], [*responses, ""]
    came = reward(prompts, responses)
    assert came.dtype == np.float32 and came.shape == (8,)
    alone = [Preference(*text, ()) for text in zip(prompts, responses, strict=True)]
    batch, _ = encode_preferences(alone, ByteTokenizer(), max_prompt=999)
    np.testing.assert_allclose(came, score(model, batch)[:, 0], rtol=2e-5, atol=1e-6)
    assert shapes == [(4, 1, 32), (4, 1, 128)], "one program for each bucket of lengths"
    order = [3, 7, 0, 5, 1, 6, 2, 4]
    mixed = reward([prompts[i] for i in order], [responses[i] for i in order])
    np.testing.assert_allclose(mixed, came[order], rtol=1e-5, atol=1e-6)
    assert len(shapes) == 2, "and it stays the one"
    assert reward([], []).shape == (0,)
    with pytest.raises(ValueError, match="there are 2 prompts, but 1 responses"):
        reward(["a", "b"], ["c"])


def test_a_prompt_that_is_too_long_loses_its_beginning(folder: Path) -> None:
    short, whole = rewards.load_reward(folder, max_prompt=5), rewards.load_reward(folder)
    np.testing.assert_allclose(short(["abcdefgh"], ["x"]), whole(["efgh"], ["x"]), rtol=1e-5)
    assert abs(short(["abcdefgh"], ["x"]) - whole(["abcdefgh"], ["x"])) > 1e-4


def test_a_policy_is_no_reward_model(policy: Pretrained, tmp_path: Path) -> None:
    save_pretrained(policy, tmp_path)
    with pytest.raises(ValueError, match="is no reward model: it has no head of scores"):
        rewards.load_reward(tmp_path)


def test_the_gradient_reaches_what_a_response_reads_and_the_head(model: Pretrained, batch) -> None:
    scores = reward_scorer(model.graphdef)
    slope = jax.jit(jax.grad(lambda params: jnp.sum(scores(params, batch)[:, 0])))(model.params)
    pairs = zip(batch.tokens[:, 0], batch.response_mask[:, 0], strict=True)
    read = np.concatenate([tokens[: mask.nonzero()[0][-1] + 1] for tokens, mask in pairs])
    assert set(np.flatnonzero(np.any(slope["embedding"].get_value() != 0, axis=-1))) == set(read)
    assert np.any(slope["score"].get_value() != 0)


def test_a_reward_model_has_no_entropy_to_tell() -> None:
    config = load(RunConfig, None, ["data.train=x.jsonl", "method=bradley_terry", "evaluate_entropy=true"])
    with pytest.raises(ValueError, match="'bradley_terry' trains a reward model, which has no"):
        method_of(config)
