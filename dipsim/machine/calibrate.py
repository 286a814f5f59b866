"""Measures a machine, and makes a device of what was found.

Flash is timed over read sizes and reads under way, in passes that visit all of them, each time at other addresses. A
point is the median of its passes. The method and its limits are in docs/how-to/calibrate.md.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from dipsim.basics.arrays import Floats
from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.basics.units import show
from dipsim.machine.disk import Disk, Storage

SIZES = tuple(4096 << power for power in range(9))  # 4 KiB to 1 MiB
LANES = (1, 2, 4, 8, 16, 32)
PASSES = 3
READS = 512  # of a batch: fewer are over before the drive is busy
ROUNDED = 1e-4  # more than the digits that a file leaves out
FEWEST = 64  # of a batch, where the file is too small for more
SMALL, REPEATED = (1, 4, 16, 64), 10  # batches that tell what a batch costs beside its reads, and how often
UNSTEADY = 0.25  # median spread of passes from which on a measurement should be repeated
NEAR_BEST = 0.95  # of the highest throughput: the fewest lanes that reach it are enough
COPIED, COPIES = 1 << 28, 5  # bytes that all threads copy to time DRAM, and how often


@dataclass(frozen=True)
class Curves:
    """Seconds a read [passes, lanes, sizes], and seconds that a batch takes besides, for each number of lanes."""

    sizes: tuple[int, ...]
    lanes: tuple[int, ...]
    seconds: Floats
    overhead: Floats

    @property
    def rates(self) -> Floats:
        """Bytes a second [lanes, sizes]: medians, where a longer read is neither slower nor takes less time."""
        found = np.array(self.sizes) / np.median(self.seconds, axis=0)
        for i in range(1, len(self.sizes)):
            most = found[:, i - 1] * (self.sizes[i] / self.sizes[i - 1] - ROUNDED)
            found[:, i] = np.clip(found[:, i], found[:, i - 1], most)
        return np.asarray(found)

    @property
    def spread(self) -> Floats:
        """How far passes lie apart, [lanes, sizes]: the slowest over the fastest, less 1."""
        return np.asarray(self.seconds.max(axis=0) / self.seconds.min(axis=0) - 1)

    @property
    def enough(self) -> int:
        """The fewest reads under way that come near the highest throughput at a middle size."""
        rates = self.rates[:, self.sizes.index(self.middle)]
        return self.lanes[int(np.argmax(rates >= NEAR_BEST * rates.max()))]

    @property
    def middle(self) -> int:
        """The middle one of the sizes."""
        return self.sizes[len(self.sizes) // 2]


def measure(
    storage: Storage,
    sizes: tuple[int, ...] = SIZES,
    lanes: tuple[int, ...] = LANES,
    passes: int = PASSES,
    seed: int = 0,
    progress: Progress = silent,
) -> Curves:
    """Time reads of all `sizes` bytes with each number of `lanes` under way, in `passes` that visit all of them.

    Raises InputError if the file is too small for `FEWEST` of the largest reads.
    """
    rng = np.random.default_rng(seed)
    check_size(storage.size, max(sizes))
    seconds = np.empty((passes, len(lanes), len(sizes)))
    points = [(i, j) for j in range(len(sizes)) for i in range(len(lanes))]
    done = 0
    for turn in range(passes):
        for i, j in points:
            offsets = scattered(storage, sizes[j], READS, rng)
            seconds[turn, i, j] = storage.read(offsets, [sizes[j]] * len(offsets), lanes[i]) / len(offsets)
            done += 1
            progress("timing reads", done, passes * len(points))
    overhead = np.array(
        [_overhead(storage, sizes, n, np.median(seconds[:, i], axis=0), rng) for i, n in enumerate(lanes)]
    )
    return Curves(sizes, lanes, seconds, overhead)


def check_size(size: int, largest: int = max(SIZES)) -> None:
    """Raise InputError if a file of `size` bytes is too small to scatter reads of `largest` bytes over."""
    if size < 2 * FEWEST * largest:
        raise InputError(
            f"--size: {show(size, 'size')} are too few to scatter reads over; give "
            f"{show(2 * FEWEST * largest, 'size')} or more, or a larger file"
        )


def scattered(storage: Storage, size: int, reads: int, rng: np.random.Generator) -> list[int]:
    """Rising offsets of up to `reads` reads with gaps between them, since adjacent reads would be joined to one."""
    reads = min(reads, storage.size // (2 * size))
    slot = storage.size // reads // storage.grain  # of which each read gets one, in units of the grain
    room = slot - size // storage.grain  # at least a read's size
    begin = np.arange(reads) * slot + rng.integers(0, max(1, room), reads)
    return [int(each) * storage.grain for each in begin]


def _overhead(storage: Storage, sizes: tuple[int, ...], lanes: int, seconds: Floats, rng: np.random.Generator) -> float:
    """Seconds that a batch takes besides its reads: the median over small batches, at least 0."""
    more = [
        storage.read(scattered(storage, size, reads, rng), [size] * reads, lanes) - reads * each
        for _ in range(REPEATED)
        for size, each in zip(sizes, seconds, strict=True)
        for reads in SMALL
    ]
    return max(0.0, float(np.median(more)))


def dram_bandwidth(threads: int | None = None) -> tuple[float, float]:
    """Bytes a second that threads copy, reading and writing counted, and how far repetitions lie apart.

    Each of the `threads`, by default one a core, copies its own share; the median of `COPIES` repetitions.
    """
    threads = threads or len(os.sched_getaffinity(0))
    pairs = [(np.ones(COPIED // threads, np.uint8), np.zeros(COPIED // threads, np.uint8)) for _ in range(threads)]
    rates = []
    for _ in range(COPIES + 1):
        ready = threading.Barrier(threads + 1)

        def copy(source: Any, target: Any, ready: threading.Barrier = ready) -> None:
            ready.wait()
            np.copyto(target, source)

        workers = [threading.Thread(target=copy, args=pair) for pair in pairs]
        for worker in workers:
            worker.start()
        begin = time.perf_counter()
        ready.wait()
        for worker in workers:
            worker.join()
        rates.append(2 * COPIED / (time.perf_counter() - begin))
    rates = rates[1:]  # the first touches the pages
    return float(np.median(rates)), max(rates) / min(rates) - 1


def memory() -> tuple[int, int]:
    """Bytes of DRAM of this machine, and those that are free for a program now."""
    page = os.sysconf("SC_PAGE_SIZE")
    free = page * os.sysconf("SC_AVPHYS_PAGES")
    with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123
        for line in lines:
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    return page * os.sysconf("SC_PHYS_PAGES"), free


def device(
    name: str, curves: Curves, storage: Storage, dram: tuple[float, float], conditions: dict[str, str]
) -> dict[str, Any]:
    """The device file of what was measured, as plain data."""
    capacity, free = memory()
    bandwidth, apart = dram
    lanes = curves.enough
    method = f"measured: {READS} direct reads a batch, median of {len(curves.seconds)} passes"
    return {
        "name": name,
        "description": "measured on the machine itself by `dipsim calibrate`",
        "flash": {
            "read_curves": {
                n: [
                    [f"{size // 1024} KiB", f"{rate / 1e6:.6g} MB/s"]
                    for size, rate in zip(curves.sizes, rates, strict=True)
                ]
                for n, rates in zip(curves.lanes, curves.rates, strict=True)
            },
            "lanes": lanes,
            "batch_overhead": f"{np.median(curves.overhead) * 1e6:.4g} us",
            "page": f"{max(storage.grain, min(curves.sizes))} B",
        },
        "dram": {
            "capacity": f"{capacity} B",
            "bandwidth": f"{bandwidth / 1e9:.4g} GB/s",
            "free": f"{free} B",
            "flash_copies": 1,
        },
        "evidence": {"level": "fitted", "against": "its own reads; replay a run to validate it"},
        "conditions": conditions
        | {
            "spread of passes": f"{np.median(curves.spread):.0%} median, {curves.spread.max():.0%} largest",
            "spread of DRAM": f"{apart:.0%}",
        },
        "sources": {
            "flash.read_curves": method,
            "flash.lanes": f"the fewest with {NEAR_BEST:.0%} of the highest throughput at {curves.middle // 1024} KiB",
            "flash.batch_overhead": "measured: small batches beside what their reads take, the median over lanes",
            "flash.page": "what direct reads must be aligned to, at least the smallest that was measured",
            "dram.capacity": "the operating system",
            "dram.free": "the operating system, when it was measured",
            "dram.bandwidth": "measured: a copy on all cores, bytes read and written",
            "dram.flash_copies": "direct reads are written to DRAM once",
        },
    }


def conditions(disk: Disk) -> dict[str, str]:
    """What a measurement depends on, and what must be told with it."""
    load = ", ".join(f"{each:.2f}" for each in os.getloadavg())
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} cores",
        "file": f"{disk.size} B on {disk.kind or 'some file system'}, direct reads of multiples of {disk.grain} B",
        "load before": load,
    }
