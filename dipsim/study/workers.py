"""Runs tasks side by side, in processes of this machine or on a Dask cluster. Results come as they finish."""

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

from dipsim.basics.errors import InputError

Task = TypeVar("Task")
Found = TypeVar("Found")
Tick = Callable[[int], object]  # told how many steps were done
Worker = Callable[[Task, Tick], Found]
PERIOD_S = 0.5  # between looks at the other processes


def in_processes(
    work: Worker[Task, Found], tasks: Sequence[Task], workers: int, progress: Callable[[int], object]
) -> Iterator[Found]:
    """What `work(task, tick)` finds, task by task as they finish. `progress(steps done)` sums up all ticks.

    With one worker or task, all happens in this process. Other processes end with this one, however it ends.
    """
    if workers == 1 or len(tasks) < 2:
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            progress(done)

        for task in tasks:
            yield work(task, tick)
        return
    from joblib import Parallel, delayed

    with _tally(progress) as tally:
        parallel = Parallel(
            n_jobs=min(workers, len(tasks)),
            backend="loky",
            return_as="generator_unordered",
            max_nbytes=None,
            initializer=_end_with,
            initargs=(os.getpid(),),
        )
        yield from parallel(delayed(_count)(work, task, tally) for task in tasks)


@contextmanager
def _tally(progress: Callable[[int], object]) -> Iterator[Path]:
    """A file to which processes append a byte for every step they do. Its size is reported as progress."""
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


def _count(work: Worker[Task, Found], task: Task, tally: Path) -> Found:
    def tick(count: int) -> None:
        with tally.open("ab") as file:
            file.write(b"." * count)

    return work(task, tick)


def _end_with(parent: int) -> None:
    """Make this process end soon after its parent, which may be killed and then cannot say so."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PERIOD_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def cluster(address: str) -> Iterator[tuple[int, Callable[[Callable[[Task], Found], Sequence[Task]], Iterator[Found]]]]:
    """The threads of the Dask cluster at an address, and a function that runs `work(task)` on it for many tasks.

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

    def run(work: Callable[[Task], Found], tasks: Sequence[Task]) -> Iterator[Found]:
        for future in as_completed(client.map(work, tasks, pure=False)):
            yield future.result()

    with client:
        yield max(1, sum(client.nthreads().values())), run
