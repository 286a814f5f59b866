"""Device: what the hardware can do. It knows the time of a read, and nothing of models.

Ignored: wear, thermal throttling, refresh, and anything else that makes a rate vary with time.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from dipsim import assets
from dipsim.files import Count, InputError, Strict, parse, read_yaml
from dipsim.units import Bandwidth, EnergyPerByte, EnergyPerOperation, Size, Throughput, Time

Floats = NDArray[np.float64]


class Flash(Strict):
    """Storage that answers reads from a saturated queue.

    Either `read_bandwidth` (with the cost of a command) or `read_curve`, a measured table of
    (read size, throughput at that size), interpolated in log-log: beyond its last row throughput stays, and below its
    first the time of a read.
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

        `t = (c^p + (s/B)^p)^(1/p)` with c = command_time, B = read_bandwidth, p = overlap: 1 where the command and
        the transfer follow each other, .inf where they overlap whatever they can, in between for what is measured.
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

    def read_time(self, size: ArrayLike) -> Floats:
        """Seconds that one read of `size` bytes (any shape) adds to a saturated queue; 0 for size 0.

        A read alone takes `command_time + latency + s/B`; with `queue_depth` of them under way, one ends every
        `queue_depth`-th part of that, unless command stage and bus are the limit.
        """
        busy = self.transfer_time(size)
        return np.where(busy > 0, np.maximum(busy, self._alone(size) / self.queue_depth), 0.0)

    def _alone(self, size: ArrayLike) -> Floats:
        """Seconds of one read that nothing overlaps with."""
        if self.read_curve is not None:
            return self.transfer_time(size)
        return np.asarray(self.command_time + self.latency + np.asarray(size) / self.peak_bandwidth)

    def batch_time(self, count: ArrayLike, total: ArrayLike) -> Floats:
        """Seconds for batches of reads, submitted together.

        `count` and `total` [..., classes]: number of reads and their bytes in each class of similar sizes; the
        result is [...]. A class's reads are taken to have its mean size. The first read overlaps with nothing before
        it. Where the queue is the limit, rounds of `queue_depth` reads follow each other. Exact for reads of equal
        size, with overlap 1 or .inf (`tests/test_flash.py` has the event model).
        """
        count, total = np.asarray(count, dtype=np.float64), np.asarray(total, dtype=np.float64)
        reads, size = count.sum(axis=-1), _ratio(total.sum(axis=-1), count.sum(axis=-1))
        busy, alone = self.transfer_time(size), self._alone(size)
        streaming = alone - busy + (count * self.transfer_time(_ratio(total, count))).sum(axis=-1)
        rounds, rest = np.divmod(np.maximum(reads - 1, 0), self.queue_depth)
        return np.where(reads > 0, np.maximum(streaming, (1 + rounds) * alone + rest * busy), 0.0)


def _ratio(total: Floats, count: Floats) -> Floats:
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


class Dram(Strict):
    """Working memory.

    `flash_copies` is how often a byte that comes from Flash also crosses the DRAM bus: 0 as the paper counts, 1 if
    storage writes it there, 2 if the processor then reads it back.
    """

    capacity: Size
    bandwidth: Bandwidth
    flash_copies: int = Field(0, ge=0, le=2)


class Compute(Strict):
    """Arithmetic: floating-point operations a second, a multiply-add counting as two."""

    throughput: Throughput


class Energy(Strict):
    """Energy per byte moved and per operation. A part that is not given is unknown, not free: so is then the sum."""

    flash: EnergyPerByte | None = None
    dram: EnergyPerByte | None = None
    compute: EnergyPerOperation | None = None


class Device(Strict):
    """Flash, DRAM and, if it is to be timed, compute."""

    name: str
    description: str = ""
    flash: Flash
    dram: Dram
    compute: Compute | None = None
    energy: Energy | None = None
    sources: dict[str, str] = Field(default_factory=dict)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Device:
        """A shipped device by name, or a YAML file by path. Raises InputError naming file, field and remedy."""
        path = assets.find("devices", name_or_path)
        return parse(cls, read_yaml(path), path)

    def replace(self, where: object = "device", **fields: Any) -> Device:
        """A checked copy with fields changed by dotted name: `replace(**{"flash.read_bandwidth": "2 GB/s"})`."""
        data = self.model_dump(exclude_none=True, exclude_defaults=True)
        for name, value in fields.items():
            *parents, leaf = name.split(".")
            target = data
            for parent in parents:
                target = target.setdefault(parent, {})
                if not isinstance(target, dict):
                    raise InputError(f"{where}: {name}: no such field")
            target[leaf] = value
        return parse(Device, data, where)
