"""The report: one page for people, one JSON file for machines."""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mi_align.equivalences import report as ledger_report
from mi_align.equivalences.figures.training import draw_displacement, draw_late_decline
from mi_align.equivalences.language_model import ModelCertificate
from mi_align.equivalences.page import Section, figure, formula, paragraph, table, write_file, write_page
from mi_align.reproduction.figures import draw_controls, draw_curves
from mi_align.reproduction.finding import Finding
from mi_align.reproduction.run import Results

__all__ = ["record", "write_report"]

_TITLE = "RLHF, DPO and contrastive learning: one thing, reproduced"
_MARKS = {True: '<span class="good">✓</span>', False: '<span class="bad">✗</span>', None: "–"}


def write_report(folder: Path, results: Results, *, pictures: bool = True) -> tuple[Path, Path]:
    """Write `report.html` and `report.json` into a folder, which is made if need be.

    Args:
      folder: where to.
      results: what to report.
      pictures: whether to draw the ledger's pictures too; those of the dynamics are drawn in any case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    data = write_file(folder / "report.json", json.dumps(record(results), indent=1, allow_nan=False) + "\n")
    page = write_page(folder / "report.html", _TITLE, _lead(results), _sections(results, pictures=pictures))
    return page, data


def record(results: Results) -> dict[str, Any]:
    """Everything about a run, as JSON's types."""
    curves = {
        name: {
            field: np.asarray(getattr(curve, field)).astype(float).round(5).tolist()
            for field in ("chosen", "rejected", "reference", "final")
        }
        for name, curve in results.curves.items()
    }
    return {
        "passed": results.passed,
        "data": results.inputs.source,
        "rows_left_out": results.inputs.faults,
        "plan": dataclasses.asdict(results.plan),
        "seconds": {part: round(seconds, 2) for part, seconds in results.seconds.items()},
        "ledger": ledger_report.record(results.ledger, seed=results.seed, seconds=results.seconds["the ledger"]),
        "language_model": [_plain(c) for c in results.model],
        "findings": {part: [f._asdict() for f in findings] for part, findings in results.findings.items()},
        "curves": curves,
    }


def _plain(certificate: ModelCertificate) -> dict[str, Any]:
    fields = dataclasses.asdict(certificate) | {
        "kind": str(certificate.kind),
        "passed": certificate.passed,
        "twin_fails": certificate.twin_fails,
    }
    return {k: str(v) if isinstance(v, float) and not np.isfinite(v) else v for k, v in fields.items()}


def _lead(results: Results) -> str:
    """The verdict, and what was run."""
    tone, mark, word = ("good", "✓", "All of it holds") if results.passed else ("bad", "✗", "Not all of it holds")
    where = ledger_report.environment()
    total = sum(results.seconds.values())
    return (
        f'<p class="verdict {tone}">{mark} {word}</p>'
        f'<p class="soft">{html.escape(where["device"])}, jax {where["versions"]["jax"]}, Python {where["python"]}, '
        f"seed {results.seed}, {total:.0f} s</p>"
    )


def _sections(results: Results, *, pictures: bool) -> list[Section]:
    shown_here = {"late_decline", "displacement"}
    ledger = [
        dataclasses.replace(c, figure=None) if not pictures or c.figure in shown_here else c for c in results.ledger
    ]
    return [
        Section("What came of it", _overview(results)),
        Section("On a language model", _language_model(results)),
        Section("The dynamics, where all can be enumerated", _toys(results)),
        Section("The dynamics on the language model", _curves(results)),
        Section("Negative controls", _controls(results)),
        *ledger_report.ledger_sections(ledger),
    ]


def _overview(results: Results) -> str:
    def count(passed: Iterable[bool | None]) -> tuple[str, str]:
        judged = [p for p in passed if p is not None]
        return _MARKS[all(judged) if judged else None], f"{sum(judged)} of {len(judged)}"

    lines = [
        ("claims of the ledger", count(c.passed for c in results.ledger)),
        ("claims on the language model", count(c.passed for c in results.model)),
        ("known numbers of the enumerable policies", count(f.holds for f in results.findings["toys"])),
        ("dynamics of the language model", count(f.holds for f in results.findings["language model"])),
        ("negative controls", count(f.holds for f in results.findings["controls"])),
    ]
    seconds = ((html.escape(part), f"{value:.1f}") for part, value in results.seconds.items())
    return table(("", "what", "as expected"), ((mark, what, number) for what, (mark, number) in lines)) + table(
        ("part", "seconds"), seconds
    )


