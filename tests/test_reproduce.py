"""`mi-align reproduce` from the command to the page, with a model and a training that are tiny but real."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from mi_align import reproduction
from mi_align.cli.main import main
from mi_align.equivalences import ledger
from mi_align.reproduction.curve_findings import control_findings
from mi_align.reproduction.curves import Curves
from mi_align.reproduction.finding import Finding

TINY = dataclasses.replace(
    reproduction.QUICK, width=16, heads=2, supervised_examples=200, supervised_steps=50, steps=50, seeds=1, pairs=16
)
CLAIMS = {name: ledger.LEDGER[name] for name in ("13a", "20a", "21a", "25a", "26a")}


class Run(NamedTuple):
    code: int
    printed: str
    page: str
    record: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of the command. What needs it is slow: `.ci/run` has a run of its own, which fails where a claim does."""
    folder = tmp_path_factory.mktemp("reproduce") / "report"
    with pytest.MonkeyPatch.context() as patch, open(folder.parent / "printed", "w+") as printed:
        patch.setattr(reproduction, "QUICK", TINY)
        patch.setattr(ledger, "LEDGER", CLAIMS)
        patch.setattr("sys.stdout", printed)
        code = main(["reproduce", "--quick", "--output", str(folder)])
        printed.seek(0)
        text = printed.read()
    record = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    return Run(code, text, (folder / "report.html").read_text(), record)


@pytest.mark.slow
def test_the_model_certificates_hold_in_both_precisions_and_every_twin_fails(run: Run) -> None:
    model = run.record["language_model"]
    assert {c["dtype"] for c in model} == {"float32", "float64"}
    assert all(c["error"] <= c["tolerance"] for c in model), [c["id"] for c in model if not c["passed"]]
    twins = [c for c in model if c["twin_error"] is not None]
    assert len(twins) >= 10
    assert all(c["twin_error"] > c["tolerance"] for c in twins if c["dtype"] == "float64")


@pytest.mark.slow
def test_allowed_differences_are_those_that_the_project_states(run: Run) -> None:
    """1e-12 relative in float64, 1e-5 in float32; what is equal by construction has no difference at all."""
    limits = {"float64": 1e-12, "float32": 1e-5}
    exact = [c for c in run.record["language_model"] if c["kind"] == "exact"]
    assert all(c["tolerance"] <= limits[c["dtype"]] for c in exact)
    assert any(c["tolerance"] == 0 for c in exact)


@pytest.mark.slow
def test_known_numbers_of_the_enumerable_policies_come_out(run: Run) -> None:
    toys = run.record["findings"]["toys"]
    assert all(f["holds"] for f in toys)
    late = {f["what"]: f["seen"] for f in toys}
    assert float(late["toy 34, DPO: chosen log-ratio after 1,000 steps"]) == pytest.approx(-0.217, abs=5e-4)
    assert float(late["toy 34, MIO: chosen log-ratio after 400,000 steps"]) == pytest.approx(0.1849, abs=5e-5)


@pytest.mark.slow
def test_the_exit_code_the_page_and_the_json_tell_one_story(run: Run) -> None:
    judged = [f["holds"] for part in run.record["findings"].values() for f in part]
    passed = all(c["passed"] for c in run.record["ledger"]["certificates"] + run.record["language_model"])
    assert run.record["passed"] == (passed and False not in judged)
    assert run.code == (0 if run.record["passed"] else 1)
    assert ("All of it holds" in run.page) == ("everything holds" in run.printed.replace("not everything", ""))
    assert ("All of it holds" in run.page) == run.record["passed"]


@pytest.mark.slow
def test_everything_in_the_json_is_on_the_page(run: Run) -> None:
    text = html.unescape(re.sub(r"<[^>]*>", "", run.page))
    for part in run.record["findings"].values():
        assert all(f["what"] in text and f["seen"] in text for f in part)
    for certificate in run.record["language_model"] + run.record["ledger"]["certificates"]:
        assert certificate["title"] in text
        assert certificate["id"] in text


class _Links(html.parser.HTMLParser):
    """What a page would load, and whether its elements are closed."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input", "col", "mspace"})

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "srcset", "data")]
        self.loaded += [value or "" for name, value in attrs if tag == "link" and name == "href"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.mark.slow
def test_the_page_is_well_formed_and_needs_no_network(run: Run) -> None:
    links = _Links()
    links.feed(run.page)
    assert not links.open
    assert all(source.startswith("data:") for source in links.loaded)
    assert "@import" not in run.page
    assert not re.search(r"url\(['\"]?http", run.page)
    assert run.page.count("<math") >= len(CLAIMS) + len({c["id"] for c in run.record["language_model"]})
    assert "<script" not in run.page


@pytest.mark.parametrize("times", [0.5, 1, 2])
def test_the_cap_is_judged_on_the_improbable_responses_too(times: float) -> None:
    """A hundred responses that gained one doubling each, but for the improbable fifth, which gained some times that."""
    reference = np.random.default_rng(0).permutation(np.linspace(-9.0, -1.0, 100))[None]
    gain = np.log(2) * np.where(reference < np.quantile(reference, 0.2), times, 1)
    still = np.zeros((1, 4))
    curves = Curves(chosen=still, rejected=still, reference=reference, final=reference + gain, epoch=1)
    step, cap, rare = control_findings({"dpo": curves, "mio": curves}, reproduction.QUICK, (), judged=True)
    assert step.holds and cap.holds
    assert rare.holds == (times == 1)


def test_a_run_fails_if_a_single_judged_finding_does() -> None:
    none: list[Any] = []
    results = reproduction.Results(
        *[none] * 3, ledger=(), model=(), learner=None, toys=None, curves={}, findings={}, seconds={}
    )  # type: ignore[arg-type]
    shown, good, bad = (Finding("what", "expected", "seen", holds) for holds in (None, True, False))
    assert results._replace(findings={"a": [shown, good]}).passed
    assert not results._replace(findings={"a": [good], "b": [good, bad]}).passed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "absent.jsonl"], ("absent.jsonl",)),
        (["--data", "few.jsonl"], ("few.jsonl", "1 usable", "at least")),
        (["--data", "broken.jsonl"], ("broken.jsonl", "row 1", "no JSON")),
        (["--output", "few.jsonl"], ("few.jsonl",)),
        (["--output", "few.jsonl/below"], ("few.jsonl",)),
    ],
)
def test_wrong_input_is_one_line_at_once(
    arguments: list[str],
    words: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.jsonl").write_text('{"prompt": "1+1=", "chosen": "2", "rejected": "3"}\n')
    Path("broken.jsonl").write_text('{"prompt": "1+1=", "chosen": \n')
    monkeypatch.setattr(reproduction, "reproduce", lambda *args, **kwargs: pytest.fail("began to work"))
    assert main(["reproduce", "--quick", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert all(word in said for word in words), said
