"""Where the bits that are not resident lie in Flash, a record for each unit, and how requests become reads.

Records lie side by side. Each begins with what the next level needs, so a request reads its beginning.
Reads that touch are one. A gap that takes less time to read than to leave out is read through, and brings whatever lies
in it (docs/background/precision.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dipsim.basics.arrays import Floats, Ints, Numbers
from dipsim.storage.flash import Flash

LevelsOf = NDArray[np.uint8]  # [..., N] of units
BLOCK = 512  # tokens whose reads are found together: few enough for a processor's caches


@dataclass(frozen=True)
class Records:
    """The records of one group in one layer.

    `order` [M] are the units that have one, as they lie. `sizes` [M, levels] are the bytes that each level needs of a
    record, 0 up to the resident one. Flash has pages of `page` bytes, 1 for none.
    """

    order: Ints
    sizes: Floats
    page: float = 1.0

    @cached_property
    def begin(self) -> Floats:
        """Where each record begins, [M], in bytes."""
        return np.asarray(np.cumsum(self.sizes[:, -1]) - self.sizes[:, -1])

    @cached_property
    def low(self) -> LevelsOf:
        """The resident level of each unit that has a record, [M]."""
        return np.asarray(np.count_nonzero(self.sizes == 0, axis=1) - 1, dtype=np.uint8)

    @property
    def bytes(self) -> float:
        """All records together."""
        return float(self.sizes[:, -1].sum())

    @cached_property
    def grain(self) -> float:
        """Bytes by which reads are told apart by size: a page, or the least that a record brings."""
        least = self.sizes[self.sizes > 0]
        return self.page if self.page > 1 or not len(least) else float(least.min())


@dataclass(frozen=True)
class Brought:
    """What T tokens have of the units of a group: their `levels` [T, N], and the reads [T, R] that brought them.

    `read_bytes` [T, R] are their bytes. Class r holds reads of 2^r to 2^(r+1) - 1 grains.
    """

    levels: LevelsOf
    reads: Ints
    read_bytes: Floats

    def seconds(self, flash: Flash) -> Floats:
        """Seconds [T] that the reads take."""
        return np.asarray(flash.batch_time(self.reads, self.read_bytes))


def bring(requested: LevelsOf, records: Records, flash: Flash | None, classes: int) -> Brought:
    """The reads of requested levels [T, N], by size in so many classes.

    With a `flash`, each token reads through gaps of up to the break-even, half of it or none, or reads all records,
    whichever takes it the least time, and it has all levels that are then there.
    """
    blocks = [slice(begin, begin + BLOCK) for begin in range(0, max(len(requested), 1), BLOCK)]
    parts = [vars(_bring(requested[block], records, flash, classes)) for block in blocks]
    return Brought(*(np.concatenate([part[name] for part in parts]) for name in parts[0]))


def _bring(requested: LevelsOf, records: Records, flash: Flash | None, classes: int) -> Brought:
    wanted, some = requested[:, records.order], len(records.order) > 0
    best = _read(requested, wanted, records, classes, along=some and records.page > 1)
    if flash is None or flash.scattered_is_free or not some:
        return best
    limit = flash.break_even(max(records.grain, records.bytes / len(records.order)))
    everything = np.where((wanted > records.low).any(axis=1, keepdims=True), records.sizes.shape[1] - 1, records.low)
    others = [_read(requested, wanted, records, classes, gap) for gap in (limit, limit / 2)]
    others.append(_read(requested, everything, records, classes))
    least = best.seconds(flash)
    for other in others:
        seconds = other.seconds(flash)
        rows = (seconds < least)[:, None]
        best = Brought(*(np.where(rows, *pair) for pair in zip(vars(other).values(), vars(best).values(), strict=True)))
        least = np.minimum(seconds, least)
    return best


def _read(
    requested: LevelsOf, wanted: Numbers, records: Records, classes: int, gap: float = 0.0, *, along: bool = True
) -> Brought:
    """Reads of records up to the levels `wanted` [T, M], where gaps of up to `gap` bytes are read through.

    Unless something comes `along` with what is requested [T, N], the levels are those requested.
    """
    tokens = len(wanted)
    rows, places = (wanted > records.low).nonzero()
    begin = records.begin[places]
    end = begin + records.sizes[places, wanted[rows, places]]
    if records.page > 1:
        begin = np.floor(begin / records.page) * records.page
        end = np.ceil(end / records.page) * records.page
    starts = np.ones(len(rows), dtype=bool)
    starts[1:] = (rows[1:] != rows[:-1]) | (begin[1:] - end[:-1] > gap)
    first = np.flatnonzero(starts)
    rows, begin, end = rows[first], begin[first], end[np.append(first[1:], len(end)) - 1] if len(first) else end
    size = end - begin
    kind = np.minimum(np.log2(np.maximum(size / records.grain, 1.0) + 1e-9).astype(np.int64), classes - 1)
    cell = rows * classes + kind
    reads = np.bincount(cell, minlength=tokens * classes).reshape(tokens, classes)
    read_bytes = np.bincount(cell, size, minlength=tokens * classes).astype(np.float64).reshape(tokens, classes)
    if not along:
        return Brought(requested, reads, read_bytes)
    whole = np.searchsorted(records.begin, begin)  # a page may hold whole records before the one wanted
    return Brought(_there(requested, rows, whole, end, records), reads, read_bytes)


def _there(requested: LevelsOf, rows: Ints, places: Ints, ends: Floats, records: Records) -> LevelsOf:
    """The levels [T, N] that are there when reads of tokens `rows` begin at records `places` and go on to `ends`."""
    begins = np.zeros((len(requested), len(records.order)), dtype=np.int32)
    begins[rows, places] = 1
    begun = np.cumsum(begins, axis=1)
    reads = begun[:, -1]
    last = begun + (np.cumsum(reads) - reads)[:, None] - 1  # the read that began at a record or before it
    until = np.where(begun > 0, np.append(ends, -np.inf)[last], -np.inf)
    levels = requested.copy()
    here = levels[:, records.order]
    for level in range(records.sizes.shape[1]):
        there = (records.sizes[:, level] > 0) & (records.begin + records.sizes[:, level] <= until + 1e-6)
        here = np.where(there, np.maximum(here, np.uint8(level)), here)
    levels[:, records.order] = here
    return levels
