"""Checks dipsim against closed forms, an independent simulator, the reference's figures and measured hardware.

`python benchmarks/validate.py` prints the table of docs/background/validation.md and exits with 1 if a bound is missed;
`--write` also puts the table there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import oracles  # noqa: E402

from dipsim.basics import assets  # noqa: E402
from dipsim.memory.cache import replay  # noqa: E402
from dipsim.memory.stack_distance import hit_curve  # noqa: E402
from dipsim.sparsity.plugins import load_policy  # noqa: E402
from dipsim.study.experiment import Experiment  # noqa: E402
from dipsim.study.run import run  # noqa: E402
from dipsim.timing import engine  # noqa: E402
from dipsim.timing.device import Device  # noqa: E402
from dipsim.timing.recurrence import latency  # noqa: E402
from dipsim.timing.service import service_times  # noqa: E402
from dipsim.timing.timeline import TIMINGS  # noqa: E402
from dipsim.workload.shape import ModelShape  # noqa: E402


class Row(NamedTuple):
    """One line of the table: an error that must not exceed its bound."""

    component: str
    against: str
    cases: str
    error: float
    bound: float
    unit: str  # "%": relative, in percent; "relative"; or what is counted


def cache() -> Iterator[Row]:
    counts = wrong = beyond = 0
    for case in oracles.FIGURES["cases"]:
        masks = oracles.lognormal_masks(case["seed"], **case["args"])
        curves = {eviction: hit_curve(masks, eviction) for eviction in oracles.EVICTIONS}
        for row in case["hits"]:
            for eviction in ("lru", "lfu", "belady"):
                hits = replay(masks, row["capacity"], eviction).sum()
                counts += 1
                wrong += hits != row[eviction]
                beyond += curves["optimal"][row["capacity"]] < hits
    for case in oracles.FIGURES["explicit"]:
        masks = oracles.explicit_masks(case)
        counts += 1
        wrong += replay(masks, case["capacity"], case["policy"]).tolist() != case["hits_per_token"]
    yield Row("column cache", "counts of the reference simulator", f"{counts} replays", wrong, 0, "different")
    yield Row("`optimal` eviction", "LRU, LFU, Belady", f"{counts} replays", beyond, 0, "beaten")

    rng = np.random.default_rng(0)
    small = [rng.random((rng.integers(1, 14), rng.integers(1, 10))) < rng.random() for _ in range(300)]
    wrong = sum(
        hit_curve(masks, eviction)[capacity] != replay(masks, capacity, eviction).sum()
        for masks in small
        for eviction in oracles.EVICTIONS
        for capacity in range(masks.shape[1] + 1)
    )
    yield Row("`hit_curve`", "a replay at every capacity", "300 random streams x 5 rules", wrong, 0, "different")
    wide = [masks for masks in small if masks.shape[1] > 3]
    off = max(abs(replay(masks, 3, "optimal").sum() - oracles.most_hits(masks, 3)) for masks in wide)
    yield Row("`optimal` eviction", "linear program", f"{len(wide)} random streams", off, 1e-6, "hits")

    peers: tuple[tuple[str, str], ...] = (("lru", "LRU"), ("belady", "Belady"))
    for eviction, peer in peers:
        wrong = requests = 0
        for capacity in (1, 2, 5, 20, 45):
            columns = oracles.zipf_stream(tokens=2000, columns=60, seed=capacity)
            hits = replay(columns[:, None] == np.arange(60), capacity, eviction).astype(bool)
            wrong += (hits != np.array(oracles.libcachesim_hits(peer, columns, capacity))).sum()
            requests += len(columns)
        yield Row(
            f"`{eviction}`", f"libcachesim {peer}, request by request", f"{requests:,} requests", wrong, 0, "different"
        )


def model() -> Iterator[Row]:
    phi3 = ModelShape(hidden_size=5120, intermediate_size=17920, num_hidden_layers=40, num_attention_heads=40,
                      num_key_value_heads=10, vocab_size=32064)  # fmt: skip
    parts = (phi3.mlp_bytes, phi3.attention_bytes, phi3.lm_head_bytes, phi3.kv_cache_bytes(2048))
    published = (5.505, 1.311, 0.164, 0.210)
    error = max(abs(part / 1e9 - gb) for part, gb in zip(parts, published, strict=True))
    yield Row("bytes of Phi-3-Medium", "the reference's worked example", "4 parts", error, 0.0005, "GB (rounding)")
    dip = load_policy("dip", keep=0.5)
    error = abs(getattr(dip, "p_in") - 0.57438)  # noqa: B009, a plugin's own property
    yield Row("DIP's split of keep = 0.5", "the reference's worked example", "p_in", error, 1e-5, "(rounding)")


def clock() -> Iterator[Row]:
    results = run(Experiment.load(assets.find("examples", "quickstart")))
    paper, shape = Device.load("paper"), results[0].plan.shape
    errors = []
    for result in results:
        errors.append(np.abs(result.timeline.latency_s / oracles.reference_seconds(result.plan, paper) - 1).max())
    yield Row(
        "`serial`, no compute", "the reference's formula", "shipped trace, 4 policies", max(errors), 1e-9, "relative"
    )

    rng = np.random.default_rng(0)
    off = dict.fromkeys(TIMINGS, 0.0)
    outside = 0
    for seed in range(100):
        plan = oracles.random_plan(shape, seed, 2, str(rng.choice(["dense", "magnitude", "dip"])), 0.3)
        device = oracles.device(
            **{
                "flash.command_time": f"{rng.integers(0, 50)} us",
                "dram.bandwidth": f"{rng.uniform(0.5, 60):.3f} GB/s",
                "compute.throughput": f"{rng.uniform(0.1, 50):.3f} GFLOP/s",
                "dram.flash_copies": int(rng.integers(0, 3)),
            }
        )
        service = service_times(plan, device)
        low, high = oracles.bounds(service)
        for timing in TIMINGS:
            seconds = engine.run(plan, device, timing).latency_s
            off[timing] = max(off[timing], float(np.abs(seconds / latency(service, timing) - 1).max()))
            if timing == "pipelined":  # a token may begin with what came before it, all of them together may not
                low, seconds, high = (np.array([times.sum()]) for times in (low, seconds, high))
            outside += int((seconds < low * (1 - 1e-12)).sum() + (seconds > high * (1 + 1e-12)).sum())
    for timing in TIMINGS:
        yield Row(f"engine, `{timing}`", "the recurrence", "100 random plans", off[timing], 1e-12, "relative")
    yield Row("engine, all modes", "busiest resource alone; serial sum", "600 tokens", outside, 0, "outside")


def flash() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    for overlapping, name in ((False, "one after the other"), (True, "overlapping")):
        error = 0.0
        for _ in range(200):
            servers = {
                "command": float(rng.choice([0, 1e-6, 2e-5])),
                "bandwidth": float(rng.choice([1e8, 1e9, 3.7e9])),
                "latency": float(rng.choice([0, 1e-5, 1e-3])),
                "depth": int(rng.integers(1, 40)),
            }
            count, size = int(rng.integers(1, 120)), int(rng.choice([512, 4096, 65536]))
            seconds = oracles.flash(**servers, overlap=np.inf if overlapping else 1).batch_time([count], [count * size])
            truth = oracles.events([size] * count, **servers, overlapping=overlapping)
            error = max(error, abs(float(seconds) / truth - 1))
        yield Row(
            "a batch of reads", f"an event a read, command and transfer {name}", "200 batches", error, 1e-9, "relative"
        )

    table = oracles.MEASURED["neuralink"]
    predicted = np.array([oracles.neuralink_throughput(s) for s in table["inactive"]])
    error = np.abs(predicted / np.array(table["throughput_mib_per_s"]) - 1)
    fitted = np.isin(table["inactive"], table["fitted_on"])
    against = "OnePlus 12, measured (arXiv 2410.19274, Table 2)"
    yield Row("`oneplus-12`, worst", against, "10 sparsities", 100 * error.max(), 5, "%")
    yield Row("`oneplus-12`, mean", against, "10 sparsities", 100 * error.mean(), 3, "%")
    yield Row("`oneplus-12`, mean", against, "the 7 it was not fitted on", 100 * error[~fitted].mean(), 3, "%")
    for curve in oracles.MEASURED["curves"]:
        times = [oracles.steady_read_time(oracles.parse_flash(curve), size) for size in curve["bytes"]]
        rates = np.array(curve["bytes"]) / np.array(times)
        worst = float(np.abs(rates / np.array(curve["bytes_per_s"]) - 1).max())
        cases = f"{len(rates)} read sizes"
        yield Row(
            "command time and bandwidth",
            f"{curve['name']}, measured",
            cases,
            100 * worst,
            100 * curve["tolerance"],
            "%",
        )


def table(rows: list[Row]) -> str:
    """The rows as markdown."""
    lines = ["| component | checked against | cases | error | bound |", "|---|---|---|---|---|"]
    for row in rows:
        error, bound = (f"{value:.2g} {row.unit}" for value in (row.error, row.bound))
        lines.append(f"| {row.component} | {row.against} | {row.cases} | {error} | {bound} |")
    return "\n".join(lines)


def main() -> int:
    rows = [row for part in (cache, model, clock, flash) for row in part()]
    print(table(rows))
    if "--write" in sys.argv:
        page = ROOT / "docs/background/validation.md"
        text = re.sub(
            r"(<!-- table -->\n).*?(\n<!-- end -->)",
            lambda m: m[1] + table(rows) + m[2],
            page.read_text(),
            flags=re.DOTALL,
        )
        page.write_text(text)
    missed = [row for row in rows if not row.error <= row.bound]
    for row in missed:
        print(f"missed: {row.component} against {row.against}: {row.error:.3g} > {row.bound:.3g}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
