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
    from dipsim.basics.files import write
    from dipsim.figures.compare import save_compare
    from dipsim.results.compare import Compared, check_comparable, differences, rows, said
    from dipsim.results.folder import in_words
    from dipsim.results.tables import compare_table

    path = experiment or assets.find("examples", "quickstart")
    devices = {text: assets.find("devices", text).stem for text in things if not Path(text).is_dir()}
    folders = [out / devices[text] if text in devices else Path(text) for text in things]
    names = _names(folders)
    if experiment is not None and not devices:
        raise InputError(f"--experiment {experiment}: no device to run it on; name one, or leave the option out")
    read = {folder: _read(folder) for folder, text in zip(folders, things, strict=True) if text not in devices}
    wanted = {out / name: text for text, name in devices.items()}
    _run(path, wanted)
    read |= {folder: _read(folder) for folder in wanted}
    compared = [Compared(name, *read[folder]) for folder, name in zip(folders, names, strict=True)]
    check_comparable(compared)
    same, differ = differences(compared)
    table = rows(compared)
    write(out / "compare.csv", table.to_csv(index=False))
    save_compare(table, f"{in_words(same)}\ndifferent: {said(differ)}", out)
    say(f"the same: {in_words(same)}")
    say(f"different: {said(differ)}")
    console().print(compare_table(table))
    print(f"{out}: compare.csv, compare.png, compare.svg")


def _names(folders: Sequence[Path]) -> list[str]:
    """What to call each folder: its name, or its path where names are the same. Raises InputError if one is twice."""
    found = [folder.resolve() for folder in folders]
    if len(found) < 2:
        raise InputError("compare: takes two things or more; name another device or output folder")
    if twice := [str(folder) for folder in folders if found.count(folder.resolve()) > 1]:
        raise InputError(f"compare: {twice[0]} is there twice; leave one out, or rename one device file")
    names = [folder.name for folder in found]
    return names if len(set(names)) == len(names) else list(map(str, folders))


def _run(path: Path, devices: dict[Path, str]) -> None:
    """Run an experiment on devices and write a folder for each, as `run` does. Nothing is written if one fails."""
    from dipsim.study.run import run, write_run

    found = []
    for folder, device in devices.items():
        with progress_bar() as progress, changed(path, {"device": device}, None, None) as experiment:
            found.append((experiment, run(experiment, progress), folder))
    for experiment, results, folder in found:
        write_run(experiment, results, folder)


def _read(folder: Path) -> tuple[list[Run], dict[str, Any]]:
    """The runs of a folder, and what its experiment gives besides defaults. Raises InputError if it is not of a run."""
    from dipsim.figures.sweep_table import is_sweep
    from dipsim.results.folder import read_runs
    from dipsim.study.experiment import Experiment

    if is_sweep(folder):
        raise InputError(f"{folder}: is a sweep, which says itself what differs; give the output folder of a run")
    runs = read_runs(folder)
    return runs, Experiment.load(folder / "experiment.yaml").model_dump(mode="json", exclude_defaults=True)
