"""The data room: what becomes of a row, of a text, and which examples make up a batch."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_align.data import (
    ByteTokenizer,
    Preference,
    arithmetic_preferences,
    batch_indices,
    encode_preferences,
    load_preferences,
    solve,
    split_dialogue,
    take,
)
from mi_align.data.formats import ASSISTANT

TOKENIZER = ByteTokenizer()

#: Real preference data, where a checkout has it beside it; the same layouts are written in small otherwise.
SHARED = Path(os.environ.get("MI_ALIGN_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing is written into, or read from, the user's own cache; the hub is not asked."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(folder: Path, name: str, rows: list[dict]) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        import datasets

        datasets.disable_progress_bars()
        datasets.Dataset.from_list(rows).to_parquet(path)
        return path
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(row) + "\n" for row in rows)
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


PAIRS = [
    {"id": 7, "prompt": "How many legs have 3 ants?", "chosen": "3 · 6 = 18", "rejected": "3 · 8 = 24", "model": "a"},
    {"id": 8, "prompt": "Und vier Käfer?", "chosen": "24 Beine", "rejected": "32 Beine – äh", "model": "b"},
]


# --- Files and layouts


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.json", "p.parquet"])
def test_every_kind_of_file_gives_the_same_preferences(tmp_path: Path, name: str) -> None:
    came = load_preferences(write(tmp_path, name, PAIRS))
    assert came == [Preference(row["prompt"], row["chosen"], (row["rejected"],)) for row in PAIRS]


def test_limit_reads_the_first_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "p.jsonl", PAIRS)
    assert load_preferences(path, limit=1) == load_preferences(path)[:1]
    assert len(load_preferences(path, limit=99)) == 2


def test_several_rejected_responses_stay_a_list_of_k(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1=", "chosen": "2", "rejected": ["3", "11", "1"]},
        {"prompt": "2+2=", "chosen": "4", "rejected": ["5"]},
    ]
    came = load_preferences(write(tmp_path, "k.jsonl", rows))
    assert [preference.rejected for preference in came] == [("3", "11", "1"), ("5",)]


def test_a_dialogue_is_cut_at_the_last_assistant_turn_both_share_not_where_the_answers_begin_to_differ() -> None:
    opening = "\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Which is the largest planet?\n\nAssistant:"
    prompt, answers = split_dialogue((opening + " It is Jupiter.", opening + " It is Juno, I think."))
    assert prompt == opening
    assert answers == (" It is Jupiter.", " It is Juno, I think.")


def test_a_dialogue_whose_answers_go_on_over_later_turns_keeps_them_in_the_answers() -> None:
    opening = "\n\nHuman: A\n\nAssistant:"
    texts = (opening + " x\n\nHuman: B\n\nAssistant: y", opening + " z")
    assert split_dialogue(texts) == (opening, (" x\n\nHuman: B\n\nAssistant: y", " z"))


def test_hub_layout_of_dialogues_without_a_prompt_column(tmp_path: Path) -> None:
    opening = "\n\nHuman: Hi?\n\nAssistant:"
    rows = [{"chosen": opening + " Hello.", "rejected": opening + " Help."}]
    assert load_preferences(write(tmp_path, "hh.jsonl.gz", rows)) == [Preference(opening, " Hello.", (" Help.",))]


def gsm8k_pairs(folder: Path) -> tuple[Path, int]:
    real = SHARED / "gsm8k_pairs.jsonl"
    if real.exists():
        return real, 2429
    row = {"id": 0, "prompt": "Q?", "chosen": "A: 1", "rejected": "A: 2", "chosen_model": "a", "rejected_model": "b"}
    return write(folder, "gsm8k_pairs.jsonl", [row | {"id": i, "prompt": f"Q{i}?"} for i in range(9)]), 9


def hh_pairs(folder: Path) -> tuple[Path, int, int]:
    real = SHARED / "hh_harmless_base_test.jsonl.gz"
    if real.exists():
        return real, 2308, 4
    good = {"chosen": "\n\nHuman: Q\n\nAssistant: yes", "rejected": "\n\nHuman: Q\n\nAssistant: no"}
    empty = good | {"chosen": "\n\nHuman: Q\n\nAssistant:"}
    return write(folder, "hh.jsonl.gz", [good, empty, good]), 2, 1


def test_gsm8k_pairs_are_read_whole(tmp_path: Path) -> None:
    path, count = gsm8k_pairs(tmp_path)
    came = load_preferences(path)
    assert len(came) == count
    assert all(len(preference.rejected) == 1 and preference.prompt.endswith("?") for preference in came[:5])


def test_hh_dialogues_are_read_whole_but_for_their_empty_responses_which_are_named(tmp_path: Path) -> None:
    path, count, faulty = hh_pairs(tmp_path)
    faults: list[str] = []
    came = load_preferences(path, on_fault=faults.append)
    # Counts only: the text of this data set is offensive by design and is never shown.
    assert (len(came), len(faults)) == (count, faulty)
    assert all("response is empty" in fault and ", row " in fault for fault in faults)
    assert sum(preference.prompt.endswith(ASSISTANT) for preference in came) == count
    with pytest.raises(ValueError, match="the `chosen` response is empty"):
        load_preferences(path)


# --- What is refused, and in which words


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "x", "chosen": "a", "rejected": None}, "row 3: `rejected` is missing"),
        ({"prompt": "x", "chosen": "", "rejected": "b"}, "row 3: the `chosen` response is empty"),
        ({"prompt": "x", "chosen": "a", "rejected": " \n"}, "row 3: the `rejected` response is empty"),
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, "row 3: `chosen` and `rejected` are the same"),
        ({"prompt": "x", "chosen": "a", "rejected": []}, "row 3: `rejected` is an empty list"),
        ({"prompt": "x", "chosen": "a", "rejected": ["b", "a"]}, r"row 3: `chosen` and `rejected\[1\]` are the same"),
        ({"prompt": "x", "chosen": 3, "rejected": "b"}, "row 3: `chosen` is of type int, but text"),
        ({"prompt": "x", "chosen": [{"role": "user"}], "rejected": "b"}, "chat template"),
    ],
)
def test_a_faulty_row_is_named_with_file_and_number(tmp_path: Path, row: dict, words: str) -> None:
    path = write(tmp_path, "p.jsonl", [*PAIRS, row])
    with pytest.raises(ValueError, match=f"^p.jsonl, .*{words}"):
        load_preferences(path)
    faults: list[str] = []
    assert len(load_preferences(path, on_fault=faults.append)) == 2
    assert len(faults) == 1


def test_unknown_columns_are_answered_with_those_wanted_and_the_nearest(tmp_path: Path) -> None:
    rows = [{"question": "x", "choosen": "a", "rejected": "b"}]
    with pytest.raises(ValueError) as error:
        load_preferences(write(tmp_path, "p.jsonl", rows))
    message = str(error.value)
    assert message.startswith("p.jsonl has the columns (choosen, question, rejected)")
    assert "(prompt, chosen, rejected) or (chosen, rejected) or (prompt, completions, scores) or" in message
    assert "(prompt, completion) or (messages) were wanted" in message
    assert "no column called 'chosen'. Did you mean 'choosen'" in message


def test_without_prompt_column_and_without_a_dialogue_the_row_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"p\.jsonl, row 1: there is no `prompt` column"):
        load_preferences(write(tmp_path, "p.jsonl", [{"chosen": "yes", "rejected": "yesterday"}]))


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_bytes_that_are_no_utf8_are_named_with_file_row_and_byte(tmp_path: Path, name: str) -> None:
    data = b'{"prompt": "x", "chosen": "a", "rejected": "b"}\n{"prompt": "x", "chosen": "\xe9t\xe9", "rejected": "b"}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(ValueError, match=f"{name}, row 2: byte 0xe9 is not UTF-8"):
        load_preferences(path)


def test_broken_json_and_empty_files_and_other_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"prompt": "x", "chosen": "a"\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl, row 1: it is no JSON: Expecting ',' delimiter at column"):
        load_preferences(tmp_path / "broken.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl is empty"):
        load_preferences(tmp_path / "empty.jsonl")
    (tmp_path / "table.csv").write_text("prompt,chosen\n")
    with pytest.raises(ValueError, match=r"table\.csv is no file of a known kind"):
        load_preferences(tmp_path / "table.csv")
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*nowhere.jsonl'"):
        load_preferences(tmp_path / "nowhere.jsonl")


def test_a_hub_that_is_not_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(name: str, *, split: str, streaming: bool) -> None:
        raise ConnectionError(f"Couldn't reach {name!r} on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ConnectionError, match=r"'somebody/pairs' was not reached .* or give the path of a local file"):
        load_preferences("somebody/pairs")


# --- Arithmetic


def test_chosen_answers_are_right_and_rejected_ones_wrong_and_distinct() -> None:
    for prompt, chosen, rejected, *_ in arithmetic_preferences(300, negatives=7, digits=3, seed=5):
        left, right = prompt.rstrip("=").replace("-", "+-").split("+", 1)
        assert int(chosen) == int(left) + int(right) == int(solve(prompt))
        assert len(set(rejected) | {chosen}) == 8
        assert all(str(int(answer)) == answer for answer in rejected)


def test_the_same_seed_gives_the_same_list_and_a_longer_list_begins_with_the_shorter() -> None:
    assert arithmetic_preferences(20, seed=3) == arithmetic_preferences(50, seed=3)[:20]
    assert arithmetic_preferences(20, seed=3) != arithmetic_preferences(20, seed=4)
    prompts = [preference.prompt for preference in arithmetic_preferences(200, digits=1)]
    assert len(set(prompts)) == 200, "all 2 · 10 · 10 problems, each once"


def test_typical_mistakes_are_among_the_rejected() -> None:
    rejected = {p.prompt: p.rejected for p in arithmetic_preferences(20_000, negatives=6)}
    assert "75" in rejected["37+48="], "carry forgotten"
    assert "45" in rejected["52-17="], "borrow forgotten"
    assert "-35" in rejected["52-17="], "operands swapped"
    assert "-11" in rejected["37+48="], "the other operation"
    off_by_one_digit = {"84", "86", "75", "95"}
    assert off_by_one_digit & set(rejected["37+48="])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"count": 0}, "`count` is 0"),
        ({"count": 5, "negatives": 0}, "`negatives` is 0"),
        ({"count": 201, "digits": 1}, "1 digits make only 200 prompts"),
    ],
)
def test_impossible_arithmetic_is_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        arithmetic_preferences(**arguments)
    with pytest.raises(ValueError, match="is no generated prompt"):
        solve("2*3=")


# --- Tokens and masks


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_bytes_decode_to_the_text_they_came_from(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids.dtype == np.int32 and ids.max(initial=0) < TOKENIZER.eos_id
    assert TOKENIZER.decode([TOKENIZER.bos_id, *ids, TOKENIZER.eos_id]) == text


texts = st.text(st.characters(max_codepoint=300), min_size=1, max_size=9)
preferences = st.builds(
    Preference,
    texts,
    texts.map(lambda t: "+" + t),
    st.lists(texts.map(lambda t: "-" + t), min_size=1, max_size=3).map(tuple),
    st.none(),
    st.none(),
    margin=st.none(),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(preferences, min_size=1, max_size=5), st.integers(2, 12), st.integers(2, 12))
def test_masked_tokens_are_each_response_and_the_rest_is_its_prompt(
    given_preferences: list[Preference], max_prompt: int, max_response: int
) -> None:
    batch, counts = encode_preferences(given_preferences, TOKENIZER, max_prompt=max_prompt, max_response=max_response)
    assert batch.tokens.shape[:2] == (len(given_preferences), 1 + max(len(p.rejected) for p in given_preferences))
    cut_prompts = cut_responses = 0
    for i, preference in enumerate(given_preferences):
        prompt = list(preference.prompt.encode())
        cut_prompts += len(prompt) > max_prompt - 1
        responses = (preference.chosen, *preference.rejected)
        assert batch.candidate_mask[i].tolist() == [c < len(responses) for c in range(batch.tokens.shape[1])]
        for c, response in enumerate(responses):
            whole = [*response.encode(), TOKENIZER.eos_id]
            cut_responses += len(whole) > max_response
            tokens, mask = batch.tokens[i, c].tolist(), batch.response_mask[i, c]
            assert batch.tokens[i, c][mask].tolist() == whole[:max_response]
            start = int(mask.argmax())
            assert tokens[:start] == [
                TOKENIZER.bos_id,
                *prompt[len(prompt) - (max_prompt - 1) if len(prompt) >= max_prompt else 0 :],
            ]
            assert mask[start : start + len(whole[:max_response])].all() and not mask[start + len(whole) :].any()
        assert not batch.response_mask[i, len(responses) :].any()
    assert counts == (len(given_preferences), cut_prompts, cut_responses, 0, 0)


def test_a_prompt_loses_its_beginning_and_a_response_its_end_and_its_eos() -> None:
    batch, counts = encode_preferences(
        [Preference("abcdef", "uvwxyz", ("uvW",))], TOKENIZER, max_prompt=4, max_response=4
    )
    bos, eos = TOKENIZER.bos_id, TOKENIZER.eos_id
    assert batch.tokens[0].tolist() == [[bos, *b"def", *b"uvwx"], [bos, *b"def", *b"uvW", eos]]
    assert batch.response_mask[0].tolist() == [[False] * 4 + [True] * 4] * 2
    assert counts == (1, 1, 1, 0, 0)


def test_padding_equals_eos_and_the_mask_still_ends_with_the_response() -> None:
    batch, _ = encode_preferences([Preference("p", "long answer", ("no",))], TOKENIZER)
    assert (batch.tokens[0, 1] == TOKENIZER.eos_id).sum() > batch.response_mask[0, 1, 4:].sum() == 1


def test_pairs_that_truncation_makes_equal_are_left_out_and_counted() -> None:
    pairs = [Preference("p", "same start, one end", ("same start, other",)), Preference("p", "a", ("b",))]
    batch, counts = encode_preferences(pairs, TOKENIZER, max_response=8)
    assert (len(batch.tokens), counts.indistinct) == (1, 1)
    with pytest.raises(ValueError, match="none of 1 preferences is left"):
        encode_preferences(pairs[:1], TOKENIZER, max_response=8)
    with pytest.raises(ValueError, match="`max_prompt` is 0"):
        encode_preferences(pairs, TOKENIZER, max_prompt=0)


# --- Batches


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(0, 99), first=st.integers(0, 9))
def test_every_epoch_holds_each_example_once_and_a_batch_depends_on_seed_and_step_alone(
    size: int, batch_size: int, seed: int, first: int
) -> None:
    steps = range(first + 3 * size)
    batches = [batch_indices(size, batch_size, seed=seed, step=step) for step in steps]
    stream = np.concatenate(batches)
    for epoch in range(len(stream) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
    np.testing.assert_array_equal(batches[first], batch_indices(size, batch_size, seed=seed, step=first))


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = [tuple(batch_indices(50, 50, seed=seed, step=step)) for seed in (0, 1) for step in (0, 1)]
    assert len(set(orders)) == 4


def test_batches_are_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match="`size` is 0"):
        batch_indices(0, 4, seed=0, step=0)


def test_take_picks_examples_and_a_batch_is_a_pytree() -> None:
    batch, _ = encode_preferences(arithmetic_preferences(6, negatives=2), TOKENIZER)
    picked = take(batch, np.array([4, 1]))
    np.testing.assert_array_equal(picked.tokens, batch.tokens[[4, 1]])
    np.testing.assert_array_equal(picked.response_mask, batch.response_mask[[4, 1]])
    assert [leaf.shape for leaf in jax.tree.leaves(picked)] == [(2, *leaf.shape[1:]) for leaf in jax.tree.leaves(batch)]
