"""What dipsim says of mixtures of experts, beside what a phone measured and what others replayed.

`python benchmarks/experts.py` prints the tables of docs/background/experts.md; `--write` also puts them and the figures
there. The recordings are in benchmarks/data/oneplus-15r, and the device is fitted in benchmarks/phone.py. With
`--speed` it also plans a trace of 10,000 tokens, beside a plain replay in Python.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style
from matplotlib.figure import Figure
from page import ROOT, Rows, keep, show
from phone import DATA, DEVICE, FITTED, GEMMA, MIB, QWEN, RUNS, PhoneRun, device_for, predict, undisturbed

from dipsim.basics.arrays import Floats
from dipsim.basics.units import show as quantity
from dipsim.figures.run import draw_run
from dipsim.figures.style import COLOURS, STYLE, blank_figure
from dipsim.figures.sweep import draw_sweep
from dipsim.planning.fetch_plan import FetchPlan, Scope, Setting
from dipsim.planning.planner import plan
from dipsim.results.result import Result
from dipsim.sparsity.plugins import load_policy
from dipsim.study.experiment import Experiment
from dipsim.study.run import run, simulate, write_run
from dipsim.study.sweep import sweep
from dipsim.timing.device import Device
from dipsim.workload import Trace

PAGE = ROOT / "docs/background/experts.md"
MODELS = {QWEN: "qwen", GEMMA: "gemma"}
RECORDED_HITS = {QWEN: 74.88, GEMMA: 76.78}  # per cent, prompt included, as the engine wrote them
CURVES: dict[str, tuple[str, Scope]] = {  # of the engine's own offline replay: its name, rule and scope
    "lru": ("lru", "model"),
    "lfu": ("lfu", "model"),
    "belady": ("belady", "model"),
    "layer": ("lru", "layer"),
    "layerlfu": ("lfu", "layer"),
}
PUBLISHED = (  # of the engine's page of benchmarks: Gemma with 8 experts a token; run, MiB and tokens/s
    (PhoneRun("gemma_stream", GEMMA), 904, 1.61),
    (PhoneRun("gemma_c2000_l2", GEMMA, lanes=2, cache=2000), 366, 2.08),
    (PhoneRun("gemma_c2000_l4", GEMMA, cache=2000), 366, 2.24),
    (PhoneRun("gemma_stream_ov", GEMMA, overlap=True), 904, 1.81),
    (PhoneRun("gemma_c2000_l4_ov", GEMMA, cache=2000, overlap=True), 365, 2.78),
)
LONG = ROOT / "traces/qwen3-30b-a3b-synthetic.yaml"
BUDGETS = 16


def planned(trace: Trace, budgets: Sequence[float], rule: str, scope: Scope = "model") -> list[FetchPlan]:
    """The plans of a traced run with caches of so many MiB, on pages of 4 KiB."""
    static, policy = trace.shape.static_bytes(trace.longest_sequence()), load_policy("experts")
    drams = [static + mib * MIB for mib in budgets]
    return plan(trace, [Setting(policy, dram, rule, start="warm", page=4096, scope=scope) for dram in drams])


def hits(of: FetchPlan) -> tuple[float, float]:
    """Hits in per cent: of all, prompt included, and of decoded tokens."""
    found, missed = (float(part.sum()) for part in of.units)
    assert of.encoded is not None
    every = found + missed + of.encoded.wanted
    return 100 * (found + of.encoded.found) / every, 100 * found / (found + missed)


def recorded() -> Rows:
    """Hits and bytes of the two traced runs."""
    rows = [["run", "hits recorded", "dipsim", "decoded tokens", "tokens to the byte", "bytes read against recorded"]]
    for name, short in MODELS.items():
        (of,) = planned(Trace.open(name), [4000], "lru")
        read = np.rint(of.flash_read_bytes.sum(axis=1)).astype(int)
        measured = next(each for each in RUNS if each.name == f"{short}_traced").tokens["read_bytes"].to_numpy()
        every, decoded = hits(of)
        rows.append(
            [name, f"{RECORDED_HITS[name]:.2f} %", f"{every:.2f} %", f"{decoded:.2f} %",
             f"{(read == measured).sum()} of {len(read)}", f"{100 * (read.sum() / measured.sum() - 1):+.4f} %"]
        )  # fmt: skip
    return rows


def curves() -> Rows:
    """The hit curves of the engine's authors, and how far dipsim is from them."""
    rows = [["model", "rule", "cache", "budgets", "hits at 1,000 / 4,000 MiB", "largest difference (points)"]]
    for name, short in MODELS.items():
        table, trace = pd.read_csv(DATA / f"{short}.curve.csv"), Trace.open(name)
        for theirs, (rule, scope) in CURVES.items():
            mine = table[table["policy"] == theirs]
            found = np.array([hits(of) for of in planned(trace, list(mine["budget_mib"]), rule, scope)])
            off = np.abs(found - mine[["hit_pct_cum", "hit_pct_decode"]].to_numpy()).max()
            at = dict(zip(mine["budget_mib"], found[:, 0], strict=True))
            scoped = "over the model" if scope == "model" else "a layer"
            rows.append([name, rule, scoped, str(len(mine)), f"{at[1000]:.2f} / {at[4000]:.2f} %", f"{off:.4f}"])
    return rows


