"""The figures of a sweep, drawn from `sweep.csv` alone: where in the grid each policy is how fast, and its price."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib import style
from matplotlib.figure import Figure

from dipsim.figures.gains import draw_gains, gains, map_axes
from dipsim.figures.lines import draw_bars, draw_lines
from dipsim.figures.maps import draw_maps, draw_winner
from dipsim.figures.style import STYLE, save_figure
from dipsim.figures.sweep_table import DRAM, FLASH, WITHOUT, read_sweep, swept_alone, varies


def draw_sweep(folder: Path) -> list[Path]:
    """Draw every figure of a sweep's folder into it, as PNG and SVG; return the paths written.

    Raises InputError, before anything is written, if its table is missing or not one.
    """
    table = read_sweep(folder / "sweep.csv")
    cases = table.groupby("case", sort=False)
    with style.context(["default", STYLE]):
        figures: dict[str, Figure] = {}
        for of in WITHOUT:
            if len(map_axes(found := gains(table, of), of)) == 2:
                figures[of] = draw_gains(found, of)
        for case, rows in cases:
            suffix = f"_{_slug(str(case))}" if len(cases) > 1 else ""
            if varies(rows[DRAM]) and varies(rows[FLASH]):
                figures[f"speed{suffix}"] = draw_maps(rows, "tokens_per_s", "Speed (tokens/s)")
                pruned = rows[(rows["policy"] != "dense") & rows["speedup"].notna()]
                if len(pruned):
                    title = "Speed-up over dense, same DRAM and Flash"
                    figures[f"speedup{suffix}"] = draw_maps(pruned, "speedup", title)
                if varies(rows["policy"]):
                    figures[f"winner{suffix}"] = draw_winner(rows)
        if swept_alone(table, DRAM):
            figures["dram"] = draw_lines(table, DRAM, FLASH)
        if swept_alone(table, FLASH):
            figures["flash"] = draw_lines(table, FLASH, DRAM)
        if not figures:
            figures["policies"] = draw_bars(table)
        return [path for name, figure in figures.items() for path in save_figure(figure, folder / name)]


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower()
