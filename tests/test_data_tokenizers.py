"""Published tokenizers: boundaries in token space, chat templates, and files that others read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from mi_align.data import (
    ByteTokenizer,
    HubTokenizer,
    Preference,
    encode_preferences,
    load_preferences,
    load_tokenizer,
    save_byte_tokenizer,
)
from mi_align.training.config import RunConfig
from mi_align.training.inputs import load_inputs
from mi_align.training.settings import load

TEXT = [
    "the answer is 37+48=85, and not 75.",
    "héllo wörld 日本",
    "  two  spaces\nand a line",
    "unbelievable answers",
] * 40
SPECIAL = ["<unk>", "<s>", "</s>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n{% if m.role not in ('user', 'assistant', 'system') %}\n"
    "{{ raise_exception('no role ' + m.role) }}\n{% endif %}\n"
    "<|{{ m.role }}|>{{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_level() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, show_progress=False))
    return made


def without_words() -> tokenizers.Tokenizer:
    """Merges run across anything, spaces too."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(False, use_regex=False), decoders.ByteLevel()
    made.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=380, special_tokens=SPECIAL, show_progress=False))
    return made


def unigram() -> tokenizers.Tokenizer:
    """A word begins with ▁, also the first of a text: `encode(response)` alone is not what follows the prompt."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(TEXT, trainer)
    return made


def word_piece() -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.NFC(), pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=160, special_tokens=SPECIAL, show_progress=False)
    made.train_from_iterator(TEXT, trainer)
    return made


KINDS = [byte_level, without_words, unigram, word_piece]


def written(folder: Path, kind: Callable[[], tokenizers.Tokenizer] = byte_level, **told: object) -> HubTokenizer:
    kind().save(str(folder / "tokenizer.json"))
    about = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": TEMPLATE} | told
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in about.items() if v is not None}))
    return HubTokenizer(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        ("37+48=", "85", "75"),
        ("the ans", "wer is", "we"),
        ("the answer ", "is 85", " 75"),
        ("un", "believable", "b"),
        ("", "the", "a"),
    ],
)
def test_what_is_scored_is_what_will_be_read(kind, prompt: str, chosen: str, rejected: str, tmp_path: Path) -> None:
    tokenizer = written(tmp_path, kind)
    batch, counts = encode_preferences([Preference(prompt, chosen, (rejected,))], tokenizer)
    merged = 0
    for c, response in enumerate((chosen, rejected)):
        whole, alone = tokenizer.encode(prompt + response).tolist(), tokenizer.encode(prompt).tolist()
        length = len(whole) + 2
        assert batch.tokens[0, c, :length].tolist() == [tokenizer.bos_id, *whole, tokenizer.eos_id]
        shared = next(
            (i for i, (a, b) in enumerate(zip(alone, whole, strict=False)) if a != b), min(len(alone), len(whole))
        )
        mask = batch.response_mask[0, c]
        assert np.flatnonzero(mask).tolist() == list(range(1 + shared, length))
        merged += shared < len(alone)
    assert counts.merged == merged


def test_a_merge_across_the_boundary_is_seen(tmp_path: Path) -> None:
    tokenizer = written(tmp_path, without_words)
    _, counts = encode_preferences([Preference("the ans", "wer is 8", ("x",))], tokenizer)
    assert counts.merged == 1


def test_bos_and_eos_come_once_also_where_a_template_writes_them(tmp_path: Path) -> None:
    tokenizer = written(tmp_path)
    prompt = tokenizer.chat([{"role": "user", "content": "37+48="}], open_turn=True)
    assert prompt == "<s><|user|>37+48=</s>\n<|assistant|>"
    batch, _ = encode_preferences([Preference(prompt, "85</s>", ("75</s>",))], tokenizer)
    row = batch.tokens[0, 0].tolist()
    assert row.count(tokenizer.bos_id) == 1 and row[0] == tokenizer.bos_id
    kept = batch.tokens[0, 0][batch.response_mask[0, 0]].tolist()
    assert kept == [*tokenizer.encode("85").tolist(), tokenizer.eos_id]


def test_lists_of_messages_become_text(tmp_path: Path) -> None:
    tokenizer = written(tmp_path)
    user, good, bad = ({"role": r, "content": c} for r, c in [("user", "2+2="), ("assistant", "4"), ("assistant", "5")])
    layouts = {
        "prompted": {"prompt": [user], "chosen": [good], "rejected": [bad]},
        "whole": {"chosen": [user, good], "rejected": [user, bad]},
        "messages": {"messages": [user, good]},
    }
    wanted = Preference("<s><|user|>2+2=</s>\n<|assistant|>", "4</s>", ("5</s>",))
    for name, row in layouts.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(row) + "\n")
        (came,) = load_preferences(file, chat=tokenizer.chat)
        assert came == (wanted._replace(rejected=()) if name == "messages" else wanted)
    with pytest.raises(
        ValueError, match=r"row 1: `prompt` is of type list, but text was wanted\. Apply the chat template"
    ):
        load_preferences(tmp_path / "prompted.jsonl")
    (tmp_path / "apart.jsonl").write_text(json.dumps({"chosen": [user, good], "rejected": [bad]}) + "\n")
    with pytest.raises(ValueError, match="row 1: the dialogues do not share all messages but the last"):
        load_preferences(tmp_path / "apart.jsonl", chat=tokenizer.chat)


def ultrafeedback(prompt: str, good: str, bad: str) -> dict:
    """A row of HuggingFaceH4/ultrafeedback_binarized: the prompt as a text, and again in each dialogue."""
    user = {"content": prompt, "role": "user"}
    chosen, rejected = ([user, {"content": answer, "role": "assistant"}] for answer in (good, bad))
    about = {"prompt_id": "0", "score_chosen": 8.5, "score_rejected": 6.0}
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "messages": chosen, **about}


def test_a_prompt_that_stands_beside_whole_dialogues_is_not_doubled(tmp_path: Path) -> None:
    tokenizer = written(tmp_path)
    row = ultrafeedback("2+2=", "4", "5")
    system = {"role": "system", "content": "Add."}
    rows = {
        "ultrafeedback": row,
        "prompt as messages": row | {"prompt": row["chosen"][:1]},
        "spaces": row | {"prompt": "2+2= \n"},
        "answers alone": row | {"chosen": row["chosen"][1:], "rejected": row["rejected"][1:]},
        "system": row | {"chosen": [system, *row["chosen"]], "rejected": [system, *row["rejected"]]},
    }
    for name, given in rows.items():
        (tmp_path / "rows.jsonl").write_text(json.dumps(given) + "\n")
        (came,) = load_preferences(tmp_path / "rows.jsonl", chat=tokenizer.chat)
        said = "<s><|system|>Add.</s>\n<|user|>2+2=</s>\n<|assistant|>" if name == "system" else None
        assert came.prompt.count("2+2=") == 1, name
        assert came == Preference(said or "<s><|user|>2+2=</s>\n<|assistant|>", "4</s>", ("5</s>",)), name
    (tmp_path / "rows.jsonl").write_text(json.dumps(row | {"prompt": "3+3="}) + "\n")
    with pytest.raises(ValueError, match="row 1: `prompt` is a text, but the dialogues beside it do not begin with it"):
        load_preferences(tmp_path / "rows.jsonl", chat=tokenizer.chat)


def test_ultrafeedback_as_a_run_reads_it(tmp_path: Path) -> None:
    tokenizer = written(tmp_path)
    rows = [ultrafeedback(*texts) for texts in [("37+48=", "85", "75"), ("34+44=", "78", "87"), ("3+4=", "7", "8")]]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shape = "model.shape={width: 16, layers: 1, heads: 2}"
    given = f"data.train={tmp_path / 'pairs.jsonl'}", f"data.tokenizer={tmp_path}", 'data.cache="off"', "batch=1", shape
    inputs = load_inputs(load(RunConfig, None, given))
    assert not inputs.faults and len(inputs.train.tokens) == len(rows)
    for row, tokens, mask in zip(rows, inputs.train.tokens[:, 0], inputs.train.response_mask[:, 0], strict=True):
        whole = tokenizer.encode(tokenizer.chat(row["chosen"]).rstrip("\n")).tolist()
        assert tokens[: len(whole)].tolist() == whole and np.flatnonzero(mask)[-1] == len(whole) - 1
        asked = tokenizer.encode(tokenizer.chat(row["chosen"][:1], open_turn=True)).tolist()
        shared = next(i for i, (a, b) in enumerate(zip([*asked, None], whole, strict=False)) if a != b)
        assert int(mask.argmax()) == shared  # the prompt, but for a token that spans the boundary


def test_a_template_cannot_reach_out_and_may_refuse(tmp_path: Path) -> None:
    tokenizer = written(tmp_path)
    with pytest.raises(ValueError, match=r"refuses these messages: no role tool"):
        tokenizer.chat([{"role": "tool", "content": "x"}])
    tokenizer.chat_template = "{{ messages.__class__.__mro__ }}"
    with pytest.raises(ValueError, match=r"refuses these messages: access to attribute"):
        tokenizer.chat([])
    tokenizer = written(tmp_path, chat_template=None)
    with pytest.raises(ValueError, match="has no chat template"):
        tokenizer.chat([])


def test_the_byte_tokenizer_as_a_file_has_the_same_ids(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path)
    file, ours = load_tokenizer(tmp_path), load_tokenizer("bytes")
    text = "".join(map(chr, [*range(1, 256), 0x65E5, 0x1F600]))
    assert file.encode(text).tolist() == ours.encode(text).tolist()
    assert file.decode(file.encode(text)) == text
    assert (file.bos_id, file.eos_id, file.vocab_size) == (ours.bos_id, ours.eos_id, ours.vocab_size) == (257, 256, 258)
    assert isinstance(ours, ByteTokenizer)


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder nowhere, and it is neither 'bytes' nor"):
        load_tokenizer("nowhere")
    with pytest.raises(ValueError, match=r"names no `eos_token`"):
        written(tmp_path, eos_token=None)
    assert written(tmp_path, bos_token=None).bos_id == written(tmp_path).eos_id
