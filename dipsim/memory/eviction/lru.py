"""Least recently used: the column whose last use is oldest leaves first (docs/background/equations.md, section 4)."""

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.memory.eviction.rule import EvictionRule, ValueUpdate


class Lru(EvictionRule):
    """A column's value is the position of the token that used it last."""

    inclusive = True
    on_gpu = ValueUpdate.LAST_USE
    drift = 1

    def use(self, mask: Mask, hits: Mask) -> None:
        self.count_token()
        # the latest token is the largest value: a maximum does what a masked write would, without its branches
        np.maximum(self.value, mask * self.value.dtype.type(self.token), out=self.value)

    def widen(self) -> None:
        super().widen()
        self._order: dict[int, None] = {}  # what is resident, the oldest first; a batch comes last

    def touch(self, units: Ints, near: Ints | None) -> None:
        for unit in units.tolist():
            self._order.pop(unit, None)
            self._order[unit] = None

    def leaving(self, among: Mask, excess: float, last_use: Ints) -> Ints:
        out, freed = [], 0.0
        for unit in self._order:
            if freed >= excess or not among[unit]:
                break
            out.append(unit)
            freed += self.sizes[unit]
        for unit in out:
            del self._order[unit]
        return np.array(out, dtype=np.int64)
