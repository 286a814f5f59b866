"""Planning on a GPU against planning on two cores: settings x tokens a second, and where the one overtakes the other.

`python benchmarks/cuda.py` prints the tables of docs/background/performance.md. Settings are DIP-CA's gamma x keep x
DRAM size, with LFU. Plans are compared, array by array, before anything is timed. The processor plans a few layers and
its time is scaled up; beyond the third row it is a line through the two before: it grows linearly
(docs/background/scaling.png).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from joblib import Parallel, delayed

from dipsim.gpu.planner import GpuPlanner
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.workload import Trace

TRACES = {"phi-3-medium": 2, "smollm2-135m": 8}  # and of how many layers the processor's time is measured
GRIDS = ((1, 1, 1), (1, 1, 4), (2, 2, 4), (4, 2, 8), (4, 4, 16), (8, 8, 16))  # gammas, keeps, DRAM sizes
CORES = 2


def grid(trace: Trace, gammas: int, keeps: int, sizes: int) -> list[Setting]:
    """Settings spread over what is sensible; those of one size stand apart, so that halves are alike."""
    static = trace.shape.static_bytes(trace.tokens)
    return [
        Setting(load_policy("dip-ca", gamma=float(gamma), keep=float(keep)), static + share * trace.shape.mlp_bytes)
        for share in np.linspace(0.3, 0.8, sizes)
        for gamma in np.linspace(0.4, 1, gammas).round(3)
        for keep in np.linspace(0.5, 0.8, keeps).round(3)
    ]


def seconds(work: Callable[[], object]) -> float:
    """Of the wall clock."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def layers_of(name: str, settings: Sequence[Setting], layers: int) -> None:
    """Plan some layers in a process of its own."""
    plan(Trace.open(name), settings, layers=layers)


def on_cores(name: str, settings: Sequence[Setting], layers: int) -> float:
    """Seconds to plan all layers on two cores."""
    parts = [part for part in (settings[::CORES], settings[1::CORES]) if part]
    with Parallel(n_jobs=len(parts)) as parallel:
        parallel(delayed(layers_of)(name, settings[:1], 0) for _ in parts)  # the processes start
        spent = seconds(lambda: parallel(delayed(layers_of)(name, part, layers) for part in parts))
    return spent * Trace.open(name).shape.num_hidden_layers / layers


def check(trace: Trace) -> None:
    """Both must find the same."""
    settings = grid(trace, *GRIDS[2])
    for a, b in zip(
        plan(trace, settings, layers=2), plan(trace, settings, layers=2, planner=GpuPlanner()), strict=True
    ):
        for name, array in vars(a).items():
            assert not isinstance(array, np.ndarray) or np.array_equal(array, getattr(b, name)), (a.setting, name)


def main() -> int:
    if not torch.cuda.is_available():
        print("there is no GPU here", file=sys.stderr)
        return 1
    print(torch.cuda.get_device_name())
    for name, layers in TRACES.items():
        trace = Trace.open(name)
        check(trace)
        print(f"\n{name}, {trace.tokens} tokens, {trace.shape.num_hidden_layers} layers\n")
        print("| settings | GPU | settings x tokens/s | two cores | settings x tokens/s | faster by |")
        print("|---|---|---|---|---|---|", flush=True)
        slow: list[tuple[int, float]] = []
        for row, numbers in enumerate(GRIDS):
            settings = grid(trace, *numbers)
            count = len(settings)
            fast = seconds(lambda: plan(trace, settings, planner=GpuPlanner()))  # noqa: B023
            if row < 3:
                slow.append((count, on_cores(name, settings, layers)))
                spent = slow[-1][1]
            else:
                (few, short), (more, long) = slow[-2:]
                spent = long + (count - more) * (long - short) / (more - few)
            on_gpu, on_cpu = (f"{count * trace.tokens / each:,.0f}" for each in (fast, spent))
            times = [f"{float(f'{each:.3g}'):,g} s" for each in (fast, spent)]
            print(f"| {count} | {times[0]} | {on_gpu} | {times[1]} | {on_cpu} | {spent / fast:.1f} x |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
