"""The pages of Flash that columns lie on.

A read occupies whole pages, and brings every column that lies wholly on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipsim.basics.arrays import Ints, Mask


@dataclass(frozen=True)
class Pages:
    """Column n of N lies on the pages from `first[n]` up to, but without, `end[n]`. Both rise and leave no page out."""

    first: Ints
    end: Ints

    @property
    def count(self) -> int:
        """G, the number of pages."""
        return int(self.end[-1]) if len(self.end) else 0

    @cached_property
    def one_each(self) -> bool:
        """Whether every column is a page of its own."""
        return len(self.first) == self.count and bool((self.end - self.first == 1).all())

    def touched(self, masks: Mask) -> Mask:
        """The pages [T, G] on which a column of masks [T, N] lies."""
        if self.one_each:
            return masks
        pages, before = np.arange(self.count), _before(masks)
        return (
            before[:, np.searchsorted(self.first, pages, "right")]
            > before[:, np.searchsorted(self.end, pages, "right")]
        )

    def filled(self, pages: Mask) -> Mask:
        """The columns [T, N] that lie wholly on pages [T, G]."""
        if self.one_each:
            return pages
        before = _before(pages)
        return np.asarray(before[:, self.end] - before[:, self.first] == self.end - self.first)


def lay(columns: int, size: float, hot: int, page: float) -> Pages:
    """The pages of columns of `size` bytes, side by side. The first `hot` and the others each begin on a page.

    A `page` of 1 byte stands for Flash without pages: every column is then one of its own.
    """
    index = np.arange(columns)
    if page == 1:
        return Pages(index, index + 1)
    place = np.where(index < hot, index, index - hot)
    skipped = np.where(index < hot, 0, np.ceil(hot * size / page)).astype(np.int64)
    first = np.floor(place * size / page).astype(np.int64)
    return Pages(skipped + first, skipped + np.ceil((place + 1) * size / page).astype(np.int64))


def _before(masks: Mask) -> Ints:
    """How many of [T, K] are set before each of K + 1 places, [T, K + 1]."""
    count = np.zeros((len(masks), masks.shape[1] + 1), dtype=np.int32)
    np.cumsum(masks, axis=1, out=count[:, 1:])
    return count
