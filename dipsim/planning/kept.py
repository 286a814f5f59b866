"""Plans in the making, kept in a folder layer by layer, so that planning that was killed goes on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dipsim.basics.errors import InputError
from dipsim.basics.files import write
from dipsim.planning.builder import PlanBuilder

PERIOD_S = 3.0  # of work that may be lost
SHARE = 0.1  # of the time that keeping may take
Arrays = dict[str, NDArray[Any]]


class KeptLayers:
    """The layers planned so far: a file `LAYER.npz` in a folder of each plan.

    `check` is called before layers are kept; it raises if what they were made from has changed. Nothing is kept of
    experts, whose caches may serve all layers.
    """

    def __init__(self, folders: Sequence[Path], check: Callable[[], object]) -> None:
        self.folders, self.check = folders, check
        self._kept = 0  # layers
        self._next = time.monotonic() + PERIOD_S

    def restore(self, builders: Sequence[PlanBuilder], layers: int) -> int:
        """Enter what is kept of the first `layers` layers; return how many of them all builders then have."""
        while self._kept < layers and self._restore(builders, self._kept):
            self._kept += 1
        return self._kept

    def keep(self, builders: Sequence[PlanBuilder], done: int) -> None:
        """Keep the layers before `done`, if it is time to and the disk has room."""
        begin = time.monotonic()
        if begin < self._next or any(builder.shape.mixture is not None for builder in builders):
            return
        self.check()
        with suppress(InputError):
            for layer in range(self._kept, done):
                for folder, builder in zip(self.folders, builders, strict=True):
                    write(_path(folder, layer), partial(_save, builder.layer(layer)))
                self._kept = layer + 1
        end = time.monotonic()
        self._next = end + max(PERIOD_S, (end - begin) / SHARE)

    def _restore(self, builders: Sequence[PlanBuilder], layer: int) -> bool:
        """Enter one layer into all builders, or into none: what is planned may add to what is there."""
        parts = [builder.layer(layer) for builder in builders]
        read = (_load(_path(folder, layer), part) for folder, part in zip(self.folders, parts, strict=True))
        found = [arrays for arrays in read if arrays is not None]
        if len(found) < len(parts):
            return False
        for part, arrays in zip(parts, found, strict=True):
            for name, array in part.items():
                array[...] = arrays[name]
        return True


def _path(folder: Path, layer: int) -> Path:
    return folder / f"{layer}.npz"


def _save(arrays: Arrays, path: Path) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _load(path: Path, like: Arrays) -> Arrays | None:
    """The arrays in a file; None if there is none, or not as it was written. Its checksums are those of zip."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            found = {name: kept[name] for name in like}
    except Exception:  # a damaged file raises whatever zip, struct, ast and numpy do
        return None
    fits = all(found[name].shape == here.shape and found[name].dtype == here.dtype for name, here in like.items())
    return found if fits else None
