"""`mi-align verify`: certify the ledger of equivalences."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from mi_align.equivalences import Certificate, Claim

__all__ = ["Verify", "certify_with_progress"]


@dataclasses.dataclass(frozen=True)
class Verify:
    """Certify the ledger: evaluate both sides of every claim, and its derivatives, on random inputs.

    Exit code 0 only if every claim holds and every twin, the claim with one thing wrong, fails.
    """

    claims: str = ""
    """Comma-separated numbers: 13 means 13a, 13b, …; all by default."""
    samples: int = 1_000_000
    """Random inputs a claim, unless the claim says fewer."""
    dtype: Literal["float64", "float32", "bfloat16"] = "float64"
    """In what the inputs are given; twins are judged in float64 only."""
    seed: int = 0
    """Of the random inputs."""
    output: Path | None = None
    """Write ledger.json and report.html into this folder."""
    json: bool = False
    """Print the certificates as JSON, and nothing else."""
    plugin: Path | None = None
    """A Python file with a tuple CLAIMS of your own."""

    def run(self) -> int:
        """Certify, print, write."""
        from mi_align.equivalences import ledger, report
        from mi_align.equivalences.plugin import load_claims

        if self.samples < 1:
            raise ValueError(f"`samples` is {self.samples}, but at least one sample was wanted.")
        whole = ledger.LEDGER
        if self.plugin is not None:
            whole = ledger.join(whole.values(), load_claims(self.plugin))
        chosen = ledger.select(whole, self.claims) if self.claims else whole
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        certificates = certify_with_progress(
            chosen, samples=self.samples, dtype=self.dtype, seed=self.seed, quiet=self.json
        )
        seconds = time.perf_counter() - start
        record = report.record(certificates, seed=self.seed, seconds=seconds)
        if self.json:
            print(json.dumps(record, indent=1))
        else:
            print(summary(certificates, seconds))
        if self.output is not None:
            paths = report.write_ledger(self.output, certificates, record)
            print(*(f"written: {path}" for path in paths), sep="\n", file=sys.stderr if self.json else sys.stdout)
        return 0 if all(certificate.passed for certificate in certificates) else 1


def summary(certificates: Iterable[Certificate], seconds: float) -> str:
    """One line on what came of it, and one on each claim that did not hold."""
    certificates = list(certificates)
    failed = [c for c in certificates if not c.passed]
    judged = sum(c.twin_fails is not None for c in certificates)
    lines = [
        f"{c.id} {'does not hold' if not c.holds else 'has a twin that does not fail'}: {c.title} "
        f"(worst {c.error:.1e}, allowed {c.tolerance:.0e}; twin {c.twin_error:.1e}"
        f"{'; ' + c.worst if isinstance(c.worst, str) else ''})"
        for c in failed
    ]
    held = sum(c.holds for c in certificates)
    caught = sum(c.twin_fails is True for c in certificates)
    if held == len(certificates) and caught < judged:
        lines.append("A twin may pass on few samples: it differs from its claim in a part of the inputs only.")
    verdict = f"{held} of {len(certificates)} claims hold, {caught} of {judged} twins fail as they must"
    return "\n".join([*lines, f"{verdict}; {seconds:.0f} s"])


def certify_with_progress(
    claims: Mapping[str, Claim], *, samples: int, dtype: str, seed: int, quiet: bool = False
) -> list[Certificate]:
    """Certify claims, a line each as they come and a bar below; plain lines where there is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from mi_align.equivalences import certify_all
    from mi_align.equivalences.ledger import order

    console = Console(quiet=quiet, highlight=False, soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    found: list[Certificate] = []
    console.print(_HEAD)
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("certifying", total=len(claims))
        try:
            for certificate in certify_all(claims.values(), samples=samples, dtype=dtype, seed=seed):
                found.append(certificate)
                bar.print(row(certificate)) if not quiet else None
                bar.advance(task)
        except KeyboardInterrupt:
            console.print(f"interrupted after {len(found)} of {len(claims)} claims")
            raise
    return sorted(found, key=lambda certificate: order(certificate.id))


_HEAD = f"{'':2}{'claim':7}{'kind':12}{'samples':>10}  {'worst':>8} {'allowed':>8}  {'twin':>8}  {'s':>5}  what"


def row(certificate: Certificate) -> str:
    """A certificate as a line of the table."""
    mark = "[green]✓[/]" if certificate.passed else "[red]✗[/]"
    c = certificate
    return (
        f"{mark} {c.id:7}{c.kind:12}{c.samples:>10,}  {c.error:8.1e} {c.tolerance:8.0e}  {c.twin_error:8.1e}  "
        f"{c.seconds:5.1f}  {c.title}"
    )
