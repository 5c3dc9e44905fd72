"""Tokenizers and chat templates against `transformers`; what a run exports, opened by it."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from mi_align.data import HubTokenizer, save_byte_tokenizer
from mi_align.models import DecoderConfig, fresh_llama, hidden_states, save_pretrained, vocabulary_matrix
from tests.test_data_tokenizers import KINDS, TEMPLATE, written

transformers = pytest.importorskip("transformers", reason="make conformance")
torch = pytest.importorskip("torch", reason="make conformance")

PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
DIALOGUE = [
    {"role": "system", "content": "  Be brief. "},
    {"role": "user", "content": "37+48= {{ 7 * 7 }} <b>é</b>"},
    {"role": "assistant", "content": "85"},
]
TEMPLATES = {
    "ours": TEMPLATE,
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}"
        "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "loops": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m | tojson }}\n    {% endfor %}",
}


@pytest.mark.parametrize("template", list(TEMPLATES))
@pytest.mark.parametrize("open_turn", [False, True])
def test_chat_templates_write_what_transformers_writes(template: str, open_turn: bool, tmp_path: Path) -> None:
    ours = written(tmp_path, chat_template=TEMPLATES[template], **PLAIN)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    wanted = theirs.apply_chat_template(DIALOGUE, tokenize=False, add_generation_prompt=open_turn)
    assert ours.chat(DIALOGUE, open_turn=open_turn) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_those_of_transformers(kind, tmp_path: Path) -> None:
    ours = written(tmp_path, kind, **PLAIN)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the answer is 85", "  two  spaces</s>", "héllo"):
        assert ours.encode(text).tolist() == theirs(text, add_special_tokens=False)["input_ids"]
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_a_fresh_model_of_bytes_is_opened_by_transformers(tmp_path: Path) -> None:
    config = DecoderConfig(vocab_size=258, width=32, layers=2, heads=4, kv_heads=2)
    model = fresh_llama(config, jax.random.key(0))
    save_byte_tokenizer(save_pretrained(model, tmp_path))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "What is 3+4? é日"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == HubTokenizer(tmp_path).encode(text).tolist() == list(text.encode())
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0].numpy()
    hidden = hidden_states(model.graphdef, model.params, np.asarray([ids], np.int32))[0]
    came = np.asarray(hidden) @ np.asarray(vocabulary_matrix(model.graphdef, model.params)).T
    np.testing.assert_allclose(came, wanted, atol=1e-5 * np.abs(wanted).max())
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"
