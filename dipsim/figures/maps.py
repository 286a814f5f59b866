"""Maps of a sweep, DRAM size x Flash speed: how fast each policy is, and which is the fastest where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke

from dipsim.basics.arrays import Floats
from dipsim.basics.units import significant
from dipsim.figures.style import LUMINANCE, blank_figure
from dipsim.figures.sweep_table import DRAM, FLASH, axis_of, heading, price
from dipsim.results.labels import wrapped
from dipsim.results.quality import NOT_MEASURED

LEAST = 1.05  # the colours reach this ratio at least
UNKNOWN: dict[str, Any] = {"fill": False, "hatch": "////", "lw": 0}
FEW, MOST = 5, 8  # cells along an axis: lines through few would say more than was simulated; figures need room
FEWEST = 3  # ticks of a colour bar
LEVELS = np.outer(10.0 ** np.arange(-4, 6), (1, 1.5, 2, 3, 5, 7)).ravel()  # of iso-lines


def draw_maps(rows: pd.DataFrame, value: str, title: str) -> Figure:
    """A map DRAM x Flash for each policy, in one scale: speeds with iso-lines, ratios and small maps with figures."""
    policies = list(dict.fromkeys(rows["policy"]))
    columns = min(3, len(policies))
    height = math.ceil(len(policies) / columns)
    figure = blank_figure(title, heading(rows), max(3.7 * columns + 0.8, 6), 3.2 * height)
    grid = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).ravel()
    low, high = rows[value].min(), rows[value].max()
    if high < LEAST * low:  # so that a difference of nothing stays pale
        low, high = low / LEAST, high * LEAST
    norm = LogNorm(low * 0.999, high * 1.001)
    image = None
    for index, (axes, policy) in enumerate(zip(grid, policies, strict=False)):
        mine = rows[rows["policy"] == policy]
        cells = mine.pivot_table(index=DRAM, columns=FLASH, values=value)
        image = axes.imshow(cells, norm=norm, cmap="viridis", origin="lower", aspect="auto")
        if value == "speedup" or (min(cells.shape) < FEW and max(cells.shape) <= MOST):
            write_values(axes, cells.to_numpy(), image)
        else:
            _isolines(axes, cells.to_numpy())
        _axes(axes, cells)
        axes.set_title(f"{wrapped(policy, 40)}\n{price(mine)}")
        lowest = index + columns >= len(policies)
        axes.tick_params(labelbottom=lowest)
        axes.set_xlabel(axes.get_xlabel() if lowest else "")
        axes.set_ylabel(axes.get_ylabel() if index % columns == 0 else "")
    for axes in grid[len(policies) :]:
        axes.remove()
    assert image is not None
    bar = figure.colorbar(image, ax=list(grid[: len(policies)]), pad=0.01)
    ticks = {level: f"{level:,g}" for level in LEVELS.tolist() if low <= level <= high}
    if len(ticks) < FEWEST:
        ticks = {level: significant(level) for level in np.geomspace(low, high, FEWEST).tolist()}
    bar.set_ticks(list(ticks), labels=list(ticks.values()))
    bar.minorticks_off()
    return figure


def _isolines(axes: Axes, cells: Floats) -> None:
    levels = LEVELS[(np.nanmin(cells) < LEVELS) & (np.nanmax(cells) > LEVELS)]
    if not levels.size or min(cells.shape) < 2:
        return
    lines = axes.contour(np.log(cells), levels=np.log(levels), colors="white", linewidths=1.4, linestyles="solid")
    lines.set_path_effects([withStroke(linewidth=2.6, foreground="black")])
    names = {float(np.log(level)): f"{level:g}" for level in levels}
    for text in axes.clabel(lines, fmt=names, fontsize=9):
        text.set(color="black", weight="bold", path_effects=[withStroke(linewidth=3, foreground="white")])


def write_values(axes: Axes, cells: Floats, image: AxesImage) -> None:
    """Write into the cells of a map what they stand for, in an ink that can be read there."""
    shades = np.asarray(image.to_rgba(cells))
    for (row, column), value in np.ndenumerate(cells):
        ink = "white" if shades[row, column, :3] @ LUMINANCE < 0.5 else "black"
        axes.text(column, row, significant(value), color=ink, size=7.5, ha="center", va="center_baseline")


def _axes(axes: Axes, cells: pd.DataFrame) -> None:
    """The values of a map's rows and columns, evenly spaced whatever they are."""
    (x, across), (y, up) = axis_of(map(float, cells.columns), FLASH), axis_of(map(float, cells.index), DRAM)
    axes.set_xticks(range(len(cells.columns)), [f"{float(value) / across:.4g}" for value in cells.columns])
    axes.set_yticks(range(len(cells.index)), [f"{float(value) / up:.4g}" for value in cells.index])
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(visible=False)


