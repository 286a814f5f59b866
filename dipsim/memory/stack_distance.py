"""Hits at many capacities in one pass over the masks (Mattson et al. 1970).

LRU, LFU, Belady's rule and the optimum are stack algorithms, also with whole masks and overflow: the columns of a cache
of capacity c are always among those of capacity c + 1. So one stack holds the caches of all capacities as its prefixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.basics.errors import InputError
from dipsim.memory.cache import check_capacity, checked_masks, replay
from dipsim.memory.eviction import eviction_rule
from dipsim.memory.eviction.rule import nearness


def hit_curve(masks: Mask, eviction: str) -> Ints:
    """Total hits at every capacity from 0 to N, [N + 1], of masks [T, N] (bool) in an empty cache.

    Raises InputError for masks of another shape or dtype, an unknown eviction, and one that is no stack algorithm.
    """
    masks = checked_masks(masks, eviction)
    kind, columns = eviction_rule(eviction), masks.shape[1]
    if not kind.inclusive:
        raise InputError(f"eviction: {eviction} is no stack algorithm; use `hits_at` for the capacities that matter")
    at = np.zeros(columns + 1, dtype=np.int64)  # at[c]: hits that need a capacity of c or more
    if kind.caches and columns:
        rule = kind(columns, masks) if kind.needs_future else kind(columns)
        stack: list[int] = []
        for mask in masks:
            rule.use(mask, np.zeros_like(mask))
            at[1 + np.flatnonzero(mask[stack])] += 1
            stack = _restack(stack, mask.tolist(), rule.value.tolist(), bypass=kind.bypass)
    return np.cumsum(at)


def hits_at(masks: Mask, capacities: Sequence[int], eviction: str) -> Ints:
    """Hits per token at several capacities, [T, C]: column c is what `replay` finds at `capacities[c]`.

    LRU and Belady take one pass for all capacities that hold every mask. Raises InputError as `replay`.
    """
    masks = checked_masks(masks, eviction)
    for capacity in capacities:
        check_capacity(capacity, masks.shape[1])
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


def recency_stack(masks: Mask, capacities: Sequence[int]) -> Ints:
    """LRU hits [T, C] of masks [T, N] at C capacities, each at least as large as the largest mask.

    Where every mask fits, it goes to the front of the stack (of equals the highest index is the last to leave) and
    the others keep their order.
    """
    hits = np.zeros((len(masks), len(capacities)), dtype=np.int64)
    stack = np.empty(0, dtype=np.intp)
    for token, mask in enumerate(masks):
        used = mask[stack]
        hits[token] = [np.count_nonzero(used[:capacity]) for capacity in capacities]
        stack = np.concatenate((np.flatnonzero(mask)[::-1], stack[np.flatnonzero(~used)]))
    return hits


def next_use_classes(masks: Mask, capacities: Sequence[int]) -> Ints:
    """Belady's hits [T, C] of masks [T, N] at C capacities, each at least as large as the largest mask.

    Where every mask fits, only the number of residents matters that are used next at each token. All of token t's
    class are its hits. Of the others, the farthest are cut off where the mask needs the place.
    """
    tokens = len(masks)
    hits = np.zeros((tokens, len(capacities)), dtype=np.int64)
    coming = np.zeros((tokens, tokens + 1), dtype=np.int32)  # [t, u]: columns of mask t next used by token u or before
    for token, near in enumerate(nearness(masks)):
        classes = np.bincount(near[np.flatnonzero(masks[token])], minlength=tokens + 2)[::-1]  # by next use, 0 to T + 1
        coming[token] = np.cumsum(classes)[: tokens + 1]
        coming[token, tokens] = np.count_nonzero(masks[token])
    limit = np.array(capacities, dtype=np.int32)[:, None]
    held = np.zeros((len(capacities), tokens + 1), dtype=np.int32)  # [c, u]: residents next used by token u or before
    for token in range(tokens):
        hits[token] = held[:, token]
        others = np.minimum(held - held[:, token : token + 1], limit - coming[token, tokens])
        held = others + coming[token]
    return hits


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
