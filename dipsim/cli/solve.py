"""The command that answers how much of something a target takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipsim.basics.errors import InputError
from dipsim.cli.options import DeviceName, Dram, OptionalExperiment, Policies, Settings, Tokens, TraceName, Workers
from dipsim.cli.terminal import changed, console, default_folder, progress_bar

if TYPE_CHECKING:
    from dipsim.results.tables import Pieces
    from dipsim.study.question import Target
    from dipsim.study.solve import Answer

commands = typer.Typer()


@commands.command()
def solve(
    experiment: OptionalExperiment = None,
    target: Annotated[
        str, typer.Option(help='"10 tokens/s", "p95 80 ms" (or mean, p50, p99), or "20 mJ/token".')
    ] = "10 tokens/s",
    unknown: Annotated[
        str, typer.Option("--for", help="dram, iops, or what a sweep can vary: flash.read_bandwidth, dip.keep, ...")
    ] = "dram",
    within: Annotated[float | None, typer.Option(help="How much perplexity may grow over that of dense.")] = None,
    low: Annotated[str | None, typer.Option("--from", help="The least value to try; most have a default.")] = None,
    high: Annotated[str | None, typer.Option("--to", help="The largest value to try.")] = None,
    trace: TraceName = None,
    device: DeviceName = None,
    policy: Policies = None,
    settings: Settings = None,
    dram: Dram = None,
    tokens: Tokens = None,
    workers: Workers = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; as of `run`, with the unknown's name.")] = None,
) -> None:
    """Find the least DRAM, or the value of something else, that reaches a target: for each policy, to 0.5 %."""
    from dipsim.basics import assets
    from dipsim.figures.solve import draw_solve
    from dipsim.study.question import Target
    from dipsim.study.solve import solve as find

    if unknown == "dram" and dram is not None:
        raise InputError("--dram: is what is looked for; leave it out, or give its range with --from and --to")
    path = experiment or assets.find("examples", "quickstart")
    options = {"trace": trace, "device": device, "dram": dram, "tokens": tokens}
    changes = {key: value for key, value in options.items() if value is not None}
    with changed(path, changes, policy, settings) as resolved:
        folder = out or default_folder(experiment, resolved, changes or policy or settings, f"-{unknown}")
    wanted = Target.read(target)
    with progress_bar() as progress:
        answers = find(
            resolved,
            wanted,
            unknown,
            folder,
            low=low,
            high=high,
            within=within,
            workers=workers or len(os.sched_getaffinity(0)),
            progress=progress,
            where=path,
        )
        progress("drawing the figure", 0, 1)
        draw_solve(folder)
    first = answers[0].row
    print(f"{first['model']} on {first['device']}: {unknown} for {target}")
    console().print(_table(answers, wanted, unknown, within))
    for answer in answers:
        if answer.note:
            print(f"{answer.policy}: {answer.note}")
    print(f"{folder}: solve.csv, a row a policy, samples.csv, a row a point, solve.png and .svg")


def _table(answers: list[Answer], target: Target, unknown: str, within: float | None) -> Pieces:
    """One row a policy."""
    from dipsim.basics.units import significant
    from dipsim.results.labels import short
    from dipsim.results.quality import NOT_MEASURED, priced
    from dipsim.results.tables import Pieces

    numbers = {
        unknown: [answer.value or "not reached" for answer in answers],
        "tokens/s": [significant(answer.row["tokens_per_s"], 4) for answer in answers],
    }
    if target.column != "tokens_per_s":
        numbers[target.unit] = [significant(answer.row["found"], 4) for answer in answers]
    numbers["hit rate"] = [f"{answer.row['hit_rate']:.1%}" for answer in answers]
    if within is not None:
        verdicts = {True: "yes", False: "no", None: NOT_MEASURED}
        numbers[f"within +{within:g}"] = [verdicts[answer.within] for answer in answers]
    prices = [(answer.row["perplexity"], answer.row["perplexity_standard_error"]) for answer in answers]
    numbers["perplexity"] = [priced(*price) for price in prices]
    return Pieces({"policy": [short(answer.policy) for answer in answers]}, numbers, "perplexity")
