"""How long work reports what it has done."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], object]  # what is done, how many steps of it are, how many there will be


def silent(_what: str, _done: int, _total: int) -> None:
    """Report to nobody."""
