"""Slow twins of dipsim's fast kernels: the same rules in plain Python, by sorting and searching."""

from itertools import pairwise

import numpy as np


class SlowCache:
    """One cache, as reference section 4 says it; `step` presents a mask [N] and returns the set of hits."""

    def __init__(self, capacity, eviction, masks):
        self.capacity, self.eviction, self.masks = capacity, eviction, masks
        self.resident = set()
        self.value = [0] * masks.shape[1]
        self.token = -1

    def step(self, mask):
        self.token += 1
        wanted = set(np.flatnonzero(mask).tolist())
        hits = wanted & self.resident
        self._use(wanted)
        if self.eviction == "none":
            return hits
        old = self.resident | wanted if self.eviction == "optimal" else self.resident - wanted
        room = self.capacity - (0 if self.eviction == "optimal" else len(wanted))
        if room >= 0:
            leaving = self._sorted(old, largest_first=False)[: max(0, len(old) - room)]
            self.resident = (old - set(leaving)) | (set() if self.eviction == "optimal" else wanted)
        else:
            entering = self._sorted(wanted - hits, largest_first=True)[: self.capacity - len(hits)]
            self.resident = hits | set(entering)
        return hits

    def _use(self, wanted):
        for column in range(len(self.value)):
            if self.eviction in ("belady", "optimal"):
                later = np.flatnonzero(self.masks[self.token + 1 :, column])
                self.value[column] = -int(later[0]) if len(later) else -len(self.masks)
            elif column in wanted:
                self.value[column] = self.token + 1 if self.eviction == "lru" else self.value[column] + 1

    def _sorted(self, columns, largest_first):
        sign = -1 if largest_first else 1
        return sorted(columns, key=lambda column: (sign * self.value[column], column))


def slow_hits(masks, capacity, eviction, starts=(0,)):
    """Hits [T, N] of masks [T, N]; each sequence begins with an empty cache."""
    hits = np.zeros_like(masks)
    for begin, end in zip(starts, (*starts[1:], len(masks)), strict=True):
        cache = SlowCache(capacity, eviction, masks[begin:end])
        for token in range(begin, end):
            hits[token, list(cache.step(masks[token]))] = True
    return hits


def slow_top_k(scores, k):
    """Mask [N] of the k largest scores [N], of equals the lowest index first."""
    mask = np.zeros(len(scores), dtype=bool)
    mask[np.argsort(-scores, kind="stable")[:k]] = True
    return mask


def slow_runs(misses):
    """Number of runs and of columns in them [T, R] by class, of misses [T, N]."""
    count = np.zeros((len(misses), misses.shape[1].bit_length()), dtype=int)
    columns = np.zeros_like(count)
    for token, row in enumerate(misses):
        for run in "".join(" x"[bool(miss)] for miss in row).split():
            count[token, len(run).bit_length() - 1] += 1
            columns[token, len(run).bit_length() - 1] += len(run)
    return count, columns


def slow_closed(mask, gap):
    """A mask [N] with gaps of at most `gap` columns between kept ones filled."""
    filled = mask.copy()
    kept = np.flatnonzero(mask).tolist()
    for before, after in pairwise(kept):
        if after - before - 1 <= gap:
            filled[before:after] = True
    return filled
