"""Least frequently and recently used: the column with the fewest uses for its age leaves first (section 4)."""

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.memory.eviction.rule import EvictionRule

SCALE = 2**32  # values are whole numbers


class Lfru(EvictionRule):
    """A column's value is its number of uses over its age, the tokens (batches) since its last use and 1."""

    def __init__(self, columns: int, masks: Mask | None = None) -> None:
        super().__init__(columns)
        self.widen()
        self._uses = np.zeros(columns, dtype=np.int64)
        self._last = np.zeros(columns, dtype=np.int64)

    def touch(self, units: Ints, near: Ints | None) -> None:
        self.token += 1
        self._uses[units] += 1
        self._last[units] = self.token

    def _age(self) -> None:
        self.value = self._uses * SCALE // (1 + self.token - self._last)

    def victims(self, among: Mask, count: int) -> Mask:
        self._age()
        return super().victims(among, count)

    def newcomers(self, among: Mask, count: int) -> Mask:
        self._age()
        return super().newcomers(among, count)

    def leaving(self, among: Mask, excess: float, last_use: Ints) -> Ints:
        self._age()
        return super().leaving(among, excess, last_use)
