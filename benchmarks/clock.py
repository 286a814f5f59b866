"""What a run on the clock costs, and where its time goes: 1,000 tokens of a mixture of 48 layers, with prefetch.

`python benchmarks/clock.py` prints the tables of docs/performance.md (about a minute); `--write` also puts them there,
`--check` exits with 1 if the run takes 20 s of processor time or more. The trace is the shipped recipe of Qwen3-30B-A3B
with more tokens.
"""

from __future__ import annotations

import cProfile
import pstats
import sys
import tempfile
import time
from pathlib import Path

import page

from dipsim.clock.clocked import Clocked, Prefetch
from dipsim.clock.live_steps import run_on_clock
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy, load_prefetcher
from dipsim.timing import engine
from dipsim.timing.device import Device
from dipsim.timing.recurrence import timeline
from dipsim.workload import Trace

PAGE = page.ROOT / "docs/performance.md"
TOKENS, PROMPT, TARGET_S = 1000, 28, 20.0
DRAM, BUFFER = 5e9, 20e6
GUESSES = ("oracle", {"recall": 0.5, "precision": 0.6})
PARTS = {  # functions whose time, with what they call, is told; none is inside another
    "looking a step up in its caches": ("stepwise.py", "present"),
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
    device = Device.load("oneplus-15r")
    name, parameters = GUESSES
    prefetch = Clocked(Prefetch(load_prefetcher(name, **parameters), 4, BUFFER))
    with tempfile.TemporaryDirectory() as folder:
        trace = trace_of(TOKENS, Path(folder))
        rows = [["1,000 tokens x 48 layers", "processor time", "tokens/s simulated"]]
        times: dict[str, float] = {}
        for what, options, buffer in (
            ("on the clock, with prefetch (oracle 0.5, 0.6; idle)", prefetch, BUFFER),
            ("on the clock, without", Clocked(), 0.0),
        ):
            begin = time.process_time()
            made, found = run_on_clock(trace, setting(buffer), device, "pipelined", options)
            times[what] = time.process_time() - begin
            rows.append([what, f"{times[what]:.1f} s", f"{made.tokens / found.elapsed_s:.3f}"])
        begin = time.process_time()
        planned = plan(trace, [setting(0.0)])[0]
        planning = time.process_time() - begin
        for what, call in (("planned, then the engine", engine.run), ("planned, then the recurrence", timeline)):
            begin = time.process_time()
            found = call(planned, device, "pipelined")
            spent = planning + time.process_time() - begin
            rows.append([what, f"{spent:.1f} s", f"{planned.tokens / found.elapsed_s:.3f}"])
        profile = cProfile.Profile()
        profile.runcall(run_on_clock, trace, setting(BUFFER), device, "pipelined", prefetch, 100 + PROMPT)
        shares = _shares(pstats.Stats(profile))
    page.show({"clock": rows, "clock profile": [["part", "share of the time"], *shares]}, PAGE)
    missed = next(iter(times.values())) >= TARGET_S
    return 1 if missed and "--check" in sys.argv else 0


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
