"""The command that puts runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dipsim.basics.errors import InputError
from dipsim.cli.terminal import changed, console, progress_bar, say

if TYPE_CHECKING:
    from dipsim.results.folder import Run
    from dipsim.results.result import Result
    from dipsim.study.experiment import Experiment

commands = typer.Typer()


@commands.command()
def compare(
    things: Annotated[
        list[str], typer.Argument(help="Two or more: output folders of runs, or devices by name or path.")
    ],
    experiment: Annotated[
        Path | None, typer.Option(help="What each device runs; by default the shipped quickstart.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Output folder.")] = Path("results/compare"),
) -> None:
    """Put runs of one model side by side: a table, and a figure of their speeds and of where the time went."""
    from dipsim.basics import assets
    from dipsim.figures.compare import draw_compare
    from dipsim.results.compare import Compared, check_comparable, differences, rows, said, write_compare
    from dipsim.results.folder import clear_results, in_words, runs_of
    from dipsim.results.tables import compare_table
    from dipsim.study.run import write_run

    path = experiment or assets.find("examples", "quickstart")
    devices = {text: assets.find("devices", text).stem for text in things if not Path(text).is_dir()}
    folders = [out / devices[text] if text in devices else Path(text) for text in things]
    names = _names(folders)
    if experiment is not None and not devices:
        raise InputError(f"--experiment {experiment}: no device to run it on; name one, or leave the option out")
    if out.resolve() in {folder.resolve() for folder in folders}:
        raise InputError(f"--out {out}: is one of what is compared; give another folder")
    known = {folder: _read(folder) for folder, text in zip(folders, things, strict=True) if text not in devices}
    made = {out / name: _run(path, text) for text, name in devices.items()}
    known |= {folder: (runs_of(results), _options(resolved)) for folder, (resolved, results) in made.items()}
    compared = [Compared(name, *known[folder]) for folder, name in zip(folders, names, strict=True)]
    check_comparable(compared)
    table = rows(compared)
    same, differ = differences(table)
    clear_results(out)
    for folder, (resolved, results) in made.items():
        write_run(resolved, results, folder)
    write_compare(table, out)
    draw_compare(out)
    say(f"the same: {in_words(same)}")
    say(f"different: {said(differ)}")
    console().print(compare_table(table))
    print(f"{out}: compare.csv, columns.md, compare.png, compare.svg")


def _names(folders: Sequence[Path]) -> list[str]:
    """What to call each folder: its name, or its path where names are the same. Raises InputError if one is twice."""
    found = [folder.resolve() for folder in folders]
    if len(found) < 2:
        raise InputError("compare: takes two things or more; name another device or output folder")
    if twice := [str(folder) for folder in folders if found.count(folder.resolve()) > 1]:
        raise InputError(f"compare: {twice[0]} is there twice; leave one out, or rename one device file")
    names = [folder.name for folder in found]
    return names if len(set(names)) == len(names) else list(map(str, folders))


def _run(path: Path, device: str) -> tuple[Experiment, list[Result]]:
    """Run an experiment on a device; return it as it was resolved, and what came out."""
    from dipsim.study.run import run

    with progress_bar() as progress, changed(path, {"device": device}, None, None) as experiment:
        return experiment, run(experiment, progress)


def _read(folder: Path) -> tuple[list[Run], dict[str, Any]]:
    """The runs of a folder, and what its experiment gives besides defaults. Raises InputError if it is not of a run."""
    from dipsim.results.folder import command_of, read_runs
    from dipsim.study.experiment import Experiment

    if (command := command_of(folder)) != "run":
        raise InputError(f"{folder}: comes from `{command}`, not from `run`; give the output folder of a run")
    return read_runs(folder), _options(Experiment.load(folder / "experiment.yaml"))


def _options(experiment: Experiment) -> dict[str, Any]:
    """What an experiment gives besides defaults."""
    return experiment.model_dump(mode="json", exclude_defaults=True)
