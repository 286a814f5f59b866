"""How much faster than the straightforward simulator (`baseline.py`), at the size of Phi-3-Medium.

`python benchmarks/speed.py` prints the table of docs/background/performance.md; `--write` also puts it there, `--check`
exits with 1 if a target is missed, `--quick` plans 2 of the 40 layers, multiplies, and does not time plans. Baseline
and dipsim take turns in one process, results must be equal before times count, times are of the processor
(`time.process_time`), and ratios are medians with their range.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import baseline  # type: ignore[import-not-found]  # which lies beside this file
import numpy as np
import torch
from numpy.typing import NDArray

from dipsim.memory.cache import find_residents, replay
from dipsim.memory.stack_distance import hits_at
from dipsim.planning.builder import LayerCaches
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.masks import aware_masks
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.sparsity.policy import Group, Policy
from dipsim.sparsity.ranking import top_k
from dipsim.sparsity.selection import blind_masks
from dipsim.timing import engine
from dipsim.timing.device import Device
from dipsim.timing.recurrence import timeline
from dipsim.timing.timeline import TIMINGS
from dipsim.workload import Trace

PAGE = Path(__file__).resolve().parent.parent / "docs/background/performance.md"
HIDDEN, NEURONS, LAYERS = 5120, 17920, 40
REPEATS, TOKENS = 5, 64
POLICIES = ("dense", "magnitude", "gate", "up", "dip", "dip-ca")

Floats = NDArray[np.float32]


class Row(NamedTuple):
    """One line of the table. Times in seconds of one unit of work; ratios are of turns taken one after the other."""

    work: str
    slow: float | None
    fast: float
    ratios: Sequence[float]
    tuned: Sequence[float]  # against the baseline with `ordered=False`
    target: float  # at least this ratio or, without a baseline, at most these seconds

    @property
    def missed(self) -> bool:
        return median(self.ratios) < self.target if self.ratios else self.fast > self.target


def seconds(call: Callable[[], Any], least: float = 0.0) -> float:
    """Processor time of one call, repeated until it has taken `least`."""
    calls, begin = 0, time.process_time()
    while True:
        call()
        calls += 1
        if (passed := time.process_time() - begin) >= least:
            return passed / calls


def compare(
    work: str,
    target: float,
    units: int,
    fast: Callable[[], Any],
    slow: Callable[[bool], Any],
    tunable: bool = True,
) -> Row:
    """A row of the median times of `units` units of work. Raises AssertionError if the results differ."""
    for ordered in (True, False)[: 1 + tunable]:
        np.testing.assert_allclose(np.asarray(fast()), np.asarray(slow(ordered)), rtol=1e-9, err_msg=work)
    fasts, slows, tuned = [], [], []
    for _ in range(REPEATS):
        slows.append(seconds(lambda: slow(True)))
        fasts.append(seconds(fast, least=0.05))
        if tunable:
            tuned.append(seconds(lambda: slow(False)))
    ratios, against_tuned = ([s / f for s, f in zip(times, fasts, strict=False)] for times in (slows, tuned))
    return Row(work, median(slows) / units, median(fasts) / units, ratios, against_tuned, target)


def activations(tokens: int, size: int, seed: int) -> Floats:
    """Scores [tokens, size], float32: heavy tails, and neurons of unequal scale as in a real model."""
    rng = np.random.default_rng(seed)
    return np.abs(rng.standard_t(4, (tokens, size)) * np.exp(0.39 * rng.standard_normal(size))).astype(np.float32)


def caches() -> Iterator[Row]:
    scores = activations(TOKENS, NEURONS, 0)
    evictions: tuple[str, ...] = ("lru", "lfu")
    for note, kept, held, target in (("", 0.35, 0.6, 15.0), (", mask larger than cache", 0.75, 0.5, 12.0)):
        masks = top_k(scores, int(kept * NEURONS))
        tensors, capacity = torch.from_numpy(masks), int(held * NEURONS)
        for eviction in evictions:
            yield compare(
                f"cache step, one capacity, {eviction.upper()}{note}",
                target,
                TOKENS,
                lambda: replay(masks, capacity, eviction),  # noqa: B023, called at once
                lambda ordered: baseline.replay(tensors, capacity, eviction, ordered),  # noqa: B023
            )
    masks = top_k(scores, int(0.35 * NEURONS))
    tensors = torch.from_numpy(masks)
    sizes = {
        "16 sizes": [int(share * NEURONS) for share in np.linspace(0.36, 0.99, 16)],
        "16 sizes, 9 below the mask": [int(share * NEURONS) for share in np.linspace(0.02, 0.62, 16)],
    }
    several: tuple[tuple[str, float], ...] = (("lru", 100.0), ("belady", 50.0))
    for name, capacities in sizes.items():
        for eviction, target in several:
            yield compare(
                f"{eviction.upper() if eviction == 'lru' else 'Belady'} over {name}",
                target if name == "16 sizes" else 0,
                TOKENS,
                lambda: hits_at(masks, capacities, eviction),  # noqa: B023
                lambda ordered: np.transpose([baseline.replay(tensors, c, eviction, ordered) for c in capacities]),  # noqa: B023
            )


def selection() -> Iterator[Row]:
    scores = activations(TOKENS, NEURONS, 1)
    tensors, k = torch.from_numpy(scores), int(0.35 * NEURONS)
    yield compare(
        "top-k, exact, 17,920 values",
        7,
        TOKENS,
        lambda: top_k(scores, k),
        lambda ordered: torch.stack([baseline.top_k(row, k, ordered) for row in tensors]),
    )


def layers() -> Iterator[Row]:
    tokens = 16
    scores = [(activations(tokens, HIDDEN, 2 * i), activations(tokens, NEURONS, 2 * i + 1)) for i in range(LAYERS)]
    tensors = [[torch.from_numpy(values) for values in layer] for layer in scores]
    capacities = (int(0.65 * HIDDEN), int(0.5 * NEURONS))
    cases: tuple[tuple[str, str, float], ...] = (("dip", "lru", 12), ("dip-ca", "lfu", 10))
    shape = Trace.open("phi-3-medium").shape
    for name, eviction, target in cases:
        policy = load_policy(name)
        groups, gamma = tuple(policy.groups(shape)), getattr(policy, "gamma", 1.0)
        yield compare(
            f"masks and cache, 40 layers, one token: {name}, {eviction.upper()}",
            target,
            tokens,
            lambda: decode(policy, groups, scores, capacities, eviction),  # noqa: B023
            lambda ordered: baseline.decode(tensors, [g.k for g in groups], capacities, eviction, gamma, ordered),  # noqa: B023
        )


def decode(
    policy: Policy,
    groups: Sequence[Group],
    scores: Sequence[Sequence[Floats]],
    capacities: Sequence[int],
    eviction: str,
) -> list[Any]:
    """Hits [layers * groups][T], as `plan` finds them: layer after layer, all tokens of a group at once."""
    found = []
    for layer in scores:
        for group, values, capacity in zip(groups, layer, capacities, strict=True):
            if policy.cache_aware:
                caches = LayerCaches(policy, group, eviction, (capacity,), values.shape[1])
                masks, residents = aware_masks(caches, 0, values, (0,))
            else:
                masks = blind_masks(group, values)
                residents = find_residents(masks, capacity, eviction, (0,))
            found.append(np.count_nonzero(masks & residents, axis=1))
    return found


def events() -> Iterator[Row]:
    trace = Trace.open("phi-3-medium")
    tokens = 4
    setting = Setting(load_policy("dip"), trace.shape.static_bytes(tokens) + 0.5 * trace.shape.mlp_bytes, "lru")
    fetch_plan = plan(trace, [setting], tokens)[0]
    device = Device.load("paper").replace(**{"compute.throughput": "2 TFLOP/s"})
    assert device.compute is not None
    assert device.compute.throughput is not None
    steps = np.stack(
        [fetch_plan.flash_bytes, fetch_plan.dram_bytes, fetch_plan.flops / device.compute.throughput], axis=-1
    ).tolist()
    flash, dram = device.flash.peak_bandwidth, device.dram.bandwidth
    for timing in TIMINGS[:2]:
        yield compare(
            f"engine, one token of 40 layers, three resources, {timing}",
            3,
            tokens,
            lambda: engine.run(fetch_plan, device, timing).latency_s,  # noqa: B023
            lambda _: [baseline.token_time(s, flash, dram, together=timing == "concurrent") for s in steps],  # noqa: B023
            tunable=False,
        )


def planning(quick: bool) -> Iterator[Row]:
    trace = Trace.open("phi-3-medium")
    tokens, planned = trace.tokens, 2 if quick else LAYERS
    sizes = [trace.shape.static_bytes(tokens) + share * trace.shape.mlp_bytes for share in np.linspace(0.2, 0.9, 8)]
    settings = [Setting(load_policy(name), size, "lfu") for name in POLICIES for size in sizes]
    plans: list[FetchPlan] = []
    spent = seconds(lambda: plans.extend(plan(trace, settings, layers=planned))) * LAYERS / planned
    note = " (2 layers x 20)" if quick else ""
    yield Row(f"planning, 6 policies x 8 DRAM sizes x 1,000 tokens, 1 process{note}", None, spent, (), (), 240)

    if quick:
        return  # its plans are not whole
    dip = plans[POLICIES.index("dip") * len(sizes) :][: len(sizes)]
    devices = [Device.load("paper").replace(**{"flash.read_bandwidth": f"{n / 2} GB/s"}) for n in range(1, 9)]
    for timing in TIMINGS:
        for fetch_plan in dip:
            vars(fetch_plan).pop("fetches", None)  # nothing left over from the mode before
        spent = seconds(lambda: [timeline(p, d, timing) for p in dip for d in devices])  # noqa: B023
        yield Row(f"timing of 64 (DRAM, Flash) points x 1,000 tokens, {timing}", None, spent, (), (), 1)


def shown(time_s: float) -> str:
    """A time with three digits and a unit that fits."""
    for unit, factor in (("s", 1), ("ms", 1e3)):
        if time_s * factor >= 1:
            return f"{time_s * factor:.3g} {unit}"
    return f"{time_s * 1e6:.3g} us"


def spread(ratios: Sequence[float]) -> str:
    """Median and range."""
    return f"{median(ratios):.1f} x ({min(ratios):.1f} to {max(ratios):.1f})" if ratios else ""


def table(rows: Sequence[Row]) -> str:
    """The rows as markdown."""
    lines = [
        "| work | baseline | dipsim | faster by | against `sorted=False` | target |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        slow = shown(row.slow) if row.slow is not None else ""
        target = (f"{row.target:g} x" if row.ratios else f"under {row.target:g} s") if row.target else ""
        cells = (row.work, slow, shown(row.fast), spread(row.ratios), spread(row.tuned), target)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    torch.set_num_threads(1)  # a second thread gains nothing on one vector, and processor time counts both
    parts = (caches(), selection(), layers(), events(), planning("--quick" in sys.argv))
    rows = [row for part in parts for row in part]
    print(table(rows))
    if "--write" in sys.argv:
        marked = re.compile(r"(<!-- table -->\n).*?(\n<!-- end -->)", re.DOTALL)
        PAGE.write_text(marked.sub(lambda m: m[1] + table(rows) + m[2], PAGE.read_text()))
    missed = [row.work for row in rows if row.missed]
    for work in missed:
        print(f"missed: {work}", file=sys.stderr)
    return 1 if missed and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
