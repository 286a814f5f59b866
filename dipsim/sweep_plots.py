"""The figures of a sweep, drawn from `sweep.csv` alone: where in the grid which policy is how fast, and its price.

Style and promises are those of `plots.py`. A *case* is all that a grid has besides DRAM size, Flash speed and policy:
trace, eviction, timing, ... Maps are drawn for each case; lines compare traces side by side, and within a panel either
policies or, where there are several, the other cases.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from dipsim.files import InputError
from dipsim.outputs import digits
from dipsim.plots import COLOURS, DASHES, LUMINANCE, MARKERS, STYLE, blank, save
from dipsim.sweep_run import NOT_MEASURED
from dipsim.units import show
from dipsim.work import Floats

TEXTS = ("trace", "model", "device", "eviction", "timing", "prompt", "stream_static", "policy", "perplexity", "key")
NUMBERS = ("dram_bytes", "mlp_fraction_in_dram", "flash_bandwidth_bytes_per_s", "tokens", "tokens_per_s", "hit_rate")
DRAM, FLASH = "dram_bytes", "flash_bandwidth_bytes_per_s"
AXES = {DRAM: "DRAM (GB)", FLASH: "Flash read bandwidth (GB/s)"}
STREAMED = {"True": "static weights streamed", "False": "static weights in DRAM"}
LEVELS = np.outer(10.0 ** np.arange(-4, 6), (1, 1.5, 2, 3, 5, 7)).ravel()  # of iso-lines


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep, not of a run."""
    return (folder / "sweep.csv").is_file()


def draw(folder: Path) -> list[Path]:
    """Draw every figure of a sweep's folder into it, as PNG and SVG; the paths written.

    Raises InputError, before anything is written, if its table is missing or not one.
    """
    table = _read(folder / "sweep.csv")
    cases = table.groupby("case", sort=False)
    with style.context(["default", STYLE]):
        figures: dict[str, Figure] = {}
        for case, rows in cases:
            suffix = f"_{_slug(str(case))}" if len(cases) > 1 else ""
            if _varies(rows[DRAM]) and _varies(rows[FLASH]):
                figures[f"speed{suffix}"] = _maps(rows, "tokens_per_s", "Speed (tokens/s)")
                if rows["speedup"].notna().any():
                    pruned = rows[rows["policy"] != "dense"]
                    figures[f"speedup{suffix}"] = _maps(pruned, "speedup", "Speed-up over dense, same DRAM and Flash")
                if _varies(rows["policy"]):
                    figures[f"winner{suffix}"] = _winner(rows)
        if _varies(table[DRAM]):
            figures["dram"] = _lines(table, DRAM, FLASH)
        if _varies(table[FLASH]):
            figures["flash"] = _lines(table, FLASH, DRAM)
        if not figures:
            figures["policies"] = _bars(table)
        return [path for name, figure in figures.items() for path in save(figure, folder / name)]


def _read(path: Path) -> pd.DataFrame:
    """The table, with each row's `case` (what varies), `other` (without the trace) and `speedup` over dense."""
    again = f"run `python -m dipsim sweep --out {path.parent}` again"
    types: dict[str, Any] = {**dict.fromkeys(TEXTS, str), **dict.fromkeys(NUMBERS, float)}
    try:
        table = pd.read_csv(path, dtype=types, usecols=lambda name: name in types or "." in name, keep_default_na=False)
        table["perplexity"].where(table["perplexity"] != NOT_MEASURED, "nan").astype(float)
        table["stream_static"] = table["stream_static"].map(STREAMED)
        good = not table.empty and np.isfinite(table[list(NUMBERS)]).all(axis=None)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}; {again}") from None
    if not good or (table["tokens_per_s"] <= 0).any():
        raise InputError(f"{path}: is empty, or a number in it is not; {again}")
    hardware = [name for name in table.columns if "." in name and name != "flash.read_bandwidth"]  # as swept
    table["tokens"] = table["tokens"].map("{:,.0f} tokens".format)
    for name in (*hardware, "eviction", "timing", "prompt"):
        table[name] = f"{name} " + table[name].astype(str)
    settings = ["trace", "device", *hardware, "eviction", "timing", "prompt", "stream_static", "tokens"]
    varying = [name for name in settings if _varies(table[name])]
    table["setting"] = _join(table, [name for name in [*settings[:-3], "tokens"] if name not in varying])
    table["case"] = _join(table, varying)
    table["other"] = _join(table, [name for name in varying if name != "trace"])
    point = pd.MultiIndex.from_frame(table[["case", DRAM, FLASH]])
    dense = table["tokens_per_s"].set_axis(point)[(table["policy"] == "dense").to_numpy()]
    table["speedup"] = table["tokens_per_s"] / dense.reindex(point).to_numpy()
    return table


def _join(table: pd.DataFrame, names: Sequence[str]) -> pd.Series[str]:
    return table[list(names)].astype(str).agg(" · ".join, axis=1) if names else pd.Series("", index=table.index)