def phone() -> Rows:
    """Every run of the phone, predicted and measured."""
    head = ["run", "lanes", "cache", "overlap", "predicted from", "tokens/s", "measured", "error"]
    rows = [[*head, "correlation", "undisturbed", "with the phone's own compute"]]
    device = Device.load(DEVICE)
    for each in RUNS:
        latency, measured = 1e3 * predict(each, device).latency_s, each.tokens["wall_ms"].to_numpy()
        speed, real = 1e3 / latency.mean(), 1e3 / measured.mean()
        calm, compute = undisturbed(each), each.tokens["compute_ms"].to_numpy()
        same = each.cache == 0  # every token reads the same: there is nothing to correlate
        told = "fitted" if each.name in FITTED else "routing" if each.traced else "bytes"
        texts = (
            ["-"] * 3
            if same
            else [
                _correlation(latency, measured),
                f"{_correlation(latency[calm], measured[calm])} ({100 * calm.mean():.0f} %)",
                _correlation(latency, measured - compute + _filling(each, compute)),
            ]
        )
        cache = f"{each.cache:,} MiB" if each.cache else "none"
        rows.append(
            [f"`{each.name}`", str(each.lanes), cache, "yes" if each.overlap else "no", told, f"{speed:.2f}",
             f"{real:.2f}", f"{100 * (speed / real - 1):+.1f} %", *texts]
        )  # fmt: skip
    return rows


def _filling(each: PhoneRun, compute: Floats) -> Floats:
    """What of the compute of each token goes with its bytes, ms [T]: all that the trend of undisturbed tokens says."""
    calm, read = undisturbed(each), each.tokens["read_bytes"].to_numpy(dtype=np.float64)
    return np.asarray(np.polyval(np.polyfit(read[calm], compute[calm], 1), read))


def _correlation(one: Floats, other: Floats) -> str:
    return f"{np.corrcoef(one, other)[0, 1]:.3f}"


def published() -> Rows:
    """The other model, with its full 8 experts a token, from the published bytes a token."""
    rows = [["run", "lanes", "cache", "overlap", "MiB a token", "tokens/s", "published", "error"]]
    device = Device.load(DEVICE)
    for each, mib, real in PUBLISHED:
        latency = predict(each, device, np.full(256, mib * MIB)).latency_s
        speed, cache = 1 / latency.mean(), f"{each.cache:,} MiB" if each.cache else "none"
        rows.append(
            [f"`{each.name}`", str(each.lanes), cache, "yes" if each.overlap else "no", str(mib), f"{speed:.2f}",
             f"{real:.2f}", f"{100 * (speed / real - 1):+.1f} %"]
        )  # fmt: skip
    return rows


def signs() -> Rows:
    """What was tried on the phone, and what dipsim says of it."""
    device = Device.load(DEVICE)
    of = {each.name: 1 / predict(each, device).latency_s.mean() for each in RUNS}
    real = {each.name: 1e3 / each.tokens["wall_ms"].mean() for each in RUNS}
    trace, runs = Trace.open(QWEN), {each.name: each for each in RUNS}

    def traced(**options: str) -> float:
        each: dict[str, Any] = {
            "cache": {"size": "4000 MiB", "scope": "model"},
            "eviction": "lru",
            "timing": "serial",
        } | options
        return simulate(trace, load_policy("experts"), device_for(runs["qwen_traced"], device), **each).tokens_per_s

    pairs = [
        ("overlap without a cache", "qwen_stream", "qwen_stream_ov"),
        ("overlap with 4,000 MiB", "qwen_c4000_l4", "qwen_c4000_l4_ov"),
        ("4 lanes instead of 2, 2,000 MiB", "qwen_c2000_l2", "qwen_c2000_l4"),
        ("4 lanes instead of 2, 4,000 MiB", "qwen_c4000_l2", "qwen_c4000_l4"),
        ("4,000 MiB instead of none", "qwen_stream", "qwen_c4000_l4"),
    ]
    rows = [["change", "dipsim", "measured"]]
    rows += [
        [what, f"{100 * (of[b] / of[a] - 1):+.0f} %", f"{100 * (real[b] / real[a] - 1):+.0f} %"] for what, a, b in pairs
    ]
    for timing, measured in (("serial", "-20 %"), ("pipelined", "not published")):
        ratio = traced(layout="bundled", timing=timing) / traced(timing=timing)
        mode = "with overlap" if timing == "pipelined" else "without overlap"
        rows.append([f"experts in one piece, {mode}", f"{100 * (ratio - 1):+.0f} %", measured])
    return rows


