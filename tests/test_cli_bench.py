"""`mi-align bench` as a user meets it: exit codes, output, files, a kernel of one's own, errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mi_align.cli.main import main

KERNEL = """
import jax
import jax.numpy as jnp

SLIP = 0.0

def my_logps(hidden, vocabulary, targets):
    logits = hidden @ vocabulary.T
    chosen = jnp.take_along_axis(logits, targets[:, None], 1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1) + SLIP

def two(hidden, vocabulary):
    return hidden

def matrix(hidden, vocabulary, targets):
    return hidden @ vocabulary.T

def broken(hidden, vocabulary, targets):
    return hidden @ vocabulary

number = 3
"""


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "my_kernel.py"
    path.write_text(KERNEL)
    return path


def bench(*arguments: object) -> int:
    return main(["bench", "--shapes", "40x12x53", "--budget", "0.001", *map(str, arguments)])


def test_a_kernel_of_ones_own_is_timed_in_the_same_table(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--kernel", f"{kernel}:my_logps", "--implementations", "plain", "--methods", "mio") == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    mine = [words for words in lines if words[2:3] == ["my_kernel.py:my_logps"]]
    assert [(words[0], words[3]) for words in mine] == [
        ("token_logps", "forward"),
        ("token_logps", "gradient"),
        ("mio", "forward"),
        ("mio", "gradient"),
    ]
    assert "8 rows timed, 0 wrong, 0 skipped" in out


def test_a_wrong_kernel_says_wrong_and_exits_with_1(
    kernel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel.write_text(KERNEL.replace("SLIP = 0.0", "SLIP = 1e-4"))
    folder = tmp_path / "results"
    arguments = ("--kernel", f"{kernel}:my_logps", "--implementations", "plain", "--methods", "none")
    assert bench(*arguments, "--output", folder) == 1
    out = capsys.readouterr().out
    assert "WRONG: " in out and "token_logps at own, forward: value off by" in out
    assert "2 rows timed, 2 wrong, 0 skipped" in out
    record = json.loads((folder / "logprobs.json").read_text())
    assert record["wrong"] == 2
    wrong = [row for row in record["rows"] if row["status"] == "wrong"]
    assert all(row["implementation"].endswith(":my_logps") and "seconds" not in row for row in wrong)
    table = (folder / "logprobs.md").read_text()
    assert table.count("| WRONG |") == 2


def test_json_prints_json_and_nothing_else_and_output_writes_three_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new" / "results"
    assert bench("--implementations", "plain,checkpoint", "--methods", "none", "--json", "--output", folder) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert "written: " in captured.err
    assert sorted(path.name for path in folder.iterdir()) == ["logprobs.json", "logprobs.md", "logprobs.png"]
    assert (folder / "logprobs.png").read_bytes().startswith(b"\x89PNG")

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    written = json.loads((folder / "logprobs.json").read_text(), parse_constant=refuse)
    assert written["rows"] == printed["rows"]
    assert written["schema"] == 1 and written["wrong"] == 0 and written["seconds"] > 0
    assert {"jax", "jaxlib"} <= written["environment"]["versions"].keys()
    timed = [row for row in written["rows"] if row["status"] == "right"]
    assert [(row["implementation"], row["pass"]) for row in timed] == [
        ("plain", "forward"),
        ("checkpoint", "forward"),
        ("plain", "gradient"),
        ("checkpoint", "gradient"),
    ]
    for row in timed:
        assert row["against_plain"] == pytest.approx(timed[2 * (row["pass"] == "gradient")]["seconds"] / row["seconds"])
        assert {"samples", "compile_seconds", "memory_bytes", "flops_per_second", "share_of_products"} <= row.keys()
    ceilings = [row for row in written["rows"] if row["status"] == "ceiling"]
    assert [sorted(row["product_seconds"]) for row in ceilings] == [["logits"], ["d_hidden", "d_vocabulary", "logits"]]
    page = (folder / "logprobs.md").read_text()
    assert "## token_logps at own: 40 tokens × 12 × 53, float32" in page
    assert page.count("\n| plain |") == 2 and page.count("\n| checkpoint |") == 2


def test_a_kernel_without_a_cap_is_skipped_where_there_is_one(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--kernel",
        f"{kernel}:my_logps",
        "--implementations",
        "plain",
        "--methods",
        "none",
        "--budget",
        "0.001",
    ]
    assert main(["bench", "--shapes", "tiny-capped:40", *arguments]) == 0
    out = capsys.readouterr().out
    assert "skipped: these logits are capped at 5, and it takes no cap" in out
    assert "2 rows timed, 0 wrong, 2 skipped" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "toyy"], "there is no shape called 'toyy'. Did you mean 'toy'"),
        (["--methods", "dpoo"], "there is no method called 'dpoo'. Did you mean 'dpo'"),
        (["--methods", "tdpo1"], "the method 'tdpo1' cannot be timed on token log-probabilities alone"),
        (["--implementations", "chunkd"], "there is no implementation called 'chunkd'. Did you mean 'chunked'"),
        (["--budget", "0"], "`budget` is 0.0, but a number of seconds > 0 was wanted"),
        (["--kernel", "nowhere.py:fn"], "there is no file nowhere.py to load a kernel from"),
        (["--kernel", "nowhere.py"], "a file and a function were wanted, such as my_kernel.py:my_logps"),
        (["--output", "/dev/null/x"], "/dev/null/x"),
        (["--shapes", "1x4x9", "--methods", "dpo"], "1 tokens are too few for 4 prompts of 2 responses"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--shapes", "40x12x53", "--methods", "none", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("mi-align: ")
    assert len(captured.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "my_kernel.py has no function `absent`; it has: my_logps, two, matrix, broken."),
        ("number", "my_kernel.py has no function `number`"),
        ("two", "my_kernel.py: `two(hidden, vocabulary)` was found, but three arrays come in"),
        ("matrix", "my_kernel.py: `matrix` gave float32[40, 53], but log-probabilities were wanted"),
        ("broken", "my_kernel.py:19 failed on hidden [40, 12], vocabulary [53, 12], targets [40]: TypeError"),
    ],
)
def test_a_kernel_that_cannot_be_used_says_why(
    kernel: Path, name: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--kernel", f"{kernel}:{name}", "--methods", "none") == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_a_kernel_file_that_does_not_run_says_where(kernel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kernel.write_text("\nraise RuntimeError('broken')\n")
    assert bench("--kernel", f"{kernel}:my_logps") == 2
    assert "my_kernel.py:2 failed while it was loaded: RuntimeError: broken" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--dtype", "float16"], ["--budget", "many"], ["--shape", "toy"]])
def test_wrong_usage_is_explained_with_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    said = capsys.readouterr().err
    assert arguments[0] in said or arguments[1] in said