def _varies(values: pd.Series[Any]) -> bool:
    return len(values.unique()) > 1


def _price(rows: pd.DataFrame) -> str:
    """The perplexity of these points, from the lowest to the highest."""
    known = rows.loc[rows["perplexity"] != NOT_MEASURED, "perplexity"].astype(float)
    if known.empty:
        return f"perplexity: {NOT_MEASURED}"
    low, high = float(known.min()), float(known.max())
    span = digits(low, 4) + (f" to {digits(high, 4)}" if high > low else "")
    return f"perplexity: {span}" + (f" ({len(known)} of {len(rows)} measured)" if len(known) < len(rows) else "")


def _maps(rows: pd.DataFrame, value: str, title: str) -> Figure:
    """A map DRAM x Flash for each policy, in one scale: speeds with iso-lines, ratios with their figures."""
    policies = list(dict.fromkeys(rows["policy"]))
    columns = min(3, len(policies))
    height = math.ceil(len(policies) / columns)
    figure = blank(title, _heading(rows), max(3.7 * columns + 0.8, 6), 3.2 * height)
    grid = figure.subplots(height, columns, sharex=True, sharey=True, squeeze=False).ravel()
    low, high = rows[value].min(), rows[value].max()
    norm = LogNorm(low * 0.999, high * 1.001)
    image = None
    for index, (axes, policy) in enumerate(zip(grid, policies, strict=False)):
        mine = rows[rows["policy"] == policy]
        cells = mine.pivot_table(index=DRAM, columns=FLASH, values=value)
        image = axes.imshow(cells, norm=norm, cmap="viridis", origin="lower", aspect="auto")
        if value == "speedup":
            _figures(axes, cells.to_numpy(), image)
        else:
            _isolines(axes, cells.to_numpy())
        _axes(axes, cells)
        axes.set_title(f"{policy}\n{_price(mine)}")
        lowest = index + columns >= len(policies)
        axes.set_xlabel(AXES[FLASH] if lowest else "")
        axes.tick_params(labelbottom=lowest)
        axes.set_ylabel(AXES[DRAM] if index % columns == 0 else "")
    for axes in grid[len(policies) :]:
        axes.remove()
    assert image is not None
    bar = figure.colorbar(image, ax=list(grid[: len(policies)]), format="{x:g}", pad=0.01)
    bar.set_ticks([level for level in LEVELS if low <= level <= high], minor=False)
    bar.minorticks_off()
    return figure


def _isolines(axes: Axes, cells: Floats) -> None:
    levels = LEVELS[(np.nanmin(cells) < LEVELS) & (np.nanmax(cells) > LEVELS)]
    if not levels.size:
        return
    lines = axes.contour(np.log(cells), levels=np.log(levels), colors="white", linewidths=1.4, linestyles="solid")
    lines.set_path_effects([withStroke(linewidth=2.6, foreground="black")])
    names = {float(np.log(level)): f"{level:g}" for level in levels}
    for text in axes.clabel(lines, fmt=names, fontsize=9):
        text.set(color="black", weight="bold", path_effects=[withStroke(linewidth=3, foreground="white")])


def _figures(axes: Axes, cells: Floats, image: AxesImage) -> None:
    shades = np.asarray(image.to_rgba(cells))
    for (row, column), value in np.ndenumerate(cells):
        ink = "white" if shades[row, column, :3] @ LUMINANCE < 0.5 else "black"
        axes.text(column, row, digits(value), color=ink, size=7.5, ha="center", va="center_baseline")


def _axes(axes: Axes, cells: pd.DataFrame) -> None:
    """The values of a map's rows and columns, evenly spaced whatever they are."""
    axes.set_xticks(range(len(cells.columns)), [f"{float(value) / 1e9:.3g}" for value in cells.columns])
    axes.set_yticks(range(len(cells.index)), [f"{float(value) / 1e9:.3g}" for value in cells.index])
    axes.grid(visible=False)


