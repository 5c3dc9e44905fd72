"""One thing that was expected, and what was seen."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Finding"]


class Finding(NamedTuple):
    """A line of the report.

    Attributes:
      what: what is looked at.
      expected: what theory, or an earlier run, says; in words.
      seen: what came, in words.
      holds: whether it is as expected; None where it is shown and not judged, as on a user's own data.
    """

    what: str
    expected: str
    seen: str
    holds: bool | None
