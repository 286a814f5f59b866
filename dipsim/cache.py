"""The column cache of one linear in one layer: who is resident, who leaves, who enters (reference section 4).

A token presents its whole mask at once. Columns that are resident are hits; afterwards the mask is made resident,
and residents outside the mask make room. Every eviction rule is one number per column, its *value*: the least
valuable resident outside the mask leaves first, and where the mask alone exceeds the capacity all hits stay and
the most valuable newcomers take the places left. Ties: lowest column index first, both leaving and entering.

- `lru`: the token of the last use.
- `lfu`: the number of uses since the start of the sequence, cached or not.
- `belady`: minus the token of the next use, which needs the future.
- `optimal`: as belady, but a newcomer may be left out (bypass). Keeping the nearest next uses is then the most hits
  that any cache can have: choosing which of the intervals between uses to bridge, at most `capacity` at a time, is
  solved by dropping the interval that ends last whenever there are too many.
- `none`: nothing is ever resident.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dipsim.files import InputError

Eviction = Literal["none", "lru", "lfu", "belady", "optimal"]
EVICTIONS: tuple[Eviction, ...] = ("none", "lru", "lfu", "belady", "optimal")
CLAIRVOYANT = ("belady", "optimal")

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]


class Values:
    """The value of every column after each use, under one eviction rule; `masks` [T, N] only if clairvoyant."""

    def __init__(self, columns: int, eviction: Eviction, masks: Mask | None = None) -> None:
        self.now: Ints = np.full(columns, -1 if eviction == "lru" else 0, dtype=np.int64)
        self._eviction = eviction
        self._token = -1
        self._next_use = next_use(masks) if masks is not None else None

    def use(self, mask: Mask) -> None:
        """Account for one token's mask."""
        self._token += 1
        if self._next_use is not None:
            self.now = -self._next_use[self._token]
        elif self._eviction == "lfu":
            self.now += mask
        else:
            self.now[mask] = self._token


class ColumnCache:
    """At most `capacity` of `columns` columns. `resident` [columns] says which; it starts empty.

    Belady and optimal need all `masks` [T, columns] of the sequence, in the order in which `step` will see them.
    """

    def __init__(self, columns: int, capacity: int, eviction: Eviction, masks: Mask | None = None) -> None:
        self.capacity = 0 if eviction == "none" else min(capacity, columns)
        self.resident: Mask = np.zeros(columns, dtype=bool)
        self._size = 0
        self._bypass = eviction == "optimal"
        self._values = Values(columns, eviction, masks)

    def step(self, mask: Mask) -> Mask:
        """Present one token's mask [columns]; return its hits [columns] and make the mask resident."""
        hits = mask & self.resident
        if self.capacity == 0:
            return hits
        self._values.use(mask)
        wanted = int(np.count_nonzero(mask))
        if self._bypass:
            self.resident = self.resident | mask
            self._evict(self.resident, int(np.count_nonzero(self.resident)) - self.capacity)
        elif wanted < self.capacity:
            kept = self.resident & ~mask
            self._evict(kept, int(np.count_nonzero(kept)) + wanted - self.capacity)
            self.resident = kept | mask
        else:
            self._admit(hits, mask & ~hits)
        return hits

    def _evict(self, columns: Mask, excess: int) -> None:
        """Take the `excess` least valuable out of `columns`, in place."""
        if excess > 0:
            candidates = np.flatnonzero(columns)
            columns[_least(self._values.now[candidates], candidates, excess)] = False

    def _admit(self, hits: Mask, new: Mask) -> None:
        """The hits stay; the most valuable of `new` fill the places left."""
        self.resident = hits.copy()
        free = self.capacity - int(np.count_nonzero(hits))
        if free > 0:
            candidates = np.flatnonzero(new)
            self.resident[_least(-self._values.now[candidates], candidates, free)] = True


def _least(values: Ints, columns: Ints, count: int) -> Ints:
    """The `count` columns of least value; among equals those of lowest index."""
    if count >= len(columns):
        return columns
    keys = values * (1 << 32) + columns  # unique, so a partition is exact
    return columns[np.argpartition(keys, count - 1)[:count]]


