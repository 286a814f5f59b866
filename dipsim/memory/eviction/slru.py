"""Segmented LRU: what was used again is protected, the rest leaves first (docs/background/equations.md, section 4)."""

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.memory.eviction.rule import EvictionRule

PROTECTED = 0.8  # of the capacity
RANK = 2**40  # above every position


class Slru(EvictionRule):
    """A column enters on probation. A hit protects it; beyond PROTECTED of the capacity, the oldest go on probation.

    Its value is the position of its last use, or of its return to probation, and RANK more while it is protected.
    """

    def __init__(self, columns: int, masks: Mask | None = None) -> None:
        super().__init__(columns)
        self.widen()
        self._here = np.zeros(columns, dtype=bool)

    def touch(self, units: Ints, near: Ints | None) -> None:
        here = self._here[units]
        for unit, again in zip(units.tolist(), here.tolist(), strict=True):
            self.token += 1
            self.value[unit] = self.token + (RANK if again else 0)
        self._here[units] = True
        if here.any():
            protected = np.flatnonzero(self._here & (self.value >= RANK))
            excess = self.sizes[protected].sum() - PROTECTED * self.capacity
            for unit in protected[np.argsort(self.value[protected])].tolist() if excess > 0 else ():
                if excess <= 0:
                    break
                self.token += 1
                self.value[unit] = self.token
                excess -= self.sizes[unit]

    def admit(self, mask: Mask, hits: Mask, resident: Mask) -> None:
        self._here = resident.copy()

    def leaving(self, among: Mask, excess: float, last_use: Ints) -> Ints:
        out = super().leaving(among, excess, last_use)
        self._here[out] = False
        return out
