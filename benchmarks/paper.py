"""Sweeps behind the paper's claims: runs `examples/paper/*.yaml`, or what is missing of them, into `results/paper/`.

`python benchmarks/paper.py` prints the tables of docs/background/paper.md; `--write` also puts them and the figures
there.
"""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
import pandas as pd
from matplotlib import style
from page import ROOT, keep, price, show, simulate

from dipsim.basics.arrays import Floats
from dipsim.figures.lines import draw_lines
from dipsim.figures.style import STYLE
from dipsim.figures.sweep_table import DRAM, FLASH, read_sweep
from dipsim.study.experiment import Experiment
from dipsim.study.question import Target
from dipsim.study.solve import solve
from dipsim.workload import Trace

FIGURES = {  # of docs/background/figures: sweep, figure
    "phi-3-medium-speed": ("phi-3-medium", "speed"),
    "phi-3-medium-speedup": ("phi-3-medium", "speedup"),
    "phi-3-medium-winner": ("phi-3-medium", "winner"),
    "models": ("models", "dram"),
    "evictions": ("evictions", "dram"),
}
GB = 1e9
FLASH_SPEED, DRAM_SIZE = GB, 4 * GB  # of the tables and figures over the other
SAME = ["trace", "dram_bytes", "flash_bandwidth_bytes_per_s"]  # where a policy is compared with dense


def memory(table: pd.DataFrame) -> list[list[str]]:
    """Claim 1, Flash 1 GB/s: gain at the same DRAM, and DRAM for what dense does with 6 GB."""
    at = table[table["flash_bandwidth_bytes_per_s"] == FLASH_SPEED]
    shape = Trace.open("phi-3-medium").shape
    whole = (shape.static_bytes(1000) + shape.mlp_bytes) / GB
    dense = _curve(at, "dense")
    size, with_6 = 0.54 * whole, float(1 / np.interp(6.0, *dense))
    needed = [_needed(target) for target in (with_6, 1.4 * with_6)]
    rows = [["policy", f"speed-up at {size:.2f} GB, 46 % less than the model", "DRAM for dense's speed with 6 GB",
             "DRAM for 1.4 times that", "perplexity"]]  # fmt: skip
    for policy, mine in at.groupby("policy", sort=False):
        gain = np.interp(size, *dense) / np.interp(size, *_curve(mine, policy))
        rows.append([f"`{policy}`", f"{gain:.2f}", *(found[str(policy)] for found in needed), price(mine)])
    return rows


def _curve(table: pd.DataFrame, policy: object) -> tuple[Floats, Floats]:
    """(DRAM in GB, seconds per token), rising DRAM; between the points time is close to a straight line."""
    mine = table[table["policy"] == policy].sort_values("dram_bytes")
    return mine["dram_bytes"].to_numpy() / GB, 1 / mine["tokens_per_s"].to_numpy()


def _needed(speed: float) -> dict[str, str]:
    """The least DRAM for so many tokens/s by policy, and how much less than 6 GB that is."""
    path = ROOT / "examples/paper/phi-3-medium.yaml"
    data = Experiment.load(path).resolved() | {"sweep": {}, "hardware": {"flash.read_bandwidth": "1 GB/s"}}
    chosen, target = Experiment.model_validate(data), Target.read(f"{speed:.6g} tokens/s")
    folder = ROOT / "results/paper/phi-3-medium-dram"
    answers = solve(chosen, target, "dram", folder, workers=len(os.sched_getaffinity(0)), where=path)
    sizes = {answer.policy: answer.row["dram_bytes"] / GB for answer in answers}
    return {policy: f"{size:.2f} GB ({size / 6 - 1:+.0%})" for policy, size in sizes.items()}


def models(table: pd.DataFrame) -> list[list[str]]:
    """Claim 2: the largest speed-up on each model, and with how much of the MLP in DRAM."""
    rows = [["model", *(f"`{policy}`" for policy in dict.fromkeys(table["policy"]) if policy != "dense"), "perplexity"]]
    for trace, mine in table.groupby("trace", sort=False):
        row = [str(trace)]
        for policy, points in mine.groupby("policy", sort=False):
            if policy != "dense":
                best = points.sort_values("speedup").iloc[-1]
                row.append(f"{best['speedup']:.2f} at {best['mlp_fraction_in_dram']:.0%}")
        rows.append([*row, price(mine)])
    return rows


