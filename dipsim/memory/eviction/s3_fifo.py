"""S3-FIFO (Yang et al., SOSP 2023): three queues, first in first out (docs/background/equations.md, section 4).

What is new enters a small queue. What is used there again moves to the main queue; the rest leaves and is remembered
for a while, and enters the main queue if it comes back. What was used in the main queue gets another turn.
"""

import numpy as np

from dipsim.basics.arrays import Ints, Mask
from dipsim.memory.eviction.rule import EvictionRule

SMALL = 0.1  # of the capacity; the rest is the main queue's, and as much is remembered
AGAIN = 2  # uses in the small queue that take a column to the main one
MOST = 3  # uses that are counted


class S3Fifo(EvictionRule):
    """The queues, from the oldest to the newest, with the uses of each column since it entered its queue."""

    def __init__(self, columns: int, masks: Mask | None = None) -> None:
        super().__init__(columns)
        self._small: dict[int, int] = {}
        self._main: dict[int, int] = {}
        self._gone: dict[int, None] = {}

    def touch(self, units: Ints, near: Ints | None) -> None:
        for unit in units.tolist():
            queue = self._main if unit in self._main else self._small
            if unit in queue:
                queue[unit] = min(queue[unit] + 1, MOST)
            elif unit in self._gone:
                del self._gone[unit]
                self._main[unit] = 0
            else:
                self._small[unit] = 0

    def admit(self, mask: Mask, hits: Mask, resident: Mask) -> None:
        for queue in (self._small, self._main):
            for unit in [unit for unit in queue if not resident[unit]]:
                del queue[unit]
        begun_with = set(np.flatnonzero(resident).tolist()) - self._small.keys() - self._main.keys()
        self._small |= dict.fromkeys(sorted(begun_with), 0)

    def victims(self, among: Mask, count: int) -> Mask:
        chosen = np.zeros_like(among)
        chosen[self.leaving(among, count, np.empty(0, dtype=np.int64))] = True
        return chosen

    def leaving(self, among: Mask, excess: float, last_use: Ints) -> Ints:
        may, out = set(np.flatnonzero(among).tolist()), []
        main = self._size(self._main)
        while excess > 0 and may:
            small = next((unit for unit in self._small if unit in may), None)
            oldest = next((unit for unit in self._main if unit in may), None)
            if small is not None and (oldest is None or main <= (1 - SMALL) * self.capacity):
                if self._small.pop(small) >= AGAIN:
                    self._main[small] = 0
                    main += self.sizes[small]
                    continue
                self._gone[small] = None
                unit = small
            else:
                assert oldest is not None  # every resident is in a queue
                if (uses := self._main.pop(oldest)) > 0:
                    self._main[oldest] = uses - 1
                    continue
                main -= self.sizes[oldest]
                unit = oldest
            out.append(unit)
            may.remove(unit)
            excess -= self.sizes[unit]
        remembered = self._size(self._gone)
        while remembered > (1 - SMALL) * self.capacity:
            unit = next(iter(self._gone))
            del self._gone[unit]
            remembered -= self.sizes[unit]
        return np.array(out, dtype=np.int64)

    def _size(self, queue: dict[int, int] | dict[int, None]) -> float:
        return float(self.sizes[list(queue)].sum()) if queue else 0.0
