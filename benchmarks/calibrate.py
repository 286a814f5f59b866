"""How right dipsim is on the machine it runs on: calibrates it, and replays runs by layout and reads under way.

`python benchmarks/calibrate.py --file PATH` prints the tables of docs/how-to/calibrate.md; `--write` also puts them
there. It takes a few minutes, in which nothing else should run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from page import ROOT, Rows, show

from dipsim.basics.fields import parse
from dipsim.basics.units import show as quantity
from dipsim.machine import calibrate
from dipsim.machine.disk import Disk, open_disk
from dipsim.machine.reads import reads_of
from dipsim.machine.replay import Replayed, replay
from dipsim.results.quality import NOT_MEASURED
from dipsim.study.experiment import Experiment
from dipsim.timing.device import Device
from dipsim.workload import Trace

SIZE = 4_000_000_000
TOKENS, SHOWN = 128, 16
LAYOUTS = ("columns", "bundled", "popularity")
POLICIES = ("dense", "dip", "dip-ca")
CLEAR = 1.5  # where predictions differ by this factor, their order should be right


def curves(found: calibrate.Curves) -> Rows:
    """Throughput by reads under way and read size, with the spread of the passes."""
    rows = [["reads under way", *(f"{size // 1024} KiB" for size in found.sizes), "a batch besides"]]
    for lanes, rates, spreads, overhead in zip(found.lanes, found.rates, found.spread, found.overhead, strict=True):
        cells = (f"{rate / 1e6:,.0f} ({spread:.0%})" for rate, spread in zip(rates, spreads, strict=True))
        rows.append([str(lanes), *cells, f"{1e6 * overhead:.0f} us"])
    return rows


def machine(device: Device) -> Rows:
    """What the measurement depends on."""
    rows = [["what", "value"], *([name, value] for name, value in device.conditions.items())]
    rows.append(["DRAM", f"{quantity(device.dram.bandwidth, 'bandwidth')} copied, read and written"])
    return rows


def replays(device: Device, disk: Disk) -> dict[tuple[str, int, str], Replayed]:
    """Each layout and policy with few and with many reads under way."""
    trace = Trace.open("smollm2-135m")
    found = {}
    assert device.flash.lanes is not None
    for lanes in (2, device.flash.lanes):
        there = device.replace("lanes", **{"flash.lanes": lanes})
        for layout in LAYOUTS:
            data = {
                "trace": "smollm2-135m",
                "dram": {"mlp_fraction": 0.5},
                "layout": layout,
                "policies": list(POLICIES),
            }
            experiment = parse(Experiment, data, "replay")
            for setting in experiment.settings(experiment.load_policies(), trace.shape, TOKENS, there):
                reads = reads_of(trace, setting, TOKENS, SHOWN, int(there.flash.page))
                found[layout, lanes, setting.policy.label] = each = replay(reads, there, disk)
                print(layout, lanes, setting.policy.label, f"{each.ratio:.2f}", file=sys.stderr)
    return found


def compared(found: dict[tuple[str, int, str], Replayed]) -> Rows:
    """Predicted and measured Flash time of a token."""
    rows = [["layout", "reads under way", "policy", "predicted", "measured", "predicted / measured",
             "by token: 10 %, median, 90 %", "replay / replay", "disk before / after", "perplexity"]]  # fmt: skip
    for (layout, lanes, policy), each in found.items():
        times = (f"{1e3 * seconds.mean():.1f} ms" for seconds in (each.predicted, each.measured))
        rows.append([f"`{layout}`", str(lanes), f"`{policy}`", *times, *each.verdict, NOT_MEASURED])
    return rows


def ranking(found: dict[tuple[str, int, str], Replayed]) -> Rows:
    """How many pairs of layouts are in the right order, by how far their predictions lie apart."""
    clear: list[bool] = []
    near: list[bool] = []
    for (layout, lanes, policy), one in found.items():
        for other_layout in LAYOUTS[LAYOUTS.index(layout) + 1 :]:
            other = found[other_layout, lanes, policy]
            predicted = one.predicted.sum() / other.predicted.sum()
            if predicted == 1:  # what reads no columns does not depend on the layout
                continue
            measured = one.measured.sum() / other.measured.sum()
            right = (predicted > 1) == (measured > 1)
            (clear if max(predicted, 1 / predicted) >= CLEAR else near).append(right)
    inside = [0.7 <= each.ratio <= 1.4 for each in found.values() if each.conclusive]
    return [
        ["what", "how many"],
        [
            f"pairs of layouts whose predictions differ {CLEAR} times or more, in the right order",
            f"{sum(clear)} of {len(clear)}",
        ],
        ["pairs that lie nearer, in the right order", f"{sum(near)} of {len(near)}"],
        ["conclusive replays with predicted / measured from 0.7 to 1.4", f"{sum(inside)} of {len(inside)}"],
        [
            "median of predicted / measured of these",
            f"{np.median([each.ratio for each in found.values() if each.conclusive]):.2f}",
        ],
    ]


def main() -> int:
    path = Path(sys.argv[sys.argv.index("--file") + 1] if "--file" in sys.argv else "dipsim-disk.bin")
    with open_disk(path, SIZE, 0) as disk:
        before = calibrate.conditions(disk)
        measured = calibrate.measure(disk)
        data = calibrate.device("this-machine", measured, disk, calibrate.dram_bandwidth(), before)
        device = parse(Device, data, "this-machine")
        found = replays(device, disk)
    tables = {
        "machine": machine(device),
        "curves": curves(measured),
        "replays": compared(found),
        "ranking": ranking(found),
    }
    show(tables, ROOT / "docs/how-to/calibrate.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
