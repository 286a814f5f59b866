"""Least recently used: the column whose last use is oldest leaves first (docs/background.md, section 4)."""

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

    def touch(self, units: Ints, near: Ints | None) -> None:
        self.token += 1
        self.value[units] = self.token
