"""What every shipped device says, and where each figure comes from.

`python benchmarks/devices.py` prints the tables of docs/reference/devices.md; `--write` also puts them and the figure
there.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from page import ROOT, Rows, keep, show

from dipsim.basics import assets
from dipsim.basics.units import show as quantity
from dipsim.figures.style import COLOURS, DASHES, MARKERS, STYLE, blank_figure
from dipsim.timing.device import Device

SIZES = np.geomspace(2048, 8 << 20, 37)
SHOWN = (4096, 65536, 1 << 20)
DIMENSIONS = {"capacity": "size", "free": "size", "bandwidth": "bandwidth", "read_bandwidth": "bandwidth",
              "command_time": "time", "page": "size", "batch_overhead": "time", "fill": "bandwidth",
              "weights": "bandwidth", "layer": "time", "interrupt": "time"}  # fmt: skip


def devices() -> list[Device]:
    """All that are shipped, by name."""
    return [Device.load(name) for name in assets.names("devices")]


def overview() -> Rows:
    """Flash by read size, DRAM, and how right the device is."""
    sizes = (f"{size // 1024} KiB" if size < 1 << 20 else "1 MiB" for size in SHOWN)
    rows = [["device", "what", *sizes, "DRAM", "evidence"]]
    for each in devices():
        rates = (quantity(size / each.flash.read_time(size), "bandwidth") for size in SHOWN)
        memory = f"{quantity(each.dram.capacity, 'size')}, {quantity(each.dram.bandwidth, 'bandwidth')}"
        assert each.evidence is not None
        said = f"{each.evidence.shown}: {each.evidence.against}" if each.evidence.against else each.evidence.shown
        rows.append([f"`{each.name}`", each.description, *rates, memory, said])
    return rows


def figures() -> Rows:
    """Every figure of every device with its source."""
    rows = [["device", "figure", "value", "source"]]
    for each in devices():
        parts = [part for part in ("flash", "dram", "compute") if getattr(each, part) is not None]
        for part in parts:
            for field in sorted(getattr(each, part).model_fields_set):
                name = f"{part}.{field}"
                value = getattr(getattr(each, part), field)
                rows.append(
                    [f"`{each.name}`", name, _value(field, value), each.sources.get(name) or each.sources[part]]
                )
    return rows


def _value(field: str, value: object) -> str:
    if field == "read_curve":
        assert isinstance(value, tuple)
        return ", ".join(f"{quantity(size, 'size')}: {quantity(rate, 'bandwidth')}" for size, rate in value)
    if field == "read_curves":
        assert isinstance(value, dict)
        rates = (f"{lanes}: {quantity(dict(curve)[1 << 20], 'bandwidth')}" for lanes, curve in value.items())
        return f"of 1 MiB by lanes: {', '.join(rates)}"
    if field in DIMENSIONS:
        assert isinstance(value, float)
        return quantity(value, DIMENSIONS[field])
    return f"{value:g}" if isinstance(value, float) else str(value)


def draw() -> Figure:
    """Throughput of random reads against their size, the queue full."""
    figure = blank_figure("Throughput of Flash by read size", "random reads, the queue always full", 8.5, 4.6)
    axes = figure.subplots()
    for index, each in enumerate(devices()):
        rates = [size / each.flash.read_time(float(size)) / 1e9 for size in SIZES]
        look: dict[str, Any] = {"color": COLOURS[index % len(COLOURS)], "ls": DASHES[index // len(COLOURS)]}
        axes.plot(
            SIZES, rates, marker=MARKERS[index % len(MARKERS)], markevery=(index % 4, 6), ms=5, **look, label=each.name
        )
    axes.set(xscale="log", yscale="log", xlabel="read size", ylabel="GB/s")
    axes.set_xticks([4 << 10, 64 << 10, 1 << 20], ["4 KiB", "64 KiB", "1 MiB"])
    axes.minorticks_off()
    axes.set_yticks([0.02, 0.1, 0.5, 1, 2, 5, 10])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> int:
    show({"overview": overview(), "figures": figures()}, ROOT / "docs/reference/devices.md")
    with style.context(["default", STYLE]):
        keep(draw(), "reference/devices/throughput")
    return 0


if __name__ == "__main__":
    sys.exit(main())
