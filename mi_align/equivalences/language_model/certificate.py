"""What was measured about one claim on a language model."""

from __future__ import annotations

import dataclasses

from mi_align.equivalences.claim import Kind

__all__ = ["SLIP", "TOLERANCE", "ModelCertificate"]

#: The largest relative difference of losses and gradient trees. Both sides see the same log-probabilities, so that only
#: the rounding of a few numbers a prompt is left.
TOLERANCE = {"float32": 1e-6, "float64": 1e-12}

#: What a factor is wrong by in a twin. It is found out in float64; float32 cannot tell.
SLIP = 1 + 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCertificate:
    """What was measured about one claim in one precision.

    Attributes:
      id, title, statement, source: the claim's; the statement is LaTeX.
      kind: EXACT, or INEQUALITY.
      dtype: the precision, `"float32"` or `"float64"`.
      value: relative difference of the two mean losses; None where values are not compared.
      gradient: ‖left − right‖ / ‖left‖ of the two gradient trees; None where gradients are not compared.
      error: what counts, the larger of both (INEQUALITY: how much larger the smaller side is, 0 where it is not).
      tolerance: what `error` may be at most.
      twin_error: `error` of the claim with one thing wrong; None where no twin was run.
      slip: what is wrong in the twin.
      remark: the measured numbers behind `error`, in words.
    """

    id: str
    title: str
    statement: str
    source: str
    kind: Kind = Kind.EXACT
    dtype: str
    value: float | None = None
    gradient: float | None = None
    error: float
    tolerance: float
    twin_error: float | None = None
    slip: str = ""
    remark: str = ""

    @property
    def holds(self) -> bool:
        """Whether the claim was seen to hold; NaN does not."""
        return self.error <= self.tolerance

    @property
    def passed(self) -> bool:
        """Whether the claim holds and its twin, where one was run, fails."""
        return self.holds and self.twin_fails is not False

    @property
    def twin_fails(self) -> bool | None:
        """Whether the claim with one thing wrong was found out; None where it was not run."""
        return None if self.twin_error is None else not self.twin_error <= self.tolerance