def low_bits() -> pd.DataFrame:
    """Experts left out or read at low precision, with so much DRAM."""
    experiment = Experiment.model_validate(
        {"trace": QWEN, "device": DEVICE, "eviction": "lru", "timing": "pipelined",
         "policies": ["experts", {"drop-cold": {"share": 0.1}}, *({"low-bit": {"share": s}} for s in (0.1, 0.15))],
         "sweep": {"trace": list(MODELS), "dram": [f"{size} GB" for size in (2, 3, 4, 5, 6)]}}
    )  # fmt: skip
    return sweep(experiment, ROOT / "results/low-bits", workers=len(os.sched_getaffinity(0)))


def answers(table: pd.DataFrame) -> Rows:
    """How many tokens/s with so much DRAM, from a sweep of it."""
    sizes = sorted(table["dram_bytes"].unique())
    drams = (f"{size / 1e9:g} GB" for size in sizes)
    rows = [["model", "policy", "cache", *drams, "one token's experts", "perplexity"]]
    for (trace, policy, rule), mine in table.groupby(["trace", "policy", "eviction"], sort=False):
        cells = mine.sort_values("dram_bytes")
        texts = [f"{t:.2f} ({100 * h:.0f} %)" for t, h in zip(cells["tokens_per_s"], cells["hit_rate"], strict=True)]
        below = f"below {quantity(cells['cliff_dram_bytes'].iloc[0], 'size')}"
        rows.append([str(trace), f"`{policy}`", str(rule), *texts, below, "not measured"])
    return rows


def policies() -> Rows:
    """Policies and rules beside each other, both models, 2,000 MiB of cache and reads beside compute."""
    rows = [["policy", "cache", *(f"{name}: hits, tokens/s" for name in MODELS), "perplexity"]]
    chosen: list[tuple[str, dict[str, float], str, str]] = [
        ("experts", {}, rule, "model") for rule in ("lru", "lfu", "lfru", "slru", "s3-fifo", "pinned", "belady")
    ]
    chosen += [("experts", {}, "lfru", "layer"), ("fewer-experts", {"experts": 5}, "lru", "model")]
    chosen += [("fewer-experts", {"experts": 4}, "lru", "model"), ("drop-cold", {"share": 0.05}, "lru", "model")]
    chosen += [("drop-cold", {"share": 0.1}, "lru", "model"), ("drop-cold", {"share": 0.15}, "lru", "model")]
    device = Device.load(DEVICE)
    for name, parameters, rule, scope in chosen:
        policy = load_policy(name, **parameters)
        found: list[Result] = [
            simulate(
                Trace.open(trace), policy, device, cache={"size": "2000 MiB", "scope": scope}, eviction=rule,
                timing="pipelined",
            )
            for trace in MODELS
        ]  # fmt: skip
        texts = [f"{100 * each.hit_rate:.1f} %, {each.tokens_per_s:.2f}" for each in found]
        served = "over the model" if scope == "model" else "a layer"
        rows.append([f"`{policy.label}`", f"{rule} {served}", *texts, "not measured"])
    return rows


