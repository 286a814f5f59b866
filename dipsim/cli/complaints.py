"""How the command line complains: one line each on stderr, with file, field and the line of the file."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NoReturn

from yaml import Node

from dipsim.basics.errors import InputError
from dipsim.basics.files import compose, line_of

LONGEST = 2000  # letters of a line
MOST = 50  # lines


def fail(*messages: str, status: int = 2) -> NoReturn:
    """Print each message as one line and exit."""
    for message in messages[:MOST]:
        line = " ".join(message.split())
        shown = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line[:LONGEST])
        print(f"error: {shown}{'...' if len(line) > LONGEST else ''}", file=sys.stderr)
    if len(messages) > MOST:
        print(f"error: and {len(messages) - MOST} more", file=sys.stderr)
    sys.exit(status)


def located(*messages: str) -> list[str]:
    """Complaints, each with the line of the YAML file that it is about, if it begins with a file and a field of it."""
    nodes = cache(compose)  # for this call only
    return [_located(message, nodes) for message in messages]


def _located(message: str, nodes: Callable[[Path], Node | None]) -> str:
    parts = message.split(": ")
    files = [index for index, part in enumerate(parts) if part.endswith((".yaml", ".yml")) and len(part) < 250]
    for index in reversed(files):  # an experiment may name a device's file, whose field it is
        path, text = Path(parts[index]), ": ".join(parts[index + 1 :])
        if path.is_file() and (line := _line(nodes(path), text)):
            return f"{message} (line {line})"
    return message


def _line(node: Node | None, text: str) -> int | None:
    """The line of a file that a complaint about it is about. At a point of a sweep, it is that of a swept value."""
    point, _, rest = text.partition("): ")
    if not point.startswith("point ("):
        return line_of(node, re.sub("^policy ", "policies: ", text))
    swept = re.sub("^policy (.*?): |^hardware: ", lambda found: f"{found[1]}." if found[1] else "", rest)
    sweep, line = line_of(node, "sweep: "), line_of(node, f"sweep: {swept}")
    return line if line != sweep else _line(node, rest) or sweep


@contextmanager
def named_by_field(path: Path, given: Collection[str]) -> Iterator[None]:
    """Begin the messages of an InputError with the command line where they are about fields given there, or the file.

    What begins with the name of an option stays as it is.
    """
    try:
        yield
    except InputError as error:
        raise InputError(*(_named(line, path, given) for line in error.all)) from error.__cause__


def _named(line: str, path: Path, given: Collection[str]) -> str:
    field = "policies" if line.startswith("policy ") else re.split("[.:]", line)[0]
    return line if line.startswith("--") else f"{'command line' if field in given else path}: {line}"
