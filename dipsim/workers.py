"""Runs units of work side by side, in processes of this machine or on a Dask cluster; results come as they finish."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from dipsim.files import InputError

Unit = TypeVar("Unit")
Found = TypeVar("Found")
Tick = Callable[[int], object]  # told how many steps were done
Work = Callable[[Unit, Tick], Found]
PERIOD_S = 0.5  # of looking after the others


def in_processes(
    work: Work[Unit, Found], units: Sequence[Unit], workers: int, progress: Callable[[int], object]
) -> Iterator[Found]:
    """What `work(unit, tick)` finds, unit by unit as they finish; `progress(steps done)` sums up all ticks.

    With one worker or unit all happens in this process. Other processes end with this one, however it ends.
    """
    if workers == 1 or len(units) < 2:
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            progress(done)

        for unit in units:
            yield work(unit, tick)
        return
    from joblib import Parallel, delayed

    with _tally(progress) as tally:
        parallel = Parallel(
            n_jobs=min(workers, len(units)),
            backend="loky",
            return_as="generator_unordered",
            max_nbytes=None,
            initializer=_end_with,
            initargs=(os.getpid(),),
        )
        yield from parallel(delayed(_count)(work, unit, tally) for unit in units)


@contextmanager
def _tally(progress: Callable[[int], object]) -> Iterator[Path]:
    """A file to which processes append a byte for every step they do; its size is shown as progress."""
    stop = threading.Event()
    with tempfile.NamedTemporaryFile(prefix="dipsim-") as file:
        path = Path(file.name)

        def watch() -> None:
            while not stop.wait(PERIOD_S):
                progress(path.stat().st_size)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield path
        finally:
            stop.set()
            watcher.join()


def _count(work: Work[Unit, Found], unit: Unit, tally: Path) -> Found:
    def tick(count: int) -> None:
        with tally.open("ab") as file:
            file.write(b"." * count)

    return work(unit, tick)


def _end_with(parent: int) -> None:
    """Make this process end soon after its parent, which may be killed and then cannot say so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PERIOD_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def cluster(address: str) -> Iterator[tuple[int, Callable[[Callable[[Unit], Found], Sequence[Unit]], Iterator[Found]]]]:
    """The threads of the Dask cluster at an address, and a function that runs `work(unit)` on it for many units.

    Raises InputError if there is no Dask here or no scheduler there.
    """
    try:
        from distributed import Client, as_completed
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; run `pip install 'dipsim[dask]'`") from None
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise InputError(f"--dask {address}: no scheduler answers ({' '.join(str(error).split())})") from None

    def run(work: Callable[[Unit], Found], units: Sequence[Unit]) -> Iterator[Found]:
        for future in as_completed(client.map(work, units, pure=False)):
            yield future.result()

    with client:
        yield max(1, sum(client.nthreads().values())), run
