"""Layouts: in which order the columns of a group lie in Flash, and whether its matrices lie side by side.

A layout is a class in `storage/layouts/`, called as its file, or a file that was learned (`learned.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dipsim.basics.arrays import Ints
from dipsim.storage.flash import Flash
from dipsim.storage.placement import Placement, Site

LAYOUTS: dict[str, type[Layout]] = {}  # by name


class Layout:
    """By default every matrix lies by itself, column after column by rising index.

    A layout is known by the name of its file. One that `learns` needs the masks of calibration tokens. One that `pins`
    lays the pinned columns apart, so that what is streamed is dense; `pinned` is then the default eviction.
    """

    name: ClassVar[str]
    bundled: ClassVar[bool] = False  # the matrices of a group lie side by side, column by column
    learns: ClassVar[bool] = False
    pins: ClassVar[bool] = False
    needs_pinned: ClassVar[bool] = False  # makes no sense with a cache that changes

    def __init_subclass__(cls, listed: bool = True) -> None:
        super().__init_subclass__()
        cls.name = cls.__module__.rpartition(".")[2].replace("_", "-")
        if listed:
            LAYOUTS[cls.name] = cls

    def place(self, layer: int, sites: Sequence[Site], flash: Flash | None) -> list[Placement]:
        """Place the groups of a layer. `flash` is what they will be read from, if reads cost more than their bytes."""
        return [self.placed(site, site.pinned, by_uses(site) if self.learns else None) for site in sites]

    def placed(self, site: Site, hot: int, ranking: Ints | None = None) -> Placement:
        """Place one group with the first `hot` columns of a `ranking` [N] pinned, by default those of lowest index."""
        return self.laid_out(site, hot, np.arange(site.columns) if ranking is None else self.order(site, hot, ranking))

    def order(self, site: Site, hot: int, ranking: Ints) -> Ints:
        """The columns [N] as they lie, from the one most worth pinning to the least; the first `hot` are pinned."""
        return ranking

    def laid_out(self, site: Site, hot: int, order: Ints) -> Placement:
        """The placement of columns in a given order [N], the pinned ones first."""
        pieces = self.pieces(site)
        whole = 1 if self.bundled else site.matrices
        return Placement(order, hot, pieces, site.unit_bytes / pieces, whole, site.page)

    def pieces(self, site: Site) -> int:
        """How many reads a run takes, and so in how many pieces columns lie."""
        return 1 if self.bundled else site.matrices


def by_uses(site: Site) -> Ints:
    """The columns from the most to the least used by the calibration tokens; of equals the lowest index first."""
    return np.argsort(-site.uses.sum(axis=0), kind="stable")
