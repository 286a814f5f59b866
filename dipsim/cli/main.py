"""The command line's entry, and how it fails.

Every other module of this package is a family of commands. Commands import what they need themselves, so that `--help`
answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
from io import TextIOWrapper
from threading import Timer, main_thread
from typing import TYPE_CHECKING, Annotated, NoReturn, TextIO

import typer

from dipsim.basics.errors import InputError, and_more
from dipsim.basics.version import __version__
from dipsim.cli import answers, compare, imports, inspect, live, machine, memory, simulate, solve
from dipsim.cli.complaints import fail, located

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

INTERRUPTED = 130  # exit status
AGAIN_S = 0.01  # until a Ctrl-C that was dropped comes again
COMPLETE = "_DIPSIM_COMPLETE"  # how a shell asks, also of `python -m dipsim`

app = typer.Typer(
    help="Predict how fast a language model runs when its weights do not fit in DRAM.",
    pretty_exceptions_enable=False,
)
for family in (live, imports, simulate, solve, memory, answers, compare, machine, inspect):
    app.add_typer(family.commands)


def main() -> NoReturn:
    """Run the command line; what the user can mend is one line on stderr and exit status 2."""
    interrupts: list[int] = []
    timers: list[Timer] = []

    def interrupt(number: int, _frame: object) -> NoReturn:
        interrupts.append(number)
        raise KeyboardInterrupt

    def dropped(what: UnraisableHookArgs) -> None:
        if what.exc_type is KeyboardInterrupt:  # it fell where Python drops errors, as while something is collected
            timers.append(Timer(AGAIN_S, signal.pthread_kill, [main_thread().ident, signal.SIGINT]))
            timers[-1].start()
        else:
            hook(what)

    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    if before is signal.default_int_handler:  # and not ignored, as in the background
        signal.signal(signal.SIGINT, interrupt)
        sys.unraisablehook = dropped
    try:
        _run()
    except Exception:
        if not interrupts:
            raise
        fail("interrupted", status=INTERRUPTED)  # modules that are being imported make any error of Ctrl-C
    finally:
        for timer in timers:
            timer.cancel()
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = hook


def _run() -> NoReturn:
    try:
        _escape(sys.stdout)
        status = app(standalone_mode=False, complete_var=COMPLETE) or 0
        if status == INTERRUPTED:  # what typer makes of Ctrl-C
            fail("interrupted", status=status)
        sys.stdout.flush()  # here, where a full disk is one line
        sys.exit(status)
    except InputError as error:
        fail(and_more(*located(error.all[0]), *error.all[1:]))
    except typer.TyperException as error:  # an unknown command or option, a missing argument
        message = error.format_message().rstrip(".").replace("Value error, ", "").replace("Input should", "must")
        fail(f"{message}; see `python -m dipsim{_command(error)} --help`")
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted", status=INTERRUPTED)
    except MemoryError:
        fail("out of memory; ask for fewer tokens, points or policies")
    except BrokenPipeError:  # the reader of our output has seen enough
        _discard(sys.stdout)
        sys.exit(0)
    except OSError as error:
        if error.filename is None:  # what is left of our own output
            _discard(sys.stdout)
        fail(f"{error.filename or 'output'}: {error.strerror or error}")


def _command(error: typer.TyperException) -> str:
    """The command that could not be understood, after a space; nothing if it is not known."""
    context = getattr(error, "ctx", None)
    return "" if context is None else context.command_path.removeprefix(context.find_root().command_path)


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
