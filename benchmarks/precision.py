"""Bits instead of zeros on a real model, beside DIP and DIP-CA: tables and figure of docs/background/precision.md.

`python benchmarks/precision.py` prints the tables; `--write` also puts them and the figure there.
`--measured TABLE ...` keeps what evaluations found, from their `quality.csv`, and `--trained TABLE ...` what they found
with weights that were trained.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from page import ROOT, Rows, keep, show

from dipsim.basics.files import write
from dipsim.figures.pareto import BUDGETS, front
from dipsim.figures.style import COLOURS, MARKERS, STYLE, blank_figure

MEASURED, TRAINED = (ROOT / f"benchmarks/data/{name}.csv" for name in ("precision", "precision-trained"))
SETTING = ("device", "layout", "mlp_fraction", "tokens", "policy", "setting")
KEPT = (*SETTING, "perplexity", "standard_error", "tokens_per_s", "mlp_fraction_read")
FORMATS = {"mlp_fraction": ".0%", "tokens": ","}
NAMES = {"dip": "DIP", "dip-ca": "DIP-CA", "precision": "**precision**"}


def collect(paths: list[str], out: Path) -> None:
    """Keep what evaluations measured, one row a setting."""
    rows = []
    for path in paths:
        for row in pd.read_csv(path, keep_default_na=False).to_dict("records"):
            parameters = {key: value for key, value in json.loads(row["parameters"]).items() if key != "calibration"}
            layout = json.loads(row["memory"] or "{}").get("layout", "")
            more = {"policy": _curve(row["policy"], parameters), "setting": json.dumps(parameters), "layout": layout}
            rows.append(row | more)
    table = pd.DataFrame(rows)[list(KEPT)].drop_duplicates(list(SETTING)).sort_values(list(SETTING), kind="stable")
    write(out, table.to_csv(index=False))


def _curve(policy: str, parameters: dict[str, object]) -> str:
    """The name of the curve that a setting lies on."""
    name = NAMES.get(policy, policy)
    return f"{name}, all that is resident used" if parameters.get("free") else name


def measured(path: Path) -> pd.DataFrame:
    """All rows, with the increase of perplexity and the speed-up over dense on the same device at the same DRAM."""
    table = pd.read_csv(path, keep_default_na=False)
    where = ["device", "mlp_fraction", "tokens"]
    dense = table[table["policy"] == "dense"].groupby(where).first()
    base = dense.reindex(pd.MultiIndex.from_frame(table[where]))
    table["increase"] = table["perplexity"] - base["perplexity"].to_numpy()
    table["speedup"] = table["tokens_per_s"] / base["tokens_per_s"].to_numpy()
    return table[table["policy"] != "dense"]


def within(rows: pd.DataFrame, budget: float) -> float:
    """The best speed-up that was measured within a budget of perplexity; NaN if there is none."""
    return float(rows.loc[rows["increase"] <= budget, "speedup"].max())


def between(rows: pd.DataFrame, budget: float) -> float:
    """The speed-up at a budget, between neighbours of a curve by speed; the best of curves that differ in gamma."""
    best = float("nan")
    gammas = rows["setting"].map(lambda text: json.loads(text).get("gamma"))
    for _, curve in rows.groupby(gammas, dropna=False):
        ordered = curve.sort_values("speedup")
        more, gain = ordered["increase"].to_numpy(), ordered["speedup"].to_numpy()
        for left in np.flatnonzero((more[:-1] <= budget) & (more[1:] > budget)):
            at = gain[left] + (gain[left + 1] - gain[left]) * (budget - more[left]) / (more[left + 1] - more[left])
            best = float(np.nanmax([best, at]))
    return best


def budgets(table: pd.DataFrame) -> Rows:
    """Speed-ups within budgets, measured and between measured points, for each DRAM share and curve."""
    head = ["DRAM, share of the MLP", "tokens", "policy"]
    rows = [[*head, *(f"+{budget:g}" for budget in BUDGETS), *(f"at +{budget:g}" for budget in BUDGETS)]]
    paper = table[table["device"] == "paper"]
    paper = paper.sort_values("policy", key=lambda names: names.str.strip("*"), kind="stable")
    for (tokens, fraction), policy, mine in (
        (where, policy, mine)
        for where, here in paper.groupby(["tokens", "mlp_fraction"])
        for policy, mine in here.groupby("policy", sort=False)
    ):
        found = [within(mine, budget) for budget in BUDGETS] + [between(mine, budget) for budget in BUDGETS]
        rows.append(
            [f"{fraction:.0%}", f"{tokens:,}", str(policy), *("-" if np.isnan(x) else f"{x:.2f}" for x in found)]
        )
    return rows


def points(table: pd.DataFrame, where: dict[str, str]) -> Rows:
    """Every point of the method, by columns `where` of the table with their titles."""
    rows = [[*where.values(), "price", "perplexity", "speed-up over dense", "MLP read"]]
    mine = table[table["policy"] == NAMES["precision"]]
    for row in mine.sort_values([*reversed(where), "speedup"]).to_dict("records"):
        price, paid = json.loads(row["setting"])["price"], f"{row['increase']:+.3f} ± {row['standard_error']:.3f}"
        named = [format(row[name], FORMATS.get(name, "")) for name in where]
        rows.append([*named, f"{price:g}", paid, f"{row['speedup']:.2f}", f"{row['mlp_fraction_read']:.1%}"])
    return rows


def pareto(table: pd.DataFrame) -> Figure:
    """Increase of perplexity against speed-up over dense, a panel a DRAM share."""
    paper = table[(table["device"] == "paper") & (table["tokens"] == table["tokens"].min())]
    fractions, policies = sorted(paper["mlp_fraction"].unique()), sorted(paper["policy"].unique())
    with style.context(["default", STYLE]):
        setting = f"SmolLM2-135M on paper · serial · {paper['tokens'].min():,} tokens of WikiText-2's test text"
        figure = blank_figure("Bits instead of zeros", setting, 3.6 * len(fractions), 3.8)
        panels = np.atleast_1d(figure.subplots(1, len(fractions), sharey=True))
        for axes, fraction in zip(panels, fractions, strict=True):
            for index, policy in enumerate(policies):
                mine = front(paper[(paper["mlp_fraction"] == fraction) & (paper["policy"] == policy)])
                look = {"color": COLOURS[index], "marker": MARKERS[index], "label": policy.strip("*")}
                axes.errorbar(
                    mine["speedup"], mine["increase"], mine["standard_error"], lw=1.3, ms=4, capsize=2, **look
                )
            for budget in BUDGETS:
                axes.axhline(budget, color="0.6", lw=0.8, ls=":")
            axes.set_title(f"DRAM for {fraction:.0%} of the MLP")
            axes.set_xlabel("speed-up over dense at the same DRAM")
            axes.set_ylim(-0.05, 1.6)
            axes.xaxis.set_major_formatter(ScalarFormatter())
        panels[0].set_ylabel("increase of perplexity")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(policies))
    return figure


def main() -> int:
    for option, path in (("--measured", MEASURED), ("--trained", TRAINED)):
        if option in sys.argv:
            collect(sys.argv[sys.argv.index(option) + 1 :], path)
            return 0
    table = measured(MEASURED)
    keep(pareto(table), "background/precision/pareto")
    shares, on_paper = {"mlp_fraction": "DRAM, share of the MLP", "tokens": "tokens"}, table["device"] == "paper"
    tables = {
        "budgets": budgets(table),
        "points": points(table[on_paper], shares),
        "real": points(table[~on_paper], {"device": "device"}),
        "trained": points(measured(TRAINED), shares),
    }
    show(tables, Path(ROOT / "docs/background/precision.md"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
