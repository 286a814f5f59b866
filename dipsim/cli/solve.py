"""The command that answers how much of something a target takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dipsim.cli.terminal import console, default_folder, progress_bar, resolve

if TYPE_CHECKING:
    from dipsim.study.solve import Answer, Target

commands = typer.Typer()


@commands.command()
def solve(
    experiment: Annotated[
        Path | None, typer.Argument(help="Experiment file; by default the shipped quickstart.")
    ] = None,
    target: Annotated[
        str, typer.Option(help='"10 tokens/s", "p95 80 ms" (or mean, p50, p99), or "20 mJ/token".')
    ] = "10 tokens/s",
    unknown: Annotated[
        str, typer.Option("--for", help="dram, iops, or what a sweep can vary: flash.read_bandwidth, dip.keep, ...")
    ] = "dram",
    within: Annotated[float | None, typer.Option(help="How much perplexity may grow over that of dense.")] = None,
    low: Annotated[str | None, typer.Option("--from", help="The least value to try; most have a default.")] = None,
    high: Annotated[str | None, typer.Option("--to", help="The largest value to try.")] = None,
    trace: Annotated[str | None, typer.Option(help="Trace, by name or path.")] = None,
    device: Annotated[str | None, typer.Option(help="Device, by name or path.")] = None,
    policy: Annotated[list[str] | None, typer.Option(help="Policy, by name or path; may be repeated.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Policy parameter, POLICY.PARAMETER=VALUE; may be repeated.")
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Simulate only the first so many tokens.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; by default one a core.")] = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; as of `run`, with the unknown's name.")] = None,
) -> None:
    """Find the least DRAM, or the value of something else, that reaches a target: for each policy, to 0.5 %."""
    from dipsim.basics import assets
    from dipsim.figures.solve import draw_solve
    from dipsim.study.solve import Target
    from dipsim.study.solve import solve as find

    path = experiment or assets.find("examples", "quickstart")
    changes = {"trace": trace, "device": device, "tokens": tokens}
    resolved = resolve(
        path, {key: value for key, value in changes.items() if value is not None}, policy, settings or []
    )
    wanted = Target.read(target)
    changed = bool(policy or settings or any(value is not None for value in changes.values()))
    folder = out or default_folder(experiment, resolved, changed, f"-{unknown}")
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


def _table(answers: list[Answer], target: Target, unknown: str, within: float | None) -> Any:
    """One row a policy."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from dipsim.basics.units import significant
    from dipsim.results.quality import NOT_MEASURED

    others = [] if target.column == "tokens_per_s" else [target.unit]
    rows = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    rows.add_column("policy", overflow="fold")
    names = [unknown, "tokens/s", *others, "hit rate", "perplexity"]
    for name in (*names, *([f"within +{within:g}"] if within is not None else [])):
        rows.add_column(name, justify="right")
    for answer in answers:
        price, error = answer.row["perplexity"], answer.row["perplexity_standard_error"]
        verdict = {True: "yes", False: "no", None: NOT_MEASURED}[answer.within]
        rows.add_row(
            escape(answer.policy),
            answer.value or "not reached",
            significant(answer.row["tokens_per_s"], 4),
            *(significant(answer.row["found"], 4) for _ in others),
            f"{answer.row['hit_rate']:.1%}",
            NOT_MEASURED if price is None else f"{price:.2f} ± {error:.2f}",
            *([verdict] if within is not None else []),
        )
    return rows