def draw_winner(rows: pd.DataFrame) -> Figure:
    """The fastest policy at every point of the map, and by how much it leads the next.

    Where the perplexity of the fastest was not measured, the map is hatched.
    """
    policies = list(dict.fromkeys(rows["policy"]))
    prices = [price(rows[rows["policy"] == policy]) for policy in policies]
    cells = rows.pivot_table(index=DRAM, columns=FLASH, values="tokens_per_s")
    speeds = np.nan_to_num(_stacked(rows, policies, "tokens_per_s", cells))  # not every policy is everywhere
    order = np.sort(speeds, axis=0)
    first, lead = speeds.argmax(axis=0), order[-1] / np.where(order[-2] > 0, order[-2], np.nan) - 1
    known = np.take_along_axis(_stacked(rows, policies, "perplexity", cells), first[None], axis=0)[0]
    shades = colormaps["viridis"](np.linspace(0.95, 0.1, len(policies)))
    wide = max(0.75 * len(cells.columns) + 4.5, 7)
    high = max(0.38 * len(cells) + 1, 0.35 * len(policies) + 0.6)
    figure = blank_figure("Who is fastest where, and how far ahead of the next", heading(rows), wide, high)
    axes = figure.subplots()
    axes.imshow(shades[first], origin="lower", aspect="auto")
    for (row, column), winner in np.ndenumerate(first):
        ink = "white" if shades[winner][:3] @ LUMINANCE < 0.5 else "black"
        ahead = "" if np.isnan(lead[row, column]) else f" +{lead[row, column]:.0%}"
        text = axes.text(column, row, f"{_letter(winner)}{ahead}", color=ink, ha="center", va="center_baseline")
        if np.isnan(known[row, column]):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **UNKNOWN, edgecolor=(*to_rgb(ink), 0.45)))
            text.set_path_effects([withStroke(linewidth=2.5, foreground=shades[winner])])
    _axes(axes, cells)
    names = [
        f"{_letter(index)}  {wrapped(policy, 40)}{'' if index in first else ' (nowhere)'}\n     {price}"
        for index, (policy, price) in enumerate(zip(policies, prices, strict=True))
    ]
    handles = [Patch(facecolor=shade, edgecolor="0.3", lw=0.5) for shade in shades]
    if np.isnan(known).any():
        names.append(f"perplexity of the fastest: {NOT_MEASURED}")
        handles.append(Patch(**UNKNOWN, edgecolor="0.3"))
    axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.01, 1.02), labelspacing=0.8)
    return figure


def _stacked(rows: pd.DataFrame, policies: Sequence[str], value: str, cells: pd.DataFrame) -> Floats:
    """A value of each policy at each cell, [policy, DRAM, Flash]; NaN where there is none."""
    each = (rows[rows["policy"] == p].pivot_table(index=DRAM, columns=FLASH, values=value) for p in policies)
    return np.stack([found.reindex(index=cells.index, columns=cells.columns).to_numpy(float) for found in each])


def _letter(index: int) -> str:
    return chr(ord("A") + index % 26)
