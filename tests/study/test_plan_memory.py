"""plan-memory: two splits of the same DRAM, simulated, written, drawn and told; and the option `split` of a study."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.basics.files import read_yaml
from dipsim.figures.sweep_table import read_sweep
from dipsim.planning.fetch_plan import Setting
from dipsim.results.quality import memory_of
from dipsim.results.split import read_split, write_split
from dipsim.sparsity.plugins import load_policy
from dipsim.study.experiment import Experiment
from dipsim.study.keys import plan_key
from dipsim.study.memory import plan_memory
from dipsim.study.run import run
from dipsim.study.sweep import sweep

POLICIES = ["dense", {"dip": {"keep": 0.5}}, {"dip-ca": {"keep": 0.5, "gamma": 0.4}}]


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_trace):
    """An empty folder to work in, with a tiny trace and an experiment on it."""
    monkeypatch.chdir(tmp_path)
    tiny_trace(tokens=40)
    data = {"trace": "./tiny.safetensors", "dram": {"mlp_fraction": 0.4}, "policies": POLICIES}
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(data))
    return tmp_path


def load(**changes):
    return parse(Experiment, read_yaml(Path("exp.yaml")) | changes, "exp.yaml")


@pytest.mark.slow
def test_the_command_writes_what_it_tells(here, cli_run):
    status, out, err = cli_run("plan-memory", "exp.yaml", "--dram", "4 kB")
    assert (status, err) == (0, "")
    tables = out.splitlines()[2:]
    assert max(map(len, tables)) <= 110
    assert all(len(line) <= 80 for line in tables if not line.startswith("dip")), "but a headline"
    assert out.count("not measured") == 4
    memory, splits = read_split(here / "results/exp-memory")
    assert splits[["policy", "split"]].to_numpy().tolist() == [
        [label, split] for label in ("dip(keep=0.5)", "dip-ca(keep=0.5, gamma=0.4)") for split in ("even", "best")
    ]
    for policy, parts in memory.groupby("policy"):
        assert parts[["even_bytes", "best_bytes"]].sum().tolist() == pytest.approx([4000, 4000])
        assert parts["layer"].notna().sum() == 2 * 2
        assert policy in out
    must = memory[memory["part"].isin(["lm_head", "attention", "KV cache"])]
    assert must["even_saves_s_per_byte"].isna().all()
    assert (must["best_bytes"] == must["whole_bytes"]).all()
    for path in ("memory.png", "memory.svg", "experiment.yaml", "provenance.json"):
        assert (here / "results/exp-memory" / path).stat().st_size > 200
    drawn = (here / "results/exp-memory/memory.svg").read_bytes()
    assert cli_run("plot", "results/exp-memory")[1].split() == [
        f"results/exp-memory/memory.{k}" for k in ("png", "svg")
    ]
    assert (here / "results/exp-memory/memory.svg").read_bytes() == drawn
    assert cli_run("run", "exp.yaml", "--out", "results/exp-memory")[0] == 0
    assert not (here / "results/exp-memory/memory.csv").exists(), "another run takes the folder over"


def test_what_is_predicted_and_what_is_simulated(here):
    """Serially, a token takes what it takes besides Flash, and Flash: what the claims cost, over its bandwidth."""
    (even, best), _ = plan_memory(load())
    split = best.plan.split
    assert split.best_cost < split.even_cost
    assert even.plan.setting.split == "even"
    assert best.summary()["split"] == "best"
    assert "split" not in even.summary()
    columns = best.summary()["dram_budget"]["capacity_columns"]
    assert columns == {"input": best.plan.budget.capacities[0], "neuron": best.plan.budget.capacities[1]}
    json.dumps(best.summary())
    write_split([(even, best)], here / "out")
    _, splits = read_split(here / "out")
    bandwidth = even.device.flash.peak_bandwidth
    assert splits["flash_predicted_s"].tolist() == pytest.approx(
        [split.even_cost / bandwidth, split.best_cost / bandwidth]
    )
    flash = [result.plan.flash_misses.sum() / 20 / bandwidth for result in (even, best)]
    assert splits["flash_s"].tolist() == pytest.approx(flash)
    rest = 1 / even.tokens_per_s - flash[0]
    assert splits["latency_predicted_s"].tolist() == pytest.approx((splits["flash_predicted_s"] + rest).tolist())
    assert (1 / splits["latency_s"]).tolist() == pytest.approx([even.tokens_per_s, best.tokens_per_s])
    (even, best), *_ = plan_memory(load(timing="pipelined"))
    write_split([(even, best)], here / "out")
    assert read_split(here / "out")[1]["latency_predicted_s"].isna().all()


@pytest.mark.slow
def test_a_split_may_be_swept(here):
    table = sweep(load(sweep={"split": ["even", "best"], "dram": ["4 kB", "4.5 kB"]}), here / "grid")
    assert read_sweep(here / "grid/sweep.csv")["split"].tolist() == table["split"].tolist()
    for row in table.to_dict("records"):
        if row["policy"] == "dip(keep=0.5)":
            found = run(load(split=row["split"], dram=f"{row['dram_bytes']:g} B"))[1]
            assert found.tokens_per_s == pytest.approx(row["tokens_per_s"], rel=1e-12)
    alike = table[table["policy"] == "dense"].groupby("dram_bytes")["tokens_per_s"]
    assert (alike.nunique() == 1).all()
    assert "split" not in sweep(load(sweep={"dram": ["4 kB"]}), here / "plain").columns


@pytest.mark.usefixtures("here")
def test_a_split_is_part_of_keys_and_of_what_masks_depend_on():
    even, best = (Setting(load_policy("dip"), 4000.0, split=split) for split in ("even", "best"))
    assert plan_key("t", 5, even) != plan_key("t", 5, best)
    plans = {split: [result.plan for result in run(load(split=split))] for split in ("even", "best")}
    assert [memory_of(each) for each in plans["even"]] == ["", "", ""]
    known = [memory_of(each) for each in plans["best"]]
    assert known[:2] == ["", ""]
    reads = {"calibration": None, "layout": "columns", "flash": None, "page": 1.0, "stream_static": False}
    assert json.loads(known[2]) == {"split": "best"} | reads


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_unused_bytes_and_resident_ones_make_up_the_dram():
    for dram in ("2.9 kB", "3.5 kB", "4.9 kB", "6 kB"):
        for result in run(load(split="best", dram=dram)):
            budget = result.plan.budget
            parts = (
                budget.static_bytes - budget.streamed_static_bytes + budget.whole_resident_bytes + budget.cache_bytes
            )
            assert parts + budget.unused_bytes == pytest.approx(budget.total_bytes, rel=1e-12)
            assert budget.unused_bytes >= 0
            assert result.plan.peak_dram_bytes <= budget.total_bytes
            if dram == "6 kB" and budget.cache_bytes:
                assert np.array(budget.capacities).tolist() == [[16, 16], [24, 24]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "uneven"}, "split: must be 'even' or 'best' (got 'uneven')"),
        ({"start": "cold"}, "split: best is learned from tokens that are not counted, and there are none"),
        ({"layout": "popularity"}, "split: best: eviction pinned has no cache that changes"),
        ({"policies": ["dense"]}, "policies: none of them chooses columns, so no DRAM is to be split"),
        ({"dram": "10 B"}, "dram: 10 B is less than"),
    ],
)
def test_bad_input_is_one_line(here, cli_run, changes, message):
    data = yaml.safe_load((here / "exp.yaml").read_text()) | changes
    (here / "bad.yaml").write_text(yaml.safe_dump(data))
    status, out, err = cli_run("plan-memory", "bad.yaml", "--out", "none")
    assert (status, out) == (2, "")
    assert err.startswith("error: bad.yaml: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (here / "none").exists()


def test_a_table_that_is_none(here):
    (here / "memory.csv").write_text("policy,part\ndip,input\n")
    with pytest.raises(InputError, match=r"memory\.csv: column layer: is missing"):
        read_split(here)
