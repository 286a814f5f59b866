"""Divides the points of a sweep into passes over a trace, and computes a pass.

The plans of one trace and policy (DRAM sizes, evictions) share a pass: reading the trace once makes them all, and each
plan then serves all hardware and timing modes in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipsim.basics import assets
from dipsim.basics.errors import InputError
from dipsim.clock.live_steps import run_on_clock
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.kept import KeptLayers
from dipsim.planning.planner import CpuPlanner, Planner, plan
from dipsim.results.result import FATES, Result
from dipsim.sparsity.plugins import load_policy
from dipsim.storage.learned import learned_file
from dipsim.study.clock_options import ClockOptions
from dipsim.study.keys import plan_key, point_key, trace_hash
from dipsim.study.points import Point
from dipsim.timing.device import Device
from dipsim.timing.recurrence import timeline
from dipsim.timing.timeline import RESOURCES, Timing
from dipsim.workload.trace import Trace

AWARE_COST = 3  # a cache-aware policy's masks serve one cache only
CLOCK_COST = 30  # a plan that depends on the clock is made step by step
RESULTS = (
    "tokens_per_s",
    *(f"latency_{name}_s" for name in ("mean", "p50", "p95", "p99")),
    *("ttft_s", "hit_rate", "mlp_fraction_read", "flash_bytes_per_token", "dram_bytes_per_token"),
    *("flash_reads_per_token", "mean_read_bytes", "read_amplification"),
    *(f"{name}_utilisation" for name in RESOURCES),
    *("peak_dram_bytes", "energy_j_per_token", "flash_waited_s", "guessed_flash_bytes_per_token"),
    *(f"guesses_{name}_per_token" for name in FATES),
)
Row = dict[str, float | None]  # of RESULTS


@dataclass(frozen=True)
class Job:
    """One fetch plan, by what makes it and its key, and the points wanted from it.

    A point is its key, device and timing and, where it depends on the clock, those options.
    """

    key: str
    policy: str
    parameters: dict[str, Any]
    options: dict[str, Any]  # of a Setting
    wanted: tuple[tuple[str, Device, Timing, ClockOptions | None], ...]

    @property
    def on_clock(self) -> bool:
        """Whether each of its points makes its own plan."""
        return any(clock is not None for *_, clock in self.wanted)

    def setting(self) -> Setting:
        """What to plan."""
        return Setting(load_policy(self.policy, **self.parameters), **self.options)


@dataclass(frozen=True)
class TracePass:
    """Jobs that share one pass over `layers` layers of a trace; 0 if no policy looks at activations.

    `cost` grows with the time that the pass takes. `kept` is a folder for layers that are planned, None if they are not
    kept.
    """

    trace: str
    tokens: int
    layers: int
    jobs: tuple[Job, ...]
    cost: float
    planner: Planner
    kept: Path | None


def compute(trace_pass: TracePass, tick: Callable[[int], object] = lambda _: None) -> dict[str, Row]:
    """The rows of a pass's points by key. `tick(plans)` is called for each layer.

    Raises InputError if a file behind them is not, before or after, what their keys stand for.
    """
    _check_files(trace_pass)
    trace, steps = Trace.open(trace_pass.trace), trace_pass.layers
    rows: dict[str, Row] = {}
    together = [job for job in trace_pass.jobs if not job.on_clock]
    told = 0

    def done(_what: str, layer: int, _of: int) -> None:
        nonlocal told
        tick(len(together) * (layer - told))
        told = layer

    plans = plan(
        trace,
        [job.setting() for job in together],
        trace_pass.tokens,
        layers=trace_pass.layers,
        progress=done,
        planner=trace_pass.planner,
        kept=_kept(trace_pass, together),
    )
    for job, fetch_plan in zip(together, plans, strict=True):
        for key, device, timing, _ in job.wanted:
            rows[key] = _row(Result(fetch_plan, device, timeline(fetch_plan, device, timing)))
    for job in trace_pass.jobs:
        for key, device, timing, clock in job.wanted:
            if clock is not None:
                setting = job.setting()
                made = run_on_clock(trace, setting, device, timing, clock.clocked(setting.buffer), trace_pass.tokens)
                rows[key] = _row(Result(made[0], device, made[1]))
                tick(steps)
    _check_files(trace_pass)
    return rows


def _kept(trace_pass: TracePass, jobs: Sequence[Job]) -> KeptLayers | None:
    """The layers planned in an earlier attempt, of plans that do not depend on the clock."""
    if trace_pass.kept is None:
        return None
    return KeptLayers([trace_pass.kept / job.key for job in jobs], lambda: _check_files(trace_pass))


def _check_files(trace_pass: TracePass) -> None:
    """Raise InputError if a trace, a plugin or what they read is not what the plans' and points' keys stand for."""
    of_trace = trace_hash(Trace.open(trace_pass.trace))
    for job in trace_pass.jobs:
        same = plan_key(of_trace, trace_pass.tokens, job.setting()) == job.key
        for key, device, timing, clock in job.wanted:
            same &= clock is None or point_key(job.key, device, timing, clock) == key
        if not same:
            raise InputError(
                f"{trace_pass.trace}, {job.policy} or a file that they read was changed during the sweep; start it "
                "again, what is finished is kept"
            )


def _row(result: Result) -> Row:
    summary = result.summary()
    nested = {f"latency_{name}_s": value for name, value in summary["latency_s"].items()}
    nested |= {f"{name}_utilisation": value for name, value in summary["utilisation"].items()}
    nested |= {f"guesses_{name}_per_token": value for name, value in summary.get("guesses_per_token", {}).items()}
    nested["flash_waited_s"] = summary["waited_s"]["flash"]
    return {name: nested.get(name, summary.get(name)) for name in RESULTS}


def split(
    wanted: Sequence[Point], workers: int, planner: Planner | None = None, kept: Path | None = None
) -> list[TracePass]:
    """Passes over traces, the trivial ones first, then the longest first. Layers are kept in the folder `kept`, if any.

    There is one pass for each trace and policy, or for all policies of a trace where the planner takes them together.
    There are more only to keep all workers busy, or to hold no more plans at a time than the planner wants: each pass
    reads or draws the trace again. A plan that depends on the clock is a pass of its own.
    """
    planner = planner or CpuPlanner()
    by_plan: dict[str, list[Point]] = {}
    for point in wanted:  # one that depends on the clock makes its own plan
        by_plan.setdefault(point.key if point.on_clock else point.planned.key, []).append(point)
    shared: dict[tuple[str, ...], list[list[Point]]] = {}
    for same in by_plan.values():
        columns, planned = same[0].columns, same[0].planned
        apart = planned.layers if planner.all_together else columns["policy"]
        alone = same[0].key if same[0].on_clock else ""
        shared.setdefault((columns["trace"], str(columns["tokens"]), str(apart), alone), []).append(same)
    share = math.ceil(len(by_plan) / workers)
    passes = []
    for plans in shared.values():
        held = sum(same[0].planned.bytes for same in plans)
        pieces = max(math.ceil(held / planner.max_plan_bytes), math.ceil(len(plans) / share))
        size = math.ceil(len(plans) / (pieces if plans[0][0].planned.layers else 1))
        passes += [_pass(plans[begin : begin + size], planner, kept) for begin in range(0, len(plans), size)]
    return sorted(passes, key=lambda each: (each.layers > 0, -each.cost))


def _pass(plans: Sequence[Sequence[Point]], planner: Planner, kept: Path | None) -> TracePass:
    """One pass that makes these plans, each given by the points that are wanted from it."""
    first = plans[0][0]
    tokens, layers = first.columns["tokens"], first.planned.layers
    aware = AWARE_COST if first.planned.setting.policy.cache_aware else 1
    aware = CLOCK_COST if any(same[0].on_clock for same in plans) else aware
    return TracePass(
        trace=_absolute("traces", first.cell.trace),
        tokens=tokens,
        layers=layers,
        jobs=tuple(_job(same) for same in plans),
        cost=tokens * layers * aware * len(plans),
        planner=planner,
        kept=None if planner.all_together else kept,  # such a planner enters layers later than it says
    )


def _job(same: Sequence[Point]) -> Job:
    """The job of the points of one plan."""
    choice, planned = same[0].choice, same[0].planned
    return Job(
        key=planned.key,
        policy=_absolute("policies", choice.policy),
        parameters=choice.parameters,
        options=_portable(planned.setting.options),
        wanted=tuple((point.key, point.device, point.cell.timing, _clock(point)) for point in same),
    )


def _clock(point: Point) -> ClockOptions | None:
    """What depends on the clock in a point, with the absolute path of a user's prefetcher; None if nothing does."""
    if not point.on_clock:
        return None
    options = point.cell.clock_options
    if options.prefetch is None:
        return options
    by = options.prefetch.by.model_copy(update={"prefetcher": _absolute("prefetchers", options.prefetch.by.prefetcher)})
    return options.model_copy(update={"prefetch": options.prefetch.model_copy(update={"by": by})})


def _portable(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a setting, with the absolute paths of a user's files."""
    layout, calibration = options["layout"], options["calibration"]
    return options | {
        "layout": str(file.resolve()) if (file := learned_file(layout)) else layout,
        "calibration": calibration and _absolute("traces", calibration),
    }


def _absolute(kind: str, name: str) -> str:
    """A shipped name as it is; the absolute path of a user's file, for a process that runs elsewhere."""
    path = assets.find(kind, name)
    return str(path.resolve()) if path == Path(name) else name
