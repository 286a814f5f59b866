"""A replay reads exactly what the plan says, and a deterministic fake disk takes exactly the time that is predicted."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from oracles.disk import FakeDisk
from tiny import SHAPE

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.machine.disk import LARGEST
from dipsim.machine.reads import _parts, reads_of
from dipsim.machine.replay import check_note, note, planned, replay, write_replay
from dipsim.planning.fetch_plan import Setting
from dipsim.sparsity.plugins import load_policy
from dipsim.study.experiment import Experiment
from dipsim.study.run import run, write_run
from dipsim.timing.device import Device
from dipsim.workload import Trace

DRAM = SHAPE.static_bytes(20) + 0.4 * SHAPE.mlp_bytes
RATE, COMMAND = 1e9, 7e-6


class Linear(FakeDisk):
    """A read takes its bytes and a command."""

    grain = 64

    def __init__(self, size=1 << 24, **fields):
        super().__init__(size, {}, **fields)

    def seconds(self, size, lanes):  # noqa: ARG002
        return COMMAND + size / RATE


def hardware(**flash):
    fields = {"read_bandwidth": "1 GB/s", "command_time": "7 us", "page": "64 B", "queue_depth": 4} | flash
    return parse(Device, {"name": "d", "flash": fields, "dram": {"capacity": "1 GB", "bandwidth": "9 GB/s"}}, "d")


@pytest.mark.parametrize("layout", ["columns", "bundled", "popularity", "rows"])
@pytest.mark.parametrize("name", ["dip", "magnitude", "dense"])
def test_a_deterministic_disk_takes_what_is_predicted(tiny_trace, layout, name):
    trace, device = tiny_trace(tokens=20), hardware()
    eviction = "pinned" if layout == "popularity" else "lfu"
    setting = Setting(load_policy(name), DRAM, eviction, start="warm", layout=layout, page=64.0, flash=device.flash)
    if name == "dense":
        setting = replace(setting, page=1.0, flash=None)
    reads = reads_of(trace, setting, 20, 6, 64)
    disk = Linear()
    found = replay(reads, device, disk)
    replayed = [batch for batch in disk.batches if batch[2] == 4][3 * 2 : -3 * 2]  # without those that look for a drift
    sizes = np.array([sum(sizes) for _, sizes, _ in replayed])
    plan = reads.plan
    if name != "dense":
        read = plan.read_bytes.sum(axis=2)[-6:]
        streams = -(-(plan.flash_static[-6:] / np.maximum(plan.static_reads, 1)) // 64) * 64 * plan.static_reads
        assert sizes.sum() == pytest.approx(2 * (read.sum() + streams.sum())), "to the byte, twice"
        assert found.ratios == pytest.approx(np.ones(6), rel=0.01), "but for what is streamed in whole pages"
    assert found.predicted.shape == (6,)
    assert found.measured.shape == (2, 6)
    assert found.ratio == pytest.approx(1, rel=0.02)
    assert (found.noise, found.drift, found.conclusive) == (pytest.approx(1), pytest.approx(1), True)


def test_the_last_tokens_that_are_counted_are_read_where_there_are_several_sequences(tiny_trace):
    """Tokens 5 to 9 and 15 to 19 are counted: the last eight are 7 to 9 and 15 to 19."""
    device = hardware()
    setting = Setting(load_policy("dip"), DRAM, "lru", start="warm", page=64.0, flash=device.flash)
    reads = reads_of(tiny_trace(tokens=20, starts=(0, 10)), setting, 20, 8, 64)
    found = replay(reads, device, Linear())
    assert len(set(found.predicted.tolist())) > 1
    assert found.ratios == pytest.approx(np.ones(8), rel=1e-9)


def test_reads_of_one_batch_do_not_overlap_and_stay_in_the_file(tiny_trace):
    setting = Setting(load_policy("dip", keep=0.6), DRAM, "lfu", start="warm", layout="columns", page=64.0)
    reads = reads_of(tiny_trace(tokens=20), setting, 20, 8, 64)
    seen = set()
    for batches in reads.batches:
        for offsets, sizes in batches:
            order = np.argsort(offsets)
            ends = np.array(offsets)[order] + np.array(sizes)[order]
            assert (ends[:-1] <= np.array(offsets)[order][1:]).all()
            assert ends.max() <= reads.size
            seen |= set(offsets)
    assert len(seen) > 5, "tokens read different places"
    assert reads.size < 2 * SHAPE.mlp_bytes + 64 * 50


def test_long_reads_are_made_in_parts():
    batch = _parts([(64, 10), (5000, 2 * LARGEST + 3)])
    assert batch.offsets == [64, 5000, 5000 + LARGEST, 5000 + 2 * LARGEST]
    assert batch.sizes == [10, LARGEST, LARGEST, 3]


def result(tiny_trace, folder, **fields):
    device = folder / "mine.yaml"
    device.write_text(yaml.safe_dump(hardware().model_dump(mode="json", exclude_none=True)))
    data = {"trace": str(tiny_trace(tokens=20).path), "device": str(device), "dram": f"{DRAM} B",
            "policies": ["dense", {"dip": {"keep": 0.6}}]}  # fmt: skip
    experiment = parse(Experiment, data | fields, "x")
    if "sweep" in fields:
        from dipsim.results.provenance import write_experiment

        write_experiment(folder / "out", experiment.resolved())
    else:
        write_run(experiment, run(experiment), folder / "out")
    return folder / "out", device


def test_a_run_is_replayed_from_its_folder_and_its_error_noted(tiny_trace, tmp_path):
    out, mine = result(tiny_trace, tmp_path)
    device, reads = planned(out, (), 5)
    assert list(reads) == ["dense", "dip(keep=0.6)"]
    assert len(reads["dense"].batches) == 5
    found = {label: replay(each, device, Linear(overhead=0)) for label, each in reads.items()}
    found["dense"] = replace(
        found["dense"], measured=np.stack([found["dense"].predicted / 2] * 2)
    )  # it was predicted too slow
    check_note(mine, device)
    said = note(mine, out, found)
    assert said == pytest.approx(1.0)
    written = Device.load(mine)
    assert (written.evidence.level, written.evidence.error) == ("fitted", 1.0), "too wrong to be called validated"
    found["dense"] = replace(found["dense"], measured=np.stack([found["dense"].predicted * x for x in (0.7, 0.9)]))
    assert note(mine, out, found) == pytest.approx(0.25)
    written = Device.load(mine)
    assert (written.evidence.level, written.evidence.error) == ("validated", 0.25)
    assert written.evidence.against == (
        "a replay of 5 tokens of dense, dip(keep=0.6) (out), the largest error; replays differed by up to 29%"
    )
    write_replay(out, found)
    table = pd.read_csv(out / "replay.csv")
    assert list(table) == ["policy", "token", "predicted_s", "measured_1_s", "measured_2_s"]
    assert list(table["policy"]) == ["dense"] * 5 + ["dip(keep=0.6)"] * 5
    assert table["measured_2_s"][:5].to_numpy() == pytest.approx(0.9 * table["predicted_s"][:5].to_numpy())
    assert written.flash == device.flash
    assert planned(out, (), 5)[0].flash == device.flash, "what was noted changes no prediction"
    with pytest.raises(InputError, match="its flash is not that of the run, d; run on this device, unchanged"):
        check_note(mine, device.replace(**{"flash.command_time": "8 us"}))


def test_a_disk_that_changes_meanwhile_is_inconclusive(tiny_trace, tmp_path):
    out, mine = result(tiny_trace, tmp_path)
    device, reads = planned(out, ["dense"], 5)
    disk = Linear()
    disk.slow = range(3 * 2 + 2 * sum(map(len, reads["dense"].batches)), 10**6)
    found = replay(reads["dense"], device, disk)
    assert found.drift == pytest.approx(10)
    assert not found.conclusive
    assert found.verdict[3] == "10.00, inconclusive"
    assert found.verdict[:1] + found.verdict[2:3] == (f"{found.ratio:.2f}", "1.00")
    before = mine.read_text()
    with pytest.raises(InputError, match="not changed, since the replay was inconclusive"):
        note(mine, out, {"dense": found})
    assert mine.read_text() == before


def test_a_disk_that_changes_for_one_size_only_is_inconclusive_too(tiny_trace, tmp_path):
    out, _ = result(tiny_trace, tmp_path)
    device, reads = planned(out, ["dense"], 5)
    before = 3 * 2 + 2 * sum(map(len, reads["dense"].batches))

    class Tired(Linear):
        def seconds(self, size, lanes):
            late = size == 262144 and len(self.batches) > before
            return super().seconds(size, lanes) / (4 if late else 1)

    found = replay(reads["dense"], device, Tired())
    assert found.drift == pytest.approx(4)


def test_replays_that_differ_show_as_noise(tiny_trace, tmp_path):
    out, _ = result(tiny_trace, tmp_path)
    device, reads = planned(out, ["dense"], 4)
    disk = Linear()
    disk.slow = range(6, 6 + sum(map(len, reads["dense"].batches)))
    found = replay(reads["dense"], device, disk)
    assert found.noise == pytest.approx(10, rel=0.01)
    assert found.ratio == pytest.approx(found.predicted.sum() / (5.5 * found.measured[1].sum()))


def test_a_device_that_changed_since_the_run_is_refused(tiny_trace, tmp_path):
    out, mine = result(tiny_trace, tmp_path)
    mine.write_text(mine.read_text().replace("7 us", "9 us"))
    with pytest.raises(InputError, match="out: its device, trace or policy has changed since; run it again"):
        planned(out, ["dip(keep=0.6)"], 5)


def test_what_cannot_be_replayed_is_refused_in_a_line(tiny_trace, tmp_path):
    out, _ = result(tiny_trace, tmp_path)
    device, reads = planned(out, ["dip(keep=0.6)"], 3)
    disk = Linear()
    disk.grain = 512
    with pytest.raises(InputError, match=r"flash\.page: 64 B is no multiple of the 512 B that this disk reads"):
        replay(reads["dip(keep=0.6)"], device, disk)
    with pytest.raises(InputError, match=r"--policy dip: is not in .*; it has dense, dip\(keep=0.6\)"):
        planned(out, ["dip"], 3)
    with pytest.raises(InputError, match="tokens: 11 to read, and the run counts 10 of its 20; ask for fewer"):
        planned(out, (), 11)
    with pytest.raises(InputError, match="holds no run; give the output folder"):
        planned(tmp_path, (), 3)
    out, _ = result(tiny_trace, tmp_path, sweep={"timing": ["serial", "concurrent"]})
    with pytest.raises(InputError, match="is a sweep, which does not keep what one setting reads"):
        planned(out, (), 3)


def test_a_replay_of_experts_is_refused_in_one_line():
    trace = Trace.open("qwen3-30b-a3b")
    with pytest.raises(InputError, match="qwen3-30b-a3b: is a mixture of experts, and a replay reads columns"):
        reads_of(trace, Setting(load_policy("experts"), 5e9, scope="model"), 40, 2, 4096)
