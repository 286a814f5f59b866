"""One style for all figures: colours, markers, headers, and how a figure is written.

No figure leaves out the perplexity; where it was not measured for exactly that setting, the figure says so. Every
figure can be read in grey: parts are hatched, lines differ in marker and dash, steps in lightness. The bytes of a
figure depend on nothing but the tables and the version of matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dipsim.basics.arrays import Floats
from dipsim.basics.files import write
from dipsim.basics.units import significant
from dipsim.results.quality import NOT_MEASURED

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS, DASHES = "osD^vPX*", ("-", "--", "-.", ":")
LOOKS = {  # what a token waits for: its name, colour (Okabe and Ito's) and hatch
    "flash": ("Flash", "#0072B2", ""),
    "dram": ("DRAM", "#E69F00", "/////"),
    "compute": ("compute", "#009E73", "...."),
    "wait": ("waiting", "#BBBBBB", "xxxx"),
}
FURTHER = ("#CC79A7", "#D55E00", "#56B4E9", "#F0E442")  # of further tiers and units of compute
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
HEADER, LINE = 0.65, 0.17  # inches above the panels, for title and setting; of a further line of it


def looks_of(names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """How each of these resources looks, and waiting last; those of a device's own are told apart by colour."""
    further = [name for name in names if name not in LOOKS]
    own = {name: (name, colour, "") for name, colour in zip(further, cycle(FURTHER), strict=False)}
    return {name: look for name, look in LOOKS.items() if name != "wait"} | own | {"wait": LOOKS["wait"]}


class ShownFigure(Figure):
    """A figure that notebooks show by itself, also without pyplot."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png", dpi=SHOWN_DPI, metadata=METADATA["png"])
        return content.getvalue()


def blank_figure(title: str, setting: str, width: float, height: float) -> Figure:
    """A figure of this size in inches, below a header of title and setting."""
    header = HEADER + LINE * setting.count("\n")
    height += header
    width = max(width, LETTER * max(map(len, setting.splitlines()), default=0))  # the setting is never cut off
    figure = ShownFigure(figsize=(width, height))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.08, rect=(0, 0, 1, 1 - header / height))
    figure.text(0.1 / width, 1 - 0.1 / height, title, size=13, weight="bold", va="top")
    figure.text(0.1 / width, 1 - 0.36 / height, setting, color="0.35", va="top")
    return figure


def draw_prices(axes: Axes, perplexities: Floats, errors: Floats) -> None:
    """Perplexities, a row each, as points with error bars where they are known; the axis begins near them.

    What was not measured is NaN, and said.
    """
    rows, known = np.arange(len(perplexities)), ~np.isnan(perplexities)
    axes.set_title("perplexity (lower is better)")
    for row in rows[~known]:
        axes.text(0.03, row, NOT_MEASURED, transform=axes.get_yaxis_transform(), va="center_baseline")
    if not known.any():
        axes.set_xticks([])
        return
    at, reach = perplexities[known], np.nan_to_num(errors[known])
    axes.errorbar(at, rows[known], xerr=reach, fmt="D", color="#D55E00", ms=5, capsize=3, elinewidth=1.2)
    low, high = (at - reach).min(), (at + reach).max()
    span = max(high - low, 0.02 * high)
    axes.set_xlim(low - 0.1 * span, high + 1.1 * span)
    axes.xaxis.set_major_locator(MaxNLocator(4, steps=(1, 2, 5, 10)))
    for row, price, error in zip(rows[known], at, reach, strict=True):
        text = significant(price, 4) + (f" ± {error:.2f}" if error else "")
        axes.annotate(text, (price + error, row), (7, 0), textcoords="offset points", va="center_baseline")


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG; return the paths."""
    figure.set_dpi(min(figure.dpi, MOST_PIXELS / max(figure.get_size_inches())))
    figure.draw_without_rendering()  # lay it out once for all formats
    figure.set_layout_engine("none")
    paths = [path.with_suffix(f".{kind}") for kind in METADATA]
    for target, (kind, metadata) in zip(paths, METADATA.items(), strict=True):
        write(target, partial(figure.savefig, format=kind, metadata=metadata))
    return paths
