"""Least frequently used: the column with the fewest uses leaves first (docs/background/equations.md, section 4)."""

from dipsim.basics.arrays import Ints, Mask
from dipsim.memory.eviction.rule import EvictionRule, ValueUpdate


class Lfu(EvictionRule):
    """A column's value is its number of uses since the start of the sequence, while cached or not."""

    inclusive = True
    on_gpu = ValueUpdate.USE_COUNT

    def use(self, mask: Mask, hits: Mask) -> None:
        self.count_token()
        self.value += mask

    def touch(self, units: Ints, near: Ints | None) -> None:
        self.value[units] += 1
