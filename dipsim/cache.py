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

from collections.abc import Sequence

import numpy as np

from dipsim.eviction import CLAIRVOYANT, EVICTIONS, Eviction, Ints, Mask, Values, checked, least, next_use
from dipsim.files import InputError
from dipsim.stack import hit_curve, next_use_classes, recency_stack

__all__ = [
    "CLAIRVOYANT",
    "EVICTIONS",
    "ColumnCache",
    "Eviction",
    "Ints",
    "Mask",
    "hit_curve",
    "hits_at",
    "next_use",
    "replay",
]


class ColumnCache:
    """At most `capacity` of `columns` columns. `resident` [columns] says which; it starts empty.

    Belady and optimal need all `masks` [T, columns] of the sequence, in the order in which `step` will see them.
    """

    def __init__(self, columns: int, capacity: int, eviction: Eviction, masks: Mask | None = None) -> None:
        self.capacity = 0 if eviction == "none" else min(capacity, columns)
        self.resident: Mask = np.zeros(columns, dtype=bool)
        self.found = 0  # hits of the last token
        self._bypass = eviction == "optimal"
        self._values = Values(columns, eviction, masks)
        self._size = 0
        self._leave = self._enter = 0  # the last limits of value, near which the next search begins

    def step(self, mask: Mask) -> Mask:
        """Present one token's mask [columns]; return its hits [columns] and make the mask resident."""
        hits = mask & self.resident
        if self.capacity == 0:
            return hits
        self._values.use(mask)
        self.found = int(np.count_nonzero(hits))
        wanted = int(np.count_nonzero(mask))
        if self._bypass or wanted < self.capacity:
            self.resident = self.resident | mask
            self._size += wanted - self.found
            if self._size > self.capacity:
                self._evict(self.resident if self._bypass else self.resident > mask)
        else:
            new = mask ^ hits
            free = self.capacity - self.found
            self.resident = hits | (self._most_valuable(new, free) if free < wanted - self.found else new)
            self._size = self.capacity
        return hits

    def _evict(self, among: Mask) -> None:
        values = self._values
        leaving, self._leave = least(values.now, among, self._size - self.capacity, self._leave + values.drift)
        self.resident ^= leaving
        self._size = self.capacity

    def _most_valuable(self, new: Mask, free: int) -> Mask:
        values = self._values
        entering, self._enter = least(-values.now, new, free, self._enter - values.drift)
        return entering


def replay(masks: Mask, capacity: int, eviction: Eviction) -> Ints:
    """Hits per token, [T], of masks [T, N] (bool) through an empty cache of `capacity` columns, 0 <= capacity <= N.

    Raises InputError for masks of another shape or dtype, a capacity out of range and an unknown eviction.
    """
    masks = checked(masks, eviction)
    columns = masks.shape[1]
    _check_capacity(capacity, columns)
    cache = ColumnCache(columns, int(capacity), eviction, masks if eviction in CLAIRVOYANT else None)
    hits = np.empty(len(masks), dtype=np.int64)
    for token, mask in enumerate(masks):
        cache.step(mask)
        hits[token] = cache.found
    return hits


def hits_at(masks: Mask, capacities: Sequence[int], eviction: Eviction) -> Ints:
    """Hits per token at several capacities, [T, C]: the columns are those of `replay` at each.

    LRU and Belady take one pass for all capacities that hold every mask. Raises InputError as `replay`.
    """
    masks = checked(masks, eviction)
    for capacity in capacities:
        _check_capacity(capacity, masks.shape[1])
    largest = int(np.count_nonzero(masks, axis=1).max(initial=0))
    hits = np.empty((len(masks), len(capacities)), dtype=np.int64)
    one_pass = {"lru": recency_stack, "belady": next_use_classes}.get(eviction)
    together = [c for c, capacity in enumerate(capacities) if one_pass and capacity >= largest]
    if one_pass and together:
        hits[:, together] = one_pass(masks, [capacities[c] for c in together])
    for c, capacity in enumerate(capacities):
        if c not in together:
            hits[:, c] = replay(masks, capacity, eviction)
    return hits


def _check_capacity(capacity: int, columns: int) -> None:
    if isinstance(capacity, bool) or not isinstance(capacity, (int, np.integer)) or not 0 <= capacity <= columns:
        raise InputError(f"capacity: must be a whole number of columns from 0 to {columns} (got {capacity!r})")
