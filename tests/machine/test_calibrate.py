"""Calibration finds a deterministic fake disk again, and makes a device file of it."""

import numpy as np
import pytest
from oracles.disk import FakeDisk

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.machine import calibrate
from dipsim.timing.device import Device

SIZES, LANES = (4096, 16384, 65536), (1, 4)
RATES = {1: (1e8, 3e8, 4e8), 4: (3.8e8, 1.1e9, 1.2e9)}


def fake(size=1 << 28, overhead=2e-4, noise=0.0):
    return FakeDisk(size, {n: dict(zip(SIZES, RATES[n], strict=True)) for n in LANES}, overhead, noise)


def test_the_curves_of_a_disk_are_found_again_to_what_a_batch_costs():
    found = calibrate.measure(fake(), SIZES, LANES, passes=3)
    for lane, rates in zip(LANES, found.rates, strict=True):
        expected = [size / (size / rate + 2e-4 / 512) for size, rate in zip(SIZES, RATES[lane], strict=True)]
        assert rates == pytest.approx(expected)
    assert found.overhead == pytest.approx(2e-4, rel=0.1)
    assert found.spread == pytest.approx(0, abs=1e-9)
    assert found.enough == 4


def test_a_small_file_is_read_in_smaller_batches_to_the_same_result():
    found = calibrate.measure(fake(size=1 << 24, overhead=0), SIZES, LANES)
    assert found.rates.tolist() == [pytest.approx(RATES[lane]) for lane in LANES]


def test_a_pass_that_was_disturbed_does_not_count():
    disk = fake(overhead=0)
    clean = calibrate.measure(fake(overhead=0), SIZES, LANES)
    disk.slow = range(6, 12)  # all batches of the second pass
    found = calibrate.measure(disk, SIZES, LANES)
    assert found.rates == pytest.approx(clean.rates)
    assert found.spread == pytest.approx(9.0)


def test_longer_reads_are_neither_slower_nor_take_less_time():
    seconds = np.array([[[1e-4, 2e-4, 9e-4, 1.2e-3]]])
    rates = calibrate.Curves((4096, 16384, 32768, 131072), (1,), seconds, np.zeros(1)).rates[0]
    assert rates.tolist() == pytest.approx([4096e4, 16384 / 2e-4, 16384 / 2e-4, 131072 / 1.2e-3])
    steep = calibrate.Curves((4096, 8192), (1,), np.array([[[3e-4, 1e-4]]]), np.zeros(1)).rates[0]
    assert steep[1] == pytest.approx(8192 / 3e-4, rel=1e-3), "a read of twice the size takes at least as long"
    for noise in range(40):  # and so they do once they are written with fewer digits
        seconds = np.random.default_rng(noise).uniform(1e-4, 1.01e-4, (1, 2, 9))
        curves = calibrate.Curves(calibrate.SIZES, (1, 2), seconds, np.zeros(2))
        parse(Device, calibrate.device("mine", curves, fake(), (1e9, 0.0), {}), "mine.yaml")


def test_addresses_rise_with_gaps_and_stay_in_the_file():
    disk, rng = fake(size=1 << 24), np.random.default_rng(3)
    for size, reads in ((4096, 512), (65536, 512), (4096, 7)):
        offsets = np.array(calibrate.scattered(disk, size, reads, rng))
        assert len(offsets) == min(reads, (1 << 24) // (2 * size))
        assert (offsets % disk.grain == 0).all()
        assert (np.diff(offsets) > size).all(), "adjacent reads would become one"
        assert offsets[0] >= 0
        assert offsets[-1] + size <= 1 << 24
    assert calibrate.scattered(disk, 4096, 8, rng) != calibrate.scattered(disk, 4096, 8, rng)


def test_too_small_a_file_is_refused_in_a_line():
    with pytest.raises(InputError, match=r"--size: 1.05 MB are too few to scatter reads over; give 8.39 MB or more"):
        calibrate.measure(fake(size=1 << 20), SIZES, LANES)


def test_a_device_file_says_what_was_measured():
    curves = calibrate.measure(fake(), SIZES, LANES)
    data = calibrate.device("mine", curves, fake(), (12e9, 0.03), {"date": "today"})
    device = parse(Device, data, "mine.yaml")
    assert device.flash.lanes == 4
    assert [rate for _, rate in device.flash.curve] == pytest.approx(curves.rates[1], rel=1e-3)
    assert [size for size, _ in device.flash.curve] == list(SIZES)
    assert device.flash.page == 4096
    assert device.flash.batch_overhead == pytest.approx(np.median(curves.overhead), rel=1e-3)
    assert device.dram.bandwidth == 12e9
    assert 0 < device.dram.free <= device.dram.capacity
    assert device.evidence.level == "fitted"
    assert device.conditions == {"date": "today", "spread of passes": "0% median, 0% largest", "spread of DRAM": "3%"}
    for part in ("flash", "dram"):
        for field in getattr(device, part).model_fields_set:
            assert f"{part}.{field}" in device.sources


def test_dram_is_timed_on_this_machine():
    bandwidth, apart = calibrate.dram_bandwidth(1)
    assert 1e8 < bandwidth < 1e13
    assert apart >= 0
