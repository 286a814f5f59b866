"""One style for all figures: colours, markers, headers, and how a figure is written.

No figure leaves out the perplexity; where it was not measured for exactly that setting, the figure says so. Every
figure can be read in grey: parts are hatched, lines differ in marker and dash, steps in lightness. The bytes of a
figure depend on nothing but the tables and the version of matplotlib.
"""

from __future__ import annotations

from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dipsim.basics.files import write

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS, DASHES = "osD^vPX*", ("-", "--", "-.", ":")
STYLE: dict[str, Any] = {
    **dict.fromkeys(("axes.axisbelow", "axes.grid"), True),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "legend.frameon"), False),
    **{"axes.titlelocation": "left", "axes.titlesize": 9, "font.size": 9, "figure.dpi": 150},
    **{"grid.color": "0.9", "hatch.linewidth": 0.6},
    **{"svg.fonttype": "none", "svg.hashsalt": "dipsim"},  # text stays text, and ids are the same each time
    "text.parse_math": False,  # a $ in a label is a $
}
METADATA: dict[str, Any] = {"png": {"Software": None}, "svg": {"Date": None}}
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue
LETTER = 0.073  # inches, of the setting
MOST_PIXELS = 60_000  # of a side: a PNG cannot have more than 65,535
SHOWN_DPI = 72  # of a figure in a notebook
HEADER = 0.65  # inches above the panels, for title and setting


class ShownFigure(Figure):
    """A figure that notebooks show by itself, also without pyplot."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png", dpi=SHOWN_DPI, metadata=METADATA["png"])
        return content.getvalue()


def blank_figure(title: str, setting: str, width: float, height: float) -> Figure:
    """A figure of this size in inches, below a header of title and setting."""
    height += HEADER
    width = max(width, LETTER * max(map(len, setting.splitlines()), default=0))  # the setting is never cut off
    figure = ShownFigure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08, rect=(0, 0, 1, 1 - HEADER / height))
    figure.text(0.1 / width, 1 - 0.1 / height, title, size=13, weight="bold", va="top")
    figure.text(0.1 / width, 1 - 0.36 / height, setting, color="0.35", va="top")
    return figure


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG; return the paths."""
    figure.set_dpi(min(figure.dpi, MOST_PIXELS / max(figure.get_size_inches())))
    figure.draw_without_rendering()  # lay it out once for all formats
    figure.set_layout_engine("none")
    paths = [path.with_suffix(f".{kind}") for kind in METADATA]
    for target, (kind, metadata) in zip(paths, METADATA.items(), strict=True):
        write(target, partial(figure.savefig, format=kind, metadata=metadata))
    return paths
