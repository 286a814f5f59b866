"""Computes the points of a sweep in parallel. What is finished survives whatever comes after.

A finished point is a file `points/KEY.json` in the sweep's folder, whole or not there. Of plans that take long, the
layers so far are kept in `points/layers/PLAN/` until the points are finished. So a sweep that was killed goes on where
it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import pandas as pd

from dipsim.basics import assets
from dipsim.basics.files import remove_temporary, write
from dipsim.basics.progress import Progress, silent
from dipsim.planning.planner import CpuPlanner, Planner
from dipsim.results.dictionary import write_columns
from dipsim.results.folder import clear_results
from dipsim.results.provenance import write_experiment, write_origin
from dipsim.results.quality import source_of
from dipsim.results.table_files import write_table
from dipsim.study.experiment import Experiment
from dipsim.study.keys import digest
from dipsim.study.passes import RESULTS, Row, compute, split
from dipsim.study.points import Point, points
from dipsim.study.workers import cluster, in_processes
from dipsim.workload.trace import Trace

LAYERS = "points/layers"  # a folder for each plan of points that are not finished


def sweep(
    experiment: Experiment,
    folder: Path,
    *,
    workers: int = 1,
    dask: str | None = None,
    planners: Sequence[Planner] = (CpuPlanner(),),
    parquet: bool = False,
    progress: Progress = silent,
    where: object = "sweep",
) -> pd.DataFrame:
    """Compute what is missing of a sweep and write its table; return the table, one row a point.

    `workers` processes share the work, or the Dask cluster at the address `dask`. A point is planned by the first of
    the `planners` that is able. With `parquet` the table is written as .parquet too. Raises InputError, before anything
    is computed, if a point cannot run or the folder cannot be written; its message begins with `where`.
    """
    wanted = points(experiment, where)
    rows = finished(wanted, folder)
    clear_results(folder)
    write_experiment(folder, experiment.resolved(folder))
    rows = complete(wanted, rows, folder, workers=workers, dask=dask, planners=planners, progress=progress)
    table = pd.DataFrame([line(point, rows[point.key]) for point in wanted])
    write_table(folder / "sweep.csv", table, parquet)
    write_columns(folder, ["sweep.csv"])
    write_origin(folder, experiment.resolved(folder), files_behind(wanted))
    return table


def finished(wanted: Sequence[Point], folder: Path) -> dict[str, Row]:
    """The rows of those points that are in a folder already, by key."""
    return {point.key: row for point in wanted if (row := _read(folder, point.key)) is not None}


def complete(
    wanted: Sequence[Point],
    rows: dict[str, Row],
    folder: Path,
    *,
    workers: int = 1,
    dask: str | None = None,
    planners: Sequence[Planner] = (CpuPlanner(),),
    progress: Progress = silent,
) -> dict[str, Row]:
    """The rows of all points by key: those that `rows` lacks are computed, and each is kept in the folder at once.

    `workers`, `dask` and `planners` are those of `sweep`. Raises InputError if something that the points depend on
    changes meanwhile, or the folder cannot be written.
    """
    for each in (folder, folder / "points"):
        remove_temporary(each)
    missing = [point for point in wanted if point.key not in rows]
    what = f"points, {len(rows)} of them from before" if rows else "points"
    progress(what, len(rows), len(wanted))
    plans = {point.key: point.planned.key for point in missing if not point.on_clock}
    for found in _compute(missing, workers, dask, planners, progress, folder) if missing else ():
        for key, row in found.items():
            write(_path(folder, key), json.dumps(row | {"checksum": _checksum(key, row)}, indent=2) + "\n")
        for plan in {plans[key] for key in found if key in plans}:
            rmtree(folder / LAYERS / plan, ignore_errors=True)
        rows = rows | found
        progress(what, len(rows), len(wanted))
    rmtree(folder / LAYERS, ignore_errors=True)
    return rows


def _path(folder: Path, key: str) -> Path:
    return folder / "points" / f"{key}.json"


def _read(folder: Path, key: str) -> Row | None:
    """A finished point; None where there is none, or not as it was written."""
    path = _path(folder, key)
    if not path.is_file():  # a pipe would never end
        return None
    try:
        kept = json.loads(path.read_bytes())
        row: Row = {name: kept[name] for name in RESULTS}
        if kept["checksum"] != _checksum(key, row):
            return None
        return {name: None if value is None else float(value) for name, value in row.items()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _checksum(key: str, row: Row) -> str:
    """What tells a point that is whole from one that is not."""
    return digest([key, row])


def line(point: Point, row: Row) -> dict[str, Any]:
    """A point's row of the table."""
    planned = point.planned
    price = {
        "perplexity": planned.perplexity,
        "perplexity_standard_error": planned.standard_error,
        "perplexity_source": source_of(planned.perplexity),
    }
    return {**point.columns, **row, **price, "key": point.key}


def _compute(
    missing: Sequence[Point],
    workers: int,
    dask: str | None,
    planners: Sequence[Planner],
    progress: Progress,
    folder: Path,
) -> Iterator[dict[str, Row]]:
    """The rows of all points, a pass at a time, as they are finished."""
    if dask is not None:
        with cluster(dask, progress) as (threads, run):
            yield from run(compute, split(missing, threads))
        return
    for planner, mine in _divide(missing, planners):
        processes = 1 if planner.all_together else workers
        passes = split(mine, processes, planner, folder.resolve() / LAYERS)
        total = sum(each.layers * len(each.jobs) for each in passes)
        report = partial(_report, progress, planner.task, total)
        yield from in_processes(compute, passes, processes, report)


def _report(progress: Progress, what: str, total: int, done: int) -> None:
    progress(what, min(done, total), total)  # what is tried again is told again


def _divide(wanted: Sequence[Point], planners: Sequence[Planner]) -> list[tuple[Planner, list[Point]]]:
    """Each planner with the points that it plans: those that no planner before it is able to plan."""
    mine: list[tuple[Planner, list[Point]]] = [(planner, []) for planner in planners]
    place: dict[tuple[Any, ...], int] = {}
    for point in wanted:
        key = tuple(point.columns[name] for name in ("trace", "tokens", "policy", "eviction", "start", "layout"))
        key += (point.planned.setting.flash is None, point.on_clock)
        if key not in place and point.on_clock:
            place[key] = len(planners) - 1  # the CPU, which steps through it
        if key not in place:
            trace, setting, tokens = Trace.open(point.cell.trace), point.planned.setting, point.columns["tokens"]
            place[key] = next(i for i, planner in enumerate(planners) if planner.able(trace, setting, tokens))
        mine[place[key]][1].append(point)
    return mine


def files_behind(wanted: Sequence[Point]) -> dict[str, Path]:
    """The files behind a sweep, by what provenance calls them."""
    files: dict[str, Path] = {}
    for point in wanted:
        files[f"trace {point.cell.trace}"] = assets.find("traces", point.cell.trace)
        files[f"device {point.cell.device}"] = assets.find("devices", point.cell.device)
        files |= point.cell.learned_files()
        files[f"policy {point.choice.policy}"] = assets.find("policies", point.choice.policy)
        if point.cell.prefetch is not None:
            by = point.cell.prefetch.by.prefetcher
            files[f"prefetcher {by}"] = assets.find("prefetchers", by)
    return files
