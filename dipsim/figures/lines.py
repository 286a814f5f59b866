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
from dipsim.figures.style import COLOURS, DASHES, MARKERS, blank_figure, draw_prices
from dipsim.figures.sweep_table import (
    CLIFF,
    DRAM,
    FLASH,
    NAMES,
    axis_of,
    heading,
    join_columns,
    price,
    swept_alone,
    varies,
)
from dipsim.results.labels import wrapped


def draw_lines(table: pd.DataFrame, along: str, fixed: str) -> Figure:
    """Speed along one axis of the grid, at the middle of the other, and the hit rate or the speed-up, if there is one.

    The middle is that of each case: DRAM sizes may differ from trace to trace, and Flash from device to device.
    """
    ranks = table.groupby("case")[fixed].rank(method="dense")
    middle = (ranks.groupby(table["case"]).max() + 1) // 2
    middle_only = swept_alone(table, fixed)
    table = table[ranks == table["case"].map(middle)]
    key = "other" if varies(table["other"]) else "policy"
    panels = list(table.groupby(["trace", "policy"] if key == "other" else ["trace"], sort=False))
    names = list(dict.fromkeys(table[key]))
    looks = dict(zip(names, zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False), strict=False))
    second = ("hit_rate", "hit rate (%)", 100.0) if along == DRAM else ("speedup", "speed-up over dense", 1.0)
    shown = [("tokens_per_s", "tokens/s", 1.0), *([second] if table[second[0]].notna().any() else [])]
    axis, (unit, scale) = along, axis_of(table[along], along)
    if along == DRAM and varies(table["trace"]) and table[CLIFF].isna().all():
        axis, scale, unit = "mlp_fraction_in_dram", 0.01, "share of the MLP in DRAM (%)"
    wide, high = (3.3 * len(panels), 2.7 * len(shown)) if len(panels) > 1 else (4.5 * len(shown), 3.4)
    wide = max(wide, 7)
    columns = max(1, int(wide / 4.5))
    high += (0.2 if key == "other" else 0.36) * math.ceil(len(names) / columns)
    figure = blank_figure(_title(table, along, fixed, middle_only), table["setting"].iloc[0], wide, high)
    rows_columns = (len(shown), len(panels)) if len(panels) > 1 else (1, len(shown))
    grid = figure.subplots(*rows_columns, squeeze=False).reshape(len(shown), len(panels))
    for row, ((value, label, factor), line) in enumerate(zip(shown, grid, strict=True)):
        for axes, (title, rows) in zip(line, panels, strict=True):
            for name, (colour, marker, dash) in looks.items():
                mine = rows[rows[key] == name].sort_values(axis)
                axes.plot(mine[axis] / scale, mine[value] * factor, color=colour, marker=marker, ls=dash, ms=5)
            if axis == DRAM and rows[CLIFF].notna().any():
                _mark_cliff(axes, rows[CLIFF].max() / scale)
            lines = [wrapped(str(part)) for part in title]
            if row == 0:
                axes.set_title("\n".join([*lines, price(rows)] if key == "other" else lines), weight="bold")
            of = table[table["trace"] == rows["trace"].iloc[0]] if value == "tokens_per_s" else table
            axes.set_ylim(0, 1.05 * factor * of[value].max() or 1)  # speeds of models differ too much for one scale
            axes.set_xlabel(unit if row == len(shown) - 1 or len(panels) == 1 else "")
            axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10)))
        line[0].set_ylabel(label)
    labels = names
    if key == "policy":
        labels = [f"{wrapped(name, 48)}\n{price(table[table['policy'] == name])}" for name in names]
    figure.legend(grid[0][0].lines[: len(labels)], labels, loc="outside lower center", ncols=columns, handlelength=3.5)
    return figure


def _mark_cliff(axes: Axes, at: float) -> None:
    """Mark the DRAM below which a cache does not hold the experts of one token."""
    axes.axvline(at, color="0.35", lw=1.2, ls=(0, (1, 1)), zorder=0)
    axes.annotate(
        "one token's experts", (at, 0.02), (-2, 0), ("data", "axes fraction"), "offset points",
        rotation=90, ha="right", fontsize=7, color="0.35",
    )  # fmt: skip


def _title(table: pd.DataFrame, along: str, fixed: str, middle_only: bool) -> str:
    """What is on the axis, and what is held; nothing of what each device or trace has of its own."""
    names = {DRAM: "DRAM", FLASH: "Flash"}
    values = table[fixed].unique()
    middle = f", {names[fixed]} of middle size" if middle_only else ""
    held = f", {names[fixed]} {show(values[0], NAMES[fixed][1])}" if len(values) == 1 else middle
    return f"Speed against {names[along]}{held}"


def draw_bars(table: pd.DataFrame) -> Figure:
    """Speed, hit rate and perplexity, a row a point: for sweeps of neither DRAM nor Flash."""
    names = join_columns(table, ["case", "policy"] if varies(table["case"]) else ["policy"])
    dram = [] if varies(table[DRAM]) else [f"DRAM {show(table[DRAM].iloc[0], 'size')}"]
    setting = " · ".join([heading(table), *dram])
    figure = blank_figure("Speed, and its price", setting, 12, 0.9 + 0.3 * len(table))
    *bars, prices = figure.subplots(1, 3, sharey=True, width_ratios=(1.4, 1, 1))
    for axes, values, title in zip(
        bars, (table["tokens_per_s"], 100 * table["hit_rate"]), ("tokens/s", "hit rate (%)"), strict=True
    ):
        drawn = axes.barh(range(len(table)), values, 0.66, color="#0072B2")
        axes.bar_label(drawn, [significant(value) for value in values], padding=3)
        axes.set_title(title)
        axes.set_xlim(0, 1.3 * values.max() or 1)
    draw_prices(prices, *(table[name].to_numpy() for name in ("perplexity", "perplexity_standard_error")))
    for axes in (*bars, prices):
        axes.tick_params(axis="y", length=0, grid_linewidth=0)
    prices.set_yticks(range(len(table)), [wrapped(name, 60) for name in names])
    prices.invert_yaxis()
    return figure
