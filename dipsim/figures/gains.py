"""What prefetch and drafts bring: maps of tokens/s over those of the same point without them, and where that is 1.

Guesses pay where Flash has time to spare and enough of them are right. So a map also says for how long Flash is idle
without them.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from dipsim.basics.arrays import Mask
from dipsim.basics.units import parse, show, significant
from dipsim.figures.maps import write_values
from dipsim.figures.style import blank_figure
from dipsim.figures.sweep_table import DRAM, SETTINGS, WITHOUT, is_own, is_swept, price, varies
from dipsim.results.labels import wrapped

FIXED = ("trace", "device", DRAM, "policy", *SETTINGS, "read_through", "stream_static", "tokens")
DIMENSIONS = ("size", "bandwidth", "time", "throughput", "rate")
WIDEST = 12  # a map of more columns has no room for values in its cells
UNSAID = ("layout", "prompt", "read_through", "stream_static")  # what only matters where it varies
LEAST = 1.05  # the colours reach this gain at least, so that a difference of nothing stays pale


def gains(table: pd.DataFrame, of: str) -> pd.DataFrame:
    """The points of a sweep with `prefetch` or `drafts` that are there without, too, all else equal.

    Of a point, `gain` is the ratio of tokens/s, `baseline` the tokens/s without, and `idle` the share of the time for
    which Flash then does nothing.
    """
    switch, off = WITHOUT[of]
    if switch not in table:
        return table.iloc[:0].assign(gain=1.0, baseline=1.0, idle=0.0)
    same = [name for name in _keys(table) if not is_own(name, of)]  # without it, its options change nothing
    twins = table[table[switch] == off].drop_duplicates(same)
    twins = twins.assign(baseline=twins["tokens_per_s"], idle=1 - twins["flash_utilisation"])
    found: pd.DataFrame = table[table[switch] != off].merge(twins[[*same, "baseline", "idle"]], on=same)
    return found.assign(gain=found["tokens_per_s"] / found["baseline"])


def map_axes(rows: pd.DataFrame, of: str) -> list[str]:
    """The two swept numbers that span a map, y first: one of its own options and one of all else, if there are both.

    Fewer if no two numbers vary.
    """
    numbers = [name for name in _keys(rows) if varies(rows[name]) and _numbers(rows[name]) is not None]
    own = [name for name in numbers if is_own(name, of)]
    others = [name for name in numbers if name not in own]
    return [*own[:1], *others[:1], *own[1:], *others[1:]][:2]


def draw_gains(rows: pd.DataFrame, of: str) -> Figure:
    """A map of `gains` for each value of all that varies besides the two numbers on its axes."""
    y, x = map_axes(rows, of)
    rest = [name for name in _keys(rows) if name not in (x, y) and varies(rows[name])]
    panels = list(rows.groupby(rest, sort=False)) if rest else [((), rows)]
    columns = min(3, len(panels))
    height = math.ceil(len(panels) / columns)
    wide, high = max(2.6, 0.6 * rows[x].nunique() + 0.9), max(1.6, 0.42 * rows[y].nunique())
    same = [_said(name, rows[name].iloc[0]) for name in _keys(rows) if name not in (x, y, *rest, *UNSAID)]
    setting = " · ".join(dict.fromkeys(same))
    title = f"What {of} {'brings' if of == 'prefetch' else 'bring'}: tokens/s over those without"
    figure = blank_figure(title, setting, wide * columns + 1.2, (high + 1.2) * height)
    grid = figure.subplots(height, columns, squeeze=False).ravel()
    reach = max(LEAST, rows["gain"].max(), 1 / rows["gain"].min())
    norm = LogNorm(1 / reach, reach)
    for axes, (values, mine) in zip(grid, panels, strict=False):
        image = _map(axes, mine, x, y, norm)
        named = " · ".join(_said(name, value) for name, value in zip(rest, values, strict=True))
        idle_said = _decides(mine, x) or _decides(mine, y)
        axes.set_title("\n".join(filter(None, [wrapped(named, 48), _baseline(mine, idle_said), price(mine)])))
    for axes in grid[len(panels) :]:
        axes.remove()
    bar = figure.colorbar(image, ax=list(grid[: len(panels)]), pad=0.01)
    ticks = [reach**power for power in (-1, -0.5, 0, 0.5, 1)]
    bar.set_ticks(ticks, labels=["break-even" if tick == 1 else f"{tick:.2f}" for tick in ticks])
    bar.minorticks_off()
    bar.ax.axhline(1, color="black", lw=2)
    return figure


def _map(axes: Axes, rows: pd.DataFrame, x: str, y: str, norm: LogNorm) -> AxesImage:
    """Cells in the order of the numbers on both axes, evenly spaced whatever they are."""
    placed = rows.assign(x=_numbers(rows[x]), y=_numbers(rows[y]))
    cells = placed.pivot_table(index="y", columns="x", values="gain")
    image = axes.imshow(cells, norm=norm, cmap="RdBu", origin="lower", aspect="auto")
    _break_even(axes, cells.to_numpy() >= 1)
    if len(cells.columns) <= WIDEST:
        write_values(axes, cells.to_numpy(), image)
    axes.set_xticks(range(len(cells.columns)), _ticks(placed.sort_values("x"), x))
    axes.set_yticks(range(len(cells.index)), _ticks(placed.sort_values("y"), y))
    axes.set_xlabel(_axis(rows, x))
    axes.set_ylabel(_axis(rows, y))
    axes.grid(visible=False)
    return image


def _break_even(axes: Axes, wins: Mask) -> None:
    """The line between cells [y, x] that win and cells that do not."""
    across, along = (np.argwhere(np.diff(wins, axis=axis)) for axis in (0, 1))
    edges = [((x - 0.5, y + 0.5), (x + 0.5, y + 0.5)) for y, x in across]
    edges += [((x + 0.5, y - 0.5), (x + 0.5, y + 0.5)) for y, x in along]
    axes.add_collection(LineCollection(edges, colors="black", linewidths=2, capstyle="projecting"))


def _ticks(rows: pd.DataFrame, name: str) -> list[str]:
    """What the rows, in order, have of a swept key, each once; with how long Flash is idle, if that decides it."""
    each = rows.drop_duplicates(name)
    texts = [_value(name, value) for value in each[name]]
    if not _decides(rows, name):
        return texts
    return [f"{text}\n{idle:.0%} idle" for text, idle in zip(texts, each["idle"], strict=True)]


def _axis(rows: pd.DataFrame, name: str) -> str:
    text = "DRAM" if name == DRAM else name
    return f"{text}\nand how long Flash is idle without" if _decides(rows, name) else text


def _decides(rows: pd.DataFrame, name: str) -> bool:
    """Whether this key decides, and no other, how long Flash is idle without guesses or drafts."""
    return varies(rows["idle"]) and not any(varies(idle) for _, idle in rows.groupby(name)["idle"])


def _baseline(rows: pd.DataFrame, idle_said: bool) -> str:
    """How fast the points are without, and for how long Flash is then idle, unless an axis says it."""
    speeds, idle = (sorted(set(rows[name])) for name in ("baseline", "idle"))
    text = f"without: {_range([significant(speed) for speed in speeds])} tokens/s"
    return text if idle_said else f"{text}, Flash {_range([f'{share:.0%}' for share in idle])} idle"


def _range(texts: list[str]) -> str:
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _keys(table: pd.DataFrame) -> list[str]:
    """The columns that say what a point is; the size of a cache is told by its DRAM."""
    return [*FIXED, *(name for name in table.columns if is_swept(name) and name != "cache.size")]


def _numbers(values: pd.Series[Any]) -> pd.Series[float] | None:
    """The values of a swept key as numbers in SI units; None if they are none."""
    numbers = values.map(_number)
    return None if numbers.isna().any() else numbers.astype(float)


def _number(value: Any) -> float:
    """NaN if it is not one."""
    if isinstance(value, (bool, np.bool_)):
        return math.nan
    with suppress(ValueError):
        return float(value)
    for dimension in DIMENSIONS:
        with suppress(ValueError):
            return parse(value, dimension, zero=True)
    return math.nan


def _value(name: str, value: Any) -> str:
    return show(value, "size") if name == DRAM else f"{value:g}" if isinstance(value, float) else str(value)


def _said(name: str, value: Any) -> str:
    """A value with the name of its key, unless it speaks for itself."""
    if name == "tokens":
        return f"{value:,.0f} tokens"
    text = _value(name, value)
    return text if name in ("trace", "device", "policy") else f"{'DRAM' if name == DRAM else name} {text}"
