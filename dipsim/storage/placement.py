"""Where the columns of one group lie in Flash, in one layer, and how missing columns become reads.

Pages that lie side by side are one read; on Flash without pages, columns are. A gap that takes less time to read than
to leave out is read through, and where one read of everything is faster still, everything is read
(docs/background/equations.md, section 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipsim.basics.arrays import Floats, Ints, Mask
from dipsim.storage.flash import Flash
from dipsim.storage.pages import Pages, lay
from dipsim.storage.runs import Words, closed, ones, pack, packed_runs, unpack


@dataclass(frozen=True)
class Site:
    """One group of one layer, as a layout sees it.

    `matrices` share a mask over `columns` columns of `column_bytes` each. In row-major matrices a column is scattered
    over `rows` places, in all of them together (one in a matrix where it is itself a row). `pinned` columns stay in
    DRAM, 0 with a cache that changes. `masks` [T, columns] are those of calibration tokens, None where there are none.
    `wants(tokens, resident)` are the masks of some of these tokens where the columns `resident` [columns] are in DRAM,
    None where that makes no difference. Flash has pages of `page` bytes, 1 for none.
    """

    name: str
    matrices: int
    columns: int
    column_bytes: float
    rows: int
    pinned: int
    masks: Mask | None = None
    wants: Callable[[slice, Mask], Mask] | None = None
    page: float = 1.0

    @property
    def unit_bytes(self) -> float:
        """Bytes of a column in all matrices."""
        return self.matrices * self.column_bytes

    def wanted(self, tokens: slice, resident: Mask) -> Mask:
        """What some of the calibration tokens want where these columns are resident, [tokens, columns]."""
        return self.uses[tokens] if self.wants is None else self.wants(tokens, resident)

    @property
    def uses(self) -> Mask:
        """The calibration tokens' masks, [T, columns]."""
        assert self.masks is not None
        return self.masks


@dataclass(frozen=True)
class Placement:
    """`order` [N] are the columns as they lie in Flash; the first `hot` are pinned in DRAM, and lie apart.

    They lie in `pieces` pieces, in each of which a column has `piece_bytes`. A run takes a read in each piece, and one
    of everything that is not pinned takes `whole_pieces` reads. All occupy whole pages of `page` bytes, and every piece
    begins on a page.
    """

    order: Ints
    hot: int
    pieces: int
    piece_bytes: float
    whole_pieces: int
    page: float = 1.0

    @property
    def columns(self) -> int:
        """N, the number of columns."""
        return len(self.order)

    @property
    def unit_bytes(self) -> float:
        """Bytes of a column in all matrices of the group."""
        return self.pieces * self.piece_bytes

    @cached_property
    def pages(self) -> Pages:
        """The pages that columns lie on, in each of the pieces; without pages, the columns themselves."""
        return lay(self.columns, self.piece_bytes, self.hot, self.page)

    @property
    def page_bytes(self) -> float:
        """Bytes of a page, or of a column where Flash has no pages; in one of the pieces."""
        return self.piece_bytes if self.page == 1 else self.page

    @property
    def whole_bytes(self) -> float:
        """Bytes of one read of everything that is not pinned, all pieces together."""
        size = (self.columns - self.hot) * self.unit_bytes
        return size if self.page == 1 else -(-size // (self.whole_pieces * self.page)) * self.whole_pieces * self.page

    @cached_property
    def resident(self) -> Mask:
        """The pinned columns, [N] (bool)."""
        pinned = np.zeros(self.columns, dtype=bool)
        pinned[self.order[: self.hot]] = True
        pinned.setflags(write=False)
        return pinned

    @cached_property
    def in_order(self) -> bool:
        """Whether the columns lie by rising index."""
        return bool((np.diff(self.order) == 1).all())

    def laid(self, masks: Mask) -> Mask:
        """Masks [T, N] with their columns as they lie."""
        return masks if self.in_order else masks[:, self.order]

    def numbered(self, laid: Mask) -> Mask:
        """Masks [T, N] with their columns by index again."""
        if self.in_order:
            return laid
        masks = np.empty_like(laid)
        masks[:, self.order] = laid
        return masks


@dataclass(frozen=True)
class Fetch:
    """What T tokens read of one group in one layer.

    `reads` and `read_bytes` [T, R] are by class of run, as in `storage.runs`. `words` are the pages read, as they lie.
    """

    placement: Placement
    reads: Ints
    read_bytes: Floats
    words: Words

    @property
    def masks(self) -> Mask:
        """The columns that were wholly read, [T, N] (bool) by index."""
        pages = self.placement.pages
        return self.placement.numbered(pages.filled(unpack(self.words, pages.count)))

    def seconds(self, flash: Flash) -> Floats:
        """Seconds [T] that the reads take."""
        return np.asarray(flash.batch_time(self.reads, self.read_bytes))


def fetch(misses: Mask, placement: Placement, flash: Flash | None = None) -> Fetch:
    """The reads of missing columns [T, N].

    With a `flash`, each token reads through gaps of up to the break-even, half of it or none, or reads all that is not
    pinned, whichever takes it the least time. Without one, the pages of what is missing are read, or all that is not
    pinned where that is less.
    """
    missing = pack(placement.pages.touched(placement.laid(misses)))
    best = _merged(missing, 0, placement)
    if flash is None and placement.page > 1:
        everything = _everything(missing, placement)
        return _chosen(everything.read_bytes.sum(axis=1) < best.read_bytes.sum(axis=1), everything, best)
    if flash is None or flash.scattered_is_free:
        return best
    limit = gap_pages(placement, flash)
    others = [_merged(missing, gap, placement) for gap in sorted({limit, limit // 2} - {0})]
    others.append(_everything(missing, placement))
    least = best.seconds(flash)
    for other in others:
        seconds = other.seconds(flash)
        best = _chosen(seconds < least, other, best)
        least = np.minimum(seconds, least)
    return best


def gap_pages(placement: Placement, flash: Flash) -> int:
    """The largest gap, in pages or else columns, that is worth reading through between two single ones."""
    size = placement.page_bytes
    return min(placement.pages.count, int(flash.break_even(size) / size))


def _merged(missing: Words, gap: int, placement: Placement) -> Fetch:
    words = closed(missing, gap)
    runs, pages = packed_runs(words, placement.pages.count.bit_length())
    read_bytes = np.asarray(pages * (placement.pieces * placement.page_bytes))
    return Fetch(placement, runs * placement.pieces, read_bytes, words)


def _everything(missing: Words, placement: Placement) -> Fetch:
    """All that is not pinned, by every token that misses something."""
    cold = placement.pages.touched(np.arange(placement.columns)[None] >= placement.hot)
    words = np.where(ones(missing)[:, None] > 0, pack(cold), missing)
    runs, _ = packed_runs(words, placement.pages.count.bit_length())
    return Fetch(placement, runs * placement.whole_pieces, np.asarray(runs * placement.whole_bytes), words)


def _chosen(where: Mask, one: Fetch, other: Fetch) -> Fetch:
    """For each token the one fetch or the other."""
    rows = where[:, None]
    return Fetch(
        one.placement,
        np.where(rows, one.reads, other.reads),
        np.where(rows, one.read_bytes, other.read_bytes),
        np.where(rows, one.words, other.words),
    )
