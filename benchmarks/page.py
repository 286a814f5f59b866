"""What the scripts that write a page of the documentation share: sweeps that resume, and tables in their places."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from dipsim.figures.style import save_figure
from dipsim.figures.sweep import draw_sweep
from dipsim.results.quality import NOT_MEASURED
from dipsim.study.experiment import Experiment
from dipsim.study.sweep import sweep

ROOT = Path(__file__).resolve().parent.parent
Rows = list[list[str]]


def simulate(name: str, same: list[str]) -> pd.DataFrame:
    """The table of the sweep `examples/{name}.yaml`, computed as far as it is missing.

    Each point has its `speedup` over dense where the columns `same` are equal.
    """
    folder, path = ROOT / "results" / name, ROOT / f"examples/{name}.yaml"
    table = sweep(Experiment.load(path), folder, workers=len(os.sched_getaffinity(0)), where=path, progress=_say(name))
    draw_sweep(folder)
    dense = table[table["policy"] == "dense"].set_index(same)["tokens_per_s"]
    table["speedup"] = table["tokens_per_s"] / dense.reindex(pd.MultiIndex.from_frame(table[same])).to_numpy()
    return table


def _say(name: str) -> Callable[[str, int, int], None]:
    def say(what: str, done: int, total: int) -> None:
        if what == "points":
            print(f"{name}: {done} of {total} points", file=sys.stderr)

    return say


def keep(figure: Figure, name: str) -> None:
    """Save a figure as `results/{name}`; with `--write` on the command line, its PNG also as `docs/{name}.png`."""
    drawn = save_figure(figure, ROOT / "results" / name)
    if "--write" in sys.argv:
        target = ROOT / f"docs/{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(next(path for path in drawn if path.suffix == ".png"), target)


def price(points: pd.DataFrame) -> str:
    """The perplexity of these points, as a table says it."""
    found = {NOT_MEASURED if pd.isna(p) else f"{p:.2f}" for p in points["perplexity"]}
    return found.pop() if len(found) == 1 else f"partly {NOT_MEASURED}" if NOT_MEASURED in found else "several"


def markdown(rows: Rows) -> str:
    """A table whose first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def show(tables: Mapping[str, Rows], page: Path) -> None:
    """Print the tables; with `--write` on the command line, also put them between their marks on a page."""
    for name, rows in tables.items():
        print(f"{name}\n{markdown(rows)}\n")
    if "--write" in sys.argv:
        text = page.read_text(encoding="utf-8")
        for name, rows in tables.items():
            filled = f"{markdown(rows)}\n"
            pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
            text = re.sub(pattern, lambda m, filled=filled: m[1] + filled + m[2], text, flags=re.DOTALL)  # type: ignore[misc]
        page.write_text(text, encoding="utf-8")
