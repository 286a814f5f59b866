"""A point's key changes with everything that its figures depend on, and with nothing else."""

from dataclasses import fields, replace

import pytest

from dipsim.planning.fetch_plan import Setting
from dipsim.sparsity.plugins import load_policy
from dipsim.study import keys
from dipsim.timing.device import Device
from dipsim.workload.shape import BitWidths

SETTING = Setting(load_policy("dip", keep=0.75), 3000.0)
OTHER = {
    "policy": load_policy("dip", keep=0.7),
    "dram_bytes": 3001.0,
    "eviction": "lru",
    "prompt": 3,
    "stream_static": True,
    "start": "warm",
    "layout": "bundled",
    "calibration": "smollm2-135m",
    "page": 4096.0,
    "flash": Device.load("oneplus-12").flash,
    "scope": "model",
    "split": "best",
    "buffer": 5e6,
    "streams": 2,
    "draft": 3,
    "bits": BitWidths(mlp=4.5),
}


def test_every_field_of_a_setting_is_in_the_key_of_its_plan():
    assert set(OTHER) == {field.name for field in fields(Setting)}
    changed = [replace(SETTING, **{name: value}) for name, value in OTHER.items()]
    different = {keys.plan_key("trace", 7, setting) for setting in (SETTING, *changed)}
    different |= {keys.plan_key("other", 7, SETTING), keys.plan_key("trace", 8, SETTING)}
    assert len(different) == 1 + len(changed) + 2
    assert keys.plan_key("trace", 7, replace(SETTING)) in different


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"description": "another"}, True),
        ({"sources": {"flash": "measured"}}, True),
        ({"flash.read_bandwidth": "2 GB/s"}, False),
        ({"dram.flash_copies": 1}, False),
        ({"energy.flash": "1 pJ/B"}, False),
    ],
)
def test_the_key_of_a_point_knows_the_device_but_not_what_is_said_of_it(change, same):
    paper = Device.load("paper")
    assert (keys.point_key("p", paper.replace(**change), "serial") == keys.point_key("p", paper, "serial")) is same
    assert keys.point_key("p", paper, "serial") != keys.point_key("p", paper, "pipelined")


def test_the_key_knows_every_module_that_computes_and_none_that_shows(monkeypatch, tmp_path):
    for package in ("memory/eviction", "figures", "live", "cli"):
        (tmp_path / "dipsim" / package).mkdir(parents=True)
        (tmp_path / "dipsim" / package / "module.py").write_text("a = 1")
    (tmp_path / "dipsim/study").mkdir()
    monkeypatch.setattr(keys, "__file__", str(tmp_path / "dipsim/study/keys.py"))
    compute = keys.code_hash.__wrapped__
    before = compute()
    for package in ("figures", "live", "cli"):
        (tmp_path / "dipsim" / package / "module.py").write_text("a = 2")
    assert compute() == before
    (tmp_path / "dipsim/memory/eviction/module.py").write_text("a = 2")
    assert compute() != before
