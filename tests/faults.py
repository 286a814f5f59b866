"""Kills sweeps at random moments until they have finished, again and again: the table must be the same each time.

`python tests/faults.py [KILLS] [SEED]` makes at least so many kills (200), and prints what it did. It ends with 1 if a
table differs, a sweep cannot go on, or anything is said in more than one line.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from tiny import SHAPE, activations

from dipsim.workload.recorded import write_trace
from dipsim.workload.trace import Header

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PLUGIN = """import time
from dipsim import Group, Policy
from dipsim.planning import kept

kept.PERIOD_S = 0.05  # in the process that plans, so that layers are kept often

class Slow(Policy):
    fraction: float = 0.5
    def groups(self, shape):
        return [Group("neuron", ("down_proj",), "neuron", int(self.fraction * shape.intermediate_size))]
    def scores(self, group, acts):
        time.sleep(0.2)
        return abs(acts.glu)
"""


class Sweeps:
    """Sweeps of one experiment in folders below `root`, and what they did."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.kills: Counter[str] = Counter()
        self.tables = 0
        self.failures: list[str] = []
        shape = SHAPE.model_copy(update={"num_hidden_layers": 6})
        for name, begin in (("mine", 0), ("other", 1)):
            write_trace(root / f"{name}.safetensors", Header(model=shape), activations(shape, 12, begin))
        (root / "slow.py").write_text(PLUGIN)
        slow = [{str(root / "slow.py"): {"fraction": fraction}} for fraction in (0.25, 0.5, 0.75)]
        data = {"trace": str(root / "mine.safetensors"), "policies": ["dense", *slow, "dip"], "read_through": False}
        shares = [{"mlp_fraction": share} for share in (0.3, 0.5, 0.7)]
        data["sweep"] = {"dram": shares, "flash.read_bandwidth": ["0.5 GB/s", "1 GB/s"]}
        (root / "exp.yaml").write_text(yaml.safe_dump(data))
        self.wanted = self.finish("reference")
        if self.failures:
            sys.exit(self.failures[0])

    def start(self, folder: str, *options: str, **more: Any) -> subprocess.Popen[str]:
        """A sweep in a folder, in a session of its own."""
        command = [
            sys.executable,
            "-m",
            "dipsim",
            "sweep",
            str(self.root / "exp.yaml"),
            "--out",
            str(self.root / folder),
        ]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*command, *(options or ("--workers", "2"))],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **more,
        )

    def end(self, process: subprocess.Popen[str], what: str, statuses: tuple[int, ...] = (0,)) -> None:
        """Wait for a sweep's end, which must be one of the `statuses`, said in a line."""
        errors = process.communicate(timeout=120)[1]
        said = [line for line in errors.splitlines() if line.startswith("error:")]
        if process.returncode not in statuses or "Traceback" in errors or len(said) > 1:
            self.failures.append(f"{what}: ended with {process.returncode}: {errors[-500:]}")

    def finish(self, folder: str, *options: str) -> bytes:
        """Let a sweep go on to its end; return its table, which is compared with the first one."""
        self.end(self.start(folder, *options), f"finish {folder}")
        table = self.root / folder / "sweep.csv"
        content = table.read_bytes() if table.exists() else b""
        self.tables += 1
        if getattr(self, "wanted", content) != content:
            self.failures.append(f"{folder}: another table")
        if list((self.root / folder).rglob(".*")) or (self.root / folder / "points/layers").exists():
            self.failures.append(f"{folder}: something is left over")
        return content

    def kill(self, process: subprocess.Popen[str], whom: str, one: signal.Signals) -> None:
        """Send a signal to the sweep (`parent`), one of its workers, or to `all` its processes, as a terminal does."""
        if whom == "all":
            os.killpg(process.pid, one)
        else:
            mine = [process.pid] if whom == "parent" else workers_of(process.pid)
            if not mine:
                return
            os.kill(self.random.choice(mine), one)
        self.kills[f"{whom} {one.name}"] += 1


