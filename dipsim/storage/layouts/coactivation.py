"""Bundled columns such that those used together lie together (after Neuralink, arXiv 2410.19274).

The pinned columns are the most used ones, as in `popularity`. The others form a chain: each is followed by the one,
of those left, whose uses differ least from its own.
"""

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.storage.layout import Layout
from dipsim.storage.placement import Site
from dipsim.storage.runs import ones, pack


class Coactivation(Layout):
    """A greedy chain by Hamming distance between uses; among equals the lowest index comes first."""

    bundled = True
    learns = True
    pins = True

    def order(self, site: Site, hot: int, ranking: Ints) -> Ints:
        cold = np.sort(ranking[hot:])
        return np.concatenate((ranking[:hot], cold[chain(site.uses[:, cold])]))


def chain(masks: Mask) -> Ints:
    """The columns of masks [T, N] in a chain that begins with the most used one, [N]."""
    uses = pack(np.ascontiguousarray(masks.T))
    left = np.arange(len(uses))
    found: list[int] = []
    nearest = int(np.argmax(masks.sum(axis=0))) if len(uses) else 0
    while len(left):
        found.append(int(left[nearest]))
        left = np.delete(left, nearest)
        if len(left):
            nearest = int(np.argmin(ones(uses[left] ^ uses[found[-1]])))
    return np.array(found, dtype=np.intp)