def next_use(masks: Mask) -> Ints:
    """[T, N]: the token after t that uses each column next; T + 1 if none does."""
    tokens = len(masks)
    result = np.empty(masks.shape, dtype=np.int64)
    upcoming = np.full(masks.shape[1], tokens + 1, dtype=np.int64)
    for token in range(tokens - 1, -1, -1):
        result[token] = upcoming
        upcoming[masks[token]] = token
    return result


def replay(masks: Mask, capacity: int, eviction: Eviction) -> Ints:
    """Hits per token, [T], of masks [T, N] (bool) through an empty cache of `capacity` columns, 0 <= capacity <= N.

    Raises InputError for masks of another shape or dtype, a capacity out of range and an unknown eviction.
    """
    masks = _checked(masks, eviction)
    columns = masks.shape[1]
    if isinstance(capacity, bool) or not isinstance(capacity, (int, np.integer)) or not 0 <= capacity <= columns:
        raise InputError(f"capacity: must be a whole number of columns from 0 to {columns} (got {capacity!r})")
    cache = ColumnCache(columns, int(capacity), eviction, masks if eviction in CLAIRVOYANT else None)
    return np.array([np.count_nonzero(cache.step(mask)) for mask in masks], dtype=np.int64)


def hit_curve(masks: Mask, eviction: Eviction) -> Ints:
    """Total hits at every capacity, [N + 1], in one pass over masks [T, N] (bool).

    LRU, LFU and Belady are stack algorithms (Mattson et al. 1970), also with whole masks and overflow: the columns
    of a cache of capacity c are always among those of capacity c + 1, so one order of the columns, the stack, holds
    the caches of all capacities as its prefixes. Raises InputError as `replay`.
    """
    masks = _checked(masks, eviction)
    columns = masks.shape[1]
    at = np.zeros(columns + 1, dtype=np.int64)  # at[c]: hits that need a capacity of c or more
    if eviction != "none" and columns:
        values = Values(columns, eviction, masks if eviction in CLAIRVOYANT else None)
        stack: list[int] = []
        for mask in masks:
            values.use(mask)
            at[1 + np.flatnonzero(mask[stack])] += 1
            stack = _restack(stack, mask.tolist(), values.now.tolist(), bypass=eviction == "optimal")
    return np.cumsum(at)


def _restack(stack: list[int], mask: list[bool], value: list[int], bypass: bool) -> list[int]:
    """The stack after a token: position c holds the column that capacity c + 1 has and capacity c has not.

    Growing the capacity by one uncovers the next column of the old stack. While the mask is not yet covered, that
    column follows if it is in the mask, otherwise the most valuable newcomer does; from then on the most valuable of
    all uncovered columns outside the mask. With bypass the mask enjoys no such right: it is uncovered from the start.
    """
    wanted = [column for column, used in enumerate(mask) if used]
    old = iter(stack)
    new: list[int] = []
    uncovered: list[tuple[int, int]] = []  # a heap, the most valuable first, of equals the highest index
    if bypass:
        uncovered = [(-value[column], -column) for column in wanted]
        heapify(uncovered)
    else:
        newcomers = [(-value[column], column) for column in wanted]
        heapify(newcomers)
        taken: set[int] = set()
        while len(taken) < len(wanted):
            column = next(old, -1)
            if column >= 0 and not mask[column]:
                heappush(uncovered, (-value[column], -column))
            if column < 0 or not mask[column] or column in taken:
                column = heappop(newcomers)[1]
                while column in taken:
                    column = heappop(newcomers)[1]
            taken.add(column)
            new.append(column)
    for column in old:
        if not mask[column]:
            heappush(uncovered, (-value[column], -column))
        if uncovered:
            new.append(-heappop(uncovered)[1])
    while uncovered:
        new.append(-heappop(uncovered)[1])
    return new


def _checked(masks: Mask, eviction: Eviction) -> Mask:
    if eviction not in EVICTIONS:
        raise InputError(f"eviction: {eviction!r} is not one of {', '.join(EVICTIONS)}")
    masks = np.asarray(masks)
    if masks.ndim != 2 or masks.dtype != np.bool_:
        raise InputError(f"masks: must be bool [tokens, columns] (got {masks.dtype} {list(masks.shape)})")
    return masks
