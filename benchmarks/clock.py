"""What a run on the clock costs, and where its time goes: 1,000 tokens of a mixture of 48 layers, with prefetch.

`python benchmarks/clock.py` prints the tables of docs/background/performance.md (about three minutes); `--write` also
puts them there, `--check` exits with 1 if the run takes 20 s of processor time or more. The trace is the shipped recipe
of Qwen3-30B-A3B with more tokens.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import page

from dipsim.clock.clocked import Clocked, Prefetch
from dipsim.clock.live_steps import run_on_clock
from dipsim.planning.fetch_plan import FetchPlan, Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy, load_prefetcher
from dipsim.timing import engine
from dipsim.timing.device import Device
from dipsim.timing.recurrence import timeline
from dipsim.timing.timeline import Timeline
from dipsim.workload import Trace

PAGE = page.ROOT / "docs/background/performance.md"
TOKENS, PROMPT, TARGET_S = 1000, 28, 20.0
REPEATS = 2  # of which the least counts: others may use this machine, too
DRAM, BUFFER = 5e9, 20e6
GUESSES = ("oracle", {"recall": 0.5, "precision": 0.6})
PARTS = {  # functions whose time, with what they call, is told; none is inside another
    "looking a step up in its caches": ("steps.py", "present"),
    "what a prefetcher names": ("prefetcher.py", "guesses"),
    "asking servers, and sharing their lanes": ("server.py", "ask"),
    "ends of requests": ("server.py", "_end"),
    "costs of a step": ("costs.py", "request"),
    "meeting guesses": ("guesses.py", "meet"),
}


def trace_of(tokens: int, folder: Path) -> Trace:
    """The synthetic routing of Qwen3-30B-A3B, of so many tokens after the prompt."""
    recipe = (page.ROOT / "traces/qwen3-30b-a3b-synthetic.yaml").read_text(encoding="utf-8")
    lines = [f"tokens: {tokens + PROMPT}" if line.startswith("tokens:") else line for line in recipe.splitlines()]
    path = folder / "qwen3-long.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Trace.open(path)


def setting(buffer: float) -> Setting:
    """5 GB, LRU over the model."""
    return Setting(load_policy("experts"), DRAM, "lru", start="warm", scope="model", page=4096.0, buffer=buffer)


def main() -> int:
    phone = Device.load("oneplus-15r")
    name, parameters = GUESSES
    prefetch = Clocked(Prefetch(load_prefetcher(name, **parameters), 4, BUFFER))
    rows = [["run", "processor time", "of a step with a mask", "tokens/s simulated"]]
    with tempfile.TemporaryDirectory() as folder:
        trace = trace_of(TOKENS, Path(folder))
        spent = _add(
            rows, "experts, with prefetch (oracle 0.5, 0.6; idle)", _on_clock(trace, setting(BUFFER), phone, prefetch)
        )
        _add(rows, "experts, on the clock without", _on_clock(trace, setting(0.0), phone, Clocked()))
        for what, find in (("engine", engine.run), ("recurrence", timeline)):
            _add(rows, f"experts, planned, then the {what}", _planned(trace, setting(0.0), phone, find))
        profile = cProfile.Profile()
        profile.runcall(run_on_clock, trace, setting(BUFFER), phone, "pipelined", prefetch, 100 + PROMPT)
        shares = _shares(pstats.Stats(profile))
    columns = Trace.open("smollm2-135m")
    size = columns.shape.static_bytes(columns.tokens) + 0.5 * columns.shape.mlp_bytes
    for name in ("paper", "oneplus-12"):
        device = Device.load(name)
        flash = None if device.flash.scattered_is_free else device.flash
        dip = Setting(load_policy("dip"), size, page=device.flash.page, flash=flash)
        _add(rows, f"columns (dip, smollm2-135m, {name}), on the clock", _on_clock(columns, dip, device, Clocked()))
    page.show({"clock": rows, "clock profile": [["part", "share of the time"], *shares]}, PAGE)
    return 1 if spent >= TARGET_S and "--check" in sys.argv else 0


Found = tuple[FetchPlan, Timeline]


def _on_clock(trace: Trace, of: Setting, device: Device, options: Clocked) -> Callable[[], Found]:
    return lambda: run_on_clock(trace, of, device, "pipelined", options)


def _planned(trace: Trace, of: Setting, device: Device, find: Callable[..., Timeline]) -> Callable[[], Found]:
    def call() -> Found:
        made = plan(trace, [of])[0]
        return made, find(made, device, "pipelined")

    return call


def _add(rows: list[list[str]], what: str, call: Callable[[], Found]) -> float:
    """Time a run, and enter its row; return the seconds of the shortest."""
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        made, found = call()
        times.append(time.process_time() - begin)
    spent = min(times)
    steps = made.rows * int(made.ranked.astype(bool).sum())
    rows.append([what, f"{spent:.1f} s", f"{1e6 * spent / steps:.0f} us", f"{made.tokens / found.elapsed_s:.3f}"])
    return spent


def _shares(stats: pstats.Stats) -> list[list[str]]:
    """The share of each part of the time under the profiler."""
    entries = stats.stats  # type: ignore[attr-defined]  # {(file, line, function): (calls, ..., own, cumulative)}
    whole = max(entry[3] for entry in entries.values())
    found: list[list[str]] = []
    rest = 1.0
    for part, (file, function) in PARTS.items():
        share = (
            sum(e[3] for (path, _, name), e in entries.items() if Path(path).name == file and name == function) / whole
        )
        rest -= share
        found.append([part, f"{share:.0%}"])
    return [*found, ["all else: SimPy's event loop, processes, books", f"{rest:.0%}"]]


if __name__ == "__main__":
    sys.exit(main())
