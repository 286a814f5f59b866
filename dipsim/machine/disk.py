"""A file on a real disk, read past the page cache, and the time that batches of reads take.

Persistent threads share one counter. They read with `os.preadv` into aligned buffers of a file opened with O_DIRECT.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Protocol

from dipsim.basics.errors import InputError
from dipsim.basics.progress import Progress, silent
from dipsim.basics.units import show

LARGEST = 1 << 20  # bytes of one read; what is longer is read in parts
BLOCK = 1 << 24  # bytes written at a time
IN_DRAM = ("tmpfs", "ramfs", "devtmpfs")  # file systems that accept O_DIRECT and serve DRAM


class Storage(Protocol):
    """What can be timed: `size` bytes, read at multiples of `grain` bytes."""

    size: int
    grain: int

    def read(self, offsets: Sequence[int], sizes: Sequence[int], lanes: int) -> float:
        """Seconds that these reads take, `lanes` of them under way at a time."""


class Disk:
    """A file opened for direct reading on a file system of this `kind`, with the threads that read it."""

    def __init__(self, descriptor: int, size: int, grain: int, kind: str = "") -> None:
        self.size, self.grain, self.kind, self._descriptor = size, grain, kind, descriptor
        self._lanes: list[tuple[threading.Thread, threading.Semaphore]] = []
        self._finished = threading.Semaphore(0)
        self._job: _Job | None = None
        self._closed = False

    def read(self, offsets: Sequence[int], sizes: Sequence[int], lanes: int) -> float:
        """Seconds that these reads take. Raises InputError if one fails."""
        if not len(offsets):
            return 0.0
        lanes = min(lanes, len(offsets))
        while len(self._lanes) < lanes:
            called, buffer = threading.Semaphore(0), memoryview(mmap.mmap(-1, LARGEST))  # aligned, as direct reads need
            self._lanes.append((threading.Thread(target=self._work, args=(called, buffer), daemon=True), called))
            self._lanes[-1][0].start()
        self._job = job = _Job(list(offsets), list(sizes), lanes)
        begin = time.perf_counter()
        for _, called in self._lanes[:lanes]:
            called.release()
        self._finished.acquire()
        seconds = time.perf_counter() - begin
        if job.failed is not None:
            raise InputError(f"the disk fails to read: {job.failed}; give a file on another one")
        return seconds

    def close(self) -> None:
        """End the threads, even in the middle of a batch."""
        self._closed = True
        for thread, called in self._lanes:
            called.release()
            thread.join()

    def _work(self, called: threading.Semaphore, buffer: memoryview) -> None:
        while called.acquire() and not self._closed:
            job = self._job
            assert job is not None
            try:
                while (turn := next(job.turns)) < len(job.sizes) and not self._closed:
                    size = job.sizes[turn]
                    if os.preadv(self._descriptor, [buffer[:size]], job.offsets[turn]) != size:
                        raise OSError(errno.EIO, "the file ends before a read does")
            except OSError as error:
                job.failed = error
            if next(job.ended) == job.lanes - 1:
                self._finished.release()


class _Job:
    """A batch of reads. Every thread takes the next one until none is left."""

    def __init__(self, offsets: list[int], sizes: list[int], lanes: int) -> None:
        self.offsets, self.sizes, self.lanes = offsets, sizes, lanes
        self.turns, self.ended = count(), count()
        self.failed: OSError | None = None


@contextmanager
def open_disk(path: Path, size: int, least: int | None = None, progress: Progress = silent) -> Iterator[Disk]:
    """Open a file on the disk that `path` is on, to read.

    A file that is there needs `least` bytes, by default `size`, and is never written to. Otherwise one of `size` random
    bytes is made that has no name, so that nothing is left of it whatever happens. Raises InputError if there is too
    little room, no permission, a file that is too small or has holes, or a file system that is in DRAM, cannot hold a
    file without a name, or does not read past its cache.
    """
    if sys.platform != "linux":
        raise InputError("file: reading past the page cache is known for Linux only; run this there")
    with ExitStack() as stack:
        try:
            named = path.exists()
            if not named and not path.parent.is_dir():
                raise InputError(f"{path}: there is no folder {path.parent}; make it, or give another path")
            where, how = (path, os.O_RDONLY | os.O_NONBLOCK) if named else (path.parent, os.O_RDWR | os.O_TMPFILE)
            descriptor = os.open(where, how, 0o600)
            stack.callback(os.close, descriptor)
            if named:
                _check_file(descriptor, path, size if least is None else least)
            if (kind := file_system(descriptor)) in IN_DRAM:
                raise InputError(f"{path}: lies on {kind}, that is in DRAM; give a path on the disk to measure")
            if not named:
                _fill(descriptor, path, size, progress)
            direct = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_DIRECT)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP, errno.EISDIR):
                raise InputError(
                    f"{path}: its file system cannot read past its cache (O_DIRECT) or hold a file without a name "
                    "(O_TMPFILE); give a path on another, or a file that is there"
                ) from None
            raise InputError(
                f"{path}: cannot be opened ({error.strerror}); give a file to read, or a path where one may be made"
            ) from None
        stack.callback(os.close, direct)
        disk = Disk(direct, os.fstat(direct).st_size, alignment(direct), kind)
        stack.callback(disk.close)
        yield disk


def _fill(descriptor: int, path: Path, size: int, progress: Progress) -> None:
    """Write random bytes, which no drive can compress or leave out."""
    room = shutil.disk_usage(path.parent).free
    if room < size:
        raise InputError(
            f"{path}: needs {show(size, 'size')}, and the disk has {show(room, 'size')} free; ask for less (--size) "
            "or give another path"
        )
    try:
        done = 0
        while done < size:
            done += os.write(descriptor, os.urandom(min(BLOCK, size - done)))
            progress("writing the file to read", done, size)
        os.fsync(descriptor)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); ask for less (--size), or give another path"
        ) from None


def _check_file(descriptor: int, path: Path, least: int) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: is not an ordinary file; give one, or a path where there is nothing yet")
    if found.st_size < least:
        raise InputError(
            f"{path}: has {show(found.st_size, 'size')}, and {show(least, 'size')} are needed; give a larger file, or "
            "a path where there is nothing yet"
        )
    os.fsync(descriptor)  # or what was just written would look like a hole
    if os.lseek(descriptor, 0, os.SEEK_HOLE) < found.st_size:
        raise InputError(
            f"{path}: has holes, or was never written, which no disk reads; give another, or a path where there is "
            "nothing yet"
        )


def file_system(descriptor: int) -> str:
    """The type of the file system that an open file lies on, empty where it is not known."""
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    mount = next((line.split()[1] for line in lines if line.startswith("mnt_id:")), "")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[0] == mount:
            return after.split()[0]
    return ""


def alignment(descriptor: int) -> int:
    """Bytes whose multiples direct reads must begin and end at: what statx says, else the file system's block."""
    answer = ctypes.create_string_buffer(256)
    libc = ctypes.CDLL(None, use_errno=True)
    dio_align, empty_path = 0x2000, 0x1000
    if hasattr(libc, "statx") and libc.statx(descriptor, b"", empty_path, dio_align, answer) == 0:
        said = int.from_bytes(answer.raw[156:160], sys.byteorder)
        if said:
            return said
    return os.fstat(descriptor).st_blksize
