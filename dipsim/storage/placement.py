"""Where the columns of one group lie in Flash, in one layer, and how missing columns become reads.

Columns that lie side by side are one read. A gap that takes less time to read than to leave out is read through, and
where one read of everything is faster still, everything is read (docs/background.md, section 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dipsim.basics.arrays import Floats, Ints, Mask
from dipsim.storage.flash import Flash
from dipsim.storage.runs import Words, closed, ones, pack, packed_runs, unpack


@dataclass(frozen=True)
class Site:
    """One group of one layer, as a layout sees it.

    `matrices` share a mask over `columns` columns of `column_bytes` each. In row-major matrices a column is scattered
    over `rows` places, in all of them together (one in a matrix where it is itself a row). `pinned` columns stay in
    DRAM, 0 with a cache that changes. `masks` [T, columns] are those of calibration tokens, None where there are none.
    `wants(tokens, resident)` are the masks of some of these tokens where the columns `resident` [columns] are in DRAM,
    None where that makes no difference.
    """

    name: str
    matrices: int
    columns: int
    column_bytes: float
    rows: int
    pinned: int
    masks: Mask | None = None
    wants: Callable[[slice, Mask], Mask] | None = None

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

    A run of adjacent columns takes `pieces` reads, and each column adds `piece_bytes` to each of them. One read of
    everything that is not pinned takes `whole_pieces` reads.
    """

    order: Ints
    hot: int
    pieces: int
    piece_bytes: float
    whole_pieces: int

    @property
    def columns(self) -> int:
        """N, the number of columns."""
        return len(self.order)

    @property
    def unit_bytes(self) -> float:
        """Bytes of a column in all matrices of the group."""
        return self.pieces * self.piece_bytes

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

    `runs` of adjacent columns and the `run_columns` in them are [T, R] by class, as in `storage.runs`. A run takes
    `pieces` [T] reads of `piece_bytes` [T] for each column. `words` are the columns read, as they lie.
    """

    placement: Placement
    runs: Ints
    run_columns: Ints
    pieces: Ints
    words: Words

    @property
    def reads(self) -> Ints:
        """Reads by class, [T, R]."""
        return self.runs * self.pieces[:, None]

    @property
    def read_bytes(self) -> Floats:
        """Bytes read by class, [T, R]."""
        return np.asarray(self.run_columns * self.placement.unit_bytes)

    @property
    def masks(self) -> Mask:
        """The columns read, [T, N] (bool) by index."""
        return self.placement.numbered(unpack(self.words, self.placement.columns))

    def seconds(self, flash: Flash) -> Floats:
        """Seconds [T] that the reads take."""
        extra = self.reads * flash.page_bytes(self.placement.piece_bytes)
        return np.asarray(flash.batch_time(self.reads, self.read_bytes + extra))


def fetch(misses: Mask, placement: Placement, flash: Flash | None = None) -> Fetch:
    """The reads of missing columns [T, N].

    With a `flash`, each token reads through gaps of up to the break-even, half of it or none, or reads all that is not
    pinned, whichever takes it the least time. Without one, only what is missing is read.
    """
    missing = pack(placement.laid(misses))
    best = _merged(missing, 0, placement)
    if flash is None or flash.scattered_is_free:
        return best
    limit = gap_columns(placement, flash)
    others = [_merged(missing, gap, placement) for gap in sorted({limit, limit // 2} - {0})]
    others.append(_everything(missing, placement))
    least = best.seconds(flash)
    for other in others:
        seconds = other.seconds(flash)
        best = _chosen(seconds < least, other, best)
        least = np.minimum(seconds, least)
    return best


def gap_columns(placement: Placement, flash: Flash) -> int:
    """The largest gap, in columns, that is worth reading through between two single columns."""
    size = placement.piece_bytes + float(flash.page_bytes(placement.piece_bytes))
    gap = flash.break_even(size) + float(flash.page_bytes(placement.piece_bytes))
    return min(placement.columns, int(gap / placement.piece_bytes))


def _merged(missing: Words, gap: int, placement: Placement) -> Fetch:
    words = closed(missing, gap)
    runs, columns = packed_runs(words, placement.columns.bit_length())
    return Fetch(placement, runs, columns, np.full(len(words), placement.pieces), words)


def _everything(missing: Words, placement: Placement) -> Fetch:
    """All that is not pinned, by every token that misses something."""
    cold = np.arange(placement.columns) >= placement.hot
    words = np.where(ones(missing)[:, None] > 0, pack(cold[None]), missing)
    runs, columns = packed_runs(words, placement.columns.bit_length())
    return Fetch(placement, runs, columns, np.full(len(words), placement.whole_pieces), words)


def _chosen(where: Mask, one: Fetch, other: Fetch) -> Fetch:
    """For each token the one fetch or the other."""
    rows = where[:, None]
    return Fetch(
        one.placement,
        np.where(rows, one.runs, other.runs),
        np.where(rows, one.run_columns, other.run_columns),
        np.where(where, one.pieces, other.pieces),
        np.where(rows, one.words, other.words),
    )
