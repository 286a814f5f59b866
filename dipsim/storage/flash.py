"""Flash: the time of a read depends on its size, and the time of a batch on the queue.

It knows nothing of models. The equations are in docs/background/equations.md, section 5.
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

Curve = tuple[tuple[Size, Bandwidth], ...]


class Flash(Strict):
    """Storage that answers reads from a saturated queue.

    It is described by `read_bandwidth` and the cost of a command, or by `read_curve`, a measured table of (read size,
    throughput at that size). The table is interpolated in log-log. Beyond its last row throughput stays the same;
    before its first row the time of a read does. `read_curves` has one such table for each number of `lanes`, that is
    of reads under way; `lanes` says how many there are. A batch that cannot keep all of them busy is as fast as those
    that are, by the tables of fewer lanes.

    `command_time` (seconds, 0 by default) is what a read costs besides its bytes. `overlap` says how far command and
    transfer overlap, from 1 (one after the other) to .inf (as far as they can). `latency` (seconds, 0 by default) is
    waited for but occupies nothing. `queue_depth` (32 by default) is the number of reads under way. `batch_overhead`
    (seconds, 0 by default) is what a batch of reads costs once, whatever its size. A read occupies whole pages of
    `page` bytes (1 by default). It holds `capacity` bytes of what masks choose, by default all.
    """

    read_bandwidth: Bandwidth | None = None
    read_curve: Curve | None = None
    read_curves: dict[Count, Curve] | None = None
    lanes: Count | None = None
    command_time: Time = 0.0
    overlap: float = Field(1.0, ge=1.0, allow_inf_nan=True)
    latency: Time = 0.0
    queue_depth: Count = 32
    batch_overhead: Time = 0.0
    page: Size = 1.0
    capacity: Size | None = None

    @model_validator(mode="after")
    def _one_description(self) -> Self:
        given = [self.read_bandwidth, self.read_curve, self.read_curves]
        if sum(each is not None for each in given) != 1:
            raise ValueError("give exactly one of read_bandwidth, read_curve and read_curves")
        if self.page < 1 or self.page != int(self.page):
            raise ValueError("page must be a whole number of bytes, 1 or more")
        if (self.read_curves is None) != (self.lanes is None):
            raise ValueError("lanes chooses among read_curves; give both or neither")
        if self.read_curves is not None and self.lanes not in self.read_curves:
            known = ", ".join(map(str, sorted(self.read_curves)))
            raise ValueError(f"lanes: {self.lanes} is not among those of read_curves ({known}); choose one of them")
        if self.curve is not None and (self.command_time or self.latency or self.overlap != 1.0):
            raise ValueError("read_curve already holds the cost of a command; remove command_time, latency, overlap")
        curves = [self.read_curve] if self.read_curve is not None else list((self.read_curves or {}).values())
        for curve in curves:
            sizes, rates = zip(*curve, strict=True) if curve else ((), ())
            if len(sizes) < 2 or any(b <= a for a, b in pairwise(sizes)):
                raise ValueError("read_curve needs two or more rows in rising order of read size")
            if any(b < a for a, b in pairwise(rates)):
                raise ValueError("read_curve: throughput must not fall as reads grow")
            if any(b < a for a, b in pairwise(size / rate for size, rate in curve)):
                raise ValueError("read_curve: a longer read must not take less time than a shorter one")
        return self

    @property
    def curve(self) -> Curve | None:
        """The measured table that is used; None where there is none."""
        return self.read_curve if self.read_curves is None else self.read_curves[self.lanes]  # type: ignore[index]

    @property
    def peak_bandwidth(self) -> float:
        """Bytes per second of the longest reads."""
        return self.read_bandwidth if self.curve is None else self.curve[-1][1]  # type: ignore[return-value]

    @property
    def scattered_is_free(self) -> bool:
        """Whether a read costs its bytes and nothing else."""
        return self.curve is None and not (self.command_time or self.latency) and self.page == 1

    def transfer_time(self, size: ArrayLike) -> Floats:
        """Seconds that one read of `size` bytes (any shape) occupies command stage and bus; 0 for size 0.

        t = (c^p + (s / B)^p)^(1 / p) with c = command_time, B = read_bandwidth and p = overlap
        (docs/background/equations.md, section 5).
        """
        size = np.asarray(size, dtype=np.float64)
        if self.curve is not None:
            measured = np.maximum(size, self.curve[0][0])  # a smaller read takes no less than the smallest measured
            return np.where(size > 0, measured / _rate(self.curve, measured), 0.0)
        transfer = size / self.peak_bandwidth
        if self.command_time == 0:
            return transfer
        larger = np.maximum(transfer, self.command_time)  # scaled, so that a large p cannot overflow
        smaller = np.minimum(transfer, self.command_time)
        return np.where(size > 0, larger * (1 + (smaller / larger) ** self.overlap) ** (1 / self.overlap), 0.0)

    def _alone(self, size: ArrayLike) -> Floats:
        """Seconds of one read with nothing else under way."""
        if self.curve is not None:
            return self.transfer_time(size)
        return np.asarray(self.command_time + self.latency + np.asarray(size) / self.peak_bandwidth)

    def batch_time(self, count: ArrayLike, total: ArrayLike) -> Floats:
        """Seconds [...] for batches of reads that are submitted together (docs/background/equations.md, section 5).

        `count` and `total` [..., classes] are the number of reads and their bytes in each class of similar sizes. The
        reads of a class are taken to have its mean size. The first read overlaps with nothing before it. Where the
        queue is the limit, rounds of `queue_depth` reads follow each other. The result is exact for reads of equal
        size with overlap 1 or .inf; `tests/timing/test_flash.py` has the event model.
        """
        count, total = np.asarray(count, dtype=np.float64), np.asarray(total, dtype=np.float64)
        reads, size = count.sum(axis=-1), _ratio(total.sum(axis=-1), count.sum(axis=-1))
        busy, alone = self.transfer_time(size), self._alone(size)
        streaming = alone - busy + (count * self.transfer_time(_ratio(total, count))).sum(axis=-1)
        streaming = streaming * self._idle(reads, size)
        rounds, rest = np.divmod(np.maximum(reads - 1, 0), self.queue_depth)
        together = np.maximum(streaming, (1 + rounds) * alone + rest * busy)
        return np.where(reads > 0, self.batch_overhead + together, 0.0)

    def _idle(self, reads: Floats, size: Floats) -> Floats | float:
        """How much longer batches of so many reads of this mean size take, because not all lanes are always busy."""
        if self.read_curves is None or self.lanes is None:
            return 1.0
        busy = np.maximum(reads, 1) / np.maximum(np.ceil(reads / self.lanes), 1)  # on average
        return np.exp(self._log_rate(self.lanes, size) - self._log_rate(busy, size))

    def _log_rate(self, lanes: ArrayLike, size: Floats) -> Floats:
        """The logarithm of the throughput [...] with so many lanes busy, between those measured."""
        assert self.read_curves is not None
        known = sorted(count for count in self.read_curves if count <= self.most_under_way)
        place = np.interp(np.log(lanes), np.log(known), np.arange(len(known)))
        rates = [np.log(_rate(self.read_curves[count], size)) for count in known]
        return np.asarray(sum(np.maximum(0, 1 - np.abs(place - index)) * rate for index, rate in enumerate(rates)))

    @property
    def most_under_way(self) -> int:
        """The number of reads under way at a time, at most."""
        return self.queue_depth if self.lanes is None else self.lanes

    def throughput(self, under_way: float, size: float) -> float:
        """Bytes per second of reads of `size` bytes, so many under way (docs/background/equations.md, section 11).

        Each takes the time that it takes alone, until they saturate the bus.
        """
        if self.read_curves is not None:
            return float(np.exp(self._log_rate(under_way, np.asarray(size))))
        return size * min(1 / float(self.transfer_time(size)), under_way / float(self._alone(size)))

    def read_time(self, size: float) -> float:
        """Seconds a read of `size` bytes in a long batch of such reads, the queue always full: max(busy, alone / Q)."""
        return max(float(self.transfer_time(size)), float(self._alone(size)) / self.queue_depth)

    def break_even(self, size: float) -> float:
        """The gap in bytes between two reads of `size` bytes each that costs as much to read through as to leave out.

        One read of both and the gap then takes as long as two reads.
        """
        two, low, high = 2 * float(self.transfer_time(size)), 2.0 * size, 4.0 * size
        while self.transfer_time(high) < two:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self.transfer_time(middle) <= two else (low, middle)
        return low - 2 * size

    def scaled(self, ratio: float) -> Flash:
        """Flash for which a batch takes `ratio` times as long as one of reads 1 / `ratio` times as large takes here.

        So whatever pays here for columns of some size pays there for columns of `ratio` times that size, but for pages,
        which stay whole bytes.
        """
        return self._changed(times=ratio, sizes=ratio, rates=1.0)

    def slowed(self, share: float) -> Flash:
        """Flash that reaches only this share of its speed, in everything."""
        return self._changed(times=1 / share, sizes=1.0, rates=share)

    def _changed(self, times: float, sizes: float, rates: float) -> Flash:
        """Flash with all its fixed times, read sizes and rates multiplied."""

        def changed(curve: Curve) -> Curve:
            return tuple((size * sizes, rate * rates) for size, rate in curve)

        return self.model_copy(
            update={
                "read_bandwidth": self.read_bandwidth and self.read_bandwidth * rates,
                "read_curve": self.read_curve and changed(self.read_curve),
                "read_curves": self.read_curves and {n: changed(curve) for n, curve in self.read_curves.items()},
                "page": max(1.0, round(self.page * sizes)),
                **{name: times * getattr(self, name) for name in ("command_time", "latency", "batch_overhead")},
            }
        )


def _rate(curve: Curve, size: Floats) -> Floats:
    """Throughput [...] of reads of `size` bytes [...], by a measured table."""
    sizes, rates = np.array(curve).T
    within = np.maximum(size, sizes[0])
    return np.asarray(np.exp(np.interp(np.log(within), np.log(sizes), np.log(rates))))


def _ratio(total: Floats, count: Floats) -> Floats:
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)
