"""Feeds damaged inputs to a reader, each within limits of time and memory, and says what became of them."""

import random
import resource
import shutil
import signal
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fuzz.readers import Reader

from dipsim.basics.errors import InputError

SECONDS, COSTLY_SECONDS = 10, 60  # an input
MEMORY = 2 * 10**9  # bytes above what the process has at the start
LONGEST = 2000  # letters of a message


class TooLong(BaseException):
    """An input took longer than it may."""


def made(reader: Reader, seed: int) -> bytes:
    """The damaged input of a seed."""
    return reader.damaged(random.Random(zlib.crc32(f"{reader.name} {seed}".encode())))


def outcome(reader: Reader, data: bytes, folder: Path) -> str:
    """`accepted`, `refused`, or what went wrong with an input, which is then left in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / reader.file
    path.write_bytes(data)
    seconds = COSTLY_SECONDS if reader.costly else SECONDS
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        reader.read(path)
        return "accepted"
    except InputError as error:
        message = str(error)
        if "\n" in message or len(message) > LONGEST:
            return f"message of {len(message)} letters, {message.count(chr(10)) + 1} lines: {message[:200]!r}"
        return "refused"
    except TooLong:
        return f"takes longer than {seconds} s"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "/dipsim/" in frame.filename]
        where = ours[-1] if ours else place
        path.write_bytes(data)
        return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)[:200]!r}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _ring(*_: Any) -> None:
    raise TooLong


@contextmanager
def limited(memory: int | None = MEMORY) -> Iterator[None]:
    """Within, an input that takes too long or too much memory fails. Warnings of numbers are failures too."""
    before, limits = signal.signal(signal.SIGALRM, _ring), resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, limits[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", RuntimeWarning)
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGALRM, before)


def feed(reader: Reader, seeds: range, folder: Path, kept: Path) -> tuple[Counter[str], dict[str, int]]:
    """How many inputs were accepted, refused or failed; and the first seed of each failure, kept below `kept`."""
    counts: Counter[str] = Counter()
    failures: dict[str, int] = {}
    for seed in seeds:
        (folder / "seed").write_text(f"{reader.name} {seed}")  # for whoever finds this process dead
        found = outcome(reader, made(reader, seed), folder / "in")
        counts[found if found in ("accepted", "refused") else "failed"] += 1
        if found not in ("accepted", "refused", *failures):
            failures[found] = seed
            shutil.copytree(folder / "in", kept / f"{reader.name} {seed}".replace(" ", "-"), dirs_exist_ok=True)
    return counts, failures
