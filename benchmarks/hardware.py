"""What layout, reads and masks do on each device: runs `examples/hardware/*.yaml`, or what is missing of them.

`python benchmarks/hardware.py` prints the tables of docs/background/hardware.md; `--write` also puts them and the
figures there. `--measured FOLDER ...` keeps what evaluations of a real model found, for two of the tables.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from matplotlib import style
from matplotlib.figure import Figure
from page import ROOT, Rows, keep, price, show, simulate

from dipsim.basics import assets
from dipsim.basics.arrays import Floats
from dipsim.basics.files import write
from dipsim.figures.pareto import BUDGETS
from dipsim.figures.style import STYLE, blank_figure
from dipsim.memory.budget import column_bytes
from dipsim.planning.learn import learn_layout
from dipsim.results.quality import NOT_MEASURED
from dipsim.sparsity.plugins import load_policy
from dipsim.sparsity.policy import Policy
from dipsim.sparsity.selection import checked_groups
from dipsim.storage.flash import Flash
from dipsim.storage.learned import SUFFIX
from dipsim.storage.placement import Placement, fetch
from dipsim.study.experiment import MlpFraction
from dipsim.study.run import simulate as run_one
from dipsim.timing.device import Device
from dipsim.workload import Trace

SAME = ["trace", "device", "layout"]  # where a policy is compared with dense
MODELS = ("phi-3-medium", "llama-3-8b")
FACTORS = (1, 2, 4, 16)
KEEP, COLUMNS, TOKENS = 0.75, 2048, 8  # of the map
BY_HAND_POLICIES: tuple[tuple[str, dict[str, float]], ...] = (
    ("dip", {"keep": 0.75}),
    ("dip-ca", {"keep": 0.75, "gamma": 0.5}),
    ("dip-ca", {"keep": 0.5, "gamma": 0.5}),
)
BY_HAND: dict[str, tuple[dict[str, object], tuple[float, ...]]] = {  # popularity order, pinned, one layer, 128 tokens
    "`oneplus-12`": ({"read_bandwidth": "1.717 GB/s", "command_time": "12 us", "overlap": 2.15}, (1.06, 1.11, 1.80)),
    "3.7 GB/s, 8 us": ({"read_bandwidth": "3.7 GB/s", "command_time": "8 us"}, (1.02, 1.03, 1.31)),
    "7 GB/s, 1 us": ({"read_bandwidth": "7 GB/s", "command_time": "1 us"}, (1.14, 1.20, 2.11)),
}
MEASURED = ROOT / "docs/background/hardware/worth.csv"
RATIOS, RATES = np.geomspace(0.005, 200, 29), np.linspace(0.45, 0.95, 11)


def large(table: pd.DataFrame) -> Rows:
    """Speed-up over dense by device, model, policy and layout."""
    layouts = list(dict.fromkeys(table["layout"]))
    rows = [["device", "model", "policy", *(f"`{layout}`" for layout in layouts), "perplexity"]]
    for (device, trace, policy), mine in table.groupby(["device", "trace", "policy"], sort=False):
        if policy != "dense":
            found = mine.set_index("layout")["speedup"]
            rows.append([str(device), str(trace), f"`{policy}`", *(f"{found[x]:.2f}" for x in layouts), price(mine)])
    return rows


def reads(table: pd.DataFrame) -> Rows:
    """What a token of `dip` reads on one phone, by layout."""
    mine = table[(table["device"] == "oneplus-12") & (table["policy"] == f"dip(keep={KEEP})")]
    rows = [["model", "layout", "tokens/s", "reads a token", "mean read", "read amplification", "hit rate",
             "perplexity"]]  # fmt: skip
    for point in _records(mine.sort_values("trace", kind="stable")):
        numbers = (f"{point.tokens_per_s:.2f}", f"{point.flash_reads_per_token:,.0f}",
                   f"{point.mean_read_bytes / 1e3:,.0f} kB", f"{point.read_amplification:.2f}",
                   f"{point.hit_rate:.1%}")  # fmt: skip
        rows.append([str(point.trace), f"`{point.layout}`", *numbers, NOT_MEASURED])
    return rows


def _records(table: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, whose columns are attributes."""
    return table.itertuples()


