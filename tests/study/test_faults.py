"""What is killed, lost or damaged under a sweep: what was planned is kept, and the table is the same in the end."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import faults
import numpy as np
import pandas as pd
import pytest
import tiny

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.cli import terminal
from dipsim.planning import kept
from dipsim.planning.builder import PlanBuilder
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.kept import KeptLayers
from dipsim.planning.planner import CpuPlanner, plan
from dipsim.sparsity.plugins import load_policy
from dipsim.study import passes, workers
from dipsim.study.experiment import Experiment
from dipsim.study.sweep import sweep
from dipsim.study.workers import cluster, in_processes

LAYERS = 5
SHAPE = tiny.SHAPE.model_copy(update={"num_hidden_layers": LAYERS})


@pytest.fixture
def chosen(tiny_trace):
    data = {
        "trace": str(tiny_trace(SHAPE).path),
        "policies": [{"dip": {"keep": 0.75}}, {"dip-ca": {"keep": 0.75}}],
        "sweep": {"dram": ["4 kB", "5 kB"], "eviction": ["lru", "lfu"]},
    }
    return parse(Experiment, data, "exp.yaml")


@pytest.fixture
def drawn(monkeypatch):
    """The layers that were planned, in order."""
    found = []

    def fill(self, trace, builders, layers, progress):
        found.extend(layers)
        original(self, trace, builders, layers, progress)

    original = CpuPlanner.fill
    monkeypatch.setattr(CpuPlanner, "fill", fill)
    return found


def interrupted(chosen, out, after):
    """Start a sweep that is interrupted once it has planned so many layers of its first pass."""

    def stop(what, done, _total):
        if what == CpuPlanner.task and done >= after * 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(chosen, out, progress=stop)


def test_a_sweep_goes_on_after_the_layers_that_were_planned(chosen, tmp_path, monkeypatch, drawn):
    monkeypatch.setattr(kept, "PERIOD_S", 0.0)
    monkeypatch.setattr(kept, "SHARE", np.inf)
    interrupted(chosen, tmp_path / "out", after=3)
    assert len({file.parent for file in (tmp_path / "out/points/layers").rglob("*.npz")}) == 4  # plans of one policy
    assert sorted({int(file.stem) for file in (tmp_path / "out/points/layers").rglob("*.npz")}) == [0, 1, 2]
    drawn.clear()
    table = sweep(chosen, tmp_path / "out")
    assert drawn == [3, 4, *range(LAYERS)]
    assert not (tmp_path / "out/points/layers").exists()
    pd.testing.assert_frame_equal(table, sweep(chosen, tmp_path / "alone"))


@pytest.mark.parametrize("damage", [b"", b"PK", None], ids=["empty", "cut", "a byte"])
def test_a_damaged_layer_is_planned_again(chosen, tmp_path, monkeypatch, drawn, damage):
    monkeypatch.setattr(kept, "PERIOD_S", 0.0)
    monkeypatch.setattr(kept, "SHARE", np.inf)
    interrupted(chosen, tmp_path / "out", after=3)
    file = sorted((tmp_path / "out/points/layers").rglob("1.npz"))[2]
    content = file.read_bytes()
    place = content.index(b"NUMPY") + 200  # in what the first array holds
    flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    file.write_bytes(flipped if damage is None else damage)
    drawn.clear()
    table = sweep(chosen, tmp_path / "out")
    assert drawn == [1, 2, 3, 4, *range(LAYERS)]
    pd.testing.assert_frame_equal(table, sweep(chosen, tmp_path / "alone"))


def test_layers_that_some_plans_have_and_others_lack_are_planned_once(tiny_trace, tmp_path, monkeypatch):
    """A kill between two files of a layer: what is entered of one must not be added to."""
    monkeypatch.setattr(kept, "PERIOD_S", 0.0)
    monkeypatch.setattr(kept, "SHARE", np.inf)
    trace = tiny_trace(SHAPE)
    settings = [Setting(load_policy("dip", keep=keep), 5000.0, "lru") for keep in (0.5, 0.75)]
    folders = [tmp_path / name for name in ("a", "b")]
    first = plan(trace, settings, kept=KeptLayers(folders, lambda: None))
    (tmp_path / "b/0.npz").unlink()
    builders = [PlanBuilder(SHAPE, setting, trace.tokens, (0,)) for setting in settings]
    for array in builders[0].layer(0).values():
        array[...] = 7
    assert KeptLayers(folders, lambda: None).restore(builders, LAYERS) == 0
    assert all((array == 7).all() for array in builders[0].layer(0).values())
    again = plan(trace, settings, kept=KeptLayers(folders, lambda: None))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.flash_misses, two.flash_misses)
        np.testing.assert_array_equal(one.flops, two.flops)


def test_layers_of_another_trace_are_not_kept(chosen, tiny_trace, tmp_path, monkeypatch):
    """The trace changes while its second layer is planned; nothing planned since then is found later."""
    monkeypatch.setattr(kept, "PERIOD_S", 0.0)
    monkeypatch.setattr(kept, "SHARE", np.inf)
    file = tmp_path / "mine.safetensors"
    old, new = (tiny_trace(SHAPE, seed=seed).path.read_bytes() for seed in (0, 1))
    file.write_bytes(old)
    chosen = chosen.model_copy(update={"trace": str(file)})
    restore = kept.KeptLayers.restore

    def overwritten(self, builders, layers):
        file.write_bytes(new)
        return restore(self, builders, layers)

    with monkeypatch.context() as patch:
        patch.setattr(kept.KeptLayers, "restore", overwritten)
        with pytest.raises(InputError, match="was changed during the sweep"):
            sweep(chosen, tmp_path / "out")
    assert not list((tmp_path / "out/points").rglob("*.npz"))
    file.write_bytes(old)
    pd.testing.assert_frame_equal(sweep(chosen, tmp_path / "out"), sweep(chosen, tmp_path / "alone"))


def test_progress_says_how_many_points_are_from_before(chosen, tmp_path):
    said = []
    sweep(chosen, tmp_path, progress=lambda *words: said.append(words))
    assert ("points", 0, 8) in said
    next((tmp_path / "points").glob("*.json")).unlink()
    said.clear()
    sweep(chosen, tmp_path, progress=lambda *words: said.append(words))
    assert said[0] == ("points, 7 of them from before", 7, 8)
    assert said[-1] == ("points, 7 of them from before", 8, 8)


def test_without_a_terminal_a_line_from_time_to_time_says_how_far_it_is(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress_bar() as progress:
        for second in range(25):
            now[0] = second
            progress("points", second // 10, 4)
            progress("planning layers", second, 30)
    assert capsys.readouterr().err.splitlines() == [
        "points 1/4; planning layers 9/30",
        "points 2/4; planning layers 19/30",
    ]


def die_at_three(task, tick):
    """Work whose process is killed at task 3 unless a file says that it was."""
    number, mark = task
    if number == 3 and not (mark and Path(mark).exists()):
        time.sleep(0.5)  # all others are finished
        if mark:
            Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    tick(1)
    return number


@pytest.mark.slow
def test_the_tasks_of_a_killed_worker_are_tried_once_more(tmp_path):
    tasks = [(number, str(tmp_path / "killed")) for number in range(6)]
    assert sorted(in_processes(die_at_three, tasks, 2, lambda _: None)) == list(range(6))
    assert (tmp_path / "killed").exists()


@pytest.mark.slow
def test_the_last_task_is_tried_again_in_another_process(tmp_path):
    tasks = [(3, str(tmp_path / "killed")), (0, "")]
    assert sorted(in_processes(die_at_three, tasks, 2, lambda _: None)) == [0, 3]


@pytest.mark.slow
def test_a_worker_that_is_killed_twice_is_one_line():
    tasks = [(3, ""), (0, "")]
    with pytest.raises(InputError, match=r"--workers 2: a worker was killed twice, .* fewer workers"):
        list(in_processes(die_at_three, tasks, 2, lambda _: None))


def test_a_pass_on_the_clock_is_one_plan(tiny_trace):
    from dipsim.study.points import points

    data = {
        "trace": str(tiny_trace().path),
        "policies": ["dip"],
        "sweep": {"dram": ["4 kB", "5 kB"], "contention": [False, True]},
    }
    made = passes.split(points(parse(Experiment, data, "exp.yaml")), 1)
    assert sorted(len(each.jobs) for each in made) == [1, 1, 2]
    assert [each.jobs[0].on_clock for each in made if len(each.jobs) == 1] == [True, True]


@pytest.mark.slow
def test_a_cluster_without_workers_is_one_line(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "WAIT_S", 2)
    said = []
    with distributed.LocalCluster(n_workers=0, dashboard_address=None) as scheduler:
        address = scheduler.scheduler_address
        with (
            pytest.raises(InputError, match=f"--dask {address}: has no workers, and none came in 2 s; start one"),
            cluster(address, lambda *words: said.append(words)),
        ):
            pass
    assert said == [(f"waiting for a worker of {address} (s)", second, 2) for second in range(2)]


@pytest.fixture
def scheduler(tmp_path):
    """The process of a Dask scheduler with one worker, and its address."""
    pytest.importorskip("distributed")
    file, quiet = tmp_path / "address.json", {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "dask", "scheduler", "--port", "0", "--scheduler-file", str(file)]
    processes = [subprocess.Popen([*command, "--dashboard-address", ":0"], **quiet)]
    try:
        while not file.exists():
            assert processes[0].poll() is None
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        command = [sys.executable, "-m", "dask", "worker", address, "--no-dashboard", "--nthreads", "1", "--no-nanny"]
        processes.append(subprocess.Popen(command, **quiet))
        yield processes[0], address
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.slow
def test_a_scheduler_that_is_killed_is_one_line(scheduler):
    process, address = scheduler

    def lose():
        with cluster(address) as (threads, run):
            assert threads == 1
            found = run(time.sleep, [0.01, 300])
            assert next(found) is None
            process.kill()
            next(found)

    with pytest.raises(InputError, match=f"--dask {address}: the cluster was lost .*start the sweep again") as error:
        lose()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_ctrl_c_is_one_line_also_with_workers(tmp_path):
    """All processes of a terminal get the signal."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "dipsim", "sweep", str(root / "examples/paper/phi-3-medium.yaml")]
    process = subprocess.Popen(
        [*command, "--workers", "2", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    while not list(tmp_path.glob("points/layers")):  # both workers are at it
        assert process.poll() is None
        time.sleep(0.1)
    for _ in range(3):  # one that comes while workers start is lost
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            printed, errors = process.communicate(timeout=20)
            break
    else:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError("Ctrl-C does not end it")
    assert process.returncode == 130
    assert [line for line in errors.splitlines() if "/" not in line] == ["error: interrupted"]
    assert printed == ""


@pytest.mark.slow
def test_whatever_is_killed_the_table_is_the_same(tmp_path):
    """A short version of `make faults`."""
    sweeps = faults.Sweeps(tmp_path, seed=3)
    faults.kills_of_processes(sweeps, 4)
    assert sweeps.failures == []
    assert sum(sweeps.kills.values()) == 4
    assert sweeps.tables >= 2
