"""Bundled columns from the most to the least used: a pinned hot set lies apart, and what is streamed is dense."""

import numpy as np

from dipsim.basics.arrays import Ints
from dipsim.storage.layout import Layout
from dipsim.storage.placement import Placement, Site


class Popularity(Layout):
    """Columns by falling number of uses; among equals the lowest index comes first."""

    bundled = True
    learns = True
    pins = True

    def placed(self, site: Site, hot: int) -> Placement:
        return self.laid_out(site, hot, by_uses(site))


def by_uses(site: Site) -> Ints:
    """The columns from the most to the least used by the calibration tokens."""
    return np.argsort(-site.uses.sum(axis=0), kind="stable")
