"""Times between the rows of a measured table, and what a device may say."""

import numpy as np
import pytest
from oracles import device

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.storage.flash import Flash

CURVE = [["4 KiB", "100 MB/s"], ["64 KiB", "400 MB/s"]]


def test_between_two_rows_a_table_is_a_straight_line_in_logarithms():
    """Of 16 KiB, half way from 4 to 64 in logarithms, the rate is the root of 100 x 400."""
    flash = parse(Flash, {"read_curve": CURVE}, "flash")
    assert 16384 / flash.transfer_time(16384) == pytest.approx(200e6)
    assert 8192 / flash.transfer_time(8192) == pytest.approx(100e6 * 4**0.25)


@pytest.mark.parametrize("copies", [0, 1, 2])
def test_copies_over_the_bus(copies):
    assert device(**{"dram.flash_copies": copies}).dram.flash_copies == copies


@pytest.mark.parametrize("copies", [-1, 3, 1.5])
def test_other_copies_are_refused(copies):
    with pytest.raises(InputError, match=r"dram\.flash_copies"):
        device(**{"dram.flash_copies": copies})


def test_what_is_free_is_what_can_be_used():
    assert device(**{"dram.capacity": "8 GB"}).dram.usable == 8e9
    assert device(**{"dram.capacity": "8 GB", "dram.free": "3 GB"}).dram.usable == 3e9
    assert device(**{"dram.capacity": "8 GB", "dram.free": "8 GB"}).dram.usable == 8e9


def test_defaults_cost_nothing():
    plain = device(**{"compute.throughput": "1 GFLOP/s"})
    assert (plain.dram.flash_copies, plain.dram.row, plain.dram.fill) == (0, 1.0, None)
    assert (plain.compute.layer, plain.compute.interrupt, plain.compute.selection) == (0, 0, None)
    assert not plain.on_clock
    for part in ("flash", "dram", "compute"):
        hot = plain.replace(**{f"sustained.{part}": 0.5}).hot()
        rates = {"flash": hot.flash.read_bandwidth / 1e9, "dram": hot.dram.bandwidth / 60e9}
        rates["compute"] = hot.compute.throughput / 1e9
        assert rates == {"flash": 1, "dram": 1, "compute": 1} | {part: 0.5}


SRAM = {"name": "sram", "bandwidth": "100 GB/s", "capacity": "8 MB", "command_time": "1 us"}
CARD = {"name": "card", "bandwidth": "0.1 GB/s", "command_time": "100 us"}
NPU = {"throughput": "8 GFLOP/s", "runs": ["expert"]}


def tiered(tiers=(SRAM, CARD), units=None, **fields):
    compute = {"throughput": "1 GFLOP/s", "layer": "4 us", "interrupt": "2 us", "units": units or {}}
    return device(**{"tiers": list(tiers), "flash.capacity": "4 GB", "compute": compute, **fields})


def test_zero_is_no_rate_but_a_time():
    assert device(**{"flash.command_time": "0 us", "compute.throughput": "1 GFLOP/s"}).flash.command_time == 0
    for name in ("flash.read_bandwidth", "dram.bandwidth", "compute.throughput"):
        with pytest.raises(InputError, match=f"{name}: .*must be more than 0"):
            device(**{name: "0 GB/s" if "bandwidth" in name else "0 GFLOP/s"})


def test_reads_of_a_tier_cost_nothing_by_default():
    (plain,) = tiered(tiers=[{"name": "card", "bandwidth": "0.1 GB/s"}]).tiers
    assert (plain.command_time, plain.capacity, plain.eviction) == (0, None, "lru")


def test_tiers_above_and_behind():
    made = tiered(units={"npu": NPU})
    assert [tier.name for tier in made.above] == ["sram"]
    assert [tier.name for tier in made.behind] == ["card"]
    assert made.on_clock
    assert [tier.name for tier in tiered([SRAM | {"bandwidth": "60 GB/s"}, CARD]).above] == ["sram"]
    assert tiered([SRAM, CARD | {"bandwidth": "1 GB/s"}]).behind[0].bandwidth == 1e9
    only_units = device(compute={"throughput": "1 GFLOP/s", "units": {"npu": NPU}})
    assert only_units.on_clock


