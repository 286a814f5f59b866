"""Bundled columns by rising index, the most used ones pinned in DRAM and laid apart."""

import numpy as np

from dipsim.basics.arrays import Ints
from dipsim.storage.layout import Layout
from dipsim.storage.placement import Site


class HotApart(Layout):
    """As `bundled`, but for the pinned columns."""

    bundled = True
    learns = True
    pins = True

    def order(self, site: Site, hot: int, ranking: Ints) -> Ints:
        return np.concatenate((ranking[:hot], np.sort(ranking[hot:])))