def starts(table: pd.DataFrame) -> Rows:
    """Tokens/s by how caches begin."""
    rows = [["trace", "tokens", "policy", "warm", "cold", "filled", "hit rate warm", "cold", "filled", "perplexity"]]
    for (trace, tokens, policy), mine in table.groupby(["trace", "tokens", "policy"], sort=False):
        found = mine.set_index("start")
        speeds = [f"{found['tokens_per_s'][x]:.2f}" for x in ("warm", "cold", "filled")]
        rates = [f"{found['hit_rate'][x]:.1%}" for x in ("warm", "cold", "filled")]
        rows.append([str(trace), str(tokens), f"`{policy}`", *speeds, *rates, price(mine)])
    return rows


def longer_columns() -> Rows:
    """Speed-up over dense if columns were longer, or what a read costs besides its bytes smaller, by a factor."""
    policies = (load_policy("dip", keep=KEEP), load_policy("dip-ca", keep=0.5, gamma=0.5))
    points = [(name, policy) for name in assets.names("devices") for policy in policies]
    found = Parallel(len(os.sched_getaffinity(0)))(delayed(_by_factor)(*point) for point in points)
    rows = [["device", "policy", *(f"{factor} x" for factor in FACTORS), "perplexity"]]
    for (name, policy), gains in zip(points, found, strict=True):
        rows.append([name, f"`{policy.label}`", *(f"{gain:.2f}" for gain in gains), NOT_MEASURED])
    return rows


def _by_factor(name: str, policy: Policy) -> list[float]:
    trace, dense = Trace.open(MODELS[1]), load_policy("dense")
    devices = [Device.load(name).scaled(1 / factor, name) for factor in FACTORS]
    return [_tokens_per_s(trace, policy, each) / _tokens_per_s(trace, dense, each) for each in devices]


def _tokens_per_s(trace: Trace, policy: Policy, device: Device) -> float:
    size = MlpFraction(0.5).bytes(trace.shape, 128)
    return run_one(trace, policy, device, dram=size, layout="popularity", tokens=128).tokens_per_s


def by_hand() -> Rows:
    """Speed-up of Flash with `auto` beside what was found by hand on one layer, reads without pages."""
    rows = [["Flash", *(f"`{load_policy(name, **fields).label}`" for name, fields in BY_HAND_POLICIES), "perplexity"]]
    trace = Trace.open(MODELS[0])
    for name, (fields, found) in BY_HAND.items():
        device = Device.load("oneplus-12").replace(**{"flash": fields})
        dense = _flash_s(trace, load_policy("dense"), device)
        gains = [dense / _flash_s(trace, load_policy(name, **fields), device) for name, fields in BY_HAND_POLICIES]
        cells = (f"{gain:.2f} ({hand:.2f} by hand)" for gain, hand in zip(gains, found, strict=True))
        rows.append([name, *cells, NOT_MEASURED])
    return rows


def _flash_s(trace: Trace, policy: Policy, device: Device) -> float:
    size = MlpFraction(0.5).bytes(trace.shape, 128)
    result = run_one(trace, policy, device, dram=size, layout="auto", tokens=128)
    return float(result.timeline.busy_s[:, 0].sum())


def coactivation() -> Rows:
    """Reads of columns in Flash on tokens that the order was not learned from, on recorded activations."""
    rows = [
        ["policy", "pinned", "`hot-apart`, by index", "`popularity`", "`coactivation`", "fewer reads", "perplexity"]
    ]
    trace = Trace.open("smollm2-135m")
    policies = [("magnitude", {"fraction": 0.1}), ("magnitude", {"fraction": 0.5}), ("dip", {"keep": KEEP})]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"x{SUFFIX}"
        for name, fields in policies:
            policy = load_policy(name, **fields)
            masked = sum(len(group.matrices) for group in policy.groups(trace.shape))
            for share in (0.0, 0.5):  # of the masked matrices; those read whole come first
                pinned = 1 - masked / 3 + share * masked / 3
                told = {x: learn_layout(trace, policy, x, path, pinned=pinned) for x in ("hot-apart", "popularity",
                                                                                         "coactivation")}  # fmt: skip
                reads = [told[x].reads for x in told]
                fewer = f"{1 - reads[2] / reads[0]:.1%}"
                rows.append([f"`{policy.label}`", f"{share:.0%}", *(f"{n:,.0f}" for n in reads), fewer, NOT_MEASURED])
    return rows


