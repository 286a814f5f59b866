"""What a perplexity budget buys: the quality table of an evaluation, as a figure and as best speed-ups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.ticker import ScalarFormatter

from dipsim.figures.style import COLOURS, MARKERS, STYLE, blank_figure, save_figure

BUDGETS = (0.1, 0.2, 0.5, 1.0)


def label(row: Any) -> str:
    """`dip-ca(gamma=0.5, keep=0.7)` without parameters that are 0 or false."""
    shown = [
        part
        for part in row["parameters"].strip("{}").replace('"', "").split(", ")
        if not part.endswith((": 0", ": false"))
    ]
    return f"{row['policy']}({', '.join(shown).replace(': ', '=')})" if any(shown) else row["policy"]


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """Those of one policy's rows that no other beats in both speed and perplexity, the fastest first."""
    ordered = rows.sort_values(["tokens_per_s", "perplexity"], ascending=[False, True], kind="stable")
    best = ordered["perplexity"].cummin()
    return ordered[(ordered["perplexity"] == best) & ~best.duplicated()]


def speedups(table: pd.DataFrame, baseline: str = "dense") -> pd.DataFrame:
    """Best speed-up over a policy at the same DRAM within each perplexity budget, one row a DRAM share and policy.

    The columns are `mlp_fraction`, `policy`, then for each budget the ratio and the setting that gives it. A setting
    counts only if it was measured. A cell is empty where no setting stays within the budget.
    """
    rows = []
    for (fraction, *_), at in table.groupby(["mlp_fraction", "eviction", "device", "timing"]):
        if baseline not in set(at["policy"]):
            continue  # nothing to compare with
        base = at[at["policy"] == baseline].iloc[0]
        for policy, mine in at[at["policy"] != baseline].groupby("policy", sort=False):
            row: dict[str, object] = {"mlp_fraction": fraction, "policy": policy}
            for budget in BUDGETS:
                within = mine[mine["perplexity"] <= base["perplexity"] + budget]
                if len(within):
                    best = within.loc[within["tokens_per_s"].idxmax()]
                    row[f"+{budget}"] = f"{best['tokens_per_s'] / base['tokens_per_s']:.2f}x"
                    row[f"+{budget} setting"] = label(best)
                else:
                    row[f"+{budget}"] = row[f"+{budget} setting"] = ""
            rows.append(row)
    return pd.DataFrame(rows)


def draw_pareto(table: pd.DataFrame, folder: Path, baseline: str = "dense") -> list[Path]:
    """Draw `pareto.png` and `.svg`: perplexity against tokens/s, a panel a DRAM share, a front a policy."""
    fractions = sorted(table["mlp_fraction"].unique())
    policies = list(dict.fromkeys(table["policy"]))
    with style.context(["default", STYLE]):
        first = table.iloc[0]
        fixed = [name for name in ("model", "device", "eviction", "timing") if len(table[name].unique()) == 1]
        setting = [*(str(first[name]) for name in fixed), f"{first['tokens']:,} tokens of {first['text']}"]
        figure = blank_figure("Perplexity against speed", " · ".join(setting), 4.2 * len(fractions), 4.2)
        panels = np.atleast_1d(figure.subplots(1, len(fractions), sharey=True))
        for axes, fraction in zip(panels, fractions, strict=True):
            at = table[table["mlp_fraction"] == fraction]
            for index, policy in enumerate(policies):
                mine = at[at["policy"] == policy]
                look = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}
                axes.scatter(mine["tokens_per_s"], mine["perplexity"], s=26, alpha=0.45, **look)
                spots = (mine[name] for name in ("tokens_per_s", "perplexity", "standard_error"))
                axes.errorbar(*spots, fmt="none", ecolor=look["color"], elinewidth=0.9, capsize=2, alpha=0.7)
                best = front(mine).sort_values("tokens_per_s")
                axes.plot(best["tokens_per_s"], best["perplexity"], label=policy, lw=1.3, ms=6, **look)
            for perplexity in at[at["policy"] == baseline]["perplexity"].head(1):
                axes.axhline(perplexity, color="0.6", lw=0.8, ls=":")
            axes.set_title(f"DRAM for {fraction:.0%} of the MLP")
            axes.set_xlabel("tokens/s")
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(ScalarFormatter())
        panels[0].set_ylabel("perplexity (lower is better)")
        lowest, highest = table["perplexity"].min(), table["perplexity"].max()
        panels[0].set_ylim(0.985 * lowest, 1.05 * min(highest, 2 * lowest))  # beyond twice the perplexity nobody ships
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(len(policies), 8))
        return save_figure(figure, folder / "pareto")
