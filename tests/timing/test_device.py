import numpy as np
import pytest

from dipsim.basics import assets
from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.storage.flash import Flash
from dipsim.timing.device import Device


def flash(**fields):
    return parse(Flash, fields, "flash")


@pytest.mark.parametrize("name", assets.names("devices"))
def test_shipped_devices_load_and_give_sources(name):
    device = Device.load(name)
    assert device.name == name
    for part in ("flash", "dram"):
        for field in getattr(device, part).model_fields_set:
            assert part in device.sources or f"{part}.{field}" in device.sources, (
                f"{name}: no source for {part}.{field}"
            )
    assert device.evidence is not None
    assert (device.evidence.level == "validated") == (device.evidence.error is not None)
    assert device.evidence.against or device.evidence.level in ("derived", "assumed")


def test_no_command_cost_means_bytes_over_bandwidth():
    sizes = np.array([0, 1, 4096, 1e9])
    assert flash(read_bandwidth="1 GB/s").transfer_time(sizes) == pytest.approx(sizes / 1e9, rel=1e-15)


def test_command_cost_adds_or_overlaps():
    serial = flash(read_bandwidth="1 GB/s", command_time="10 us")
    overlapped = flash(read_bandwidth="1 GB/s", command_time="10 us", overlap=2)
    assert serial.transfer_time(4000) == pytest.approx(14e-6)
    assert overlapped.transfer_time(4000) == pytest.approx(np.hypot(10e-6, 4e-6))
    assert serial.transfer_time(0) == overlapped.transfer_time(0) == 0


def test_curve_passes_through_its_points_and_small_reads_cost_the_smallest():
    curve = flash(read_curve=[["4 KiB", "400 MB/s"], ["64 KiB", "800 MB/s"]])
    for size, rate in ((4096, 4e8), (65536, 8e8), (1 << 20, 8e8)):
        assert size / curve.transfer_time(size) == pytest.approx(rate)
    assert curve.transfer_time(1024) == curve.transfer_time(4096)
    assert curve.transfer_time(0) == 0
    assert 4e8 < 16384 / curve.transfer_time(16384) < 8e8
    assert curve.peak_bandwidth == 8e8


def test_batch_is_the_sum_of_its_reads():
    device = flash(read_bandwidth="1 GB/s", command_time="10 us")
    count, total = np.array([[3, 2], [0, 0]]), np.array([[3 * 1000, 2 * 5000], [0, 0]])
    expected = 3 * device.transfer_time(1000) + 2 * device.transfer_time(5000)
    assert device.batch_time(count, total) == pytest.approx([float(expected), 0.0])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "exactly one of read_bandwidth, read_curve"),
        ({"read_bandwidth": "1 GB/s", "read_curve": [["4 KiB", "1 GB/s"], ["8 KiB", "2 GB/s"]]}, "exactly one"),
        ({"read_curve": [["4 KiB", "1 GB/s"]]}, "two or more"),
        ({"read_curve": [["8 KiB", "1 GB/s"], ["4 KiB", "2 GB/s"]]}, "rising order"),
        ({"read_curve": [["4 KiB", "2 GB/s"], ["8 KiB", "1 GB/s"]]}, "must not fall"),
        ({"read_curve": [["4 KiB", "1 GB/s"], ["8 KiB", "2 GB/s"]], "command_time": "1 us"}, "already holds"),
        ({"read_bandwidth": "1 GB/s", "queue_depth": 0}, "queue_depth"),
        ({"read_bandwidth": "1 GB/s", "overlap": 0.5}, "overlap"),
        ({"read_bandwidth": "1 GB/s", "command_time": "-1 us"}, "command_time"),
        ({"read_bandwidth": "1 GB"}, "not a unit of bandwidth"),
        ({"read_bandwith": "1 GB/s"}, "unknown key"),
        ({"read_curve": [["4 KiB", "20 MB/s"], ["8 KiB", "100 MB/s"]]}, "must not take less time"),
        ({"read_bandwidth": "1 GB/s", "page": "0.5 B"}, "page must be a whole number of bytes"),
    ],
)
def test_contradictory_flash_is_refused(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        flash(**fields)


def test_replace_is_checked_and_leaves_the_original():
    paper = Device.load("paper")
    faster = paper.replace(**{"flash.read_bandwidth": "2 GB/s", "compute.throughput": "1 TFLOP/s"})
    assert faster.flash.read_bandwidth == 2e9
    assert faster.compute.throughput == 1e12
    assert paper.flash.read_bandwidth == 1e9
    with pytest.raises(InputError, match=r"flash\.read_bandwidth"):
        paper.replace(**{"flash.read_bandwidth": "2"})


def test_unknown_device_lists_the_shipped_ones():
    with pytest.raises(
        InputError, match=r"paper-9: no such device \(did you mean paper\?\); shipped: .*paper.*; or give a path"
    ):
        Device.load("paper-9")
    with pytest.raises(InputError, match="no such file"):
        Device.load("./nope.yaml")


@pytest.mark.parametrize(
    ("evidence", "complaint"),
    [
        ({"level": "validated", "against": "a run"}, "validated needs the error that was found, such as 0.05"),
        ({"level": "validated", "error": 0.05}, "validated needs the error that was found, such as 0.05, and against"),
        ({"level": "assumed", "error": 0.05}, "assumed has no error; a device with one is validated or fitted"),
        ({"level": "proven"}, "must be 'validated', 'fitted', 'derived' or 'assumed'"),
    ],
)
def test_evidence_that_does_not_fit_is_refused(evidence, complaint):
    with pytest.raises(InputError, match=complaint):
        Device.load("paper").replace(**{f"evidence.{field}": value for field, value in evidence.items()})


def test_evidence_is_shown_in_a_few_words():
    fields = {"evidence.level": "fitted", "evidence.error": 0.123, "evidence.against": "x"}
    assert Device.load("paper").replace(**fields).evidence.shown == "fitted to 12.3%"
    assert Device.load("paper").evidence.shown == "assumed"