@pytest.mark.parametrize(
    ("tiers", "fields", "complaint"),
    [
        ([CARD, SRAM], {}, "must stand in order of bandwidth, the fastest first; sram is faster than card"),
        ([SRAM | {"bandwidth": "59 GB/s"}, CARD], {}, "sram: is slower than DRAM and faster than Flash"),
        ([SRAM | {"bandwidth": "1.1 GB/s"}, CARD], {}, "sram: is slower than DRAM and faster than Flash"),
        ([{"name": "sram", "bandwidth": "100 GB/s"}, CARD], {}, "all but the last behind Flash need a capacity"),
        ([CARD, CARD | {"name": "disk"}], {}, "all but the last behind Flash need a capacity"),
        ([SRAM], {}, "a tier behind Flash needs flash.capacity, and flash.capacity a tier behind it"),
        ([SRAM | {"name": "flash"}, CARD], {}, "need names of their own, other than flash, dram"),
        ([SRAM | {"name": "card"}, CARD], {}, "need names of their own"),
    ],
)
def test_tiers_that_do_not_fit(tiers, fields, complaint):
    with pytest.raises(InputError, match=complaint):
        tiered(tiers, **fields)


def test_units_that_do_not_fit():
    with pytest.raises(InputError, match="a step is run by two units"):
        tiered(units={"npu": NPU, "dsp": NPU})
    with pytest.raises(InputError, match="give either throughput or weights, not both and not neither"):
        tiered(units={"npu": {"runs": ["expert"]}})
    with pytest.raises(InputError, match="need names of their own"):
        tiered(units={"sram": NPU})
    assert set(tiered(units={"npu": NPU, "dsp": NPU | {"runs": ["attention"]}}).compute.units) == {"npu", "dsp"}


def test_a_hot_device_slows_every_part_by_its_share():
    """Flash to a half, DRAM to 0.8, compute to a quarter."""
    shares = {"sustained.flash": 0.5, "sustained.dram": 0.8, "sustained.compute": 0.25}
    hot = tiered(units={"npu": NPU}, **shares).hot()
    assert hot.name == "x (hot)"
    assert (hot.flash.read_bandwidth, hot.dram.bandwidth) == (0.5e9, 48e9)
    assert [tier.bandwidth for tier in hot.tiers] == pytest.approx([80e9, 0.05e9])
    assert (hot.compute.throughput, hot.compute.units["npu"].throughput) == (0.25e9, 2e9)
    assert (hot.compute.layer, hot.compute.interrupt) == pytest.approx((16e-6, 8e-6))
    slowed = device(compute={"weights": "4 GB/s", "selection": "8 M/s"}).compute.slowed(0.5)
    assert (slowed.weights, slowed.selection, slowed.throughput) == (2e9, 4e6, None)


def test_a_device_for_smaller_columns():
    """Reads of an eighth of the size cost an eighth; rates stay."""
    small = tiered(**{"flash.command_time": "8 us"}).scaled(0.125, "small")
    assert (small.name, small.flash.command_time, small.flash.read_bandwidth) == ("small", 1e-6, 1e9)
    assert np.array([tier.command_time for tier in small.tiers]) == pytest.approx([0.125e-6, 12.5e-6])


def test_evidence_at_its_bounds():
    known = {"evidence.level": "validated", "evidence.against": "a run"}
    assert device(**known, **{"evidence.error": 0.0}).evidence.shown == "validated to 0.0%"
    assert device(**{"evidence.level": "fitted"}).evidence.shown == "fitted"
    for field, value in (("error", -0.1), ("error", float("inf"))):
        with pytest.raises(InputError, match="evidence"):
            device(**known, **{f"evidence.{field}": value})
    with pytest.raises(InputError, match="derived has no error"):
        device(**{"evidence.level": "derived", "evidence.error": 0.1})


def test_a_field_within_what_is_no_part_is_refused():
    with pytest.raises(InputError, match=r"device: dram\.bandwidth\.x: no such field"):
        device(**{"dram.bandwidth.x": 1})
