"""The figure of `solve`: what was looked for against what it brings, around the answers."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure

from dipsim.basics.units import DIMENSIONS, unit_of
from dipsim.figures.style import COLOURS, DASHES, MARKERS, STYLE, blank_figure, save_figure
from dipsim.figures.sweep_table import price
from dipsim.results.csv_table import AMOUNT, POSITIVE, SMALLEST, TEXT, Column, read_table, refuse_rows
from dipsim.results.folder import made_again

SAMPLES, ANSWERS = "samples.csv", "solve.csv"
_SAMPLE = {
    **dict.fromkeys(("unknown", "dimension", "target", "unit", "case", "model", "device"), TEXT),
    **dict.fromkeys(("layout", "eviction", "start", "timing"), TEXT),
    **dict.fromkeys(("value", "limit", "tokens"), POSITIVE),
    "found": AMOUNT,
    "perplexity": Column(float, SMALLEST, empty=np.nan),
}


def draw_solve(folder: Path) -> list[Path]:
    """Draw `solve.png` and `.svg` into a folder of `solve`; return the paths.

    Raises InputError if its tables are missing or damaged.
    """
    with style.context(["default", STYLE]):
        return save_figure(_figure(*read_solve(folder)), folder / "solve")


def read_solve(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read `samples.csv` and `solve.csv`. Raises InputError if one is missing, or is no such table."""
    with made_again(folder, "solve"):
        samples = read_table(folder / SAMPLES, _SAMPLE)
        refuse_rows(folder / SAMPLES, ~samples["dimension"].isin(["", *DIMENSIONS]), "its dimension is none")
        return samples, read_table(folder / ANSWERS, _SAMPLE | {"answer": TEXT})


def _figure(samples: pd.DataFrame, answers: pd.DataFrame) -> Figure:
    """A line a policy, marked where it was simulated, and a ring at its answer."""
    first, limit = samples.iloc[0], float(samples["limit"].iloc[0])
    unit, scale = unit_of(answers["value"], first["dimension"]) if first["dimension"] else ("", 1.0)
    same = " · ".join(str(first[name]) for name in ("layout", "eviction", "start", "timing"))
    setting = f"{first['model']} on {first['device']} · {first['tokens']:,.0f} tokens · {same}"
    figure = blank_figure(f"{first['unknown']} for {first['target']}", setting, 7, 3.4 + 0.2 * len(answers))
    axes, sign = figure.subplots(), -1.0 if first["unit"] == "tokens/s" else 1.0
    looks = zip(answers.to_dict("records"), cycle(COLOURS), cycle(MARKERS), cycle(DASHES), strict=False)
    for answer, colour, marker, dash in looks:
        mine = samples[samples["case"] == answer["case"]].sort_values("value")
        told = f"{answer['answer'] or 'not reached'}, {price(pd.DataFrame([answer]))}"
        values = np.unique([*mine["value"], *np.linspace(mine["value"].min(), mine["value"].max(), 1000)])
        found = np.maximum(mine["found"].to_numpy(), SMALLEST) ** sign
        between = np.interp(values, mine["value"], found) ** sign  # the time of a token is close to a straight line
        tried = np.flatnonzero(np.isin(values, mine["value"])).tolist()
        look: dict[str, Any] = {"color": colour, "ms": 3, "lw": 1.2, "markevery": tried}
        axes.plot(values / scale, between, marker + dash, label=f"{answer['case']}\n{told}", **look)
        if answer["answer"]:
            axes.plot(answer["value"] / scale, answer["found"], "o", mfc="none", mec=colour, ms=10, mew=1.6)
    axes.axhline(limit, color="0.35", lw=1, ls=(0, (1, 1)), zorder=0)
    low, high = answers["value"].min() / scale, answers["value"].max() / scale
    ends = samples["value"].min() / scale, samples["value"].max() / scale
    margin = 0.02 * (min(high * 1.4, ends[1]) - max(low / 1.4, ends[0]))
    axes.set_xlim(max(low / 1.4, ends[0]) - margin, min(high * 1.4, ends[1]) + margin)
    near = samples["found"][np.isfinite(samples["found"])]
    axes.set_ylim(0, min(2.2 * limit, 1.05 * max(near.max(), limit)))
    axes.set_xlabel(f"{first['unknown']} ({unit})" if unit else str(first["unknown"]))
    axes.set_ylabel(str(first["unit"]))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1.02), labelspacing=0.9, handlelength=3.5)
    return figure
