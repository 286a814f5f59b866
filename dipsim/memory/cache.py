"""The column cache of one linear in one layer: which columns are resident, leave and enter.

A token presents its whole mask at once. Resident columns of the mask are hits. The mask is then made resident, and
residents outside it make room. Where the mask alone exceeds the capacity, all hits stay and some newcomers take the
places left. Who leaves and who enters is the eviction rule's choice (docs/background/equations.md, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.basics.errors import InputError
from dipsim.memory.eviction import eviction_rule
from dipsim.workload.trace import sequences


class ColumnCache:
    """At most `capacity` of `columns` columns. `resident` [columns] (bool) says which; by default it starts empty.

    `masks` [T, columns] are all masks of the sequence, in the order in which `step` will see them. Only an eviction
    rule that knows the future needs them. Raises InputError for an unknown eviction.
    """

    def __init__(
        self, columns: int, capacity: int, eviction: str, masks: Mask | None = None, resident: Mask | None = None
    ) -> None:
        rule = eviction_rule(eviction)
        self.capacity = min(capacity, columns) if rule.caches else 0
        self.resident: Mask = np.zeros(columns, dtype=bool) if resident is None else resident
        self.found = 0  # hits of the last token
        self.rule = rule(columns, masks) if rule.needs_future else rule(columns)
        self.rule.capacity = float(self.capacity)
        self.rule.admit(self.resident, self.resident, self.resident)
        self._size = int(np.count_nonzero(self.resident))

    def step(self, mask: Mask) -> Mask:
        """Present one token's mask [columns]; return its hits [columns] and make the mask resident."""
        rule, hits = self.rule, mask & self.resident
        self.found = int(np.count_nonzero(hits))
        if self.capacity == 0 or rule.fixed:
            return hits
        rule.use(mask, hits)
        wanted = int(np.count_nonzero(mask))
        if rule.bypass or wanted < self.capacity:
            self.resident = self.resident | mask
            self._size += wanted - self.found
            if self._size > self.capacity:
                among = self.resident if rule.bypass else self.resident > mask
                self.resident ^= rule.victims(among, self._size - self.capacity)
                self._size = self.capacity
        else:
            entering = mask ^ hits
            free = self.capacity - self.found
            self.resident = hits | (rule.newcomers(entering, free) if free < wanted - self.found else entering)
            self._size = self.capacity
        rule.admit(mask, hits, self.resident)
        return hits


def run_tokens(
    cache: ColumnCache, masks: Mask, *, residents: Mask | None = None, choose: Callable[[int], Mask] | None = None
) -> Ints:
    """Let tokens pass through a cache; return the number of hits [T] of their masks [T, columns].

    With `residents` [T, columns], what each token found resident is filled in. With `choose`, the mask of each token is
    filled in just before: `choose(token)` may look at `cache.resident`.
    """
    found = np.empty(len(masks), dtype=np.int64)
    for token, mask in enumerate(masks):
        if choose is not None:
            mask[:] = choose(token)
        if residents is not None:
            residents[token] = cache.resident
        cache.step(mask)
        found[token] = cache.found
    return found


def find_residents(
    masks: Mask, capacity: int, eviction: str, starts: Sequence[int] = (0,), begin_with: Mask | None = None
) -> Mask:
    """What each token of masks [T, N] finds resident in a cache of `capacity` columns, [T, N].

    Each sequence begins with an empty cache, or with the columns `begin_with` [N].
    """
    if eviction_rule(eviction).fixed and begin_with is not None:
        return np.broadcast_to(begin_with, masks.shape)
    residents = np.zeros_like(masks)
    for begin, end in sequences(starts, len(masks)):
        part = masks[begin:end]
        cache = ColumnCache(masks.shape[1], capacity, eviction, part, begin_with)
        run_tokens(cache, part, residents=residents[begin:end])
    return residents


def replay(masks: Mask, capacity: int, eviction: str) -> Ints:
    """Hits per token, [T], of masks [T, N] (bool) in an empty cache of `capacity` columns, 0 <= capacity <= N.

    A `pinned` cache holds the columns of lowest index. Raises InputError for masks of another shape or dtype, a
    capacity out of range and an unknown eviction.
    """
    masks = checked_masks(masks, eviction)
    columns = masks.shape[1]
    check_capacity(capacity, columns)
    pinned = lowest(columns, capacity) if eviction_rule(eviction).fixed else None
    return run_tokens(ColumnCache(columns, int(capacity), eviction, masks, pinned), masks)


def lowest(columns: int, count: int) -> Mask:
    """The `count` columns of lowest index, [columns] (bool)."""
    return np.arange(columns) < count


def checked_masks(masks: Mask, eviction: str) -> Mask:
    """The masks as an array. Raises InputError unless they are bool [T, N] and the eviction is known."""
    eviction_rule(eviction)
    masks = np.asarray(masks)
    if masks.ndim != 2 or masks.dtype != np.bool_:
        raise InputError(f"masks: must be bool [tokens, columns] (got {masks.dtype} {list(masks.shape)})")
    return masks


def check_capacity(capacity: int, columns: int) -> None:
    """Raise InputError unless the capacity is a whole number from 0 to `columns`."""
    if isinstance(capacity, bool) or not isinstance(capacity, (int, np.integer)) or not 0 <= capacity <= columns:
        raise InputError(f"capacity: must be a whole number of columns from 0 to {columns} (got {capacity!r})")
