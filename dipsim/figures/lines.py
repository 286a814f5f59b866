"""Lines and bars of a sweep: speed along one axis of the grid, and the hit rate or the speed-up beside it.

Lines compare traces side by side. Within a panel they compare policies or, where there are several, the other cases.
"""

from __future__ import annotations

import math
from itertools import cycle

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dipsim.basics.units import show, significant
from dipsim.figures.style import COLOURS, DASHES, MARKERS, blank_figure
from dipsim.figures.sweep_table import AXES, CLIFF, DRAM, FLASH, heading, join_columns, price, varies


def draw_lines(table: pd.DataFrame, along: str, fixed: str) -> Figure:
    """Speed along one axis of the grid, at the middle of the other, and the hit rate or the speed-up."""
    ranks = table.groupby("trace")[fixed].rank(method="dense")  # DRAM sizes may differ from trace to trace
    table = table[ranks == table["trace"].map((ranks.groupby(table["trace"]).max() + 1) // 2)]
    key = "other" if varies(table["other"]) else "policy"
    panels = list(table.groupby(["trace", "policy"] if key == "other" else ["trace"], sort=False))
    names = list(dict.fromkeys(table[key]))
    looks = dict(zip(names, zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False), strict=False))
    second, label = ("hit_rate", "hit rate (%)") if along == DRAM else ("speedup", "speed-up over dense")
    axis, scale, unit = along, 1e-9, AXES[along]
    if along == DRAM and varies(table["trace"]) and table[CLIFF].isna().all():
        axis, scale, unit = "mlp_fraction_in_dram", 100, "share of the MLP in DRAM (%)"
    wide, high = (3.3 * len(panels), 5.4) if len(panels) > 1 else (9, 3.4)
    columns = max(1, int(wide / 4.5))
    figure = blank_figure(
        _title(table, along, fixed),
        table["setting"].iloc[0],
        max(wide, 7),
        high + 0.2 * math.ceil(len(names) / columns),
    )
    rows_columns = (2, len(panels)) if len(panels) > 1 else (1, 2)
    grid = figure.subplots(*rows_columns, squeeze=False).reshape(2, len(panels))
    for (speed, other), (title, rows) in zip(grid.T, panels, strict=True):
        lines = [str(part) for part in title]
        for name, (colour, marker, dash) in looks.items():
            mine = rows[rows[key] == name].sort_values(axis)
            look = {"color": colour, "marker": marker, "ls": dash, "ms": 5}
            speed.plot(mine[axis] * scale, mine["tokens_per_s"], **look)
            if second in mine:
                other.plot(mine[axis] * scale, mine[second] * (100 if second == "hit_rate" else 1), **look)
        if axis == DRAM and rows[CLIFF].notna().any():
            for axes in (speed, other):
                _mark_cliff(axes, rows[CLIFF].max() * scale)
        speed.set_title("\n".join([*lines, price(rows)] if key == "other" else lines), weight="bold")
        fastest = table.loc[table["trace"] == rows["trace"].iloc[0], "tokens_per_s"].max()  # models differ too much
        speed.set_ylim(0, 1.05 * fastest)
        if table[second].notna().any():
            other.set_ylim(0, 1.05 * table[second].max() * (100 if second == "hit_rate" else 1))
        for axes in (speed, other):
            axes.set_xlabel(unit if axes is other or len(panels) == 1 else "")
            axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10)))
    grid[0][0].set_ylabel("tokens/s")
    grid[1][0].set_ylabel(label)
    labels = names if key == "other" else [f"{name}, {price(table[table['policy'] == name])}" for name in names]
    figure.legend(grid[0][0].lines[: len(labels)], labels, loc="outside lower center", ncols=columns, handlelength=3.5)
    return figure


def _mark_cliff(axes: Axes, at: float) -> None:
    """Mark the DRAM below which a cache does not hold the experts of one token."""
    axes.axvline(at, color="0.35", lw=1.2, ls=(0, (1, 1)), zorder=0)
    axes.annotate(
        "one token's experts", (at, 0.02), (-2, 0), ("data", "axes fraction"), "offset points",
        rotation=90, ha="right", fontsize=7, color="0.35",
    )  # fmt: skip


def _title(table: pd.DataFrame, along: str, fixed: str) -> str:
    """What is on the axis, and what is held."""
    values = table[fixed].unique()
    held = show(values[0], "size" if fixed == DRAM else "bandwidth") if len(values) == 1 else "of middle size"
    names = {DRAM: "DRAM", FLASH: "Flash"}
    return f"Speed against {names[along]}, {names[fixed]} {held}"


def draw_bars(table: pd.DataFrame) -> Figure:
    """Speed and hit rate, a bar a point: for sweeps of neither DRAM nor Flash."""
    names = join_columns(table, ["case", "policy"] if varies(table["case"]) else ["policy"])
    figure = blank_figure("Speed, and its price", heading(table), 11, 0.9 + 0.3 * len(table))
    grid = figure.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
    for axes, values, title in zip(
        grid, (table["tokens_per_s"], 100 * table["hit_rate"]), ("tokens/s", "hit rate (%)"), strict=True
    ):
        bars = axes.barh(range(len(table)), values, 0.66, color="#0072B2")
        labels = [significant(value) for value in values]
        if title == "tokens/s":
            labels = [f"{label}, {price(table.iloc[[index]])}" for index, label in enumerate(labels)]
        axes.bar_label(bars, labels, padding=3)
        axes.set_title(title)
        axes.set_xlim(0, 1.6 * values.max() or 1)
        axes.tick_params(axis="y", length=0, grid_linewidth=0)
    grid[0].set_yticks(range(len(table)), names)
    grid[0].invert_yaxis()
    return figure
