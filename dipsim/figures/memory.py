"""The figure of `plan-memory`: what each layer and group has of the DRAM, and what a byte more would save there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dipsim.basics.units import show, significant, unit_of
from dipsim.figures.style import COLOURS, MARKERS, STYLE, blank_figure, save_figure
from dipsim.results.split import prices, read_split


def draw_memory(folder: Path) -> list[Path]:
    """Draw the figure of a folder into it, as PNG and SVG; return the paths written.

    Raises InputError, before anything is written, if its tables are missing or none.
    """
    memory, splits = read_split(folder)
    with style.context(["default", STYLE]):
        return save_figure(_split(memory, splits), folder / "memory")


def _split(memory: pd.DataFrame, splits: pd.DataFrame) -> Figure:
    policies = list(dict.fromkeys(splits["policy"]))
    first = splits.iloc[0]
    dram, tokens = show(first["dram_bytes"], "size"), f"{first['tokens']:,.0f} tokens"
    setting = f"{first['model']} · {first['device']} · DRAM {dram} · {tokens}"
    figure = blank_figure("DRAM split by what it saves", setting, 9.5, 2.9 * len(policies))
    grid = figure.subplots(len(policies), 2, squeeze=False)
    for (sizes, saves), policy in zip(grid, policies, strict=True):
        mine = memory[(memory["policy"] == policy) & memory["layer"].notna()]
        unit, scale = unit_of(mine[["even_bytes", "best_bytes"]].max(axis=1), "size")
        _lines(sizes, mine, "bytes", 1 / scale, f"cached ({unit})")
        _lines(saves, mine, "saves_s_per_byte", 1e9, "a MB more saves (ms a token)")
        sizes.set_title(f"{policy}\n{_speeds(splits[splits['policy'] == policy])}", weight="bold")
        saves.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _lines(axes: Axes, rows: pd.DataFrame, what: str, scale: float, label: str) -> None:
    """A line for each group and split, over the layers."""
    for (group, mine), colour, marker in zip(rows.groupby("part", sort=False), COLOURS, MARKERS, strict=False):
        for split, dash in (("even", "--"), ("best", "-")):
            values = mine[f"{split}_{what}"] * scale
            shown = marker if split == "best" else ""
            look: dict[str, Any] = {"color": colour, "ls": dash, "marker": shown, "ms": 4, "ds": "steps-mid"}
            axes.plot(mine["layer"], values, label=f"{group}, {split}", **look)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel("layer")
    axes.set_ylabel(label)


def _speeds(rows: pd.DataFrame) -> str:
    """How fast each split is, and the price."""
    pairs = zip(rows["split"], rows["latency_s"], strict=True)
    speeds = [f"{split} {significant(1 / latency)}" for split, latency in pairs]
    return f"tokens/s: {', '.join(speeds)} · perplexity: {', '.join(dict.fromkeys(prices(rows)))}"
