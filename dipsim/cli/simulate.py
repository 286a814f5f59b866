"""The commands that simulate: one run, a sweep, and the figures of either."""

from __future__ import annotations

import os
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipsim.basics.errors import InputError
from dipsim.cli.complete import completion
from dipsim.cli.options import DeviceName, Dram, OptionalExperiment, Policies, Settings, Tokens, TraceName, Workers
from dipsim.cli.terminal import changed, console, default_folder, progress_bar, say, torch_needed

if TYPE_CHECKING:
    from dipsim.planning.planner import Planner

commands = typer.Typer()


Parquet = Annotated[bool, typer.Option("--parquet", help="Also write each table as a .parquet file (extra `parquet`).")]


class Processor(StrEnum):
    """What plans a sweep."""

    cpu = "cpu"
    cuda = "cuda"


@commands.command()
def run(
    experiment: OptionalExperiment = None,
    trace: TraceName = None,
    device: DeviceName = None,
    policy: Policies = None,
    settings: Settings = None,
    dram: Dram = None,
    layout: Annotated[
        str | None,
        typer.Option(help="How columns lie in Flash; see `list layouts`.", autocompletion=completion("layouts")),
    ] = None,
    start: Annotated[str | None, typer.Option(help="warm, cold or filled caches.")] = None,
    eviction: Annotated[
        str | None,
        typer.Option(
            help="none, lru, lfu, lfru, slru, s3-fifo, pinned, belady or optimal.",
            autocompletion=completion("evictions"),
        ),
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help='Bytes for caches alone, instead of --dram, e.g. "4000 MiB".')
    ] = None,
    timing: Annotated[str | None, typer.Option(help="serial, concurrent or pipelined.")] = None,
    tokens: Tokens = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output folder; by default results/<experiment>, or without an experiment file, but with changes to "
            "the quickstart, results/<trace>-on-<device>."
        ),
    ] = None,
    timeline: Annotated[bool, typer.Option("--timeline", help="Also write timeline.json for ui.perfetto.dev.")] = False,
    parquet: Parquet = False,
) -> None:
    """Simulate every policy of an experiment; write tables and figures, print the summary."""
    from dipsim.basics import assets
    from dipsim.figures.run import draw_run
    from dipsim.results.table_files import check_parquet
    from dipsim.results.tables import heading, run_table
    from dipsim.study.run import cliff, write_run
    from dipsim.study.run import run as run_experiment

    if parquet:
        check_parquet()
    path = experiment or assets.find("examples", "quickstart")
    options = {
        **{"trace": trace, "device": device, "dram": dram, "layout": layout, "start": start},
        **{"eviction": eviction, "timing": timing, "tokens": tokens},
    }
    changes = {key: value for key, value in options.items() if value is not None}
    with progress_bar() as progress:
        with changed(path, changes, policy, settings, cache) as resolved:
            results = run_experiment(resolved, progress, timeline)
            note = cliff(resolved)
        folder = out or default_folder(experiment, resolved, changes or policy or settings or cache)
        progress("writing tables and figures", 0, 1)
        write_run(resolved, results, folder, timeline, parquet)
        draw_run(folder)
    if note:
        say(note)
    say(heading(results))
    console().print(run_table(results))
    print(f"{folder}: summary.json, tokens.csv, layers.csv, spans.csv, figures as .png and .svg", end="")
    print(", timeline.json" if timeline else "")


@commands.command()
def sweep(
    experiment: Annotated[Path, typer.Argument(help="Experiment file with a sweep.")],
    workers: Workers = None,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler to run on (extra `dask`).")] = None,
    device: Annotated[
        Processor, typer.Option(help="What plans, not what is simulated; cuda is this machine's GPU (extra `cuda`).")
    ] = Processor.cpu,
    out: Annotated[Path | None, typer.Option(help="Output folder; by default results/<experiment>.")] = None,
    parquet: Parquet = False,
) -> None:
    """Simulate a grid: every combination of the values in an experiment's sweep. Killed, it resumes by itself."""
    from dipsim.figures.sweep import draw_sweep
    from dipsim.figures.sweep_table import TO_MAP, is_own, is_swept
    from dipsim.results.table_files import check_parquet
    from dipsim.results.tables import sweep_table
    from dipsim.study.experiment import Experiment
    from dipsim.study.sweep import sweep as run_sweep

    if parquet:
        check_parquet()
    chosen = Experiment.load(experiment)
    folder = out or Path("results") / experiment.stem
    if dask is not None and device is Processor.cuda:
        raise InputError(f"--dask {dask}: a cluster has no use for this machine's GPU (--device cuda); leave out one")
    needed = torch_needed("cuda", "tokens or settings at a time") if device is Processor.cuda else nullcontext()
    with progress_bar() as progress, needed:
        table = run_sweep(
            chosen,
            folder,
            workers=workers or len(os.sched_getaffinity(0)),
            dask=dask,
            planners=_planners(device),
            parquet=parquet,
            progress=progress,
            where=experiment,
        )
        progress("drawing figures", 0, 1)
        drawn = {path.stem for path in draw_sweep(folder)}
    console().print(sweep_table(table))
    for of, what in TO_MAP.items():
        if of not in drawn and any(is_swept(name) and is_own(name, of) for name in map(str, table)):
            print(f"No map of {of}: sweep {what}.")
    if below := int((table["dram_bytes"] < table["cliff_dram_bytes"].astype(float)).sum()):
        print(f"Warning: in {below} of {len(table)} points the DRAM does not hold the experts of one token.")
    print(f"{folder}: sweep.csv, a row for each of {len(table)} points, figures as .png and .svg")


def _planners(device: Processor) -> list[Planner]:
    """What plans a sweep: with a GPU, the CPU takes what the GPU cannot plan."""
    from dipsim.planning.planner import CpuPlanner

    if device is Processor.cpu:
        return [CpuPlanner()]
    from dipsim.gpu.planner import GpuPlanner

    return [GpuPlanner("cuda"), CpuPlanner()]


@commands.command()
def plot(folder: Annotated[Path, typer.Argument(help="Output folder of any command that draws.")]) -> None:
    """Draw the figures of an output folder again."""
    from dipsim.figures.compare import draw_compare
    from dipsim.figures.memory import draw_memory
    from dipsim.figures.run import draw_run
    from dipsim.figures.solve import draw_solve
    from dipsim.figures.sweep import draw_sweep
    from dipsim.results.folder import command_of

    draw = {
        "run": draw_run,
        "sweep": draw_sweep,
        "solve": draw_solve,
        "plan-memory": draw_memory,
        "compare": draw_compare,
    }
    for path in draw[command_of(folder)](folder):
        print(path)
