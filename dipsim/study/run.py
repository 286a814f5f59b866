"""Runs an experiment: a trace, policies and a device become results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dipsim.basics import assets
from dipsim.basics.errors import InputError, named
from dipsim.basics.fields import parse
from dipsim.basics.progress import Progress, silent
from dipsim.basics.units import show
from dipsim.clock.cycles import check_clock
from dipsim.clock.live_steps import run_on_clock
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.results import provenance
from dipsim.results.folder import clear_results, write_tables
from dipsim.results.quality import lookup, read_quality
from dipsim.results.result import Result, shown_token
from dipsim.sparsity.policy import Policy
from dipsim.sparsity.selection import checked_groups, policy_bytes
from dipsim.study.choices import load_choice
from dipsim.study.experiment import Experiment, Options, load_device
from dipsim.timing import engine
from dipsim.timing.device import Device
from dipsim.workload.trace import Trace

TRIED = ("smollm2-135m", "gpt-oss-20b")  # a dense MLP, and a mixture of experts
TRIED_TOKENS = 8


def run(experiment: Experiment, progress: Progress = silent, timeline: bool = False) -> list[Result]:
    """Simulate every policy of an experiment. With `timeline`, all spans are kept, otherwise those of one token.

    Raises InputError if anything in it cannot be used. Nothing is written.
    """
    if experiment.sweep:
        raise InputError("sweep: an experiment with a sweep is a grid; use `python -m dipsim sweep`")
    policies, trace, device = experiment.load_parts()
    return _run(trace, device, policies, experiment, progress, timeline)


def simulate(
    trace: Trace | str | Path,
    policy: Policy | str | Path | Mapping[str, Mapping[str, Any]],
    device: Device | str | Path,
    *,
    dram: str | float | None = None,
    progress: Progress = silent,
    **options: Any,
) -> Result:
    """Simulate one policy on a device; the result keeps all spans.

    Trace, policy and device are objects, names of what is shipped, or paths; a policy may also be written with its
    parameters, as {"dip": {"keep": 0.5}}. `dram` is a size like "60 MB", a number of bytes, or None for all that the
    device has. `options` are those of an experiment: `start` ("warm" by default), `layout` ("columns"), `eviction`,
    `timing` ("serial"), `tokens` (all), `prompt` (0), `read_through` (True), `calibration`, `stream_static` (False),
    `split` ("even"), `cache`, `bits` (the trace's own; or e.g. {"mlp": 4.5, "kv_cache": 4}), and those of
    `ClockOptions`: `prefetch`, `speculate`, `streams` (1), `turns`, `contention` (False).

    `progress(what, done, total)` is called as the work proceeds, by default silently; `progress=print` writes a line
    each time, here as in `run` and `sweep`. Raises InputError if a part cannot be used, or they do not fit each other.
    """
    size = f"{dram!r} B" if isinstance(dram, (int, float)) else dram
    checked = parse(Options, {"dram": size, **options}, "simulate")
    with named("simulate"):
        with named("trace"):
            opened = trace if isinstance(trace, Trace) else Trace.open(trace)
        chosen = policy if isinstance(policy, Policy) else load_choice(policy)
        loaded = device if isinstance(device, Device) else load_device(device, opened.shape)
    return _run(opened, loaded, [chosen], checked, progress, timeline=True)[0]


def check(experiment: Experiment) -> None:
    """Find everything that can go wrong before the first layer is read. Raises InputError if something does."""
    policies, trace, device = experiment.load_parts()
    settings = experiment.settings(policies, trace.shape, trace.longest_sequence(experiment.tokens), device)
    _check(trace, settings, device, experiment)


def check_policy(policy: Policy, name: str | None = None) -> str:
    """Plan some tokens of a trace with a policy, by default of a shipped one that it is for; return the trace's name.

    Raises InputError, which names the trace, if the policy fails.
    """
    tried = (Trace.open(name),) if name else tuple(map(Trace.open, TRIED))
    trace = next((each for each in tried if _takes(policy, each)), tried[0])
    shape = trace.shape
    with named(f"tried on {trace.name}"):
        priced = any(group.price is not None for group in checked_groups(policy, shape))
        dram = shape.static_bytes(TRIED_TOKENS) + policy_bytes(policy, shape) + shape.mlp_bytes / 2
        plan(trace, [Setting(policy, dram, "pinned" if priced else "lfu")], min(TRIED_TOKENS, trace.tokens))
    return trace.name


def _takes(policy: Policy, trace: Trace) -> bool:
    """Whether a policy does not refuse such a model."""
    try:
        policy.groups(trace.shape)
    except InputError:
        return False
    except (Exception, SystemExit):  # a mistake of the policy, which planning tells
        pass
    return True


def cliff(experiment: Experiment) -> str | None:
    """What one token uses of experts, and whether the caches hold it; None for a model without experts.

    Raises InputError if the experiment cannot be used.
    """
    policies, trace, device = experiment.load_parts()
    if trace.shape.mixture is None:
        return None
    settings = experiment.settings(policies, trace.shape, trace.longest_sequence(experiment.tokens), device)
    plans = plan(trace, settings, experiment.tokens, layers=0)
    over_all = [each for each in plans if each.setting.scope == "model"]
    below = [each.setting for each in over_all if each.setting.dram_bytes < (each.cliff_dram_bytes or 0.0)]
    most = max(plans, key=lambda each: each.cliff_dram_bytes or 0.0)
    text = (
        f"One token uses {show(most.shape.working_set_bytes, 'size')} of experts. With less than "
        f"{show(most.cliff_dram_bytes or 0.0, 'size')} of DRAM a recency cache over all layers (lru, slru) does "
        "not hold them, and hits next to nothing."
    )
    return f"{text}\nWarning: {show(below[0].dram_bytes, 'size')} of DRAM lie below that." if below else text


def write_run(
    experiment: Experiment, results: Sequence[Result], out: Path, timeline: bool = False, parquet: bool = False
) -> None:
    """Write the folder of a run: tables, the experiment as it was resolved, and where everything came from.

    With `parquet` each table is written as .parquet too.
    """
    clear_results(out)
    write_origin(experiment, out)
    write_tables(results, out, timeline, parquet)


def write_origin(experiment: Experiment, out: Path) -> None:
    """Write into a folder the experiment as it was resolved, and where everything came from."""
    files = {
        "trace": assets.find("traces", experiment.trace),
        "device": assets.find("devices", experiment.device),
        **experiment.learned_files(),
        **experiment.policy_files(),
    }
    packages = ("simpy", *provenance.PACKAGES)
    source = experiment.open_trace().header.source
    provenance.write_origin(out, experiment.resolved(out), files, packages, trace_source=source)


def _check(trace: Trace, settings: Sequence[Setting], device: Device, options: Options) -> None:
    """Raise InputError if a setting cannot be planned, before a layer is read."""
    for fetch_plan in plan(trace, settings, options.tokens, layers=0):
        if options.needs_clock(device):
            check_clock(fetch_plan, options.clocked(fetch_plan.setting.buffer), device)


def _run(
    trace: Trace,
    device: Device,
    policies: Sequence[Policy],
    options: Options,
    progress: Progress = silent,
    timeline: bool = False,
) -> list[Result]:
    settings = options.settings(policies, trace.shape, trace.longest_sequence(options.tokens), device)
    measured = read_quality(trace)
    on_clock = options.needs_clock(device)
    results = []
    if on_clock:
        _check(trace, settings, device, options)
    else:
        plans = plan(trace, settings, options.tokens, progress=progress)
    for index, setting in enumerate(settings):

        def traced(rows: int) -> tuple[int, ...] | None:
            return None if timeline else (shown_token(rows),)

        if on_clock:
            clocked = options.clocked(setting.buffer)
            fetch_plan, times = run_on_clock(
                trace, setting, device, options.timing, clocked, options.tokens, traced=traced, progress=progress
            )
        else:
            fetch_plan = plans[index]
            times = engine.run(fetch_plan, device, options.timing, traced(fetch_plan.rows))
        perplexity, error = lookup(measured, fetch_plan)
        results.append(Result(fetch_plan, device, times, perplexity, error, options.told))
        progress("simulating policies", index + 1, len(settings))
    return results
