"""The ledger as files: `ledger.json` for machines, `report.html` for people."""

from __future__ import annotations

import dataclasses
import datetime
import html
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mi_align.equivalences.certificate import Certificate
from mi_align.equivalences.ledger import CHAPTERS, chapter
from mi_align.equivalences.page import Section, figure, formula, paragraph, table, write_file, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["environment", "ledger_sections", "record", "residuals", "verdict", "write_ledger"]


def environment() -> dict[str, Any]:
    """Versions and device of this run."""
    packages = ("mi-align", "jax", "jaxlib", "flax", "optax", "numpy")
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def record(certificates: Sequence[Certificate], *, seed: int, seconds: float) -> dict[str, Any]:
    """Everything about a run, as JSON's types; infinities and NaN are spelt out."""
    return {
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "seconds": round(seconds, 2),
        "claims": len(certificates),
        "hold": sum(c.holds for c in certificates),
        "twins_fail": sum(c.twin_fails is True for c in certificates),
        "passed": all(c.passed for c in certificates),
        "environment": environment(),
        "certificates": [_plain(dataclasses.asdict(c) | {"passed": c.passed}) for c in certificates],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def write_ledger(folder: Path, certificates: Sequence[Certificate], run: Mapping[str, Any]) -> tuple[Path, Path]:
    """Write `ledger.json` and `report.html` into a folder that exists."""
    data = write_file(folder / "ledger.json", json.dumps(run, indent=1, allow_nan=False) + "\n")
    page = write_page(folder / "report.html", "The ledger of equivalences", verdict(run), ledger_sections(certificates))
    return data, page


def verdict(run: Mapping[str, Any]) -> str:
    """What came of it, for the head of a page."""
    tone, mark = ("good", "✓") if run["passed"] else ("bad", "✗")
    where = run["environment"]
    return (
        f'<p class="verdict {tone}">{mark} {run["hold"]} of {run["claims"]} claims hold, '
        f"{run['twins_fail']} twins fail as they must</p>"
        f'<p class="soft">{html.escape(where["device"])}, jax {where["versions"]["jax"]}, Python {where["python"]}, '
        f"seed {run['seed']}, {run['seconds']:.0f} s, {run['made']}</p>"
    )


def ledger_sections(certificates: Sequence[Certificate]) -> list[Section]:
    """How to read it, the residuals, the claims chapter by chapter with their pictures."""
    sections = [Section("How to read this", _READING + figure(residuals(certificates), _RESIDUALS))]
    for title in CHAPTERS.values():
        certified = [c for c in certificates if chapter(c.id) == title]
        if certified:
            sections.append(Section(title, _claims(certified) + _pictures(certified)))
    return sections


_READING = paragraph(
    "A claim is two functions of the same random inputs. EXACT: equal on every sample, and so are their derivatives. "
    "INEQUALITY: left ≤ right on every sample; shown is how far it came from failing. OPTIMUM: one side runs an "
    "optimiser to convergence. ASYMPTOTIC: both sides fall at the same rate. MONTE CARLO: equal in the mean, shown in "
    "standard errors. Errors are relative to max(1, |left|, |right|). Every claim has a twin, the same with one thing "
    "wrong, which must fail: a ledger that cannot fail proves nothing. Logarithms are natural; information is in nats."
)
_RESIDUALS = "Worst case of every exact claim over its samples, values and derivatives, beside what is allowed."


def residuals(certificates: Sequence[Certificate]) -> Figure:
    """Worst error of the claims that compare values, on a log scale, beside their tolerance and their twin's error."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    shown = [c for c in certificates if c.kind in {"exact", "optimum"} and math.isfinite(c.error)]
    drawn = Figure(figsize=(10, 3.6))
    FigureCanvasSVG(drawn)
    axes = drawn.add_subplot()
    place = np.arange(len(shown))
    floor = 1e-17
    axes.scatter(place, [max(c.twin_error, floor) for c in shown], s=14, marker="x", color="#c0362c", label="twin")
    axes.scatter(place, [c.tolerance for c in shown], s=30, marker="_", color="#60646c", label="allowed")
    axes.scatter(
        place, [max(c.error, floor) for c in shown], s=14, color="#2458b3", label="worst error (0 shown at 1e-17)"
    )
    axes.set_yscale("log")
    axes.set_xticks(place, [c.id for c in shown], rotation=90, fontsize=5.5)
    axes.set_xlim(-1, max(len(shown), 1))
    axes.set_ylabel("relative error")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=3, frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


def _claims(certificates: Sequence[Certificate]) -> str:
    head = ("", "claim", "kind", "samples", "worst", "allowed", "twin")
    return table(head, (_row(c) for c in certificates), "ledger")


def _row(c: Certificate) -> tuple[str, ...]:
    mark = '<span class="good">✓</span>' if c.passed else '<span class="bad">✗</span>'
    orders = {0: "", 1: ", gradient", 2: ", gradient, Hessian · direction"}[c.derivatives]
    notes = [c.source, f"twin: {c.slip}", *([f"tolerance: {c.why}"] if c.why else [])]
    if isinstance(c.worst, str):
        notes.append(c.worst)
    what = f"{html.escape(c.title)}{formula(c.statement)}" + "".join(f"<small>{html.escape(n)}</small>" for n in notes)
    twin = "–" if c.twin_fails is None else f"{c.twin_error:.1e}"
    kind = f"{c.kind}<small>value{orders}</small>" if c.kind == "exact" else c.kind
    return (f"{mark} {html.escape(c.id)}", what, kind, f"{c.samples:,}", f"{c.error:.1e}", f"{c.tolerance:.0e}", twin)


def _pictures(certificates: Sequence[Certificate]) -> str:
    from mi_align.equivalences.figures import FIGURES

    wanted: dict[str, list[str]] = {}
    for certificate in certificates:
        if certificate.figure is not None:
            wanted.setdefault(certificate.figure, []).append(certificate.id)
    pictures = {name: FIGURES[name]() for name in wanted if name in FIGURES}
    return "".join(
        figure(drawn, f"{name.replace('_', ' ')} (claim {', '.join(wanted[name])})") for name, drawn in pictures.items()
    )
