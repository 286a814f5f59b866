"""A disk that takes exactly the time that a table says."""

from collections.abc import Sequence
from itertools import count


class FakeDisk:
    """Reads take size / rate by their size and the lanes, a batch `overhead` besides; batches `slow` ten times."""

    grain = 512

    def __init__(self, size, rates, overhead=0.0, noise=0.0):
        self.size, self.rates, self.overhead, self.noise = size, rates, overhead, noise
        self.batches, self.slow, self.turn = [], (), count()

    def read(self, offsets: Sequence[int], sizes: Sequence[int], lanes: int) -> float:
        """Seconds of a batch."""
        assert len(offsets) == len(sizes)
        assert all(offset >= 0 and offset + size <= self.size for offset, size in zip(offsets, sizes, strict=True))
        self.batches.append((list(offsets), list(sizes), lanes))
        seconds = self.overhead + sum(self.seconds(size, lanes) for size in sizes)
        turn = next(self.turn)
        return seconds * (10 if turn in self.slow else 1) * (1 + self.noise * (turn % 2))

    def seconds(self, size, lanes):
        """Seconds of a read."""
        return size / self.rates[lanes][size]
