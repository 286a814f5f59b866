"""Computes the points of a sweep, each fetch plan once, in parallel; what is finished survives whatever comes after.

The plans of one trace and policy (DRAM sizes, evictions) are a unit of work: one pass over the trace makes them all,
and every plan then serves all hardware and timing modes in closed form. A finished point is a file `points/KEY.json`
in the sweep's folder, whole or not there, so a sweep that was killed goes on where it stopped.
"""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

import dipsim
from dipsim import assets
from dipsim.bounds import Timing, timeline
from dipsim.device import Device
from dipsim.experiment import Experiment, Progress
from dipsim.files import InputError, sha256, write
from dipsim.plan import Processor, Setting, plan
from dipsim.policy import load_policy
from dipsim.result import Result
from dipsim.sweep import Point, points, policy_hash
from dipsim.trace import Trace
from dipsim.work import RESOURCES
from dipsim.workers import Tick, cluster, in_processes

# Plans of one unit. With the activations of a 14B model a process then stays below 1.5 GB; a GPU's plans all come from
# one process, and each unit reads the activations anew.
PLAN_BYTES: dict[Processor, float] = {"cpu": 400e6, "cuda": 8e9}
NOT_MEASURED = "not measured"
RESULTS = (
    "tokens_per_s",
    *(f"latency_{name}_s" for name in ("mean", "p50", "p95", "p99")),
    *("ttft_s", "hit_rate", "mlp_fraction_read", "flash_bytes_per_token", "dram_bytes_per_token"),
    *(f"{name}_utilisation" for name in RESOURCES),
    *("peak_dram_bytes", "energy_j_per_token"),
)
Row = dict[str, float | None]  # of RESULTS


@dataclass(frozen=True)
class Job:
    """One fetch plan, by what makes it, and the points wanted from it: (key, device, timing)."""

    policy: str
    parameters: dict[str, Any]
    policy_hash: str
    options: dict[str, Any]  # of a Setting
    wanted: tuple[tuple[str, Device, Timing], ...]

    def setting(self) -> Setting:
        """Raises InputError if the policy is not the one that the keys stand for."""
        policy = load_policy(self.policy, **self.parameters)
        if policy_hash(policy) != self.policy_hash:
            raise InputError(f"{self.policy}: was changed during the sweep; start it again")
        return Setting(policy, **self.options)


@dataclass(frozen=True)
class Unit:
    """Jobs that share one pass over a trace; `layers` of it, none if the policy does not look at activations."""

    trace: str
    tokens: int
    layers: int
    jobs: tuple[Job, ...]
    cost: float  # grows with the time it takes
    processor: Processor = "cpu"


def sweep(
    experiment: Experiment,
    folder: Path,
    workers: int = 1,
    dask: str | None = None,
    progress: Progress = lambda *_: None,
    where: object = "sweep",
    processor: Processor = "cpu",
) -> pd.DataFrame:
    """Compute what is missing of a sweep and write its table; `progress(what, done, total)`. One row a point.

    `workers` processes share the work, or a Dask cluster at the address `dask`; with the `processor` "cuda" this
    machine's GPU plans, and they what it would plan otherwise. Raises InputError, before anything is computed, if a
    point cannot run, and if the folder cannot be written.
    """
    if processor == "cuda":
        from dipsim.live import planning

        if dask is not None:
            raise InputError(
                f"--dask {dask}: a cluster has no use for this machine's GPU (--device cuda); leave out one"
            )
        planning.check(processor)
    wanted = points(experiment, where)
    rows = {point.key: row for point in wanted if (row := _read(folder, point.key)) is not None}
    write(folder / "experiment.yaml", yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False))
    missing = [point for point in wanted if point.key not in rows]
    progress("points", len(rows), len(wanted))
    for found in _compute(missing, workers, dask, processor, progress) if missing else ():
        for key, row in found.items():
            write(_path(folder, key), json.dumps(row, indent=2) + "\n")
        rows |= found
        progress("points", len(rows), len(wanted))
    table = pd.DataFrame([_line(point, rows[point.key]) for point in wanted])
    write(folder / "sweep.csv", table.to_csv(index=False))
    write(folder / "provenance.json", json.dumps(_provenance(wanted), indent=2) + "\n")
    return table


def _path(folder: Path, key: str) -> Path:
    return folder / "points" / f"{key}.json"


def _read(folder: Path, key: str) -> Row | None:
    """A finished point; None where there is none, or what a crash of the machine left of it."""
    try:
        row = json.loads(_path(folder, key).read_bytes())
        return {name: None if row[name] is None else float(row[name]) for name in RESULTS}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _line(point: Point, row: Row) -> dict[str, Any]:
    planned = point.planned
    price = (NOT_MEASURED, None) if planned.perplexity is None else (planned.perplexity, planned.standard_error)
    return {**point.columns, **row, "perplexity": price[0], "perplexity_standard_error": price[1], "key": point.key}