def workers_of(parent: int) -> list[int]:
    """The processes that a process started to work, and not loky's that only removes what they share."""
    command = ["pgrep", "-f", "-P", str(parent), "popen_loky"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [int(line) for line in found.split()]


def kills_of_processes(sweeps: Sweeps, many: int) -> None:
    """Kill sweeps with two workers, or one of their workers; now and then let one finish."""
    folder, begun = "", 0
    while sum(sweeps.kills.values()) < many:
        if not folder or sweeps.random.random() < 0.15:
            if folder:
                sweeps.finish(folder)
            begun += 1
            folder = f"killed-{begun}"
        whom = sweeps.random.choice(("parent", "parent", "worker", "all"))
        one = sweeps.random.choice(SIGNALS)
        process = sweeps.start(folder)
        time.sleep(sweeps.random.uniform(0.3, 4.0))
        if process.poll() is None:
            sweeps.kill(process, whom, one)
        # a worker that is killed is replaced, unless it was the second one; one that is asked to end is, too
        statuses = (0, 2) if whom == "worker" else (0, -one, 130)
        sweeps.end(process, f"{folder} {whom} {one.name}", statuses)
        if whom != "worker":
            time.sleep(1.0)  # workers end soon after their parent
    sweeps.finish(folder)


@contextmanager
def dask(root: Path) -> Iterator[tuple[str, subprocess.Popen[bytes], Callable[[], subprocess.Popen[bytes]]]]:
    """The address of a scheduler, its process, and a function that starts a worker."""
    file, quiet = root / "scheduler.json", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    file.unlink(missing_ok=True)
    python = [sys.executable, "-m", "dask"]
    started: list[subprocess.Popen[bytes]] = []

    def begin(*command: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        started.append(subprocess.Popen([*python, *command], env=environment, **quiet))  # type: ignore[call-overload]
        return started[-1]

    scheduler = begin("scheduler", "--port", "0", "--scheduler-file", str(file), "--dashboard-address", ":0")
    try:
        while not file.exists():
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        yield address, scheduler, lambda: begin("worker", address, "--no-dashboard", "--nthreads", "1", "--no-nanny")
    finally:
        for process in started:
            process.kill()
            process.wait()


def kills_of_a_cluster(sweeps: Sweeps, many: int) -> None:
    """Kill workers, which are replaced, and now and then the scheduler."""
    for round_ in range(many):
        folder = f"cluster-{round_ // 3}"
        with dask(sweeps.root) as (address, scheduler, worker):
            workers = [worker(), worker()]
            process = sweeps.start(folder, "--dask", address)
            time.sleep(sweeps.random.uniform(1.5, 6.0))
            whom, one = sweeps.random.choice(("worker", "scheduler")), sweeps.random.choice(SIGNALS)
            sweeps.kills[f"dask {whom} {one.name}"] += 1
            (workers[0] if whom == "worker" else scheduler).send_signal(one)
            sweeps.end(process, f"{folder} {whom} {one.name}", (0, 2) if whom == "scheduler" else (0,))
        if round_ % 3 == 2:
            sweeps.finish(folder)


def disks_and_changes(sweeps: Sweeps, times: int = 4) -> None:
    """A disk that is full, one that cannot be written, files that change under a sweep, two sweeps in one folder."""
    for limit in (256, 900, 20_000):  # bytes of a file

        def full(limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        sweeps.end(sweeps.start(f"full-{limit}", preexec_fn=full), f"full {limit}", (0, 2))
        sweeps.finish(f"full-{limit}")
    (sweeps.root / "file").write_text("")
    sweeps.end(sweeps.start("file/below"), "read-only", (2,))
    trace, other = sweeps.root / "mine.safetensors", (sweeps.root / "other.safetensors").read_bytes()
    for number in range(times):
        content, process = trace.read_bytes(), sweeps.start(f"changed-{number}")
        time.sleep(sweeps.random.uniform(1.0, 4.0))
        trace.write_bytes(other)
        sweeps.end(process, "changed", (0, 2))
        trace.write_bytes(content)
        sweeps.finish(f"changed-{number}")
    for number in range(times):
        one, two = sweeps.start(f"two-{number}"), sweeps.start(f"two-{number}")
        sweeps.end(one, "two sweeps")
        sweeps.end(two, "two sweeps")
        sweeps.finish(f"two-{number}")


def main(many: int = 200, seed: int = 0) -> int:
    """Kill so often; return the exit status."""
    root = Path(tempfile.mkdtemp(prefix="dipsim-faults-"))
    sweeps = Sweeps(root, seed)
    of_clusters = many // 10 if shutil.which("pgrep") and _has_dask() else 0
    kills_of_a_cluster(sweeps, of_clusters)
    kills_of_processes(sweeps, many)
    disks_and_changes(sweeps)
    for what, count in sorted(sweeps.kills.items()):
        print(f"{count:4} {what}")
    print(f"{sum(sweeps.kills.values())} kills, {sweeps.tables} tables, {len(sweeps.failures)} failures (seed {seed})")
    for failure in sweeps.failures:
        print(f"FAILED {failure}")
    if not sweeps.failures:
        shutil.rmtree(root)
    return int(bool(sweeps.failures))


def _has_dask() -> bool:
    from importlib.util import find_spec

    return find_spec("distributed") is not None


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
