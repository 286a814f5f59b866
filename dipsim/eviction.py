"""Eviction rules: every rule is one number per column, its value; the least valuable leaves first (see `cache.py`)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dipsim.files import InputError

Eviction = Literal["none", "lru", "lfu", "belady", "optimal"]
EVICTIONS: tuple[Eviction, ...] = ("none", "lru", "lfu", "belady", "optimal")
CLAIRVOYANT = ("belady", "optimal")

Mask = NDArray[np.bool_]
Ints = NDArray[np.int64]
Small = NDArray[np.signedinteger[Any]]  # int16 wherever it suffices: four times the columns in a SIMD register


class Values:
    """The value `now` [N] of every column after each use, under one eviction rule; never negative, 0 if unused.

    `masks` [T, N] only if clairvoyant.
    """

    def __init__(self, columns: int, eviction: Eviction, masks: Mask | None = None) -> None:
        self.now: Small = np.zeros(columns, dtype=np.int16)
        self.drift = int(eviction == "lru")  # how much a token adds to what is just old enough to leave
        self._counts = eviction == "lfu"
        self._token = 0
        self._nearness = nearness(masks) if masks is not None else None

    def use(self, mask: Mask) -> None:
        """Account for one token's mask."""
        self._token += 1
        if self._nearness is not None:
            self.now = self._nearness[self._token - 1]
            return
        if self._token > np.iinfo(self.now.dtype).max:
            self.now = self.now.astype(np.int64)
        if self._counts:
            self.now += mask
        else:  # the latest token is the largest: a maximum does what a masked write would, without its branches
            np.maximum(self.now, mask * self.now.dtype.type(self._token), out=self.now)


def nearness(masks: Mask) -> Small:
    """[T, N]: how near the next use of each column is after token t, as T + 1 - (its token); 0 if there is none."""
    tokens, columns = masks.shape
    kind = np.int16 if tokens < np.iinfo(np.int16).max else np.int64
    result = np.empty((tokens, columns), dtype=kind)
    now = np.zeros(columns, dtype=kind)
    for token in range(tokens - 1, -1, -1):
        result[token] = now
        np.maximum(now, masks[token] * kind(tokens + 1 - token), out=now)
    return result


def next_use(masks: Mask) -> Ints:
    """[T, N]: the token after t that uses each column next; T + 1 if none does."""
    return len(masks) + 1 - nearness(masks).astype(np.int64)


def least(values: Small, among: Mask, count: int, guess: int) -> tuple[Mask, int]:
    """The `count` least valuable of the columns `among` [N], of equals those of lowest index; and their limit.

    More than `count` columns must be among them. The limit is sought by counting how many values lie below it, from
    a `guess`: that of the last call is near, so a few counts do instead of a partition.
    """

    def below(limit: int) -> tuple[Mask, int]:
        chosen = values < limit
        chosen &= among
        return chosen, int(np.count_nonzero(chosen))

    low = high = guess  # at most `count` are below the one, more below the other
    chosen, found = above, more = below(guess)
    step = 1
    while found > count:
        high, above = low, chosen
        low, step = low - step, 2 * step
        chosen, found = below(low)
    while more <= count:
        low, chosen, found = high, above, more
        high, step = high + step, 2 * step
        above, more = below(high)
    while high - low > 1:
        middle = (low + high) // 2
        trial, more = below(middle)
        if more > count:
            high, above = middle, trial
        else:
            low, chosen, found = middle, trial, more
    if found < count:
        above ^= chosen  # those at the limit, of which there are too many
        chosen |= first(above, count - found)
    return chosen, low


def first(columns: Mask, count: int) -> Mask:
    """The `count` columns of lowest index, 0 < count <= how many there are; in place. A bisection by counts."""
    begin, end = 0, len(columns)
    while end - begin > 512:
        middle = (begin + end) // 2
        before = int(np.count_nonzero(columns[begin:middle]))
        if before < count:
            begin, count = middle, count - before
        else:
            end = middle
    columns[begin + columns[begin:end].nonzero()[0][count - 1] + 1 :] = False
    return columns


def checked(masks: Mask, eviction: Eviction) -> Mask:
    """Raises InputError unless masks are bool [T, N] and the eviction is known."""
    if eviction not in EVICTIONS:
        raise InputError(f"eviction: {eviction!r} is not one of {', '.join(EVICTIONS)}")
    masks = np.asarray(masks)
    if masks.ndim != 2 or masks.dtype != np.bool_:
        raise InputError(f"masks: must be bool [tokens, columns] (got {masks.dtype} {list(masks.shape)})")
    return masks
