"""Paths in an experiment file are seen from its folder, wherever that lies and wherever dipsim is started."""

import json
import os

import pandas as pd
import pytest
import yaml
from hand import DEVICE, hand_trace

from dipsim.basics.errors import InputError
from dipsim.results.quality import parameters
from dipsim.study.experiment import Experiment
from dipsim.study.paths import moved, seen_in
from dipsim.study.run import run, write_run
from dipsim.study.sweep import sweep

OWN = """from pathlib import Path
from dipsim import Group, Policy
class Own(Policy):
    weights: str
    kind: str = "plain"
    def groups(self, shape):
        return [Group("down", ("down_proj",), "neuron", int(Path(self.weights).read_text()))]
    def scores(self, group, acts):
        return abs(acts.glu)
"""
POLICIES = ["dense", {"./own.py": {"weights": "few/w.txt"}}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder `exp` of an experiment, in the current one."""
    made = tmp_path / "exp"
    (made / "few").mkdir(parents=True)
    hand_trace(made)
    (made / "hand.yaml").write_text(yaml.safe_dump(DEVICE))
    (made / "own.py").write_text(OWN)
    (made / "few/w.txt").write_text("3")
    monkeypatch.chdir(tmp_path)
    return made


def written(folder, **fields):
    data = {"trace": "hand.safetensors", "device": "./hand.yaml", "policies": POLICIES, "start": "cold"} | fields
    (folder / "mine.yaml").write_text(yaml.safe_dump(data))
    return folder / "mine.yaml"


def test_every_path_and_no_name_is_seen_from_the_folder(folder):
    swept = {
        "trace": ["hand.safetensors", "smollm2-135m"],
        "device": ["./hand.yaml", "paper"],
        "layout": ["learned.layout.safetensors", "auto"],
        "./own.py.weights": ["few/w.txt", "few/none.txt"],
        "prefetch.by": ["popular", {"./ahead.py": {"file": "few/w.txt"}}],
        "prefetch": [{"by": "./ahead.py"}, None],
        "flash.read_bandwidth": ["1.5 GB/s"],
    }
    fields = {"layout": "x/a.layout.safetensors", "calibration": "../other.safetensors", "scale_to": "phi-3-medium"}
    prefetch = {"by": {"ahead.py": {"kind": "few"}}}
    path = written(folder, sweep=swept, prefetch=prefetch, **fields).relative_to(folder.parent)
    found = Experiment.load(path).resolved()
    assert [found[name] for name in ("trace", "device", "layout", "calibration", "scale_to")] == [
        "exp/hand.safetensors", "exp/hand.yaml", "exp/x/a.layout.safetensors", "other.safetensors", "phi-3-medium",
    ]  # fmt: skip
    assert found["policies"] == ["dense", {"exp/own.py": {"weights": "exp/few/w.txt"}}]
    assert found["prefetch"]["by"] == {"exp/ahead.py": {"kind": "few"}}  # which is a folder, and no path of a file
    assert found["sweep"] == {
        "trace": ["exp/hand.safetensors", "smollm2-135m"],
        "device": ["exp/hand.yaml", "paper"],
        "layout": ["exp/learned.layout.safetensors", "auto"],
        "exp/own.py.weights": ["exp/few/w.txt", "few/none.txt"],
        "prefetch.by": ["popular", {"exp/ahead.py": {"file": "exp/few/w.txt"}}],
        "prefetch": [{"by": "exp/ahead.py"}, None],
        "flash.read_bandwidth": ["1.5 GB/s"],
    }
    assert Experiment.load(folder / "mine.yaml").resolved() == found  # however the file is named
    back = moved(found, seen_in(path.parent))
    assert (back["device"], back["policies"][1]) == ("hand.yaml", {"own.py": {"weights": "few/w.txt"}})
    assert (back["calibration"], back["scale_to"]) == ("../other.safetensors", "phi-3-medium")


def test_results_do_not_depend_on_where_the_folder_lies(folder, monkeypatch, tmp_path):
    (folder / "few/v.txt").write_text("2")
    swept = {"dram": ["352 B", "400 B"], "own.weights": ["few/w.txt", "few/v.txt"]}
    written(folder, sweep=swept)
    first = sweep(Experiment.load(folder / "mine.yaml"), tmp_path / "a")
    assert yaml.safe_load((tmp_path / "a/experiment.yaml").read_text())["device"] == "../exp/hand.yaml"
    monkeypatch.chdir(folder)
    second = sweep(Experiment.load(folder / "mine.yaml"), tmp_path / "b")
    (tmp_path / "deep").mkdir()
    folder.rename(tmp_path / "deep/moved")
    monkeypatch.chdir(tmp_path / "deep")
    third = sweep(Experiment.load(tmp_path / "deep/moved/mine.yaml"), tmp_path / "b")  # goes on with what is there
    for table in (second, third):
        said = {"trace", "policy"}  # which name files as they are seen from the current folder
        pd.testing.assert_frame_equal(table.drop(columns=said), first.drop(columns=said))
    assert second["policy"].tolist()[1] == "own(weights='few/w.txt')"
    assert len(first) == 6  # dense is the same for both files
    assert first["key"].is_unique


def test_what_is_written_beside_results_runs_from_there(folder, monkeypatch, tmp_path):
    chosen = Experiment.load(written(folder))
    out = tmp_path / "results/mine"
    write_run(chosen, run(chosen), out)
    text = (out / "experiment.yaml").read_text()
    assert str(tmp_path) not in text
    assert yaml.safe_load(text)["device"] == "../../exp/hand.yaml"
    assert Experiment.load(out / "experiment.yaml") == chosen
    monkeypatch.chdir(out)
    again = Experiment.load(out / "experiment.yaml")
    write_run(again, run(again), tmp_path / "again")
    speeds = [
        [each["tokens_per_s"] for each in json.loads((where / "summary.json").read_text())]
        for where in (out, tmp_path / "again")
    ]
    assert speeds[0] == speeds[1]


def test_a_file_without_a_suffix_stays_a_path(folder, monkeypatch):
    (folder / "w").write_text("3")
    monkeypatch.chdir(folder)
    chosen = Experiment.load(written(folder, policies=[{"./own.py": {"weights": "./w"}}]))
    assert chosen.resolved()["policies"] == [{"own.py": {"weights": "./w"}}]
    back = moved(chosen.resolved(), seen_in(folder))
    assert back["policies"] == [{"own.py": {"weights": "./w"}}]
    assert moved(chosen.resolved(), seen_in(folder.parent))["policies"] == [{"exp/own.py": {"weights": "exp/w"}}]


def test_results_behind_a_link_run_from_there(folder, tmp_path):
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    chosen = Experiment.load(written(folder))
    write_run(chosen, run(chosen), tmp_path / "link/mine")
    for out in (tmp_path / "link/mine", tmp_path / "far/away/mine"):
        assert yaml.safe_load((out / "experiment.yaml").read_text())["device"] == "../../../exp/hand.yaml"
        assert Experiment.load(out / "experiment.yaml") == chosen


@pytest.mark.parametrize(
    ("file", "field", "fix"),
    [
        ("own.yaml", {"device": "own.yaml"}, "../own.yaml"),
        ("few.txt", {"policies": [{"own.py": {"weights": "few.txt"}}]}, "../few.txt"),
        ("t.safetensors", {"sweep": {"trace": ["./t.safetensors"]}}, "../t.safetensors"),
    ],
)
def test_what_lies_in_the_current_folder_is_not_seen(folder, tmp_path, file, field, fix):
    (tmp_path / file).write_text("3")
    path = written(folder, **field)
    with pytest.raises(InputError) as error:
        Experiment.load(path)
    complaint = "paths in an experiment are seen from its folder, where there is no such file; write"
    assert str(error.value).startswith(f"{path}: ")
    assert str(error.value).endswith(f"{file}: {complaint} {fix}")
    (folder / file).write_text("2")  # and what lies beside it is
    Experiment.load(path)


def test_on_the_command_line_paths_are_seen_from_the_current_folder(folder, tmp_path, cli_run):
    written(folder, device="missing.yaml")
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(DEVICE | {"name": "here"}))
    status, _, errors = cli_run("run", "exp/mine.yaml")
    assert (status, errors) == (
        2,
        f"error: exp/mine.yaml: device: exp/missing.yaml: no such file (looked in {tmp_path}) (line 1)\n",
    )
    flags = ["--device", "own.yaml", "--set", f"./exp/own.py.weights={os.devnull}"]
    status, _, errors = cli_run("run", "exp/mine.yaml", *flags)
    assert (status, errors.count("\n")) == (2, 1)
    assert "groups failed" in errors  # the parameter was set, and /dev/null holds no number


def test_a_quality_table_names_files_wherever_they_lie(folder):
    _, own = run(Experiment.load(written(folder)))
    assert json.loads(parameters(own.plan.setting)) == {"kind": "plain", "weights": "w.txt"}
