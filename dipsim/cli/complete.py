"""What the shell completes: the names of what is shipped. Nothing is loaded to find them. Paths are the shell's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pkgutil import iter_modules

import dipsim
from dipsim.basics import assets

_MODULES = {"layouts": "storage/layouts", "evictions": "memory/eviction"}  # a module each, called as what it holds
_BASES = ("rule",)  # modules there that hold nothing of the kind


def completion(kind: str) -> Callable[[], list[str]]:
    """What lists the names that may complete a word. typer chooses those that begin like it."""

    def complete() -> list[str]:
        return names(kind)

    return complete


def names(kind: str) -> list[str]:
    """All names of a kind, sorted: devices, policies, traces, layouts or evictions."""
    folders = [str(Path(folder) / _MODULES[kind]) for folder in dipsim.__path__] if kind in _MODULES else []
    modules = [each.name.replace("_", "-") for each in iter_modules(folders) if each.name not in _BASES]
    return sorted([*modules, *(assets.names(kind) if kind != "evictions" else ())])
