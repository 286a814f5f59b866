"""Runs tasks side by side, in processes of this machine or on a Dask cluster. Results come as they finish."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from dipsim.basics.errors import InputError, one_line
from dipsim.basics.progress import Progress, silent

Task = TypeVar("Task")
Found = TypeVar("Found")
Tick = Callable[[int], object]  # told how many steps were done
Worker = Callable[[Task, Tick], Found]
PERIOD_S = 0.5  # between looks at the other processes
WAIT_S = 60  # for a worker of a cluster
ATTEMPTS = 2  # at a task whose process is killed


def in_processes(
    work: Worker[Task, Found], tasks: Sequence[Task], workers: int, progress: Callable[[int], object]
) -> Iterator[Found]:
    """What `work(task, tick)` finds, task by task as they finish. `progress(steps done)` sums up all ticks.

    With one worker or task, all happens in this process. Other processes end with this one, however it ends. If one of
    them is killed, what is not finished is tried once more. Raises InputError if that happens again.
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
    left = dict(enumerate(tasks))
    with _tally(progress) as tally:
        for _ in range(ATTEMPTS):
            try:
                for place, found in _side_by_side(work, list(left.items()), workers, tally):
                    del left[place]
                    yield found
            except BrokenProcessPool:  # also what joblib makes of a process that was killed
                continue
            return
    raise InputError(
        f"--workers {workers}: a worker was killed twice, perhaps for want of memory; what is finished is kept, start "
        "again with fewer workers"
    )


def _side_by_side(
    work: Worker[Task, Found], tasks: Sequence[tuple[int, Task]], workers: int, tally: Path
) -> Iterator[tuple[int, Found]]:
    from joblib import Parallel, delayed

    parallel = Parallel(
        n_jobs=min(workers, max(2, len(tasks))),  # with one, joblib works in this process, which must not be killed
        backend="loky",
        return_as="generator_unordered",
        max_nbytes=None,
        batch_size=1,  # what is finished is told at once
        initializer=_end_with,
        initargs=(os.getpid(),),
    )
    with _deaf():
        found = parallel(delayed(_count)(work, place, task, tally) for place, task in tasks)  # starts the others
    yield from found


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore Ctrl-C, and let processes that are started now ignore it too: it reaches all those of a terminal.

    One that comes in these moments is lost; the next is not.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)  # None is not of Python


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


def _count(work: Worker[Task, Found], place: int, task: Task, tally: Path) -> tuple[int, Found]:
    def tick(count: int) -> None:
        with tally.open("ab") as file:
            file.write(b"." * count)

    return place, work(task, tick)


def _end_with(parent: int) -> None:
    """Make this process end soon after its parent, which may be killed and then cannot say so; ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PERIOD_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def cluster(
    address: str, progress: Progress = silent
) -> Iterator[tuple[int, Callable[[Callable[[Task], Found], Sequence[Task]], Iterator[Found]]]]:
    """The threads of the Dask cluster at an address, and a function that runs `work(task)` on it for many tasks.

    Raises InputError if there is no Dask here or no scheduler there, or the cluster has no workers for a minute or two.
    """
    try:
        from distributed import CancelledError, Client, wait
        from distributed.comm.core import CommClosedError
        from distributed.scheduler import KilledWorker
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed; run `pip install 'dipsim[dask]'`") from None
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what goes wrong is told below
    try:
        client = Client(address, timeout="10s")
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        raise InputError(f"--dask {address}: no scheduler answers ({one_line(error)})") from None

    def await_workers() -> int:
        """The threads of all workers, once there are some."""
        waiting = f"waiting for a worker of {address} (s)"
        for waited in range(WAIT_S):
            if threads := sum(client.nthreads().values()):
                progress(waiting, WAIT_S, WAIT_S)
                return int(threads)
            progress(waiting, waited, WAIT_S)
            time.sleep(1)
        raise InputError(
            f"--dask {address}: has no workers, and none came in {WAIT_S} s; start one with `dask worker {address}`"
        )

    def run(work: Callable[[Task], Found], tasks: Sequence[Task]) -> Iterator[Found]:
        pending = set(client.map(work, tasks, pure=False))
        while pending:
            try:
                done, pending = wait(pending, timeout=WAIT_S, return_when="FIRST_COMPLETED")
            except TimeoutError:
                await_workers()
                continue
            for future in done:
                yield future.result()

    with client:
        try:
            yield await_workers(), run
        except (CommClosedError, CancelledError, KilledWorker, TimeoutError) as error:
            raise InputError(
                f"--dask {address}: the cluster was lost ({type(error).__name__}); what is finished is kept, start the "
                "sweep again"
            ) from None