def gamma(table: pd.DataFrame) -> list[list[str]]:
    """Claim 2, on recorded activations: what each gamma brings, and its price."""
    rows = [["policy", "speed-up over dense", "hit rate", "MLP read", "perplexity"]]
    for point in table.itertuples():
        numbers = (f"{point.speedup:.2f}", f"{point.hit_rate:.1%}", f"{point.mlp_fraction_read:.1%}")
        rows.append([f"`{point.policy}`", *numbers, price(table[table["key"] == point.key])])
    return rows


def flash(table: pd.DataFrame) -> list[list[str]]:
    """Claim 3: speed-ups over all Flash speeds at one DRAM size."""
    at = table[table["dram_bytes"] == DRAM_SIZE]
    speeds = sorted(at["flash_bandwidth_bytes_per_s"].unique())
    rows = [["policy", *(f"{speed / GB:g} GB/s" for speed in speeds), "perplexity"]]
    for policy, mine in at.groupby("policy", sort=False):
        if policy != "dense":
            gains = mine.sort_values("flash_bandwidth_bytes_per_s")["speedup"]
            rows.append([f"`{policy}`", *(f"{gain:.2f}" for gain in gains), price(mine)])
    return rows


def dram(table: pd.DataFrame) -> list[list[str]]:
    """Claim 4: tokens/s over all DRAM sizes at one Flash speed."""
    at = table[table["flash_bandwidth_bytes_per_s"] == FLASH_SPEED]
    rows = [["policy", *(f"{size / GB:g} GB" for size in sorted(at["dram_bytes"].unique())), "perplexity"]]
    for policy, mine in at.groupby("policy", sort=False):
        speeds = mine.sort_values("dram_bytes")["tokens_per_s"]
        rows.append([f"`{policy}`", *(f"{speed:.2f}" for speed in speeds), price(mine)])
    return rows


def cuts() -> None:
    """The figures of claims 3 and 4, at the setting of their tables."""
    table = read_sweep(ROOT / "results/paper/phi-3-medium/sweep.csv")
    with style.context(["default", STYLE]):
        keep(draw_lines(table[table[DRAM] == DRAM_SIZE], FLASH, DRAM), "background/figures/phi-3-medium-flash")
        keep(draw_lines(table[table[FLASH] == FLASH_SPEED], DRAM, FLASH), "background/figures/phi-3-medium-dram")


def evictions(table: pd.DataFrame) -> list[list[str]]:
    """Claim 5: hit rates by eviction."""
    names = ["lru", "lfu", "belady", "optimal"]
    rows = [["trace", "policy", "MLP in DRAM", *names, "perplexity"]]
    keys = ["trace", "policy", "mlp_fraction_in_dram"]
    for (trace, policy, share), mine in table.groupby(keys, sort=False):
        rates = mine.set_index("eviction")["hit_rate"]
        rows.append([str(trace), f"`{policy}`", f"{share:.0%}", *(f"{rates[name]:.1%}" for name in names), price(mine)])
    return [rows[0], *sorted(rows[1:], key=lambda row: (row[0] != "smollm2-135m", row[1], row[2]))]


def main() -> int:
    phi = simulate("paper/phi-3-medium", SAME)
    tables = {
        "memory": memory(phi),
        "models": models(simulate("paper/models", SAME)),
        "gamma": gamma(simulate("paper/gamma", SAME)),
        "flash": flash(phi),
        "dram": dram(phi),
        "evictions": evictions(simulate("paper/evictions", SAME)),
    }
    show(tables, ROOT / "docs/background/paper.md")
    cuts()
    if "--write" in sys.argv:
        (ROOT / "docs/background/figures").mkdir(exist_ok=True)
        for name, (folder, figure) in FIGURES.items():
            shutil.copyfile(ROOT / f"results/paper/{folder}/{figure}.png", ROOT / f"docs/background/figures/{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