def sizes() -> Rows:
    """What a read costs on each device beside the columns of each model."""
    rows = [["device", "a read costs as much as", *(f"{model}: column of {part}" for model in MODELS for part in
             ("gate and up", "down"))]]  # fmt: skip
    for name in assets.names("devices"):
        flash = Device.load(name).flash
        rows.append([name, f"{_cost(flash) / 1e3:.1f} kB", *(f"{size / 1e3:.1f} kB" for size in _columns())])
    return rows


def _columns() -> Iterator[float]:
    for model in MODELS:
        shape = Trace.open(model).shape
        for group in checked_groups(load_policy("dip"), shape):
            yield len(group.matrices) * column_bytes(shape, group)


def _cost(flash: Flash, size: float = 4096.0) -> float:
    """Bytes that could be read in the time that a read of a page costs besides its own bytes."""
    return flash.break_even(size)


def gain_map() -> Floats:
    """Speed-up of Flash over dense, [rates, ratios], of random masks over a cold half by hit rate and column size.

    A column is `ratio` times as long as what Flash reads in the time of a command.
    """
    rng = np.random.default_rng(0)
    found = np.empty((len(RATES), len(RATIOS)))
    for i, rate in enumerate(RATES):
        misses = np.zeros((TOKENS, COLUMNS), dtype=bool)
        misses[:, COLUMNS // 2 :] = rng.random((TOKENS, COLUMNS // 2)) < 2 * KEEP * (1 - rate)
        for j, ratio in enumerate(RATIOS):
            flash = Flash.model_validate({"read_bandwidth": "1 GB/s", "command_time": f"{float(1e-6 / ratio)} s"})
            place = Placement(np.arange(COLUMNS), COLUMNS // 2, 1, 1000.0, 1)
            dense = float(flash.batch_time([1], [1000.0 * COLUMNS / 2]))
            found[i, j] = dense / fetch(misses, place, flash).seconds(flash).mean()
    return found


def draw_map(table: pd.DataFrame) -> Figure:
    """The map, with each device and model where its columns and its measured hit rate put it."""
    gains = gain_map()
    setting = f"Flash time of dense over that of keep {KEEP}, half pinned, laid apart · marks: {MODELS[1]}, layout auto"
    figure = blank_figure("When does pruning pay?", setting, 10, 4.2)
    axes = figure.subplots()
    mesh = axes.pcolormesh(RATIOS, 100 * RATES, gains, vmin=1, vmax=3, cmap="Oranges", shading="gouraud")
    lines = axes.contour(RATIOS, 100 * RATES, gains, levels=[1.05, 1.2, 1.5, 2, 3], colors="black", linewidths=0.8)
    axes.clabel(lines, fmt=lambda level: f"{level:g} x")
    columns = iter(_columns())
    shown = {model: (next(columns), next(columns)) for model in MODELS}
    mine = table[(table["layout"] == "auto") & (table["policy"] == f"dip(keep={KEEP})")]
    costs = {name: _cost(Device.load(name).flash) for name in assets.names("devices")}
    there = [name for name, cost in costs.items() if cost and name in set(mine["device"])]
    markers = dict(zip(there, "osD^v<>PX*hpd8H", strict=False))
    for point in _records(mine[mine["trace"] == MODELS[1]]):
        for size, filled in zip(shown[MODELS[1]], ("white", "black"), strict=True):
            if cost := costs[str(point.device)]:
                axes.plot(size / cost, 100 * point.hit_rate, markers[str(point.device)], mfc=filled, mec="black", ms=7)
    for name, marker in markers.items():
        axes.plot([], [], marker, mfc="white", mec="black", label=name)
    axes.set(xscale="log", xlabel="column bytes / (bandwidth x command time)", ylabel="hit rate (%)")
    axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(loc="outside left center", title="white: gate and up\nblack: down")
    figure.colorbar(mesh, ax=axes, extend="max", label=f"speed-up of Flash (perplexity {NOT_MEASURED})")
    return figure


def collect(folders: list[str]) -> None:
    """Keep what evaluations of `examples/hardware/*.yaml` measured, from their `summary.json`.

    Evaluations of one setting on different texts are of parts of one, and count together.
    """
    rows = []
    for folder in map(Path, folders):
        text = pd.read_csv(folder / "quality.csv")["text"].iloc[0]
        for run in json.loads((folder / "summary.json").read_text()):
            name, _, page = run["device"].partition(" (flash.page=")
            name = name.split(" (")[0]
            rows.append(
                {
                    "device": name,
                    "page": page.rstrip(")") or f"{Device.load(name).flash.page / 1024:g} KiB",
                    "sequences": (run["tokens"] + run["sequences"] * run["warm_up_tokens"]) // 512,
                    "policy": run["policy"],
                    "text": text,
                    "perplexity": round(run["perplexity"], 4),
                    "standard_error": round(run["perplexity_standard_error"], 4),
                    "tokens_per_s": round(run["tokens_per_s"], 4),
                    "flash_s_per_token": run["busy_s"]["flash"] / run["tokens"],
                }
            )
    setting = ["device", "page", "sequences", "policy"]
    parts = pd.DataFrame(rows).drop_duplicates([*setting, "text"]).groupby(setting, sort=False)
    table = parts[["flash_s_per_token"]].mean()
    table.insert(0, "perplexity", parts["perplexity"].agg(lambda each: np.exp(np.log(each).mean())).round(4))
    table.insert(
        1, "standard_error", parts["standard_error"].agg(lambda each: np.hypot.reduce(each) / len(each)).round(4)
    )
    table.insert(2, "tokens_per_s", parts["tokens_per_s"].agg(lambda each: 1 / (1 / each).mean()).round(4))
    table = table.reset_index()
    table["sequences"] *= parts.size().to_numpy()
    write(MEASURED, table.to_csv(index=False))


def worth() -> tuple[Rows, Rows]:
    """What was measured on the real model, and for `worth` the curves at perplexity budgets."""
    points = [["device", "pages", "sequences", "policy", "perplexity", "tokens/s over dense", "Flash time over dense"]]
    curves = [["device", "pages", "sequences", "of", *(f"+{budget:g}" for budget in BUDGETS)]]
    for (device, page, sequences), mine in pd.read_csv(MEASURED).groupby(["device", "page", "sequences"], sort=False):
        dense, rest = mine[mine["policy"] == "dense"].iloc[0], mine[mine["policy"] != "dense"]
        where = [str(device), str(page), str(sequences)]
        more = rest["perplexity"] - dense["perplexity"]
        gains = {
            "tokens/s": rest["tokens_per_s"] / dense["tokens_per_s"],
            "Flash time": dense["flash_s_per_token"] / rest["flash_s_per_token"],
        }
        points.append([*where, "`dense`", f"{dense['perplexity']:.2f}", "1.00", "1.00"])
        for i, row in rest.iterrows():
            price_paid = f"{row['perplexity']:.2f} ({more[i]:+.2f} ± {row['standard_error']:.2f})"
            label = row["policy"].split(", sensitivity")[0] + ")" * ("sensitivity" in row["policy"])
            points.append([*where, f"`{label}`", price_paid, *(f"{gain[i]:.2f}" for gain in gains.values())])
        mine_only = rest["policy"].str.startswith("worth")
        more, gains = more[mine_only], {name: gain[mine_only] for name, gain in gains.items()}
        order = np.argsort(more.to_numpy())
        for name, gain in gains.items() if len(more) > 1 else ():
            at = np.interp(BUDGETS, more.to_numpy()[order], gain.to_numpy()[order], left=np.nan, right=np.nan)
            curves.append([*where, name, *("-" if np.isnan(x) else f"{x:.2f}" for x in at)])
    return points, curves


def main() -> int:
    if "--measured" in sys.argv:
        collect(sys.argv[sys.argv.index("--measured") + 1 :])
        return 0
    table = simulate("hardware/large", SAME)
    more, aware = simulate("hardware/more", SAME), simulate("hardware/large-aware", SAME)
    tables = {
        "sizes": sizes(),
        "large": large(table),
        "more": large(more),
        "reads": reads(table),
        "aware": large(aware),
        "longer": longer_columns(),
        "by-hand": by_hand(),
        "coactivation": coactivation(),
        "starts": starts(simulate("hardware/start", ["trace", "start", "tokens"])),
    }
    tables["worth"], tables["curves"] = worth()
    show(tables, ROOT / "docs/background/hardware.md")
    with style.context(["default", STYLE]):
        keep(draw_map(pd.concat([table, more])), "background/hardware/map")
    return 0


if __name__ == "__main__":
    sys.exit(main())
