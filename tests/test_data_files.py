"""Rows of every layout, and every way in which a row or a file can be wrong: named, or left out and listed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from mi_align.data import Preference, files, load_preferences
from mi_align.data.formats import read_rows

GOOD = {"prompt": "x", "chosen": "a", "rejected": "b"}
LINE = json.dumps(GOOD).encode()


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def read(rows: list[dict], **options) -> list[Preference]:
    return read_rows(rows, {name for row in rows for name in row}, source="x", **options)


# --- Layouts


@pytest.mark.parametrize(("label", "wanted"), [(True, True), (False, False), (1, True), (0, False), (1.0, True)])
def test_labels_are_booleans_or_0_and_1(label, wanted: bool) -> None:
    rows = [{"prompt": "p", "completion": "c", "label": label}]
    assert read(rows) == [Preference("p", "c", (), desirable=wanted)]


def test_scores_sort_a_list_best_first_and_those_of_one_score_stay_in_order() -> None:
    rows = [{"prompt": "p", "completions": ["a", "b", "c", "d"], "scores": [1, 3.5, 1, 2]}]
    assert read(rows) == [Preference("p", "b", ("d", "a", "c"), scores=(3.5, 2.0, 1.0, 1.0))]
    assert read([{"prompt": "p", "completion": "a", "score": 2}]) == [Preference("p", "a", (), scores=(2.0,))]


def test_lists_of_dialogues_become_text_by_the_template() -> None:
    def chat(messages, *, open_turn: bool = False) -> str:
        return "".join(f"<{m['role']}>{m['content']}\n" for m in messages) + ("<assistant>" if open_turn else "")

    said = [[{"role": "assistant", "content": word}] for word in ("no", "yes")]
    rows = [{"prompt": [{"role": "user", "content": "Q"}], "completions": said, "scores": [0, 1]}]
    assert read(rows, chat=chat) == [Preference("<user>Q\n<assistant>", "yes", ("no",), scores=(1.0, 0.0))]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"completion": "c", "label": 2}, "`label` is 2, but true or false"),
        ({"completion": "c", "label": "yes"}, "`label` is 'yes'"),
        ({"completion": "c", "label": None}, "`label` is missing"),
        ({"completion": " ", "label": True}, "the `completion` response is empty"),
        ({"completion": "c", "score": "high"}, "`score` is 'high', but a finite number"),
        ({"completion": "c", "score": float("nan")}, "`score` is nan"),
        ({"completion": "c", "score": True}, "`score` is True"),
        ({"completions": ["a", "b"], "scores": [1]}, "`scores` is 1 numbers, but 2 numbers were wanted"),
        ({"completions": ["a", "b"], "scores": None}, "`scores` is of type NoneType"),
        ({"completions": ["a", "a"], "scores": [1, 2]}, r"`completions\[0\]` and `completions\[1\]` are the same"),
        ({"completions": ["a", ""], "scores": [1, 2]}, r"the `completions\[1\]` response is empty"),
        ({"completions": ["a", "b"], "scores": [1, None]}, r"`scores\[1\]` is missing"),
    ],
)
def test_what_is_wrong_in_a_row_is_named(row: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"x, row 1: {words}"):
        read([{"prompt": "p", **row}])


# --- Lines


BAD_LINES = {
    "broken": (b'{"prompt": "x", "chosen": ', "it is no JSON: Expecting value at column 26"),
    "latin1": (b'{"prompt": "x", "chosen": "\xe9", "rejected": "b"}', "byte 0xe9 is not UTF-8"),
    "a list": (b"[1, 2]", "it is of type list, but a mapping"),
    "nested": (b"[" * 100_000, "it is nested too deeply"),
    "a number": (b'{"prompt": "x", "chosen": 3, "rejected": "b"}', "`chosen` is of type int, but text"),
    "missing": (b'{"prompt": "x", "chosen": "a"}', "`rejected` is missing"),
    "empty": (b'{"prompt": "x", "chosen": "", "rejected": "b"}', "the `chosen` response is empty"),
    "equal": (b'{"prompt": "x", "chosen": "b", "rejected": "b"}', "`chosen` and `rejected` are the same"),
}


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_with_its_number_or_left_out_and_listed(kind: str, name: str, tmp_path: Path) -> None:
    line, words = BAD_LINES[kind]
    data = b"\n".join([LINE, b"", line, LINE, b""])
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(ValueError) as error:
        load_preferences(path)
    assert str(error.value).startswith(f"{name}, row 3: {words}"), "blank lines count as lines"
    faults: list[str] = []
    assert load_preferences(path, on_fault=faults.append) == [Preference("x", "a", ("b",))] * 2
    assert len(faults) == 1 and faults[0] == str(error.value)


def test_a_line_of_50_mb_is_a_fault_and_is_never_held(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "p.jsonl"
    with path.open("wb") as file:
        file.write(LINE + b'\n{"prompt": "')
        for _ in range(50):
            file.write(b"x" * 2**20)
        file.write(b'", "chosen": "a", "rejected": "b"}\n' + LINE + b"\n")
    faults: list[str] = []
    tracemalloc.start()
    assert len(load_preferences(path, on_fault=faults.append)) == 2
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert faults == [
        "p.jsonl, row 2: it is 50.0 MiB long, but a line of at most 32 MiB was wanted. Is a line break missing?"
    ]
    assert most < 2.2 * files.LONGEST_LINE
    with pytest.raises(ValueError, match=r"p\.jsonl, row 2: it is 50\.0 MiB long"):
        load_preferences(path)


def test_values_of_several_types_and_columns_of_some_rows_only_are_faults_of_those_rows(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "id": 1}, {**GOOD, "rejected": ["c", "d"], "id": "two"}, {"id": 3}, {**GOOD, "id": {}}]
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    faults: list[str] = []
    came = load_preferences(path, on_fault=faults.append)
    assert [p.rejected for p in came] == [("b",), ("b",), ("c", "d"), ("b",)]
    assert faults == ["p.jsonl, row 4: `prompt` is missing."]


def test_a_file_of_nothing_but_bad_lines_says_why(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"{\n")
    with pytest.raises(ValueError, match=r"p\.jsonl, row 1: it is no JSON"):
        load_preferences(path)
    with pytest.raises(ValueError, match=r"p\.jsonl has no usable row"):
        load_preferences(path, on_fault=lambda fault: None)


def test_a_list_is_json_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(b"\n [" + LINE + b",\n{]")
    with pytest.raises(ValueError, match=r"p\.json is no JSON: .* in line 3, column 2\. A list is JSON as a whole"):
        load_preferences(path)
    path.write_bytes(b"[" + LINE + b",\n" + LINE + b",\n3]")
    faults: list[str] = []
    assert len(load_preferences(path, on_fault=faults.append)) == 2
    assert faults == ["p.json, row 3: it is of type int, but a mapping from column to value was wanted."]
    path.write_bytes(b'[{"prompt":\n"\xff"}]')
    with pytest.raises(ValueError, match=r"p\.json, line 2: byte 0xff is not UTF-8"):
        load_preferences(path)


# --- Other files


def test_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(LINE * 100)[:-20])
    (tmp_path / "q.jsonl.gz").write_bytes(LINE)
    (tmp_path / "p.parquet").write_bytes(b"PAR1 and so on")
    (tmp_path / "p.arrow").write_bytes(b"no arrow")
    for name, words in [
        ("p.jsonl.gz", "is damaged"),
        ("q.jsonl.gz", "is damaged"),
        ("p.parquet", "could not be read as parquet"),
        ("p.arrow", "could not be read as arrow"),
    ]:
        with pytest.raises(ValueError, match=f"^{name} {words}"):
            load_preferences(tmp_path / name)


def test_a_folder_is_its_files_in_order_and_faults_say_which(tmp_path: Path) -> None:
    import datasets

    folder = tmp_path / "data"
    (folder / "more").mkdir(parents=True)
    (folder / "b.jsonl").write_bytes(b'{"prompt": "2", "chosen": "a", "rejected": "b"}\n{\n')
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "1", "chosen": "a", "rejected": "b"}\n'))
    (folder / "readme.md").write_text("no data")
    table = datasets.Dataset.from_list([{"prompt": "3", "chosen": "a", "rejected": "b"}])
    table.to_parquet(folder / "more" / "c.parquet")
    faults: list[str] = []
    came = load_preferences(folder, on_fault=faults.append)
    assert [p.prompt for p in came] == ["1", "2", "3"]
    assert len(faults) == 1 and faults[0].startswith("data/b.jsonl, row 2: it is no JSON")
    assert [p.prompt for p in load_preferences(folder, limit=2, on_fault=faults.append)] == ["1", "2"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"holds no file that ends in \.jsonl"):
        load_preferences(tmp_path / "none")


def test_arrow_files_and_folders_that_datasets_saved_are_read(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list([GOOD, {**GOOD, "chosen": ""}])
    table.save_to_disk(tmp_path / "saved")
    faults: list[str] = []
    for source in (tmp_path / "saved", next((tmp_path / "saved").glob("*.arrow"))):
        assert load_preferences(source, on_fault=faults.append) == [Preference("x", "a", ("b",))]
        assert ", row 2: the `chosen` response is empty." in faults[-1]
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "splits")
    with pytest.raises(ValueError, match="holds the splits train"):
        load_preferences(tmp_path / "splits")


# --- Streams


def test_a_stream_is_read_no_further_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    fetched = []

    def rows():
        for n in range(1000):
            fetched.append(n)
            yield {"prompt": f"p{n}", "chosen": "a", "rejected": "b"}

    def load_dataset(name: str, *, split: str, streaming: bool) -> datasets.IterableDataset:
        assert (name, split, streaming) == ("owner/name", "train", True)
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = load_preferences("owner/name", limit=3, streaming=True)
    assert [p.prompt for p in found] == ["p0", "p1", "p2"]
    assert len(fetched) <= 4


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "arrow"])
def test_of_a_file_a_stream_gives_what_reading_it_gives(suffix: str, tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list([{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(9)])
    file = tmp_path / f"x.{suffix}"
    if suffix == "arrow":
        table.save_to_disk(tmp_path / "saved")
        (next((tmp_path / "saved").glob("*.arrow"))).rename(file)
    else:
        getattr(table, {"parquet": "to_parquet", "jsonl": "to_json"}[suffix])(file)
    streamed = load_preferences(file, limit=5, streaming=True)
    assert streamed == load_preferences(file, limit=5) == load_preferences(file)[:5]


def test_lines_beyond_the_limit_are_not_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(LINE + b"\n" + LINE + b"\nno JSON\n")
    assert len(load_preferences(file, limit=2)) == 2
    with pytest.raises(ValueError, match=r"x.jsonl, row 3: it is no JSON"):
        load_preferences(file)


def test_a_stream_needs_a_limit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`limit` does not say how many"):
        load_preferences(tmp_path, streaming=True)
