"""What the commands share: the terminal's width, a progress bar, settings given as POLICY.PARAMETER=VALUE."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dipsim.assets import means
from dipsim.files import InputError, parse_yaml


def must_end(out: Path, suffix: str, what: str) -> None:
    """Raises InputError unless the file to be written has the suffix by which it will be found again."""
    if out.suffix != suffix:
        raise InputError(f"--out {out}: {what} must end in {suffix}")


def apply_settings(chosen: list[dict[str, dict[str, Any]]], settings: list[str]) -> None:
    """Put `--set POLICY.PARAMETER=VALUE` into the parameters of the policies chosen."""
    for setting in settings:
        target, equals, value = setting.partition("=")
        name, dot, parameter = target.rpartition(".")
        matching = [options for entry in chosen for key, options in entry.items() if means(name, key)]
        if not (equals and dot and matching):
            known = ", ".join(key for entry in chosen for key in entry)
            raise InputError(f"--set {setting}: write POLICY.PARAMETER=VALUE with a policy of this run ({known})")
        for parameters in matching:
            parameters[parameter] = parse_yaml(value, f"--set {setting}")


@contextlib.contextmanager
def torch_needed(extra: str = "live", less: str = "or shorter sequences, or a smaller dtype") -> Iterator[None]:
    """Around what needs torch: name its extra where it is missing, ask for fewer of what where memory is."""
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
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 130))


@contextlib.contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr that vanishes at the end; yields a function (what, done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    console = Console(stderr=True)
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show
