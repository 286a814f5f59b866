"""When do prefetch and drafts pay? Maps of a phone, a Mac and a PC, and three published cases beside dipsim.

`python benchmarks/whatif.py` prints the tables of docs/background/whatif.md and draws its maps; `--write` also puts
them there. It runs what is missing of the sweeps, some minutes on two cores. Points that were computed are kept in
`results/whatif`.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib import style
from page import ROOT, Rows, keep, show

from dipsim.basics.fields import parse
from dipsim.basics.units import write
from dipsim.figures.gains import draw_gains, gains, map_axes
from dipsim.figures.style import STYLE
from dipsim.figures.sweep_table import read_sweep
from dipsim.study.experiment import Experiment
from dipsim.study.run import run
from dipsim.study.sweep import sweep
from dipsim.timing.device import Device

RECALLS = [0.25, 0.5, 0.75, 1.0]
WHEN = ["never", "idle", "eager"]
PRECISION = 0.6
QUALITY = "not measured"
PREDICTING = "2783 us"  # a layer of the phone, 512 us, and 109 ms a token of predicting


@dataclass(frozen=True)
class Machine:
    """A machine and the mixture of experts that it runs, as an experiment says it.

    `speed` is the swept key that decides how long Flash is idle, with its values. `drams` and `buffers` are what is
    swept of memory. A draft takes `draft_time`.
    """

    name: str
    same: dict[str, Any]
    speed: tuple[str, list[str]]
    drams: list[str]
    buffers: list[str]
    lanes: list[int]
    draft_time: str

    def maps(self) -> dict[str, tuple[str, dict[str, Any], dict[str, list[Any]]]]:
        """By name of the map: what it is of, and what is set and swept for it."""
        key, values = self.speed
        ahead = {"prefetch": {"by": {"oracle": {"recall": 0.5, "precision": PRECISION}}, "units": 6, "lanes": 2}}
        drafts = {"speculate": {"draft": 1, "acceptance": 0.5, "verify": 0.1, "draft_time": self.draft_time}}
        idle = {"prefetch.when": ["never", "idle"]}
        return {
            "idle": ("prefetch", ahead, {"oracle.recall": RECALLS, key: values, "prefetch.when": WHEN}),
            "lanes": ("prefetch", ahead, {"oracle.recall": RECALLS, "prefetch.lanes": self.lanes, **idle}),
            "buffer": ("prefetch", ahead, {"prefetch.buffer": self.buffers, "dram": self.drams, **idle}),
            "drafts": (
                "drafts",
                drafts,
                {"speculate.draft": [0, 1, 2, 4], "speculate.acceptance": [0.3, 0.5, 0.7, 0.9]},
            ),
        }


MACHINES = (
    Machine(
        "phone",
        {"trace": "qwen3-30b-a3b", "device": "oneplus-15r", "dram": "5 GB", "timing": "pipelined", "tokens": 64},
        speed=("compute.weights", ["7 GB/s", "14 GB/s", "21 GB/s", "42 GB/s"]),
        drams=["3 GB", "4 GB", "5 GB", "6 GB"],
        buffers=["3.1 MB", "20 MB", "60 MB", "240 MB"],
        lanes=[1, 2, 3, 4],
        draft_time="10 ms",
    ),
    Machine(
        "mac",
        {"trace": "qwen3.5-397b-a17b", "device": "macbook-m3-max", "dram": "22 GB", "timing": "serial", "tokens": 80,
         "layout": "bundled", "hardware": {"compute.weights": "51 GB/s"}},
        speed=("compute.weights", ["13 GB/s", "26 GB/s", "51 GB/s", "102 GB/s"]),
        drams=["14 GB", "18 GB", "22 GB", "30 GB"],
        buffers=["6.3 MB", "25 MB", "100 MB", "800 MB"],
        lanes=[1, 2, 4, 8],
        draft_time="5 ms",
    ),
    Machine(
        "pc",
        {"trace": "gpt-oss-120b", "device": "pc-nvme-gen4", "dram": "14 GB", "timing": "pipelined", "tokens": 80,
         "hardware": {"compute.weights": "50 GB/s"}},
        speed=("flash.read_bandwidth", ["1.75 GB/s", "3.5 GB/s", "7 GB/s", "14 GB/s"]),
        drams=["10 GB", "14 GB", "18 GB", "24 GB"],
        buffers=["12.5 MB", "50 MB", "200 MB", "1 GB"],
        lanes=[1, 2, 4, 8],
        draft_time="5 ms",
    ),
)  # fmt: skip


def experiment(**fields: Any) -> Experiment:
    """An experiment of the policy that reads what the router chose."""
    return parse(Experiment, {"policies": ["experts"], **fields}, "whatif")


def swept(machine: Machine, name: str) -> pd.DataFrame:
    """The gains of a map, which is drawn, too."""
    of, options, values = machine.maps()[name]
    folder = ROOT / f"results/whatif/{machine.name}-{name}"
    what = experiment(**machine.same, **options, sweep=values)
    sweep(what, folder, workers=len(os.sched_getaffinity(0)), progress=_say(folder.name))
    rows = gains(read_sweep(folder / "sweep.csv"), of)
    with style.context(["default", STYLE]):
        keep(draw_gains(rows, of), f"background/whatif/{folder.name}")
    return rows


def _say(name: str) -> Any:
    def say(what: str, done: int, total: int) -> None:
        if what == "points":
            print(f"{name}: {done} of {total} points", file=sys.stderr)

    return say


def machines() -> Rows:
    """Each machine without prefetch and drafts."""
    rows = [["machine", "device", "trace", "DRAM", "timing", "tokens", "tokens/s", "hits", "Flash idle", "perplexity"]]
    for machine in MACHINES:
        same, found = machine.same, run(experiment(**machine.same))[0].summary()
        idle = 1 - found["utilisation"]["flash"]
        names = [
            machine.name,
            f"`{same['device']}`",
            f"`{same['trace']}`",
            same["dram"],
            same["timing"],
            str(found["tokens"]),
        ]
        rows.append([*names, f"{found['tokens_per_s']:.2f}", f"{found['hit_rate']:.0%}", f"{idle:.0%}", QUALITY])
    return rows


def summary(found: dict[tuple[str, str], pd.DataFrame]) -> Rows:
    """Of each map the least and the largest gain, and where they are."""
    rows = [["machine", "map", "when", "least", "at", "largest", "at", "cells that lose", "perplexity"]]
    for (machine, name), table in found.items():
        of = "drafts" if name == "drafts" else "prefetch"
        for when, mine in table.groupby("prefetch.when", sort=False) if of == "prefetch" else [("-", table)]:
            order = mine.sort_values("gain", kind="stable")
            ends = [order.iloc[0], order.iloc[-1]]
            cells = [text for row in ends for text in (f"{row['gain']:.3f}", _place(row, map_axes(mine, of)))]
            lose = f"{(mine['gain'] < 1).sum()} of {len(mine)}"
            rows.append([machine, name, str(when), *cells, lose, QUALITY])
    return rows


def _place(row: pd.Series[Any], axes: list[str]) -> str:
    values = (write(row[name], "size") if name == "dram_bytes" else str(row[name]) for name in axes)
    names = ("DRAM" if name == "dram_bytes" else name for name in axes)
    return ", ".join(f"{name} {value}" for name, value in zip(names, values, strict=True))


def break_even(found: dict[tuple[str, str], pd.DataFrame]) -> Rows:
    """By how long Flash is idle: the least recall of the map from which on guesses win, and what half recall brings."""
    columns = (f"`{when}`: {what}" for when in WHEN[1:] for what in ("wins from recall", "gain at 0.5"))
    rows = [["machine", "what is changed", "tokens/s without", "Flash idle", *columns, "perplexity"]]
    for machine in MACHINES:
        key, values = machine.speed
        for value in values:
            mine = found[machine.name, "idle"].query(f"`{key}` == @value")
            cells = [text for when in WHEN[1:] for text in _wins(mine[mine["prefetch.when"] == when])]
            without, idle = mine["baseline"].iloc[0], mine["idle"].iloc[0]
            rows.append([machine.name, f"`{key}` {value}", f"{without:.2f}", f"{idle:.0%}", *cells, QUALITY])
    return rows


def _wins(rows: pd.DataFrame) -> tuple[str, str]:
    gained = rows.set_index("oracle.recall")["gain"].sort_index()
    losing = gained.index[gained < 1]
    above = gained.index[gained.index > max(losing, default=0.0)]
    return (f"{above[0]:g}" if len(above) else "nowhere"), f"{gained[0.5]:.3f}"


def published() -> Rows:
    """What was published of guesses, beside the nearest setting in dipsim."""
    rows = [["case", "memory", "published tokens/s", "change", "dipsim", "change", "hits in dipsim", "perplexity"]]
    phone = {"trace": "qwen3-30b-a3b", "device": "oneplus-15r", "cache": {"size": "4000 MiB"}, "timing": "pipelined"}
    gate = {"prefetch": _oracle(0.5, PRECISION, when="eager", units=6, lanes=4)}
    rows.append(_beside("phone, the next layer's gate", (5.09, 2.65), phone, gate))
    predicting = {"hardware": {"compute.layer": PREDICTING}}
    rows.append(_beside("the same, and predicting takes the processor's time", (5.09, 2.65), phone, gate | predicting))
    last = {"prefetch": {"by": "same-as-last-token", "units": 6, "lanes": 1, "when": "idle"}}
    larger = phone | {"cache": {"size": "5000 MiB"}}
    rows.append(_beside("phone, the last token's experts", (5.10, 5.14), larger, last))
    mac = MACHINES[1].same
    temporal = {"prefetch": _oracle(0.25, 0.25, when="eager", units=4, lanes=4)}
    rows.append(_beside("M3 Max, the last token's experts", (4.36, 4.36 * 0.82), mac, temporal))
    ahead = {"prefetch": _oracle(0.46, 1 / 1.4, when="idle", units=4, lanes=4)}
    rows.append(_beside("M4 Max, only while Flash is idle", (3.20, 4.29), m4_max(), ahead))
    rows[-1][3] += " with other changes, +5.2 % alone"
    return rows


def _oracle(recall: float, precision: float, **options: Any) -> dict[str, Any]:
    return {"by": {"oracle": {"recall": recall, "precision": precision}}, **options}


def _beside(name: str, speeds: tuple[float, float], same: dict[str, Any], changed: dict[str, Any]) -> list[str]:
    """A row: tokens/s without and with, as published and in dipsim."""
    results = [run(experiment(**same | options))[0] for options in ({}, changed)]
    mine = [each.tokens_per_s for each in results]
    hits = " to ".join(f"{100 * each.hit_rate:.0f}" for each in results)
    changes = [f"{100 * (after / before - 1):+.1f} %" for before, after in (speeds, mine)]
    theirs, ours = (f"{before:.2f} to {after:.2f}" for before, after in (speeds, mine))
    memory = f"{same['dram']} DRAM" if "dram" in same else f"{same['cache']['size']} cache"
    return [name, memory, theirs, changes[0], ours, changes[1], f"{hits} %", QUALITY]


def m4_max() -> dict[str, Any]:
    """A Mac whose Flash and compute are as fast as 3.20 tokens/s say, of which Flash is idle for 30 %."""
    rough = {"trace": "deepseek-v4-flash", "device": "macbook-m3-max", "dram": "10 GB", "timing": "serial",
             "tokens": 80, "layout": "bundled"}  # fmt: skip
    flash, weights = Device.load("macbook-m3-max").flash, 50e9
    found = run(experiment(**rough, hardware={"compute.weights": write(weights, "bandwidth")}))[0].summary()
    flash_s, compute_s = (found["utilisation"][name] / found["tokens_per_s"] for name in ("flash", "compute"))
    share = flash_s * 3.20 / 0.7
    curve = [[write(size, "size"), write(rate * share, "bandwidth")] for size, rate in flash.curve or ()]
    rate = write(weights * compute_s * 3.20 / 0.3, "bandwidth")
    return rough | {"hardware": {"flash.read_curve": curve, "compute.weights": rate}}


def main() -> None:
    """Print all tables."""
    found = {(machine.name, name): swept(machine, name) for machine in MACHINES for name in machine.maps()}
    tables = {
        "machines": machines(),
        "idle": break_even(found),
        "maps": summary(found),
        "published": published(),
    }
    show(tables, ROOT / "docs/background/whatif.md")


if __name__ == "__main__":
    main()
