"""Sweeps: each plan is made once, nothing finished is lost or mixed up, and what cannot run says so at once."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.figures.sweep import draw_sweep
from dipsim.planning.planner import CpuPlanner
from dipsim.study import passes
from dipsim.study.experiment import Experiment
from dipsim.study.grid import grid
from dipsim.study.passes import split
from dipsim.study.points import points
from dipsim.study.run import run
from dipsim.study.sweep import sweep

PLUGIN = """import time
from dipsim import Group, Policy

class Mine(Policy):
    fraction: float = 0.5
    def groups(self, shape):
        return [Group("neuron", ("down_proj",), "neuron", int(self.fraction * shape.intermediate_size))]
    def scores(self, group, acts):
        time.sleep(PAUSE)
        return abs(acts.glu)
"""
DEVICE = """name: mine
flash: { read_bandwidth: 1 GB/s, command_time: 2 us }
dram: { capacity: 1 GB, bandwidth: 10 GB/s }
"""
SWEEP = {"dram": ["2 kB", "3 kB", "4 kB"], "flash.read_bandwidth": ["0.5 GB/s", "1 GB/s"]}


class AllTogether(CpuPlanner):
    """Plans all policies of a trace in one pass, as a GPU does."""

    all_together = True
    max_plan_bytes = 8e9


def make(recorded, /, **fields):
    data = {"trace": str(recorded.path), "policies": ["dense", {"dip": {"keep": 0.75}}, "dip-ca"], "sweep": SWEEP}
    data["read_through"] = False  # so that a plan does not depend on the device
    return parse(Experiment, data | fields, "exp.yaml")


@pytest.fixture
def planned(monkeypatch):
    """Counts the plans made, by policy."""
    made = []

    def count(trace, settings, *rest, **options):
        made.extend(setting.policy.name for setting in settings)
        return plan(trace, settings, *rest, **options)

    plan = passes.plan
    monkeypatch.setattr(passes, "plan", count)
    return made


@pytest.fixture
def files(tmp_path, tiny_trace):
    """An experiment file with a trace, a policy and a device of its own; `pause` slows the policy down."""

    def write(pause=0.0, **fields):
        (tmp_path / "mine.py").write_text(PLUGIN.replace("PAUSE", str(pause)))
        (tmp_path / "mine.yaml").write_text(DEVICE)
        data = {
            "trace": str(tiny_trace().path),
            "device": str(tmp_path / "mine.yaml"),
            "policies": ["dense", str(tmp_path / "mine.py"), {"dip-ca": {"keep": 0.75}}],
            "sweep": SWEEP,
            "read_through": False,  # so that a plan does not depend on the device
        }
        path = tmp_path / "exp.yaml"
        path.write_text(yaml.safe_dump(data | fields))
        return path

    return write


def start(path, out, workers=2, **options):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "dipsim", "sweep", str(path), "--out", str(out), "--workers", str(workers)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(process):
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors


def test_grid_is_every_combination_in_order(tiny_trace):
    swept = {"dram": ["2 kB", "3 kB"], "flash.read_bandwidth": ["1 GB/s", "2 GB/s"], "dip.keep": [0.5, 0.75]}
    cells = grid(make(tiny_trace(), sweep=swept))
    assert len(cells) == 8
    assert [cell.dram for cell in cells] == [2000.0] * 4 + [3000.0] * 4
    assert cells[2].hardware == {"flash.read_bandwidth": "2 GB/s"}
    assert [cell.policies[1].parameters["keep"] for cell in cells[:2]] == [0.5, 0.75]
    assert not any(cell.sweep for cell in cells)


def test_a_plugins_parameter_is_swept_by_its_name(tiny_trace, tmp_path):
    path = tmp_path / "my_own.py"
    path.write_text("from dipsim import Policy\nclass Own(Policy):\n    weight: float = 0.5\n")
    chosen = make(tiny_trace(), policies=["dense", str(path)], sweep={"my-own.weight": [0.25, 0.75]})
    assert [cell.policies[1].parameters for cell in grid(chosen)] == [{"weight": 0.25}, {"weight": 0.75}]
    assert [point.planned.setting.policy.label for point in points(chosen)] == [
        "dense",
        "my-own(weight=0.25)",
        "my-own(weight=0.75)",
    ]


def test_rows_are_what_single_runs_find(tiny_trace, tmp_path):
    swept = SWEEP | {"timing": ["serial", "pipelined"], "eviction": ["lru", "lfu"], "compute.throughput": ["1 GFLOP/s"]}
    chosen = make(tiny_trace(), sweep=swept)
    table = sweep(chosen, tmp_path)
    cells = grid(chosen)
    assert len(table) == 3 * len(cells)
    for number in (0, 7, len(cells) - 1):
        for result, row in zip(run(cells[number]), table.iloc[3 * number :].itertuples(), strict=False):
            summary = result.summary()
            assert row.policy == result.policy
            assert row.tokens_per_s == pytest.approx(summary["tokens_per_s"], rel=1e-12)
            assert row.hit_rate == summary["hit_rate"]
            assert row.latency_p99_s == pytest.approx(summary["latency_s"]["p99"], rel=1e-12)
            assert (row.perplexity, row.perplexity_source) == (None, "not measured")
    written = pd.read_csv(tmp_path / "sweep.csv")
    assert list(written.columns) == list(table.columns)
    assert written["key"].is_unique
    assert Experiment.load(tmp_path / "experiment.yaml") == chosen
    assert {"trace", "device", "policy"} == {
        n.split()[0] for n in json.loads((tmp_path / "provenance.json").read_text())["sha256"]
    }


def test_a_plan_serves_every_timing_field(tiny_trace, tmp_path, planned):
    chosen = make(
        tiny_trace(), sweep=SWEEP | {"timing": ["serial", "concurrent"], "dram.bandwidth": ["1 GB/s", "2 GB/s"]}
    )
    table = sweep(chosen, tmp_path)
    assert len(table) == 3 * 2 * 2 * 2 * 3
    assert {name: planned.count(name) for name in planned} == {"dense": 3, "dip": 3, "dip-ca": 3}
    sweep(chosen, tmp_path)
    assert len(planned) == 9


def test_points_that_are_the_same_stand_there_once(tiny_trace):
    assert (
        len(points(make(tiny_trace(), sweep={"dip.keep": [0.5, 0.75, 0.75]}))) == 4
    )  # dense and dip-ca have no keep of dip's


def test_units_are_policies_split_for_workers_and_memory(tiny_trace, monkeypatch):
    wanted = points(make(tiny_trace()))
    assert sorted(len(unit.jobs) for unit in split(wanted, 1)) == [3, 3, 3]
    assert sorted(len(unit.jobs) for unit in split(wanted, 9)) == [1, 1, 1, 1, 1, 1, 3]
    assert sorted(len(unit.jobs) for unit in split(wanted, 1, AllTogether())) == [3, 6]  # dense; all that a GPU plans
    monkeypatch.setattr(CpuPlanner, "max_plan_bytes", 2.5 * wanted[1].planned.bytes)
    assert sorted(len(unit.jobs) for unit in split(wanted, 1)) == [1, 1, 2, 2, 3]
    assert all(unit.layers == 0 for unit in split(wanted, 1) if unit.jobs[0].policy == "dense")


@pytest.mark.slow
def test_a_sweep_killed_again_and_again_ends_as_if_it_never_was(files, tmp_path):
    path, moments = files(pause=0.15), random.Random(0)
    finish(start(path, tmp_path / "whole"))
    kept = []
    for _ in range(3):
        process = start(path, tmp_path / "killed")
        time.sleep(moments.uniform(0.7, 2.2))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=10)  # its workers, which hold the pipes, end with it
        kept.append(len(list((tmp_path / "killed/points").glob("*.json"))))
    finish(start(path, tmp_path / "killed"))
    assert kept == sorted(kept)
    for name in ("sweep.csv", "experiment.yaml", "provenance.json", "speed.svg"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_two_sweeps_in_one_folder_do_not_disturb_each_other(files, tmp_path):
    path = files(pause=0.02)
    finish(start(path, tmp_path / "alone"))
    for process in [start(path, tmp_path / "shared", workers) for workers in (1, 2)]:
        finish(process)
    assert (tmp_path / "shared/sweep.csv").read_bytes() == (tmp_path / "alone/sweep.csv").read_bytes()
    assert not list((tmp_path / "shared").rglob(".*"))


def test_a_change_invalidates_what_it_touches_and_nothing_else(files, tmp_path, planned):
    path, out = files(), tmp_path / "out"

    def again():
        planned.clear()
        table = sweep(Experiment.load(path), out)
        return {name: planned.count(name) for name in planned}, table

    assert again()[0] == {"dense": 3, "mine": 3, "dip-ca": 3}
    assert again()[0] == {}
    plugin = tmp_path / "mine.py"
    plugin.write_text(plugin.read_text().replace("abs(acts.glu)", "abs(acts.up_proj)"))
    assert again()[0] == {"mine": 3}
    (tmp_path / "mine.yaml").write_text(DEVICE.replace("name: mine", "name: mine\ndescription: the same"))
    assert again()[0] == {}
    before = again()[1]
    (tmp_path / "mine.yaml").write_text(DEVICE.replace("10 GB/s", "20 GB/s"))
    made, after = again()
    assert made == {"dense": 3, "mine": 3, "dip-ca": 3}
    assert (after["tokens_per_s"] > before["tokens_per_s"]).all()
    (tmp_path / "mine.yaml").write_text(DEVICE)
    assert again()[0] == {}  # what was computed for the old device is still there


def test_another_trace_under_the_same_name_is_another(tiny_trace, tmp_path, planned):
    first = sweep(make(tiny_trace(seed=0)), tmp_path)
    second = sweep(make(tiny_trace(seed=1)), tmp_path)
    assert len(planned) == 18
    assert not set(first["key"]) & set(second["key"])


DAMAGED = ("", "{", "[1]", '{"tokens_per_s": 1.0}', "9" * 5000, "[" * 100_000)


@pytest.mark.parametrize("content", [*DAMAGED, "NaN", "-5", "1e999", "null", '"fast"', "1" + "0" * 400])
def test_a_point_that_is_not_as_it_was_written_is_computed_again(tiny_trace, tmp_path, content):
    """A whole file in its place, or a number in it."""
    table = sweep(make(tiny_trace()), tmp_path)
    point, other = (tmp_path / f"points/{key}.json" for key in table.key[1:3])
    kept = json.loads(point.read_text())
    before = json.dumps(kept["tokens_per_s"])
    point.write_text(content if content in DAMAGED else point.read_text().replace(before, content, 1))
    written = (tmp_path / "sweep.csv").read_bytes()
    sweep(make(tiny_trace()), tmp_path)
    assert (tmp_path / "sweep.csv").read_bytes() == written
    assert json.loads(point.read_text()) == kept
    other.write_text(point.read_text())  # whole, but of another key
    sweep(make(tiny_trace()), tmp_path)
    assert (tmp_path / "sweep.csv").read_bytes() == written


@pytest.mark.slow
def test_no_folder_has_one_sweep_beside_the_table_of_another(files, tmp_path, monkeypatch):
    path, out = files(), tmp_path / "out"
    sweep(Experiment.load(path), out)
    draw_sweep(out)
    for name in ("of-my-own.svg", "report.html"):
        (out / name).write_text("<svg/>")
    table = (out / "sweep.csv").read_bytes()
    old = {file.name for file in out.iterdir()}
    assert {"sweep.csv", "columns.md", "provenance.json"} < old
    assert any(name.endswith(".png") for name in old)
    other = Experiment.load(files(sweep={"dram": ["5 kB", "6 kB"]}))
    with monkeypatch.context() as patch:
        patch.setattr(passes, "plan", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sweep(other, out)
    assert {file.name for file in out.iterdir()} == {"experiment.yaml", "points", "of-my-own.svg"}
    assert "5 kB" in (out / "experiment.yaml").read_text()
    sweep(Experiment.load(files()), out)
    assert (out / "sweep.csv").read_bytes() == table


def test_temporary_files_of_processes_that_are_gone_are_removed(tiny_trace, tmp_path):
    sweep(make(tiny_trace()), tmp_path)
    left = 2**22 + 17  # no process has such a number
    gone = [tmp_path / f"points/.abc-{left}-0a1b2c3d.json", tmp_path / f".speed-{left}-0a1b2c3d.png"]
    mine = [tmp_path / f"points/.abc-{os.getpid()}-0a1b2c3d.json", tmp_path / f".notes-{left}-2026.txt"]
    for file in (*gone, *mine):
        file.write_text("{")
    sweep(make(tiny_trace()), tmp_path)
    assert not any(file.exists() for file in gone)
    assert all(file.exists() for file in mine)


@pytest.mark.parametrize("back", [False, True], ids=["changed", "and-back-later"])
def test_a_trace_that_changes_under_a_sweep_leaves_no_wrong_row(tiny_trace, tmp_path, monkeypatch, back):
    """Every pass but the first reads another trace under the same name."""
    old, new = (tiny_trace(seed=seed).path.read_bytes() for seed in (0, 1))
    file, there = tmp_path / "mine.safetensors", tiny_trace()
    file.write_bytes(old)
    plan, passed = passes.plan, []

    def overwritten(*rest, **options):
        passed.append(1)
        file.write_bytes(old if len(passed) < 2 else new)
        return plan(*rest, **options)

    experiment = make(there, trace=str(file))
    with monkeypatch.context() as patch:
        patch.setattr(passes, "plan", overwritten)
        with pytest.raises(InputError, match=r"mine.safetensors, \S+ or a file that they read was changed during"):
            sweep(experiment, tmp_path / "out")
    assert len(passed) == 2
    kept = len(list((tmp_path / "out/points").iterdir()))
    assert 0 < kept < 18
    file.write_bytes(old if back else new)
    table = sweep(experiment, tmp_path / "out")
    pd.testing.assert_frame_equal(table, sweep(experiment, tmp_path / "alone"))


def test_what_a_plugin_imports_from_its_folder_is_part_of_it(files, tmp_path, planned):
    path, out = files(sweep={"dram": [{"mlp_fraction": x} for x in (0.4, 0.6, 0.8)]}), tmp_path / "out"
    plugin, helper = tmp_path / "mine.py", tmp_path / "part_of_mine.py"
    plugin.write_text("from part_of_mine import value\n" + PLUGIN.replace("PAUSE", "0").replace("abs(", "value("))
    helper.write_text("import deeper_part\n\ndef value(x):\n    return deeper_part.factor * abs(x)\n")
    (tmp_path / "deeper_part").mkdir()
    deeper = tmp_path / "deeper_part/__init__.py"
    deeper.write_text("factor = 1\n")
    (tmp_path / "unrelated.py").write_text("a = 1\n")
    first = sweep(Experiment.load(path), out)
    planned.clear()
    (tmp_path / "unrelated.py").write_text("a = 2\n")
    sweep(Experiment.load(path), out)
    assert planned == []
    deeper.write_text("factor = 0\n")
    second = sweep(Experiment.load(path), out)
    assert planned == ["mine"] * 3
    mine = first["policy"].str.startswith("mine")
    assert (first["hit_rate"][mine] < second["hit_rate"][mine]).any()  # always the same neurons
    assert (first["hit_rate"][~mine] == second["hit_rate"][~mine]).all()
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"sweep": {}}, "exp.yaml: sweep: is missing"),
        ({"sweep": {"dram": []}}, "exp.yaml: sweep.dram: "),
        ({"sweep": {"dram": "2 kB"}}, "sweep.dram: .*list"),
        ({"sweep": {"drum": ["2 kB"]}}, "sweep.drum: is neither a field"),
        ({"sweep": {"policies": [["dip"]]}}, "sweep.policies: is neither a field"),
        ({"sweep": {"gate.fraction": [0.5]}}, "sweep.gate.fraction: is neither a field"),
        ({"sweep": {"dram": ["2 kB", "2"]}}, r"exp.yaml: point \(dram: 2\): dram: '2' has no unit"),
        ({"sweep": {"eviction": ["lfu", "nonesuch"]}}, "eviction: "),
        ({"sweep": {"tokens": [4, 0]}}, "tokens: "),
        ({"sweep": {"flash.bandwidth": ["1 GB/s"]}}, r"point \(flash.bandwidth: 1 GB/s\): hardware: flash.bandwidth"),
        ({"sweep": {"dip.keep": [0.5, 7]}}, r"point \(dip.keep: 7\): policy dip: keep"),
        ({"sweep": {"dip.gamma": [0.5]}}, r"point \(dip.gamma: 0.5\): policy dip: gamma: unknown key"),
        ({"sweep": {"dram": ["2 kB", "100 B"]}}, r"exp.yaml: point \(dram: 100 B\): dram: 100 B is less than"),
        ({"sweep": {"dram": ["9 GB"]}}, "more than the 8 GB of device paper"),
        ({"sweep": {"tokens": [4, 400]}}, r"point \(tokens: 400\): tokens: 400 asked for"),
        ({"sweep": {"eviction": ["lfu", "belady"]}}, r"point \(eviction: belady\): eviction: belady needs to know"),
        ({"sweep": {"device": ["nope"]}}, r"point \(device: nope\): device: nope: no such device"),
        ({"sweep": {"trace": ["nope"]}}, r"point \(trace: nope\): trace: nope: no such trace"),
    ],
)
def test_what_cannot_run_says_so_before_anything_is_computed(tiny_trace, tmp_path, planned, fields, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        sweep(make(tiny_trace(), **fields), tmp_path / "out", where="exp.yaml")
    assert "\n" not in str(error.value)
    assert not planned
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(files, tmp_path, cli_run):
    (tmp_path / "file").write_text("")
    status, _, errors = cli_run("sweep", files(), "--out", tmp_path / "file/out")
    assert status == 2
    assert errors.count("\n") == 1
    assert "cannot be written" in errors


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_points_before_it_are_kept(files, tmp_path, planned):
    def fill():  # no file may grow beyond 1 kB: a point does not, the table does
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    path, out = files(), tmp_path / "out"
    _, errors = (process := start(path, out, 1, preexec_fn=fill)).communicate(timeout=60)
    assert process.returncode == 2
    assert errors == f"error: {out}/sweep.csv: cannot be written (File too large)\n"
    assert sorted(file.name for file in out.iterdir()) == ["experiment.yaml", "points"]
    assert len(sweep(Experiment.load(path), out)) == 18
    assert not planned


@pytest.mark.parametrize("name", ["phi-3-medium", "models", "evictions", "gamma"])
def test_the_shipped_sweeps_can_run(name, checkout, cli_run):
    status, printed, _ = cli_run("check", checkout / f"examples/paper/{name}.yaml")
    assert status == 0
    assert "a sweep of" in printed


def test_a_failing_plugin_is_one_line_and_the_rest_is_kept(files, tmp_path, cli_run):
    path = files()
    (tmp_path / "mine.py").write_text(PLUGIN.replace("time.sleep(PAUSE)", "1 / 0"))
    status, _, errors = cli_run("sweep", path, "--out", tmp_path / "out", "--workers", 2)
    assert status == 2
    assert errors == "error: policy mine: scores failed in line 9: ZeroDivisionError: division by zero\n"


@pytest.mark.slow
def test_sweep_and_plot_from_the_command_line(files, tmp_path, cli_run):
    out = tmp_path / "out"
    status, printed, errors = cli_run("sweep", files(), "--out", out, "--workers", 1)
    assert (status, errors) == (0, "")
    assert "18 points" in printed
    assert "not measured" in printed
    figures = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix in (".png", ".svg")}
    assert {Path(name).stem for name in figures} == {"speed", "speedup", "winner", "dram", "flash"}
    assert all(b"not measured" in content for name, content in figures.items() if name.endswith("svg"))
    for name in figures:
        (out / name).unlink()
    status, printed, _ = cli_run("plot", out)
    assert status == 0
    assert sorted(Path(line).name for line in printed.splitlines()) == sorted(figures)
    assert figures == {name: (out / name).read_bytes() for name in figures}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("swept", "names"),
    [
        (
            {"eviction": ["lru", "lfu"], **SWEEP, "dram": ["2 kB", "3 kB"]},
            {"speed_eviction-lru", "winner_eviction-lfu", "dram", "flash"},
        ),
        ({"dram": ["2 kB", "3 kB"]}, {"dram"}),
        ({"flash.read_bandwidth": ["1 GB/s", "2 GB/s"]}, {"flash"}),
        ({"dip.keep": [0.5, 0.75]}, {"policies"}),
    ],
)
def test_every_grid_has_its_figures(tiny_trace, tmp_path, swept, names):
    sweep(make(tiny_trace(), dram="3 kB", sweep=swept), tmp_path)
    drawn = {path.stem for path in draw_sweep(tmp_path)}
    assert names <= drawn
    assert ("speed" in drawn) == (swept == SWEEP)


def test_models_are_drawn_side_by_side(tiny_trace, tmp_path):
    other = tiny_trace(seed=3, name="other").path
    swept = {"trace": [str(tiny_trace().path), str(other)], "dram": [{"mlp_fraction": f} for f in (0.2, 0.5, 0.8)]}
    table = sweep(make(tiny_trace(), sweep=swept), tmp_path)
    assert np.allclose(sorted(table["mlp_fraction_in_dram"].unique()), (0.2, 0.5, 0.8))
    assert [path.stem for path in draw_sweep(tmp_path)] == ["dram", "dram"]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "policy\n"])
def test_a_foreign_table_is_one_line(tmp_path, content):
    (tmp_path / "sweep.csv").write_text(content)
    with pytest.raises(InputError, match=r"sweep\.csv: .*; run `python -m dipsim sweep` again") as error:
        draw_sweep(tmp_path)
    assert "\n" not in str(error.value)


def test_no_scheduler_is_one_line(tiny_trace, tmp_path):
    with pytest.raises(InputError, match="no scheduler answers"):
        sweep(make(tiny_trace()), tmp_path, dask="nowhere")


@pytest.mark.slow
def test_a_cluster_finds_the_same(files, tmp_path):
    distributed = pytest.importorskip("distributed")
    path = files()
    sweep(Experiment.load(path), tmp_path / "here")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        sweep(Experiment.load(path), tmp_path / "there", dask=cluster.scheduler_address)
    assert (tmp_path / "there/sweep.csv").read_bytes() == (tmp_path / "here/sweep.csv").read_bytes()


def test_a_point_that_cannot_run_is_told_in_a_short_line(tiny_trace):
    for value in ("x" * 5000, "1 GB/s\n1 GB/s"):
        with pytest.raises(InputError, match=r"^sweep: point \(flash\.read_bandwidth: ") as error:
            points(make(tiny_trace(), sweep={"flash.read_bandwidth": [value]}))
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 500
