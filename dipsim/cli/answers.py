"""The commands that show what was found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipsim.cli.terminal import must_end

commands = typer.Typer()


@commands.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of run, sweep, solve, plan-memory or compare.")],
    out: Annotated[Path | None, typer.Option(help="The page; by default report.html in the folder.")] = None,
) -> None:
    """Write one HTML page of an output folder; it opens without a network."""
    from dipsim.report.page import write_report

    path = out or folder / "report.html"
    must_end(path, ".html", "a report")
    write_report(folder, path)
    print(path)
