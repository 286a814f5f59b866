"""Plans in the making, kept in a folder layer by layer, so that planning that was killed goes on where it stopped."""

from __future__ import annotations

import time
import zipfile
import zlib
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
        """Enter one layer into all builders, or into none that counts: it is planned again unless all have it."""
        return all(
            _load(_path(folder, layer), builder.layer(layer))
            for folder, builder in zip(self.folders, builders, strict=True)
        )


def _path(folder: Path, layer: int) -> Path:
    return folder / f"{layer}.npz"


def _save(arrays: Arrays, path: Path) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _load(path: Path, arrays: Arrays) -> bool:
    """Fill arrays with those in a file; whether there is one, as it was written. Its checksums are those of zip."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            found = {name: kept[name] for name in arrays}
        if any(found[name].shape != here.shape or found[name].dtype != here.dtype for name, here in arrays.items()):
            return False
    except (OSError, ValueError, LookupError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error):
        return False
    for name, here in arrays.items():
        here[...] = found[name]
    return True
