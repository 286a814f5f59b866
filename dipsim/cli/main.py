"""The command line's entry, and how it fails.

Every other module of this package is a family of commands. Commands import what they need themselves, so that `--help`
answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from dipsim.basics.errors import InputError
from dipsim.basics.version import __version__
from dipsim.cli import imports, inspect, live, machine, simulate

INTERRUPTED = 130  # exit status

app = typer.Typer(
    help="Predict how fast a language model runs when its weights do not fit in DRAM.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for family in (live, imports, simulate, machine, inspect):
    app.add_typer(family.commands)


def main() -> NoReturn:
    """Run the command line; what the user can mend is one line on stderr and exit status 2."""
    try:
        if (status := app(standalone_mode=False) or 0) == INTERRUPTED:  # what typer makes of Ctrl-C
            _fail("interrupted", status)
        sys.exit(status)
    except InputError as error:
        _fail(str(error))
    except typer.TyperException as error:  # an unknown command or option, a missing argument
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        _fail(f"{message}; see `python -m dipsim --help`")
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _fail(message: str, status: int = 2) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
