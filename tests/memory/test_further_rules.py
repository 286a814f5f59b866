"""LFRU, SLRU and S3-FIFO on whole masks and in batches, against lists and fractions that follow the text."""

from fractions import Fraction

import numpy as np
import pytest

from dipsim.memory.cache import ColumnCache
from dipsim.memory.unit_cache import UnitCache


class SlowLfru:
    """The fewest uses for its age leaves first (eq. 4.17)."""

    def __init__(self, _capacity, _resident):
        self.uses, self.last, self.token = {}, {}, 0

    def touch(self, wanted, _resident):
        self.token += 1
        for column in wanted:
            self.uses[column], self.last[column] = self.uses.get(column, 0) + 1, self.token

    def _value(self, column):
        return Fraction(self.uses.get(column, 0), 1 + self.token - self.last.get(column, 0))

    def leave(self, among, count):
        return sorted(among, key=lambda column: (self._value(column), column))[:count]

    def enter(self, among, count):
        return sorted(among, key=lambda column: (-self._value(column), column))[:count]


class SlowSlru:
    """Two lists, the oldest first (eq. 4.18)."""

    def __init__(self, capacity, _resident):
        self.capacity, self.probation, self.protected = capacity, [], []

    def touch(self, wanted, resident):
        for column in sorted(wanted):
            for queue in (self.probation, self.protected):
                if column in queue:
                    queue.remove(column)
            (self.protected if column in resident else self.probation).append(column)
        while wanted & resident and len(self._here(resident)) > 0.8 * self.capacity:
            oldest = self._here(resident)[0]
            self.protected.remove(oldest)
            self.probation.append(oldest)

    def _here(self, resident):
        return [column for column in self.protected if column in resident]

    def _order(self):
        return self.probation + self.protected

    def leave(self, among, count):
        order = self._order()
        return sorted(among, key=lambda c: (order.index(c) if c in order else -1, c))[:count]

    def enter(self, among, count):
        return sorted(among, key=lambda c: -self._order().index(c))[:count]


class SlowS3Fifo:
    """Three lists, the oldest first (eq. 4.19)."""

    def __init__(self, capacity, resident):
        self.capacity, self.small, self.main, self.gone = capacity, sorted(resident), [], []
        self.uses = dict.fromkeys(resident, 0)

    def touch(self, wanted, _resident):
        for column in sorted(wanted):
            if column in self.small + self.main:
                self.uses[column] = min(3, self.uses[column] + 1)
            else:
                (self.main if column in self.gone else self.small).append(column)
                self.gone = [other for other in self.gone if other != column]
                self.uses[column] = 0

    def admitted(self, resident):
        self.small = [column for column in self.small if column in resident]
        self.main = [column for column in self.main if column in resident]

    def leave(self, among, count):
        out = []
        while len(out) < count and set(among) - set(out):
            small = [column for column in self.small if column in among]
            main = [column for column in self.main if column in among]
            if small and (not main or len(self.main) <= 0.9 * self.capacity):
                self.small.remove(small[0])
                if self.uses[small[0]] >= 2:
                    self.main.append(small[0])
                    self.uses[small[0]] = 0
                else:
                    self.gone.append(small[0])
                    out.append(small[0])
            else:
                self.main.remove(main[0])
                if self.uses[main[0]]:
                    self.uses[main[0]] -= 1
                    self.main.append(main[0])
                else:
                    out.append(main[0])
        while len(self.gone) > 0.9 * self.capacity:
            self.gone.pop(0)
        return out

    def enter(self, among, count):
        return sorted(among)[:count]


SLOW = {"lfru": SlowLfru, "slru": SlowSlru, "s3-fifo": SlowS3Fifo}


def slow_steps(name, masks, capacity, resident):
    """What is resident after each token, as eq. 4.3 to 4.5 say."""
    rule = SLOW[name](capacity, resident)
    for mask in masks:
        wanted = set(np.flatnonzero(mask).tolist())
        hits = wanted & resident
        rule.touch(wanted, resident)
        if len(wanted) < capacity:
            excess = len(resident | wanted) - capacity
            resident = (resident | wanted) - set(rule.leave(resident - wanted, excess) if excess > 0 else ())
        else:
            free = capacity - len(hits)
            resident = hits | set(rule.enter(wanted - hits, free) if free < len(wanted - hits) else wanted)
        if name == "s3-fifo":
            rule.admitted(resident)
        yield resident


@pytest.mark.parametrize("filled", [False, True])
@pytest.mark.parametrize("capacity", [1, 7, 11, 20])
@pytest.mark.parametrize("name", SLOW)
def test_columns_leave_and_enter_as_the_text_says(name, capacity, filled):
    rng = np.random.default_rng(capacity)
    masks = rng.random((150, 24)) < rng.choice([0.02, 0.2, 0.6], 24) * rng.choice([0.4, 1, 1.5], (150, 1))
    begin = np.arange(24) < (capacity if filled else 0)
    cache = ColumnCache(24, capacity, name, resident=begin.copy())
    for token, (mask, after) in enumerate(
        zip(masks, slow_steps(name, masks, capacity, set(np.flatnonzero(begin).tolist())), strict=True)
    ):
        cache.step(mask)
        assert np.flatnonzero(cache.resident).tolist() == sorted(after), token


@pytest.mark.parametrize("seed", range(6))
def test_units_leave_by_uses_for_their_age_and_of_equals_the_oldest(seed):
    rng = np.random.default_rng(seed)
    sizes, cache = np.ones(12), UnitCache(np.ones(12), 7, "lfru")
    uses, last, at, resident, requests = [0] * 12, [0] * 12, [0] * 12, set(), 0
    for batch in range(1, 120):
        units = rng.choice(12, rng.integers(1, 4), replace=False, p=sizes / 12)
        assert cache.step(units).tolist() == [unit in resident for unit in units.tolist()]
        for unit in units.tolist():
            uses[unit], last[unit], at[unit], requests = uses[unit] + 1, batch, requests, requests + 1
        resident |= set(units.tolist())
        others = sorted(resident - set(units.tolist()), key=lambda u: (Fraction(uses[u], 1 + batch - last[u]), at[u]))
        resident -= set(others[: max(0, len(resident) - 7)])
        assert set(np.flatnonzero(cache.resident).tolist()) == resident
