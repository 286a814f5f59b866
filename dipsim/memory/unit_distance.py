"""LRU caches of units of unequal size, of all budgets in one pass.

A unit's depth is the bytes of all units whose last use is not older than its own, itself included. It only grows until
the unit is used again. So an LRU cache holds exactly the units whose depth does not exceed its budget, and those of the
batch before, which it may not evict (docs/background/equations.md, section 10).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dipsim.basics.arrays import Floats, Ints, Mask
from dipsim.memory.unit_cache import Requests


def lru_hits(requests: Requests, sizes: Floats, budgets: Sequence[float], cycle: int) -> list[Mask]:
    """Hits [R] of each LRU cache, as `replay_requests` finds them.

    Batches come in cycles of `cycle`, one for each layer. A unit is always asked for at the same place of a cycle, and
    the units of a place are of one size.
    """
    depth = depths(requests, sizes, cycle)
    batch = requests.batch
    last = np.full(len(sizes), -2)
    before = np.zeros(len(batch), dtype=bool)  # whether a unit is in the batch just before
    if cycle == 1:
        begin = 0
        for index, end in enumerate(requests.ends.tolist()):
            units = requests.units[begin:end]
            before[begin:end] = last[units] == index - 1
            last[units] = index
            begin = end
    return [(depth <= budget) | (before & (budget > 0)) for budget in budgets]


def depths(requests: Requests, sizes: Floats, cycle: int) -> Floats:
    """The depth of each request's unit when it is asked for, in bytes [R]; infinite for the first request of a unit.

    `held` are the bytes that were last used in each batch. What lies above a unit was last used in a later cycle, at a
    later place of the same cycle, later in its own batch, or in this cycle so far.
    """
    cycles = len(requests.ends) // cycle
    ends = requests.ends.reshape(cycles, cycle)
    held = np.zeros((cycles + 1, cycle))  # the last row is that of units never used
    whole = np.zeros(cycles + 1)
    last = np.full(len(sizes), -1)
    position = last.copy()
    found = np.empty(len(requests.units))
    places = np.arange(cycle)
    begin, place, earlier, later_places = 0, places[:0], np.empty((0, 0), dtype=bool), np.empty((0, cycle), dtype=bool)
    for now in range(cycles):
        end = int(ends[now, -1])
        units, before = requests.units[begin:end], place
        place = np.repeat(places, np.diff(ends[now], prepend=begin))
        if not np.array_equal(place, before):  # most cycles ask for as much in each batch as the one before
            earlier, later_places = place < place[:, None], places > place[:, None]
        size, was = sizes[units], last[units]
        later = np.cumsum(whole[:now][::-1])[::-1]  # from each cycle on
        above = np.append(later, 0.0)[was + 1] * (was >= 0)
        above += (held[was] * later_places).sum(axis=1)
        above += _later_in_batch(requests, last, was, position[units], place + was * cycle) * size
        above += ((was <= was[:, None]) & earlier) @ size
        found[begin:end] = np.where(was >= 0, above + size, np.inf)
        np.subtract.at(held, (was, place), size)
        np.subtract.at(whole, was, size)
        held[-1] = whole[-1] = 0
        held[now] = np.bincount(place, size, cycle)
        whole[now] = size.sum()
        last[units], position[units] = now, np.arange(begin, end)
        begin = end
    return found


def _later_in_batch(requests: Requests, last: Ints, was: Ints, position: Ints, batch: Ints) -> Ints:
    """How many units stand after each of some units in the batch that used it last, and were not used since, [n].

    A unit was last asked for in the cycle `was`, in `batch`, at `position`; `last` [U] is that cycle of every unit.
    """
    end = np.where(was >= 0, requests.ends[batch], position + 1)
    place = position[:, None] + np.arange(1, int((end - position).max(initial=1)))
    units = requests.units[np.minimum(place, len(requests.units) - 1)]
    return np.asarray(np.count_nonzero((place < end[:, None]) & (last[units] == was[:, None]), axis=1))
