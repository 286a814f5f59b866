"""Bundled columns by rising index, the most used ones pinned in DRAM and laid apart."""

import numpy as np

from dipsim.storage.layout import Layout
from dipsim.storage.layouts.popularity import by_uses
from dipsim.storage.placement import Placement, Site


class HotApart(Layout):
    """As `bundled`, but for the pinned columns."""

    bundled = True
    learns = True
    pins = True

    def placed(self, site: Site, hot: int) -> Placement:
        popular = by_uses(site)
        return self.laid_out(site, hot, np.concatenate((popular[:hot], np.sort(popular[hot:]))))
