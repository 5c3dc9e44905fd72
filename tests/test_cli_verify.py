"""`mi-align verify` as a user meets it: exit codes, output, files, errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import mi_align
from mi_align.cli.main import main

PLUGIN = """
import jax
import jax.numpy as jnp
from mi_align.equivalences import Claim, Kind
from mi_align.objectives import bradley_terry_loss

def my_loss(positive, negative):
    return jnp.log1p(jnp.exp(negative - positive))

CLAIMS = (
    Claim(
        id="mine",
        title="my loss is Bradley–Terry's",
        statement=r"\\ell = \\log(1 + e^{{c-a}})",
        kind=Kind.EXACT,
        draw=lambda key: jax.random.normal(key, (2,)),
        left=lambda x: my_loss(x[0], x[1]),
        right=lambda x: bradley_terry_loss(x[0], x[1]) {slip},
        twin=lambda x: -bradley_terry_loss(x[0], x[1]),
        slip="the sign",
        source="my own",
    ),
)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "my_claims.py"
    path.write_text(PLUGIN.format(slip=""))
    return path


def verify(*arguments: object) -> int:
    return main(["verify", "--samples", "500", *map(str, arguments)])


def test_all_claims_hold_exits_with_0_and_says_so(plugin: Path, capsys: pytest.CaptureFixture[str]):
    assert verify("--claims", "mine,13a", "--plugin", plugin) == 0
    out = capsys.readouterr().out
    assert "2 of 2 claims hold, 2 of 2 twins fail as they must" in out
    assert "my loss is Bradley–Terry's" in out


def test_a_claim_that_does_not_hold_exits_with_1_and_is_named(plugin: Path, capsys: pytest.CaptureFixture[str]):
    plugin.write_text(PLUGIN.format(slip="+ 1e-6"))
    assert verify("--claims", "mine", "--plugin", plugin) == 1
    out = capsys.readouterr().out
    assert "mine does not hold: my loss is Bradley–Terry's" in out
    assert "0 of 1 claims hold" in out


def test_json_prints_json_and_nothing_else(plugin: Path, capsys: pytest.CaptureFixture[str]):
    assert verify("--claims", "mine", "--plugin", plugin, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    (certificate,) = record["certificates"]
    assert certificate["id"] == "mine"
    assert certificate["samples"] == 500
    assert 0 < certificate["error"] < certificate["tolerance"] < certificate["twin_error"]
    assert {"jax", "jaxlib"} <= record["environment"]["versions"].keys()


def test_output_writes_strict_json_and_a_page_that_needs_no_network(plugin: Path, tmp_path: Path):
    folder = tmp_path / "new" / "report"
    assert verify("--claims", "mine,24a", "--plugin", plugin, "--output", folder) == 0

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is not JSON")

    record = json.loads((folder / "ledger.json").read_text(), parse_constant=refuse)
    assert [c["id"] for c in record["certificates"]] == ["24a", "mine"]
    page = (folder / "report.html").read_text()
    assert page.count("<math") >= 2
    assert "data:image/svg+xml;base64," in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert sorted(path.name for path in folder.iterdir()) == ["ledger.json", "report.html"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--claims", "99"], "there is no claim called '99'"),
        (["--claims", ","], "`claims` is ',', but numbers were wanted"),
        (["--samples", "0"], "`samples` is 0, but at least one sample was wanted"),
        (["--plugin", "nowhere.py"], "there is no file nowhere.py"),
        (["--output", "/dev/null/x"], "/dev/null/x"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["verify", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.err.startswith("mi-align: ")
    assert len(captured.err.strip().splitlines()) == 1


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mi-align {mi_align.__version__}\n"


@pytest.mark.parametrize("arguments", [["--dtype", "float16"], ["--sampels", "3"], ["--samples", "many"]])
def test_wrong_usage_is_explained_with_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["verify", *arguments]) == 2
    assert arguments[-1] in capsys.readouterr().err or arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\n", "has no claims: a non-empty tuple `CLAIMS`"),
        ("CLAIMS = (1,)\n", "has no claims"),
        ("\nraise RuntimeError('broken')\n", "my_claims.py:2 failed while it was loaded: RuntimeError: broken"),
        ("def (\n", "my_claims.py:1 failed while it was loaded: SyntaxError"),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why(
    plugin: Path, source: str, message: str, capsys: pytest.CaptureFixture[str]
):
    plugin.write_text(source)
    assert verify("--plugin", plugin) == 2
    assert message in capsys.readouterr().err


def test_a_plugin_may_not_take_a_claims_name(plugin: Path, capsys: pytest.CaptureFixture[str]):
    plugin.write_text(PLUGIN.format(slip="").replace('id="mine"', 'id="13a"'))
    assert verify("--plugin", plugin) == 2
    assert "two claims are called '13a'" in capsys.readouterr().err
