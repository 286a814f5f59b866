"""A cache of units of unequal size, such as experts, that are asked for in batches.

A batch finds its hits, then all of it is made resident, then units outside it leave until the rest fits: no batch
evicts its own units, so a batch that is larger than the budget stays until the next one comes. This is how engines that
stream experts work (docs/background/equations.md, section 10).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipsim.basics.arrays import Floats, Ints, Mask
from dipsim.memory.eviction import eviction_rule


@dataclass(frozen=True)
class Requests:
    """What batches ask for, in order: batch b wants `units[ends[b - 1] : ends[b]]`, each unit of it once.

    Within a batch the units are in the order of their last request.
    """

    units: Ints
    ends: Ints

    @property
    def batch(self) -> Ints:
        """The batch of each request, [R]."""
        return np.repeat(np.arange(len(self.ends)), np.diff(self.ends, prepend=0))


class UnitCache:
    """At most `budget` bytes of units of `sizes` bytes [U]; it starts empty.

    `resident` [U] (bool) says which are there. Raises InputError for an unknown eviction.
    """

    def __init__(self, sizes: Floats, budget: float, eviction: str) -> None:
        kind = eviction_rule(eviction)
        self.sizes, self.budget = sizes, budget if kind.caches else 0.0
        self.rule = kind(len(sizes))
        self.rule.widen()
        self.rule.capacity, self.rule.sizes = self.budget, sizes
        self.resident: Mask = np.zeros(len(sizes), dtype=bool)
        self.used = self.most = 0.0
        self._last_use: Ints = np.zeros(len(sizes), dtype=np.int64)
        self._requests = 0

    def pin(self, resident: Mask) -> None:
        """Hold these units [U] (bool) from the start, and for good if the rule is fixed."""
        self.resident = resident
        self.used = self.most = float(self.sizes[resident].sum())
        self.rule.touch(np.flatnonzero(resident), None)

    def step(self, units: Ints, near: Ints | None = None) -> Mask:
        """Present a batch of different units [n] in order; return its hits [n] and make it resident.

        `near` [n] is how near the next use of each is, for a rule that needs it.
        """
        hits = self.resident[units]
        if self.budget == 0 or self.rule.fixed:
            return hits
        self.rule.touch(units, near)
        self._last_use[units] = np.arange(self._requests, self._requests + len(units))
        self._requests += len(units)
        if not hits.all():
            self.used += float(self.sizes[units[~hits]].sum())
            self.resident[units] = True
        if self.used > self.budget:
            others = self.resident.copy()
            others[units] = False
            out = self.rule.leaving(others, self.used - self.budget, self._last_use)
            self.resident[out] = False
            self.used -= float(self.sizes[out].sum())
        self.most = max(self.most, self.used)
        return hits


def replay_requests(requests: Requests, sizes: Floats, budget: float, eviction: str) -> tuple[Mask, float]:
    """Hits [R] of requests in an empty cache of `budget` bytes of units of `sizes` bytes [U], and the most it held."""
    cache = UnitCache(sizes, budget, eviction)
    hits = np.zeros(len(requests.units), dtype=bool)
    near = nearness(requests) if eviction_rule(eviction).needs_future else None
    begin = 0
    for end in requests.ends.tolist():
        hits[begin:end] = cache.step(requests.units[begin:end], None if near is None else near[begin:end])
        begin = end
    return hits, cache.most


def nearness(requests: Requests) -> Ints:
    """How near the next use of each request's unit is, [R]: batches + 1 - (its batch), 0 if it has none."""
    batch = requests.batch
    order = np.lexsort((batch, requests.units))
    again = requests.units[order][1:] == requests.units[order][:-1]
    near = np.zeros(len(batch), dtype=np.int64)
    near[order[:-1]] = np.where(again, len(requests.ends) + 1 - batch[order[1:]], 0)
    return near
