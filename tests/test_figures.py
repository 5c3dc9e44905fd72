"""Pictures: they are drawn without touching global state, and show what they say."""

from __future__ import annotations

import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from mi_align.equivalences.figures import FIGURES
from mi_align.equivalences.figures.style import COLOUR

QUICK = ("gain_cap", "late_decline")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FIGURES])
def test_a_figure_is_labelled_and_changes_nothing_global(name: str) -> None:
    before = dict(matplotlib.rcParams)
    figure = FIGURES[name]()
    assert dict(matplotlib.rcParams) == before
    page = io.BytesIO()
    figure.savefig(page, format="png", dpi=40)
    assert page.getvalue().startswith(b"\x89PNG")
    for axes in figure.axes:
        assert axes.get_title(loc="left") and axes.get_xlabel() and axes.get_ylabel()
        lines = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
        assert lines or axes.collections
        assert all(np.isfinite(values).all() for values in lines)


def test_drawing_needs_no_pyplot_and_importing_no_matplotlib() -> None:
    program = (
        "import sys; from mi_align.equivalences import figures; assert 'matplotlib' not in sys.modules;"
        "figures.FIGURES['chain_of_bounds'](); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def _luminance(colour: str) -> float:
    """Relative luminance of sRGB, as the Web Content Accessibility Guidelines define it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_the_colours_are_okabe_and_itos() -> None:
    palette = {"#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"}
    assert set(COLOUR.values()) <= palette
    assert len(set(COLOUR.values())) == len(COLOUR)


def test_lines_stand_out_from_white() -> None:
    # The guidelines ask 3 : 1 of graphics; sky blue and orange reach 2.3 and are only used with markers or dashes.
    contrast = {name: 1.05 / (_luminance(colour) + 0.05) for name, colour in COLOUR.items()}
    assert min(contrast[name] for name in ("dpo", "mio", "bco_pair")) > 3
    assert min(contrast.values()) > 2
