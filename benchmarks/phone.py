"""A phone that streams experts: its device is fitted to three of its runs, and all others are predicted.

The runs are in benchmarks/data/oneplus-15r (see its README). `python benchmarks/phone.py` prints what the fit says of
devices/oneplus-15r.yaml; `benchmarks/experts.py` has the tables of the predictions.

Fitted are two runs without overlap, of 2 and 4 lanes, both with 2,000 MiB, and the run with overlap and no cache. From
the first two come the rates of Flash, and what a batch of reads, a layer, and filling the cache cost; from the last
what a read costs the compute that it runs beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dipsim.basics.arrays import Floats
from dipsim.basics.units import write as quantity
from dipsim.planning.builder import Counts, PlanBuilder
from dipsim.planning.expert_reads import piece_read_bytes
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.sparsity.plugins import load_policy
from dipsim.storage.flash import Flash
from dipsim.study.run import simulate
from dipsim.timing.device import Device
from dipsim.timing.recurrence import timeline
from dipsim.timing.timeline import Timeline, Timing
from dipsim.workload import Trace

DATA = Path(__file__).resolve().parent / "data/oneplus-15r"
DEVICE = "oneplus-15r"
MIB = 2.0**20
PROMPT = 34  # positions before the first token of the untraced runs, as their files say
K = 8  # experts a token in the untraced runs, as the model has it
BEST_WEIGHTS = 21e9  # bytes of weights a second: what the phone reaches at best, 19 to 23 GB/s (the runs' README)
ONE_LANE = 1810 / 2460  # of the throughput of two lanes, with reads of 4 MiB; other sizes were not measured
STORAGE: dict[
    int, dict[int, float]
] = {  # MiB/s of random direct reads by lanes and KiB a read, the phone's own storage benchmark
    2: {128: 954, 256: 1536, 512: 1882, 1024: 2085, 2048: 2044, 4096: 2172, 8192: 2529},
    4: {128: 1486, 256: 2099, 512: 2114, 1024: 2235, 2048: 2155, 4096: 2206, 8192: 2558},
    8: {128: 1859, 256: 2144, 512: 2108, 1024: 2251, 2048: 2064, 4096: 2263, 8192: 2474},
}
STORAGE = {1: {size: ONE_LANE * rate for size, rate in STORAGE[2].items()}} | STORAGE


@dataclass(frozen=True)
class PhoneRun:
    """One recorded run: its file, the model, lanes, cache in MiB (0 for none) and whether reads overlap compute."""

    name: str
    trace: str
    lanes: int = 4
    cache: int = 0
    overlap: bool = False
    traced: bool = False

    @property
    def timing(self) -> Timing:
        """The mode that is simulated."""
        return "pipelined" if self.overlap else "serial"

    @property
    def tokens(self) -> pd.DataFrame:
        """What the phone measured, a row a decoded token."""
        return pd.read_csv(DATA / f"{self.name}.csv", comment="#")


QWEN, GEMMA = "qwen3-30b-a3b", "gemma-4-26b-a4b"
RUNS = (
    PhoneRun("qwen_stream", QWEN),
    PhoneRun("qwen_stream_ov", QWEN, overlap=True),
    PhoneRun("qwen_c2000_l2", QWEN, lanes=2, cache=2000),
    PhoneRun("qwen_c2000_l4", QWEN, cache=2000),
    PhoneRun("qwen_c4000_l2", QWEN, lanes=2, cache=4000),
    PhoneRun("qwen_c4000_l4", QWEN, cache=4000),
    PhoneRun("qwen_c4000_l4_ov", QWEN, cache=4000, overlap=True),
    PhoneRun("qwen_traced", QWEN, cache=4000, overlap=True, traced=True),
    PhoneRun("gemma_traced", GEMMA, cache=4000, overlap=True, traced=True),
)
FITTED = ("qwen_c2000_l2", "qwen_c2000_l4", "qwen_stream_ov")


@cache
def plan_of_run(run: PhoneRun) -> FetchPlan:
    """The plan of an untraced run, from the bytes that were recorded."""
    return plan_of_bytes(run, run.tokens["read_bytes"].to_numpy(dtype=np.float64))


def plan_of_bytes(run: PhoneRun, read_bytes: Floats) -> FetchPlan:
    """The plan of a run whose tokens read so many bytes, [T].

    Which experts these were is not recorded. So each missed expert is in a layer drawn at random, with a fixed seed.
    """
    trace = Trace.open(run.trace)
    mixture = trace.shape.experts.model_copy(update={"num_experts_per_tok": K})
    shape = trace.shape.model_copy(update={"mixture": mixture})
    count, layers = len(read_bytes), shape.num_hidden_layers
    setting = Setting(
        load_policy("experts"),
        shape.static_bytes(PROMPT + count) + run.cache * MIB,
        "lru" if run.cache else "none",
        prompt=PROMPT,
        page=4096,
        scope="model",
    )
    builder = PlanBuilder(shape, setting, count, (0,))
    size, pieces = piece_read_bytes(shape, setting), mixture.expert_tensors
    rng = np.random.default_rng(0)
    missed = np.empty((count, layers))
    for token, total in enumerate(read_bytes):
        places = rng.permutation(np.repeat(np.arange(layers), K))[: round(total / (pieces * size.mean()))]
        missed[token] = np.bincount(places, minlength=layers)
    kind = np.floor(np.log2(size / 4096)).astype(int)
    reads = np.zeros((count, layers, builder.arrays["reads"].shape[2]))
    reads[:, np.arange(layers), kind] = missed * pieces
    read = reads * size[:, None]
    read *= (read_bytes / read.sum(axis=(1, 2)))[:, None, None]  # to the byte
    wanted = np.full((count, layers), float(K))
    for caches in builder.caches:
        builder.record(caches, range(layers), Counts(wanted, wanted - missed, reads, read, np.zeros(layers)))
    return builder.finish()


def device_for(run: PhoneRun, device: Device) -> Device:
    """The device with as many lanes as a run had."""
    return device.replace(**{"flash.lanes": run.lanes})


def predict(run: PhoneRun, device: Device, read_bytes: Floats | None = None) -> Timeline:
    """What dipsim says of a run: from its routing where that was traced, else from its bytes or those given, [T]."""
    if run.traced:
        return simulate(
            Trace.open(run.trace), load_policy("experts"), device_for(run, device),
            cache={"size": f"{run.cache} MiB", "scope": "model"}, eviction="lru", timing=run.timing,
        ).timeline  # fmt: skip
    of = plan_of_run(run) if read_bytes is None else plan_of_bytes(run, read_bytes)
    return timeline(of, device_for(run, device), run.timing)


def undisturbed(run: PhoneRun) -> Floats:
    """Which tokens the phone itself did not disturb, [T] (bool): those of compute below 1.5 times the median."""
    compute = run.tokens["compute_ms"].to_numpy()
    return np.asarray(compute < 1.5 * np.median(compute))


def fit() -> dict[str, Any]:
    """The figures of the device that come from the three fitted runs, in SI units."""
    two, four, over = (next(run for run in RUNS if run.name == name) for name in FITTED)
    plan, table = plan_of_run(four), four.tokens
    batches = (plan.reads.sum(axis=2) > 0).sum(axis=1)
    shares, overhead = {2: 1.0, 4: 1.0}, 0.0
    for _ in range(20):  # what fewer lanes reach decides how long four of them take, too
        raw = _flash_seconds(four, shares)
        (slower, overhead), *_ = np.linalg.lstsq(np.stack([raw, batches], axis=1), table["io_ms"] / 1e3)
        rest = two.tokens["io_ms"].sum() / 1e3 - overhead * (plan_of_run(two).reads.sum(axis=2) > 0).sum()
        shares = {2: shares[2] * _flash_seconds(two, shares).sum() / rest, 4: shares[4] / slower}
    fill, compute = np.polyfit(table["read_bytes"], table["compute_ms"] / 1e3, 1)
    weights = float((plan.dram_bytes + plan.flash_bytes).sum(axis=1).mean())
    found: dict[str, Any] = {
        "read_curves": _curves(shares),
        "batch_overhead": overhead,
        "fill": 1 / fill,
        "layer": (compute - weights / BEST_WEIGHTS) / plan.shape.num_hidden_layers,
    }
    without = predict(over, as_device(found | {"interrupt": 0.0}))
    seconds = over.tokens["wall_ms"].mean() / 1e3 - without.latency_s.mean()
    return found | {"interrupt": seconds / plan_of_run(over).flash_reads.sum(axis=1).mean()}


def _flash_seconds(run: PhoneRun, shares: dict[int, float]) -> Floats:
    """Seconds [T] that the reads of a run take without what a batch costs, on Flash with such shares."""
    plan = plan_of_run(run)
    flash = Flash.model_validate({"read_curves": _curves(shares), "lanes": run.lanes, "page": "4 KiB"})
    _, count, total = plan.fetches
    return np.asarray(flash.batch_time(count, total).sum(axis=1))


def _curves(shares: dict[int, float]) -> dict[int, list[list[str]]]:
    """The storage benchmark, of which the engine reaches these shares with two and with four lanes.

    One lane is scaled as two, eight as four. Throughput never falls as reads grow.
    """
    return {
        lanes: [
            [f"{size} KiB", f"{rate * MIB / 1e6 * shares[2 if lanes < 4 else 4]:.0f} MB/s"]
            for size, rate in zip(curve, np.maximum.accumulate(list(curve.values())), strict=True)
        ]
        for lanes, curve in STORAGE.items()
    }


def as_device(found: dict[str, Any]) -> Device:
    """The shipped device with the figures of a fit."""
    times = {"flash.batch_overhead": "batch_overhead", "compute.layer": "layer", "compute.interrupt": "interrupt"}
    return Device.load(DEVICE).replace(
        **{
            "flash.read_curves": found["read_curves"],
            "dram.fill": f"{found['fill'] / 1e9:.3g} GB/s",
            **{field: f"{found[name] * 1e6:.3g} us" for field, name in times.items()},
        }
    )


def main() -> None:
    """Print the fitted figures as the device's file has them."""
    device = as_device(fit())
    for lanes, curve in (device.flash.read_curves or {}).items():
        rows = ", ".join(f"[{size / 1024:g} KiB, {quantity(rate, 'bandwidth')}]" for size, rate in curve)
        print(f"flash.read_curves.{lanes}: [{rows}]")
    print(f"flash.batch_overhead: {quantity(device.flash.batch_overhead, 'time')}")
    print(f"dram.fill: {quantity(device.dram.fill or 0.0, 'bandwidth')}")
    assert device.compute is not None
    print(f"compute.layer: {quantity(device.compute.layer, 'time')}")
    print(f"compute.interrupt: {quantity(device.compute.interrupt, 'time')}")


if __name__ == "__main__":
    main()
