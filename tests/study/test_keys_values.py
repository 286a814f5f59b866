"""A key for each input: contents of files behind a policy, a layout, a calibration; parameters; clock; code."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hand import DEVICE, HAND, hand_trace
from safetensors.numpy import save_file

from dipsim.basics.fields import parse
from dipsim.planning.fetch_plan import Setting
from dipsim.sparsity.plugins import load_policy
from dipsim.study import keys
from dipsim.study.clock_options import ClockOptions
from dipsim.timing.device import Device

OWN = "from dipsim.policies.dip import Dip\nclass Mine(Dip):\n    extra: int = 3\n"


@pytest.fixture
def hashed(monkeypatch):
    """The files whose contents went into keys, by name."""
    found = []

    def remember(path):
        found.append(Path(path).name)
        return f"contents of {Path(path).name}"

    monkeypatch.setattr(keys, "sha256", remember)
    return found


def test_a_digest_is_that_of_sorted_json():
    expected = hashlib.sha256(b'{"a": [1, null], "b": "x"}').hexdigest()
    assert keys.digest({"b": "x", "a": [1, None]}) == expected
    assert keys.digest({"p": Path("a")}) == keys.digest({"p": "a"})


def test_the_files_behind_a_policy(hashed, tmp_path):
    """Its own, those of the policies that it builds on, and those that its parameters name."""
    (tmp_path / "mine.py").write_text(OWN)
    keys.policy_hash(load_policy(tmp_path / "mine.py"))
    assert sorted(hashed) == ["dip.py", "mine.py"]
    hashed.clear()
    keys.policy_hash(load_policy("dip"))
    assert hashed == ["dip.py"]
    hashed.clear()
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"1")
    keys.policy_hash(load_policy("predictor", weights=str(weights)))
    assert sorted(hashed) == ["predictor.py", "w.safetensors"]


def test_contents_of_a_file_that_a_parameter_names(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"1")
    policy = load_policy("predictor", weights=str(path))
    setting = Setting(policy, 100.0)
    before = keys.policy_hash(policy), keys.plan_key("t", 5, setting)
    path.write_bytes(b"2")
    after = keys.policy_hash(policy), keys.plan_key("t", 5, setting)
    assert before[0] != after[0]
    assert before[1] != after[1]
    path.write_bytes(b"1")
    assert (keys.policy_hash(policy), keys.plan_key("t", 5, setting)) == before


def test_a_word_that_is_also_the_name_of_a_file_is_in_the_key(tmp_path, monkeypatch):
    """It may name the file, or mean something else."""
    monkeypatch.chdir(tmp_path)
    words, paths = ("one", "two"), ("./one", "./two")

    def made(names):
        return [keys.plan_key("t", 5, Setting(load_policy("predictor", weights=name), 100.0)) for name in names]

    for word in words:
        (tmp_path / word).write_text("same")
    assert len(set(made(words))) == 2
    assert len(set(made(paths))) == 1
    before = made(words)
    (tmp_path / "one").write_text("other")
    assert [key == old for key, old in zip(made(words), before, strict=True)] == [False, True]


def test_parameters_and_name_of_a_policy(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(OWN)
    one, two = (load_policy(tmp_path / f"{name}.py") for name in ("one", "two"))
    changed = [load_policy(tmp_path / "one.py", **parameters) for parameters in ({"extra": 4}, {"keep": 0.6})]
    made = {keys.plan_key("t", 5, Setting(policy, 100.0)) for policy in (one, two, *changed)}
    assert len(made) == 4
    assert keys.policy_hash(one) == keys.policy_hash(two)  # by contents, wherever they lie


def test_a_default_that_is_named_is_the_same_plan():
    named, unnamed = load_policy("dip", keep=0.5), load_policy("dip")
    assert keys.plan_key("t", 5, Setting(named, 9.0)) == keys.plan_key("t", 5, Setting(unnamed, 9.0))


def test_contents_of_a_trace(tmp_path):
    plain = hand_trace(tmp_path)
    first = keys.trace_hash(plain)
    moved = hand_trace(tmp_path, name="moved")
    assert keys.trace_hash(moved) == first
    assert keys.trace_hash(hand_trace(tmp_path, starts=(0,), name="starts")) != first


@pytest.mark.usefixtures("hashed")
def test_what_a_trace_is_like_counts_beside_its_contents(tmp_path):
    """Also where the hash of the file is the same."""
    sources = ({"like_sha256": "a"}, {"like_sha256": "b"}, {})
    assert len({keys.trace_hash(hand_trace(tmp_path, source=source)) for source in sources}) == 3


def test_contents_of_a_calibration(tmp_path):
    setting = Setting(load_policy("dip"), 100.0, calibration=str(hand_trace(tmp_path, name="cal").path))
    before = keys.plan_key("t", 5, setting)
    hand_trace(tmp_path, name="cal", starts=(0,))
    assert keys.plan_key("t", 5, setting) != before
    hand_trace(tmp_path, name="cal")
    assert keys.plan_key("t", 5, setting) == before


def test_contents_of_a_learned_layout(tmp_path, monkeypatch):
    path = tmp_path / "layout.safetensors"
    monkeypatch.setattr(keys, "learned_file", lambda layout: path if layout == "mine" else None)
    setting, keyed = Setting(load_policy("dip"), 100.0, layout="mine"), set()
    for value in (1, 2):
        save_file({"a": np.array([value])}, path)
        keyed.add(keys.plan_key("t", 5, setting))
    assert len(keyed) == 2
    assert keys.plan_key("t", 5, Setting(load_policy("dip"), 100.0)) not in keyed


@pytest.mark.parametrize("page", [1.0, 2.0])
def test_a_flash_in_a_setting_counts_by_its_fields(page):
    flashes = [HAND.flash, HAND.replace(**{"flash.read_bandwidth": "2 MB/s"}).flash, None]
    made = {keys.plan_key("t", 5, Setting(load_policy("dip"), 9.0, page=page, flash=flash)) for flash in flashes}
    assert len(made) == 3


@pytest.mark.parametrize("field", ["description", "evidence", "conditions", "sources"])
def test_what_is_said_of_a_device_is_not_in_a_key(field):
    said = {"description": "x", "evidence": {"level": "derived"}, "conditions": {"a": "b"}, "sources": {"flash": "c"}}
    other = HAND.replace(**{field: said[field]})
    assert other != HAND
    assert keys.point_key("p", other, "serial") == keys.point_key("p", HAND, "serial")


def test_every_part_of_a_device_is_in_a_key():
    changes = {"name": "other", "flash.command_time": "11 us", "dram.bandwidth": "11 MB/s", "dram.capacity": "2 kB",
               "compute.throughput": "0.02 GFLOP/s", "energy.dram": "2 nJ/B", "sustained.flash": 0.5}  # fmt: skip
    devices = [HAND, *(HAND.replace(**{name: value}) for name, value in changes.items())]
    made = {keys.point_key("p", each, timing) for each in devices for timing in ("serial", "concurrent", "pipelined")}
    assert len(made) == 3 * len(devices)
    assert keys.point_key("q", HAND, "serial") not in made
    assert keys.point_key("p", parse(Device, DEVICE, "device"), "serial") in made


def clock(**fields):
    return parse(ClockOptions, fields, "clock")


def test_what_depends_on_the_clock_is_in_a_key_and_nothing_else():
    guess = {"by": {"oracle": {"recall": 0.5}}}
    options = [
        clock(),
        clock(streams=2),
        clock(streams=3),
        clock(streams=2, turns="round-robin"),
        clock(contention=True),
        clock(prefetch=guess),
        clock(prefetch=guess | {"units": 2}),
        clock(prefetch={"by": {"oracle": {"recall": 0.75}}}),
        clock(prefetch={"by": "popular"}),
        clock(speculate={"draft": 2, "acceptance": 0.5}),
        clock(speculate={"draft": 2, "acceptance": 0.25}),
    ]
    made = [keys.point_key("p", HAND, "serial", each) for each in options]
    assert len(set(made)) == len(options)
    plain = keys.point_key("p", HAND, "serial")
    assert made[0] == plain
    for same in (clock(turns="round-robin"), clock(prefetch=guess | {"when": "never"})):
        assert keys.point_key("p", HAND, "serial", same) == plain


def test_the_file_of_a_prefetcher(hashed):
    keys.point_key("p", HAND, "serial", clock(prefetch={"by": "popular"}))
    assert hashed == ["popular.py"]
    hashed.clear()
    keys.point_key("p", HAND, "serial", clock(streams=2))
    assert hashed == []


def test_the_version_and_every_module_are_in_the_hash_of_the_code(hashed, monkeypatch):
    compute = keys.code_hash.__wrapped__
    before = compute()
    assert {"cache.py", "engine.py", "sweep.py", "lru.py", "result.py", "__init__.py"} < set(hashed)
    assert not {"maps.py", "evaluate.py", "terminal.py", "calibrate.py"} & set(hashed)
    monkeypatch.setattr(keys, "__version__", "another")
    assert compute() != before
    monkeypatch.undo()
    monkeypatch.setattr(keys, "sha256", lambda path: "other" if path.name == "units.py" else f"contents of {path.name}")
    assert compute() != before