def _language_model(results: Results) -> str:
    learner, plan, counts = results.learner, results.plan, results.learner.counts
    text = paragraph(
        f"A decoder with {learner.parameters:,} parameters, layers: {plan.layers}, its tokens bytes, learnt the chosen "
        f"responses of {counts.preferences:,} preferences ({results.inputs.source}) in {plan.supervised_steps} steps; "
        f"its loss went from {learner.losses[0]:.2f} to {learner.losses[-1]:.2f} nats a token. Each claim compares two "
        f"formulas on a batch of {plan.certificate_prompts} prompts with {plan.certificate_negatives} rejected "
        "responses each: their mean loss, and the whole tree of its derivatives with respect to the parameters. The "
        "policy is the model; its reference is the model some steps earlier. Claims on the start have both the same."
    )
    cut = paragraph(
        f"{counts.truncated_prompts:,} prompts and {counts.truncated_responses:,} responses were cut to "
        f"{plan.max_prompt} and {plan.max_response} tokens; {counts.indistinct:,} preferences that this made equal, "
        f"and {len(results.inputs.faults):,} faulty rows, were left out."
    )
    head = ("", "claim", "dtype", "loss", "gradient", "allowed", "twin")
    return text + cut + table(head, (_row(c) for c in results.model), "ledger")


def _row(c: ModelCertificate) -> tuple[str, ...]:
    notes = [c.source, *([f"twin: {c.slip}"] if c.slip else []), *([c.remark] if c.remark else [])]
    what = f"{html.escape(c.title)}{formula(c.statement)}" + "".join(f"<small>{html.escape(n)}</small>" for n in notes)
    value, gradient, twin = ("–" if x is None else f"{x:.1e}" for x in (c.value, c.gradient, c.twin_error))
    if c.value is None and c.gradient is None:
        value = f"{c.error:.1e}"
    return (f"{_MARKS[c.passed]} {c.id}", what, c.dtype, value, gradient, f"{c.tolerance:.0e}", twin)


def _findings(findings: Sequence[Finding]) -> str:
    rows = ((_MARKS[f.holds], *(html.escape(text) for text in (f.what, f.expected, f.seen))) for f in findings)
    return table(("", "what", "expected", "seen"), rows)


def _toys(results: Results) -> str:
    runs = results.toys
    return (
        _findings(results.findings["toys"])
        + figure(draw_late_decline(runs.late_decline), "Toy 34: one feature, three responses.")
        + figure(draw_displacement(runs.collapse, runs.near_duplicates), "Two policies whose responses share features.")
    )


def _curves(results: Results) -> str:
    plan = results.plan
    text = paragraph(
        f"From one starting point, the model after supervised training, {plan.seeds} seeds each learn {plan.pairs} "
        f"preferences of their own in batches of {plan.batch}, {plan.steps} steps of Adam at {plan.rate:g}, falling "
        "to 0 over the last fifth: the pairs are seen many times, where the late decline shows. DPO's β is "
        f"{plan.beta:g}, MIO's {plan.mio_beta:g}, so that both begin with one gradient. Lines are means over seeds of "
        "running means over an epoch; bands go from the least to the greatest seed."
    )
    unjudged = "" if results.inputs.generated else paragraph("On data of your own, nothing here is judged.")
    caption = "Log-ratios of the chosen and of the rejected responses under DPO and MIO."
    return (
        text
        + unjudged
        + _findings(results.findings["language model"])
        + figure(draw_curves(results.curves, plan), caption)
    )


def _controls(results: Results) -> str:
    text = paragraph(
        "What MIO does not do. It keeps the chosen response's likelihood from falling, and that is all: its first step "
        "is DPO's, its gain is capped, and where positives have to be sampled from the model, the Jensen–Shannon bound "
        "starves like Donsker–Varadhan's. MIO with one negative is pairwise NCA (Chen et al. 2024), at the same β."
    )
    caption = (
        "Left: every chosen response of every seed. Right: pulls at the start, by the probability of the response."
    )
    return text + _findings(results.findings["controls"]) + figure(draw_controls(results.curves, results.plan), caption)