def _compute(
    missing: Sequence[Point], workers: int, dask: str | None, processor: Processor, progress: Progress
) -> Iterator[dict[str, Row]]:
    """The rows of all points, a unit at a time, as they are finished."""
    if dask is not None:
        with cluster(dask) as (threads, run):
            yield from run(compute, split(missing, threads))
        return
    shares: list[tuple[str, Sequence[Point], int, Processor]] = [("planning layers", missing, workers, "cpu")]
    if processor == "cuda":
        here, left = _divide(missing)
        shares = [("planning layers on the GPU", here, 1, "cuda"), ("planning layers", left, workers, "cpu")]
    for what, wanted, processes, planner in shares:
        units = split(wanted, processes, planner)
        total = sum(unit.layers * len(unit.jobs) for unit in units)
        yield from in_processes(compute, units, processes, _told(progress, what, total))


def _told(progress: Progress, what: str, total: int) -> Callable[[int], object]:
    return lambda done: progress(what, done, total)


def _divide(wanted: Sequence[Point]) -> tuple[list[Point], list[Point]]:
    """The points that the GPU plans, and those that it would plan otherwise."""
    from dipsim.live import planning

    able: dict[tuple[Any, ...], bool] = {}
    parts: tuple[list[Point], list[Point]] = ([], [])
    for point in wanted:
        key = tuple(point.columns[name] for name in ("trace", "tokens", "policy"))
        if key not in able:
            policy = point.planned.setting.policy
            able[key] = planning.able(Trace.open(point.cell.trace), policy, point.columns["tokens"], "cuda")
        parts[0 if able[key] else 1].append(point)
    return parts


def compute(unit: Unit, tick: Tick = lambda _: None) -> dict[str, Row]:
    """The rows of a unit's points by key; `tick(plans)` is called after each layer."""
    settings = [job.setting() for job in unit.jobs]
    trace = Trace.open(unit.trace)
    plans = plan(trace, settings, unit.tokens, lambda _done, _total: tick(len(settings)), unit.layers, unit.processor)
    return {
        key: _row(Result(fetch_plan, device, timeline(fetch_plan, device, timing)))
        for job, fetch_plan in zip(unit.jobs, plans, strict=True)
        for key, device, timing in job.wanted
    }


def _row(result: Result) -> Row:
    summary = result.summary()
    nested = {f"latency_{name}_s": value for name, value in summary["latency_s"].items()}
    nested |= {f"{name}_utilisation": value for name, value in summary["utilisation"].items()}
    return {name: nested.get(name, summary.get(name)) for name in RESULTS}


def split(wanted: Sequence[Point], workers: int, processor: Processor = "cpu") -> list[Unit]:
    """Units of work, after the trivial ones the longest first: one for each trace and policy, on a GPU one for all of a
    trace's; more only to stay below PLAN_BYTES or to keep all workers busy, since each reads or draws the trace again.
    """
    jobs: dict[str, list[Point]] = {}
    for point in wanted:
        jobs.setdefault(point.planned.key, []).append(point)
    passes: dict[tuple[str, ...], list[list[Point]]] = {}
    for same in jobs.values():
        apart = str(same[0].columns["policy"]) if processor == "cpu" else str(same[0].planned.layers)
        passes.setdefault((same[0].columns["trace"], str(same[0].columns["tokens"]), apart), []).append(same)
    share = math.ceil(len(jobs) / workers)
    units = []
    for group in passes.values():
        first = group[0][0]
        held = sum(same[0].planned.bytes for same in group)
        pieces = max(math.ceil(held / PLAN_BYTES[processor]), math.ceil(len(group) / share))
        size = math.ceil(len(group) / (pieces if first.planned.layers else 1))
        units += [_unit(group[begin : begin + size], processor) for begin in range(0, len(group), size)]
    return sorted(units, key=lambda unit: (unit.layers > 0, -unit.cost))


def _unit(group: list[list[Point]], processor: Processor) -> Unit:
    first = group[0][0]
    jobs = []
    for same in group:
        cell, choice, planned = same[0].cell, same[0].choice, same[0].planned
        options = {
            "dram_bytes": planned.setting.dram_bytes,
            "eviction": cell.eviction,
            "prompt": cell.prompt,
            "stream_static": cell.stream_static,
        }
        wanted = tuple((point.key, point.device, point.cell.timing) for point in same)
        policy = _absolute("policies", choice.policy)
        jobs.append(Job(policy, choice.parameters, planned.policy_hash, options, wanted))
    aware = 3 if first.planned.setting.policy.cache_aware else 1  # its masks serve one cache only
    tokens, layers = first.columns["tokens"], first.planned.layers
    cost = tokens * layers * aware * len(jobs)
    return Unit(_absolute("traces", first.cell.trace), tokens, layers, tuple(jobs), cost, processor)


def _absolute(kind: str, name: str) -> str:
    """A shipped name as it is; the absolute path of a user's file, for a process that runs elsewhere."""
    path = assets.find(kind, name)
    return str(path.resolve()) if path == Path(name) else name


def _provenance(wanted: Sequence[Point]) -> dict[str, Any]:
    """What the sweep was made from: versions, and the SHA-256 of every file."""
    files = {}
    for point in wanted:
        files[f"trace {point.cell.trace}"] = assets.find("traces", point.cell.trace)
        files[f"device {point.cell.device}"] = assets.find("devices", point.cell.device)
        files[f"policy {point.choice.policy}"] = assets.find("policies", point.choice.policy)
    return {
        "dipsim": dipsim.__version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("numpy", "pandas", "pydantic", "safetensors")},
        "sha256": {name: sha256(path) for name, path in files.items()},
    }