def _winner(rows: pd.DataFrame) -> Figure:
    """The fastest policy at every point of the map, and by how much it leads the next."""
    policies = list(dict.fromkeys(rows["policy"]))
    prices = [_price(rows[rows["policy"] == policy]) for policy in policies]
    speeds = np.stack(
        [rows[rows["policy"] == p].pivot_table(index=DRAM, columns=FLASH, values="tokens_per_s") for p in policies]
    )
    cells = rows.pivot_table(index=DRAM, columns=FLASH, values="tokens_per_s")
    order = np.sort(np.nan_to_num(speeds), axis=0)
    first, lead = np.nanargmax(speeds, axis=0), order[-1] / np.where(order[-2] > 0, order[-2], np.nan) - 1
    shades = colormaps["viridis"](np.linspace(0.95, 0.1, len(policies)))
    wide = max(0.75 * len(cells.columns) + 4.5, 7)
    figure = blank("Who is fastest where, and how far ahead of the next", _heading(rows), wide, 0.38 * len(cells) + 1)
    axes = figure.subplots()
    axes.imshow(shades[first], origin="lower", aspect="auto")
    for (row, column), winner in np.ndenumerate(first):
        ink = "white" if shades[winner][:3] @ LUMINANCE < 0.5 else "black"
        ahead = "" if np.isnan(lead[row, column]) else f" +{lead[row, column]:.0%}"
        axes.text(column, row, f"{_letter(winner)}{ahead}", color=ink, ha="center", va="center_baseline")
    _axes(axes, cells)
    axes.set_xlabel(AXES[FLASH])
    axes.set_ylabel(AXES[DRAM])
    names = [
        f"{_letter(index)}  {policy}{'' if index in first else ' (nowhere)'}\n     {price}"
        for index, (policy, price) in enumerate(zip(policies, prices, strict=True))
    ]
    handles = [Patch(facecolor=shade, edgecolor="0.3", lw=0.5) for shade in shades]
    axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.01, 1.02), labelspacing=0.8)
    return figure


def _letter(index: int) -> str:
    return chr(ord("A") + index % 26)


def _lines(table: pd.DataFrame, along: str, fixed: str) -> Figure:
    """Speed along one axis of the grid, at the middle of the other, and the hit rate or the speed-up."""
    ranks = table.groupby("trace")[fixed].rank(method="dense")  # DRAM sizes may differ from trace to trace
    table = table[ranks == table["trace"].map((ranks.groupby(table["trace"]).max() + 1) // 2)]
    key = "other" if _varies(table["other"]) else "policy"
    panels = list(table.groupby(["trace", "policy"] if key == "other" else ["trace"], sort=False))
    names = list(dict.fromkeys(table[key]))
    looks = dict(zip(names, zip(cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False), strict=False))
    second, label = ("hit_rate", "hit rate (%)") if along == DRAM else ("speedup", "speed-up over dense")
    axis, scale, unit = along, 1e-9, AXES[along]
    if along == DRAM and _varies(table["trace"]):
        axis, scale, unit = "mlp_fraction_in_dram", 100, "share of the MLP in DRAM (%)"
    wide, high = (3.3 * len(panels), 5.4) if len(panels) > 1 else (9, 3.4)
    columns = max(1, int(wide / 4.5))
    figure = blank(
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
        speed.set_title("\n".join([*lines, _price(rows)] if key == "other" else lines), weight="bold")
        fastest = table.loc[table["trace"] == rows["trace"].iloc[0], "tokens_per_s"].max()  # models differ too much
        speed.set_ylim(0, 1.05 * fastest)
        if table[second].notna().any():
            other.set_ylim(0, 1.05 * table[second].max() * (100 if second == "hit_rate" else 1))
        for axes in (speed, other):
            axes.set_xlabel(unit if axes is other or len(panels) == 1 else "")
            axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10)))
    grid[0][0].set_ylabel("tokens/s")
    grid[1][0].set_ylabel(label)
    labels = names if key == "other" else [f"{name}, {_price(table[table['policy'] == name])}" for name in names]
    figure.legend(grid[0][0].lines, labels, loc="outside lower center", ncols=columns, handlelength=3.5)
    return figure


def _title(table: pd.DataFrame, along: str, fixed: str) -> str:
    """What is on the axis, and what is held."""
    values = table[fixed].unique()
    held = show(values[0], "size" if fixed == DRAM else "bandwidth") if len(values) == 1 else "of middle size"
    names = {DRAM: "DRAM", FLASH: "Flash"}
    return f"Speed against {names[along]}, {names[fixed]} {held}"


def _bars(table: pd.DataFrame) -> Figure:
    """Speed and hit rate, a bar a point: for sweeps of neither DRAM nor Flash."""
    names = _join(table, ["case", "policy"] if _varies(table["case"]) else ["policy"])
    figure = blank("Speed, and its price", _heading(table), 11, 0.9 + 0.3 * len(table))
    grid = figure.subplots(1, 2, sharey=True, width_ratios=(1.5, 1))
    for axes, values, title in zip(
        grid, (table["tokens_per_s"], 100 * table["hit_rate"]), ("tokens/s", "hit rate (%)"), strict=True
    ):
        bars = axes.barh(range(len(table)), values, 0.66, color="#0072B2")
        labels = [digits(value) for value in values]
        if title == "tokens/s":
            labels = [f"{label}, {_price(table.iloc[[index]])}" for index, label in enumerate(labels)]
        axes.bar_label(bars, labels, padding=3)
        axes.set_title(title)
        axes.set_xlim(0, 1.6 * values.max() or 1)
        axes.tick_params(axis="y", length=0, grid_linewidth=0)
    grid[0].set_yticks(range(len(table)), names)
    grid[0].invert_yaxis()
    return figure


def _heading(rows: pd.DataFrame) -> str:
    return " · ".join(text for text in map(str, rows[["setting", "case"]].iloc[0]) if text)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower()
