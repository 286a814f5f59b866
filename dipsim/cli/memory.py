"""The command that plans memory: how a DRAM is best split, and what that brings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipsim.cli.options import Dram, Policies, Settings
from dipsim.cli.terminal import changed, console, plain_table, progress_bar, say

commands = typer.Typer()


@commands.command()
def plan_memory(
    experiment: Annotated[Path, typer.Argument(help="Experiment file.")],
    policy: Policies = None,
    settings: Settings = None,
    dram: Dram = None,
    out: Annotated[Path | None, typer.Option(help="Output folder; by default results/<experiment>-memory.")] = None,
) -> None:
    """Find the split of the DRAM over caches that takes Flash least time; simulate it beside the even split."""
    from dipsim.figures.memory import draw_memory
    from dipsim.results.split import parts_shown, read_split, speeds_shown
    from dipsim.results.tables import heading
    from dipsim.study.memory import plan_memory as plan
    from dipsim.study.memory import write_memory

    changes = {} if dram is None else {"dram": dram}
    folder = out or Path("results") / f"{experiment.stem}-memory"
    with progress_bar() as progress:
        with changed(experiment, changes, policy, settings) as resolved:
            pairs = plan(resolved, progress)
        write_memory(resolved, pairs, folder)
        draw_memory(folder)
    memory, splits = read_split(folder)
    say(heading([even for even, _ in pairs]))
    for label, parts in memory.groupby("policy", sort=False):
        speeds = splits[splits["policy"] == label]
        even, best = speeds["latency_s"]
        print(f"\n{label}: the best split is {even / best:.2f} times as fast; a MB more saves so many ms a token")
        for shown in (parts_shown(parts), speeds_shown(speeds)):
            console().print(plain_table(map(str, shown), shown.itertuples(index=False)))
            print()
    print(f"{folder}: memory.csv, splits.csv, memory.png, memory.svg")
