"""What the commands share: the terminal's width, a progress bar, an experiment that the command line changes."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipsim.basics.errors import InputError, did_you_mean
from dipsim.basics.files import parse_yaml
from dipsim.basics.progress import Progress

if TYPE_CHECKING:
    from dipsim.study.experiment import Experiment

PERIOD_S = 10.0  # between lines about progress


def must_end(out: Path, suffix: str, what: str) -> None:
    """Raise InputError unless the file to write ends in the suffix that other commands expect."""
    if not out.name.endswith(suffix) or out.name == suffix:
        raise InputError(f"--out {out}: {what} must end in {suffix}")


def apply_settings(chosen: list[dict[str, dict[str, Any]]], settings: list[str]) -> None:
    """Put `--set POLICY.PARAMETER=VALUE` into the parameters of the policies chosen."""
    from dipsim.basics import assets
    from dipsim.study.experiment import set_parameter

    for setting in settings:
        target, equals, value = setting.partition("=")
        name, dot, parameter = target.rpartition(".")
        given = parse_yaml(value, f"--set {setting}")
        if not (equals and dot and set_parameter(chosen, name, parameter, given)):
            known = [assets.policy_name(key) for entry in chosen for key in entry]
            hint = did_you_mean(name, known)
            raise InputError(
                f"--set {setting}: write POLICY.PARAMETER=VALUE with a policy of this run ({', '.join(known)}){hint}"
            )


@contextlib.contextmanager
def changed(
    path: Path,
    changes: dict[str, Any],
    policies: list[str] | None,
    settings: list[str] | None,
    cache: str | None = None,
) -> Iterator[Experiment]:
    """The experiment of a file with what the command line changes. Complaints name one or the other."""
    from dipsim.cli.complaints import named_by_field
    from dipsim.study.experiment import Experiment

    begun = Experiment.load(path).resolved()
    given = {*changes, *(["policies"] if policies or settings else []), *(["cache"] if cache else [])}
    with named_by_field(path, given):
        yield _resolve(begun, changes, policies, settings or [], cache)


def _resolve(
    data: dict[str, Any], changes: dict[str, Any], policies: list[str] | None, settings: list[str], cache: str | None
) -> Experiment:
    """The experiment of a file's data with what the command line changes."""
    from dipsim.basics.fields import parse
    from dipsim.study.experiment import Experiment, policy_entries

    if cache is not None:  # what the command line says takes the place of what the file says, either way
        data |= {"dram": None, "cache": {**(data["cache"] or {}), "size": cache}}
    elif "dram" in changes and data["cache"] is not None:
        data["cache"]["size"] = None
    data |= changes
    chosen = policy_entries(data)
    if policies:
        known = {name: [entry for entry in chosen for key in entry if _spelt(key) == _spelt(name)] for name in policies}
        chosen = [entry for name in policies for entry in known[name] or [{name: {}}]]
    apply_settings(chosen, settings)
    return parse(Experiment, data | {"policies": chosen}, "")


def _spelt(policy: str) -> str:
    return policy.replace("_", "-")


def default_folder(path: Path | None, resolved: Experiment, changes: object, what: str = "") -> Path:
    """Where the results of an experiment go: by its file's name, or without one by what the command line changed."""
    from dipsim.basics import assets

    trace, device = assets.find("traces", resolved.trace), assets.find("devices", resolved.device)
    return (
        Path("results")
        / f"{path.stem if path else f'{trace.stem}-on-{device.stem}' if changes else 'quickstart'}{what}"
    )


@contextlib.contextmanager
def torch_needed(extra: str = "live", less: str = "or shorter sequences, or a smaller dtype") -> Iterator[None]:
    """Turn missing packages and missing memory into one line: which extra to install, what to ask for less of."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; install dipsim with its extra `{extra}` (see the README)"
        ) from None
    except Exception as error:
        out_of_memory = type(error).__name__ in ("OutOfMemoryError", "MemoryError")
        if not out_of_memory and not (
            isinstance(error, RuntimeError) and re.search("(not enough|out of) memory", str(error))
        ):
            raise
        raise InputError(f"out of memory; ask for fewer {less}") from None


def console() -> Any:
    """The terminal; 80 columns wide where the output goes to a file, unless COLUMNS says otherwise."""
    from rich.console import Console

    return Console()


def plain_table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> Any:
    """A table of text. What is too wide for the terminal goes on in the next line."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name, overflow="fold")
    table.columns[0].no_wrap = True
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def say(text: str) -> None:
    """Print text, in lines as wide as the terminal."""
    console().print(text, markup=False, highlight=False, emoji=False)


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar on stderr that vanishes at the end; yields the function that moves it.

    Where stderr is no terminal, a line says from time to time how far it is.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show


def _lines() -> Progress:
    """A function that writes a line about all that goes on, if the last one was written long enough ago."""
    parts: dict[str, str] = {}
    written = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal written
        parts[what] = f"{what} {done}/{total}"
        if done >= total:
            del parts[what]  # it is over
        if parts and time.monotonic() - written >= PERIOD_S:
            written = time.monotonic()
            print("; ".join(parts.values()), file=sys.stderr, flush=True)

    return show
