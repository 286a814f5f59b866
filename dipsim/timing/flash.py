"""Flash: the time of a read depends on its size, and the time of a batch on the queue.

The equations are in docs/background.md, section 5.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field, model_validator

from dipsim.basics.arrays import Floats
from dipsim.basics.fields import Count, Strict
from dipsim.basics.units import Bandwidth, Size, Time


class Flash(Strict):
    """Storage that answers reads from a saturated queue.

    It is described by `read_bandwidth` and the cost of a command, or by `read_curve`, a measured table of (read size,
    throughput at that size). The table is interpolated in log-log. Beyond its last row throughput stays the same;
    before its first row the time of a read does.

    `command_time` (seconds, 0 by default) is what a read costs besides its bytes. `overlap` says how far command and
    transfer overlap, from 1 (one after the other) to .inf (as far as they can). `latency` (seconds, 0 by default) is
    waited for but occupies nothing. `queue_depth` (32 by default) is the number of reads under way.
    """

    read_bandwidth: Bandwidth | None = None
    read_curve: tuple[tuple[Size, Bandwidth], ...] | None = None
    command_time: Time = 0.0
    overlap: float = Field(1.0, ge=1.0, allow_inf_nan=True)
    latency: Time = 0.0
    queue_depth: Count = 32

    @model_validator(mode="after")
    def _one_description(self) -> Self:
        if (self.read_bandwidth is None) == (self.read_curve is None):
            raise ValueError("give either read_bandwidth or read_curve, not both and not neither")
        if self.read_curve is not None:
            if self.command_time or self.latency or self.overlap != 1.0:
                raise ValueError(
                    "read_curve already holds the cost of a command; remove command_time, latency, overlap"
                )
            sizes, rates = zip(*self.read_curve, strict=True)
            if len(sizes) < 2 or any(b <= a for a, b in pairwise(sizes)):
                raise ValueError("read_curve needs two or more rows in rising order of read size")
            if any(b < a for a, b in pairwise(rates)):
                raise ValueError("read_curve: throughput must not fall as reads grow")
        return self

    @property
    def peak_bandwidth(self) -> float:
        """Bytes per second of the longest reads."""
        return self.read_bandwidth if self.read_curve is None else self.read_curve[-1][1]  # type: ignore[return-value]

    def transfer_time(self, size: ArrayLike) -> Floats:
        """Seconds that one read of `size` bytes (any shape) occupies command stage and bus; 0 for size 0.

        t = (c^p + (s / B)^p)^(1 / p) with c = command_time, B = read_bandwidth and p = overlap
        (docs/background.md, section 5).
        """
        size = np.asarray(size, dtype=np.float64)
        if self.read_curve is not None:
            sizes, rates = np.array(self.read_curve).T
            measured = np.maximum(size, sizes[0])  # a smaller read takes no less than the smallest measured
            rate = np.exp(np.interp(np.log(measured), np.log(sizes), np.log(rates)))
            return np.where(size > 0, measured / rate, 0.0)
        transfer = size / self.peak_bandwidth
        if self.command_time == 0:
            return transfer
        larger = np.maximum(transfer, self.command_time)  # scaled, so that a large p cannot overflow
        smaller = np.minimum(transfer, self.command_time)
        return np.where(size > 0, larger * (1 + (smaller / larger) ** self.overlap) ** (1 / self.overlap), 0.0)

    def _alone(self, size: ArrayLike) -> Floats:
        """Seconds of one read with nothing else under way."""
        if self.read_curve is not None:
            return self.transfer_time(size)
        return np.asarray(self.command_time + self.latency + np.asarray(size) / self.peak_bandwidth)

    def batch_time(self, count: ArrayLike, total: ArrayLike) -> Floats:
        """Seconds [...] for batches of reads that are submitted together (docs/background.md, section 5).

        `count` and `total` [..., classes] are the number of reads and their bytes in each class of similar sizes. The
        reads of a class are taken to have its mean size. The first read overlaps with nothing before it. Where the
        queue is the limit, rounds of `queue_depth` reads follow each other. The result is exact for reads of equal
        size with overlap 1 or .inf; `tests/timing/test_flash.py` has the event model.
        """
        count, total = np.asarray(count, dtype=np.float64), np.asarray(total, dtype=np.float64)
        reads, size = count.sum(axis=-1), _ratio(total.sum(axis=-1), count.sum(axis=-1))
        busy, alone = self.transfer_time(size), self._alone(size)
        streaming = alone - busy + (count * self.transfer_time(_ratio(total, count))).sum(axis=-1)
        rounds, rest = np.divmod(np.maximum(reads - 1, 0), self.queue_depth)
        return np.where(reads > 0, np.maximum(streaming, (1 + rounds) * alone + rest * busy), 0.0)


def _ratio(total: Floats, count: Floats) -> Floats:
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)
