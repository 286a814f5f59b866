"""Runs side by side: how fast each policy is in each of them, and where the time went."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dipsim.basics.units import significant, unit_of
from dipsim.figures.style import STYLE, blank_figure, looks_of, save_figure
from dipsim.results.compare import PARTS, differences, read_compare, said
from dipsim.results.folder import in_words
from dipsim.results.labels import short
from dipsim.results.quality import rounded


def draw_compare(folder: Path) -> list[Path]:
    """Draw `compare.png` and `.svg` into a folder of `compare`; return the paths.

    Raises InputError if its table is missing or damaged.
    """
    table = read_compare(folder)
    with style.context(["default", STYLE]):
        return save_figure(side_by_side(table), folder / "compare")


def side_by_side(table: pd.DataFrame) -> Figure:
    """A group of bars a policy, a bar for each of what is compared: tokens/s, and the parts of a token's time."""
    same, differ = differences(table)
    setting = f"{in_words(same)}\ndifferent: {said(differ)}"
    names = list(dict.fromkeys(table["compared"]))
    shades = dict(zip(names, colormaps["viridis"](np.linspace(0.1, 0.8, len(names))), strict=True))
    places, headings = _places(table)
    figure = blank_figure("Side by side: speed, and where the time went", setting, 12, 1.1 + 0.27 * max(places))
    speed, time = figure.subplots(1, 2, sharey=True, width_ratios=(1.25, 1))
    speeds = table["tokens_per_s"].to_numpy()
    bars = speed.barh(places, speeds, 0.8, color=[shades[name] for name in table["compared"]])
    columns = ("tokens_per_s", "ratio", "perplexity")
    speed.bar_label(bars, [_label(*row) for row in zip(*map(table.get, columns), strict=True)], padding=3)
    speed.set_xlim(0, 1.9 * speeds.max())
    speed.set_title("tokens/s (times the first)")
    waited = [name.removeprefix(PARTS) for name in map(str, table) if name.startswith(PARTS)]
    parts = {name: look for name, look in looks_of(waited).items() if name in waited and table[PARTS + name].any()}
    unit, scale = unit_of(table[[PARTS + name for name in parts]].sum(axis=1), "time")
    left = np.zeros(len(table))
    for name, (_, colour, hatch) in parts.items():
        width = table[PARTS + name].to_numpy() / scale
        time.barh(places, width, 0.8, left=left, color=colour, hatch=hatch, edgecolor="white", lw=0)
        left += width
    for y, total in zip(places, left, strict=True):
        time.annotate(significant(total), (total, y), (3, 0), textcoords="offset points", va="center_baseline")
    time.set_xlim(0, 1.15 * left.max() or 1)
    time.set_title(f"what a token waited for ({unit})")
    for y, text in headings.items():
        speed.text(0, y, text, weight="bold", va="center", in_layout=False)  # may reach into the next panel
    for axes in (speed, time):
        axes.tick_params(axis="y", length=0, grid_linewidth=0)  # names of rows need neither
    speed.set_yticks(places, table["compared"])
    speed.set_ylim(max(places) + 0.7, -0.7)
    handles = [Patch(facecolor=colour, hatch=hatch, edgecolor="white", lw=0) for _, colour, hatch in parts.values()]
    figure.legend(handles, [name for name, *_ in parts.values()], loc="outside lower center", ncols=len(parts) or 1)
    return figure


def _places(table: pd.DataFrame) -> tuple[list[float], dict[float, str]]:
    """Where the bar of each row lies, and the headings above those of one policy."""
    places: list[float] = []
    headings: dict[float, str] = {}
    y = 0.0
    for policy, mine in table.groupby("policy", sort=False):
        headings[y] = short(str(policy))
        places += [y + 1 + index for index in range(len(mine))]
        y += len(mine) + 1.5
    return places, headings


def _label(speed: float, ratio: float, perplexity: float) -> str:
    over = "" if np.isnan(ratio) else f" ({ratio:.2f}x)"
    return f"{significant(speed)}{over}, perplexity: {rounded(perplexity)}"
