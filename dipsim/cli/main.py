"""The command line's entry, and how it fails.

Every other module of this package is a family of commands. Commands import what they need themselves, so that `--help`
answers at once.
"""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Annotated, NoReturn, TextIO

import typer

from dipsim.basics.errors import InputError
from dipsim.basics.version import __version__
from dipsim.cli import answers, compare, imports, inspect, live, machine, memory, simulate, solve

INTERRUPTED = 130  # exit status
LONGEST = 2000  # letters of a line

app = typer.Typer(
    help="Predict how fast a language model runs when its weights do not fit in DRAM.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for family in (live, imports, simulate, solve, memory, answers, compare, machine, inspect):
    app.add_typer(family.commands)


def main() -> NoReturn:
    """Run the command line; what the user can mend is one line on stderr and exit status 2."""
    try:
        _escape(sys.stdout)
        if (status := app(standalone_mode=False) or 0) == INTERRUPTED:  # what typer makes of Ctrl-C
            _fail("interrupted", status)
        sys.stdout.flush()  # here, where a full disk is one line
        sys.exit(status)
    except InputError as error:
        _fail(str(error))
    except typer.TyperException as error:  # an unknown command or option, a missing argument
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        _fail(f"{message}; see `python -m dipsim --help`")
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", INTERRUPTED)
    except MemoryError:
        _fail("out of memory; ask for fewer tokens, points or policies")
    except BrokenPipeError:  # the reader of our output has seen enough
        _discard(sys.stdout)
        sys.exit(0)
    except OSError as error:
        if error.filename is None:  # what is left of our own output
            _discard(sys.stdout)
        _fail(f"{error.filename or 'output'}: {error.strerror or error}")


def _fail(message: str, status: int = 2) -> NoReturn:
    line = " ".join(message.split())
    shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line[:LONGEST])
    print(f"error: {shown}{'...' if len(line) > LONGEST else ''}", file=sys.stderr)
    sys.exit(status)


def _escape(output: TextIO) -> None:
    """Write letters that the output's encoding does not have as escapes."""
    if isinstance(output, TextIOWrapper):
        output.reconfigure(errors="backslashreplace")


def _discard(output: TextIO) -> None:
    """Let what is left of the output go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
