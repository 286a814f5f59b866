"""`compare`: folders and devices side by side, and what cannot be compared is one line."""

import json

import pandas as pd
import pytest
import yaml

from dipsim.figures import style

OWN = "{name: %s, flash: {read_bandwidth: %s GB/s}, dram: {capacity: 1 GB, bandwidth: 9 GB/s}}"


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_trace):
    """An empty folder to work in, with a tiny trace, an experiment on it and two devices; no figure is saved."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dipsim.figures.run.save_figure", lambda *_: [])
    tiny_trace()
    policies = ["dense", {"dip": {"keep": 0.75}}, {"dip-ca": {"keep": 0.75, "gamma": 0.5, "fixed_top_n": 2}}]
    experiment = {"trace": "./tiny.safetensors", "dram": {"mlp_fraction": 0.5}, "policies": policies}
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(experiment))
    (tmp_path / "slow.yaml").write_text(OWN % ("slow", 1))
    (tmp_path / "fast.yaml").write_text(OWN % ("quick", 4))
    return tmp_path


def test_devices_run_and_are_compared(here, cli_run, monkeypatch):
    saved = []
    monkeypatch.setattr("dipsim.figures.compare.save_figure", lambda figure, path: saved.append((figure, path)))
    status, out, err = cli_run("compare", "slow.yaml", "fast.yaml", "--experiment", "exp.yaml", "--out", "both")
    assert (status, err) == (0, "")
    table = pd.read_csv(here / "both/compare.csv")
    for name in ("slow", "fast"):
        summaries = json.loads((here / f"both/{name}/summary.json").read_text())
        mine = table[table["compared"] == name]
        assert mine["tokens_per_s"].tolist() == [each["tokens_per_s"] for each in summaries]
        assert mine["parts_s.dram"].tolist() == [each["parts_s"]["dram"] for each in summaries]
        assert {each["model"] for each in summaries} == set(mine["model"]) == {"tiny"}
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert cli_run("plot", "both")[1].split() == ["both/compare.png", "both/compare.svg"]
    assert (table["ratio"][table["compared"] == "fast"] > 1).all()
    assert out.count("not measured") == 6
    assert max(map(len, out.splitlines())) <= 80
    assert "different: device slow / quick" in out
    assert [(path.name, figure.texts[1].get_text().splitlines()[1]) for figure, path in saved] == [
        ("compare", "different: device slow / quick")
    ]


def test_folders_are_compared_as_they_are(here, cli_run):
    for out, more in (("one", []), ("two", ["--eviction", "lru", "--policy", "dip", "--policy", "dense"])):
        assert cli_run("run", "exp.yaml", "--tokens", 6, "--out", out, *more)[0] == 0
    before = (here / "one/summary.json").read_bytes()
    status, out, _ = cli_run("compare", "one", "two/")
    assert status == 0
    head = " ".join(out.split())  # in lines of 80 letters
    assert head.startswith("the same: tiny · paper · DRAM ")
    assert " · layout columns · timing serial · start warm · 3 tokens different: eviction lfu / lru" in head
    assert (here / "one/summary.json").read_bytes() == before
    assert set(pd.read_csv("results/compare/compare.csv")["policy"]) == {
        "dense", "dip(keep=0.75)", "dip-ca(keep=0.75, gamma=0.5, fixed_top_n=2)"}  # fmt: skip
    for damage, complaint in ((lambda p: p.write_text("[]"), "two/summary.json: must not be empty"),
                              (lambda p: p.unlink(), "two: has no sweep.csv, ")):  # fmt: skip
        damage(here / "two/summary.json")
        status, out, err = cli_run("compare", "one", "two", "--out", "damaged")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert complaint in err
    (here / "one/experiment.yaml").write_text("trace: 3")
    assert "one/experiment.yaml: trace: must be a valid string" in cli_run("compare", "one", "slow.yaml")[2]
    assert not (here / "damaged").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["slow.yaml"], "compare: takes two things or more"),
        (["slow.yaml", "./slow.yaml"], "results/compare/slow is there twice"),
        (["slow.yaml", "done", "--out", "done"], "--out done: is one of what is compared"),
        (["slow.yaml", "nowhere"], "nowhere: no such device"),
        (["slow.yaml", "no/where"], "no/where: no such file"),
        (["slow.yaml", "grid"], "grid: comes from `sweep`, not from `run`; give"),
        (["grid", "empty", "--experiment", "exp.yaml"], "--experiment exp.yaml: no device to run it on"),
        (["empty", "grid"], "empty: has no sweep.csv, solve.csv, "),
        (["slow.yaml", "exp.yaml", "--experiment", "exp.yaml"], "exp.yaml: is an experiment, not a device"),
    ],
)
def test_what_cannot_be_compared_is_one_line(here, cli_run, arguments, complaint):
    for name in ("grid", "empty", "done"):
        (here / name).mkdir()
    (here / "grid/sweep.csv").write_text("")
    status, out, err = cli_run("compare", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert complaint in err


def test_a_further_line_of_the_setting_has_its_room():
    heights = [style.blank_figure("title", setting, 5, 3).get_size_inches()[1] for setting in ("one", "one\ntwo")]
    assert heights == pytest.approx([3.65, 3.82])
