"""Belady's rule: the column whose next use is farthest leaves first (docs/background/equations.md, section 4).

It needs the future. It is the best of all rules that must admit the whole mask, as long as every mask fits.
"""

from dipsim.basics.arrays import Ints, Mask
from dipsim.memory.eviction.rule import EvictionRule, ValueUpdate, nearness


class Belady(EvictionRule):
    """A column's value is how near its next use is, 0 if it is never used again."""

    needs_future = True
    inclusive = True
    on_gpu = ValueUpdate.NEXT_USE

    def __init__(self, columns: int, masks: Mask | None = None) -> None:
        super().__init__(columns)
        self._nearness = None if masks is None else nearness(masks)

    def use(self, mask: Mask, hits: Mask) -> None:
        if self._nearness is None:
            raise ValueError(f"{self.name}: needs the masks of the whole sequence")
        self.value = self._nearness[self.token]
        self.token += 1

    def touch(self, units: Ints, near: Ints | None) -> None:
        assert near is not None
        self.value[units] = near