def speed() -> Rows:
    """Planning a trace of 10,000 tokens at 16 budgets, beside a replay in plain Python at one of them."""
    trace = Trace.open(LONG)
    long = replace(trace, tokens=10_000, header=trace.header.model_copy(update={"prompts": ()}))
    shape = trace.shape
    begin = time.perf_counter()
    layers = [long.layer(index).preference for index in range(shape.num_hidden_layers)]
    drawn = time.perf_counter() - begin
    k = shape.experts.num_experts_per_tok
    chosen = [np.argsort(-wanted, axis=1, kind="stable")[:, :k] for wanted in layers]
    drams = shape.static_bytes(10_000) + np.linspace(0.05, 0.8, BUDGETS) * shape.mlp_bytes
    settings = [Setting(load_policy("experts"), dram, "lru", page=4096, scope="model") for dram in drams]
    begin = time.perf_counter()
    plans = plan(long, settings)
    seconds = time.perf_counter() - begin - drawn
    begin = time.perf_counter()
    found = _plain(np.stack(chosen, axis=1).tolist(), shape.expert_bytes.tolist(), plans[7].budget.cache_bytes)
    plain = time.perf_counter() - begin
    assert found == plans[7].units[0].sum()
    sizes = f"{shape.num_hidden_layers} layers x {shape.experts.num_experts} experts, {k} a token"
    experts = f"10,000 tokens x {sizes}, LRU at {BUDGETS} budgets"
    ratio = f"{BUDGETS * plain / seconds:.1f} x"
    return [
        ["work", "seconds", "plain Python, one budget", "ratio for all budgets"],
        [experts, f"{seconds:.1f}, and {drawn:.1f} to draw the trace", f"{plain:.1f}", ratio],
    ]


def _plain(tokens: list[list[list[int]]], sizes: list[float], budget: float) -> int:
    """Hits of an LRU cache over all layers, as anybody would write it."""
    cache: OrderedDict[tuple[int, int], float] = OrderedDict()
    oldest: tuple[int, int] | None
    used, found = 0.0, 0
    for token in tokens:
        for layer, batch in enumerate(token):
            for expert in batch:
                unit = (layer, expert)
                if unit in cache:
                    found += 1
                    cache.move_to_end(unit)
                else:
                    cache[unit] = sizes[layer]
                    used += sizes[layer]
            wanted = {(layer, expert) for expert in batch} if used > budget else set()
            while used > budget:
                oldest = next((each for each in cache if each not in wanted), None)
                if oldest is None:
                    break
                used -= cache.pop(oldest)
    return found


def draw_phone() -> Figure:
    """Latency token by token, predicted and measured, of the runs that were not fitted."""
    device = Device.load(DEVICE)
    shown = [each for each in RUNS if each.name not in FITTED and each.cache]
    with style.context(["default", STYLE]):
        figure = blank_figure(
            "Latency token by token, predicted and measured",
            f"{DEVICE} · runs that it was not fitted to · the measured peaks are pauses of the phone itself",
            13,
            2.3 * ((len(shown) + 1) // 2),
        )
        grid = figure.subplots((len(shown) + 1) // 2, 2, squeeze=False).ravel()
        for axes, each in zip(grid, shown, strict=False):
            latency, measured = 1e3 * predict(each, device).latency_s, each.tokens["wall_ms"].to_numpy()
            axes.plot(measured, color=COLOURS[1], lw=1, label="measured")
            axes.plot(latency, color=COLOURS[0], lw=1.4, label="predicted")
            speeds = f"{1e3 / latency.mean():.2f} tokens/s predicted, {1e3 / measured.mean():.2f} measured"
            axes.set_title(f"{each.name} · {speeds}")
            axes.set_ylim(0, 1.6 * np.quantile(latency, 0.99))
            axes.set_ylabel("ms")
            axes.set_xlabel("decoded token")
        for axes in grid[len(shown) :]:
            axes.remove()
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def swept() -> pd.DataFrame:
    """The table of examples/experts.yaml, its figure in the documentation."""
    folder, path = ROOT / "results/experts", ROOT / "examples/experts.yaml"
    table = sweep(Experiment.load(path), folder, workers=len(os.sched_getaffinity(0)), where=path)
    draw_sweep(folder)
    _copy(folder / "dram.png")
    experiment = Experiment.model_validate(
        {"trace": QWEN, "device": DEVICE, "policies": ["experts", {"fewer-experts": {"experts": 4}}],
         "cache": {"size": "4000 MiB"}, "timing": "pipelined"}
    )  # fmt: skip
    results, one = run(experiment), ROOT / "results/experts-run"
    write_run(experiment, results, one)
    draw_run(one)
    _copy(one / "experts_by_layer.png")
    return table


def _copy(figure: Path) -> None:
    """With `--write` on the command line, put a figure into the documentation."""
    if "--write" in sys.argv:
        target = ROOT / "docs/background/experts" / figure.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(figure, target)


def main() -> None:
    """Print all tables."""
    table = swept()
    tables = {
        "recorded": recorded(),
        "curves": curves(),
        "phone": phone(),
        "published": published(),
        "signs": signs(),
        "answers": answers(table),
        "policies": policies(),
        "low-bits": answers(low_bits()),
    }
    keep(draw_phone(), "background/experts/phone")
    show(tables | ({"speed": speed()} if "--speed" in sys.argv else {}), PAGE)


if __name__ == "__main__":
    main()
