"""Paths in an experiment file are seen from its folder. Everywhere else they are seen from the current one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dipsim.basics import assets
from dipsim.basics.errors import InputError
from dipsim.basics.files import is_file

FIELDS = {"trace": "traces", "device": "devices", "layout": "layouts", "calibration": "traces", "scale_to": "traces"}
Move = Callable[[str | None, str], str]  # the kind of a file, None for a plugin's own, and a text that may be its path


def seen_from(folder: Path) -> Move:
    """Makes paths that are seen from a folder those that are seen from the current one.

    A plugin's parameter is a path if there is such a file. Raises InputError for a file that is only seen from the
    current folder.
    """
    there = os.path.relpath(os.path.realpath(folder))  # `..` leaves the folder that a link leads to

    def move(kind: str | None, text: str) -> str:
        beside = os.path.normpath(Path(there, text))
        if not assets.is_path(kind, text):
            return text
        if is_file(text) and not is_file(beside):
            raise InputError(
                f"{text}: paths in an experiment are seen from its folder, where there is no such file; write "
                f"{os.path.relpath(text, there)}"
            )
        return _as_path(kind, beside) if kind is not None or is_file(beside) else text

    return move


def _as_path(kind: str | None, path: str) -> str:
    """A path that is not taken for a name."""
    return path if assets.is_path(kind, path) else f"./{path}"


def seen_in(folder: Path) -> Move:
    """The way back: makes paths that are seen from the current folder those that are seen from another."""

    def move(kind: str | None, text: str) -> str:
        is_own = assets.is_path(kind, text) and (kind is not None or is_file(text))
        if not is_own or Path(text).is_absolute():
            return text
        return _as_path(kind, os.path.relpath(text, os.path.realpath(folder)))

    return move


def moved(data: dict[str, Any], move: Move) -> dict[str, Any]:
    """The data of an experiment with all paths moved: in fields, names and parameters of plugins, and swept values."""
    return data | {
        **{name: _text(move, kind, data[name]) for name, kind in FIELDS.items()},
        "policies": [_plugin(move, "policies", choice) for choice in data["policies"]],
        "prefetch": _prefetch(move, data["prefetch"]),
        "sweep": {_key(move, key): [_swept(move, key, value) for value in data["sweep"][key]] for key in data["sweep"]},
    }


def _text(move: Move, kind: str | None, value: Any) -> Any:
    return move(kind, value) if isinstance(value, str) else value


def _plugin(move: Move, kind: str, choice: Any) -> Any:
    """A plugin by name or path, or {that: parameters}; anything else, which a swept value may be, as it is."""
    if not isinstance(choice, dict) or not all(isinstance(parameters, dict) for parameters in choice.values()):
        return _text(move, kind, choice)
    return {
        _text(move, kind, name): {key: _text(move, None, value) for key, value in parameters.items()}
        for name, parameters in choice.items()
    }


def _prefetch(move: Move, options: Any) -> Any:
    if not isinstance(options, dict) or "by" not in options:
        return options
    return options | {"by": _plugin(move, "prefetchers", options["by"])}


def _key(move: Move, key: str) -> str:
    """A swept key: the name of a plugin in it may be its path."""
    head, dot, parameter = key.rpartition(".")
    return f"{move('policies', head)}.{parameter}" if dot else key


def _swept(move: Move, key: str, value: Any) -> Any:
    if key == "prefetch":
        return _prefetch(move, value)
    return _plugin(move, "prefetchers", value) if key == "prefetch.by" else _text(move, FIELDS.get(key), value)
