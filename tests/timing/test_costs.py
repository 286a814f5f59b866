"""What a device costs besides bytes: each by hand, and all of them at once in engine and recurrence."""

import numpy as np
import pytest
from oracles import device, parse_flash
from tiny import SHAPE

import dipsim
from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.timing import engine
from dipsim.timing.device import Device
from dipsim.timing.recurrence import timeline
from dipsim.timing.service import page_fault_share, service_times
from dipsim.timing.timeline import TIMINGS

STATIC = SHAPE.static_bytes(12)
CURVES = {1: [["4 KiB", "100 MB/s"], ["64 KiB", "400 MB/s"]], 4: [["4 KiB", "300 MB/s"], ["64 KiB", "900 MB/s"]]}


def make(trace, name="dip", **options):
    dram = options.pop("dram", STATIC + 0.5 * SHAPE.mlp_bytes)
    eviction = "pinned" if options.get("layout") == "auto" else "lru"
    return plan(trace, [Setting(load_policy(name), dram, eviction, **options)])[0]


def seconds(fetch_plan, dev):
    return service_times(fetch_plan, dev).by_resource()


def test_reads_under_way_choose_the_curve():
    one, four = (parse_flash({"flash": {"read_curves": CURVES, "lanes": lanes}, "name": "x"}) for lanes in (1, 4))
    assert 65536 / one.transfer_time(65536) == pytest.approx(4e8)
    assert 65536 / four.transfer_time(65536) == pytest.approx(9e8)
    assert four.peak_bandwidth == 9e8
    with pytest.raises(InputError, match=r"lanes: 2 is not among those of read_curves \(1, 4\)"):
        parse_flash({"flash": {"read_curves": CURVES, "lanes": 2}, "name": "x"})
    with pytest.raises(InputError, match="lanes chooses among read_curves; give both or neither"):
        parse_flash({"flash": {"read_curves": CURVES}, "name": "x"})


def test_a_batch_costs_its_overhead_once(tiny_trace):
    fetch_plan = make(tiny_trace())
    plain, slow = device(), device(**{"flash.batch_overhead": "0.5 ms"})
    more = seconds(fetch_plan, slow)[0] - seconds(fetch_plan, plain)[0]
    assert more == pytest.approx(5e-4 * (fetch_plan.flash_misses > 0))


def test_a_read_occupies_whole_pages_in_time_bytes_and_energy(tiny_trace):
    """Columns of gate and up have 12 bytes each, of down 8; all that a matrix has of them lies on pages of 64 bytes."""
    fetch_plan = make(tiny_trace(), page=64.0)
    paged = device(**{"flash.page": "64 B", "dram.flash_copies": 1, "energy.flash": "1 nJ/B", "energy.dram": "1 pJ/B"})
    read = fetch_plan.read_bytes.sum(axis=2)
    assert (read % 64 == 0).all()
    assert (read > fetch_plan.flash_misses).any()
    assert fetch_plan.flash_read_bytes == pytest.approx(read)
    assert (make(tiny_trace()).flash_misses == fetch_plan.flash_misses).all(), "a mask does not change"
    assert seconds(fetch_plan, paged)[0] == pytest.approx(read / 1e9)
    assert seconds(fetch_plan, paged)[1] == pytest.approx((fetch_plan.dram_bytes + read) / 60e9)
    joules = dipsim.Result(fetch_plan, paged, timeline(fetch_plan, paged, "serial")).summary()["energy_j_per_token"]
    flash = read.sum() / 12
    assert joules == pytest.approx(flash * 1e-9 + (fetch_plan.dram_bytes.sum() / 12 + flash) * 1e-12)


def test_a_plan_for_other_pages_is_refused(tiny_trace):
    with pytest.raises(
        InputError, match=r"flash.page: device oneplus-12 has 4096 B, and what is read was planned for 1 B"
    ):
        seconds(make(tiny_trace()), Device.load("oneplus-12"))
    with pytest.raises(InputError, match="page: 1 B, and that of the flash is 4096 B; make them equal"):
        make(tiny_trace(), flash=Device.load("oneplus-12").flash)


def test_a_short_column_takes_a_whole_row_of_dram(tiny_trace):
    fetch_plan = make(tiny_trace())
    factor = np.where(np.array(fetch_plan.step) == "input", 32 / 12, np.where(fetch_plan.is_mlp, 32 / 8, 1))
    dram = seconds(fetch_plan, device(**{"dram.row": "32 B"}))[1]
    assert dram == pytest.approx((fetch_plan.dram_static + factor * fetch_plan.dram_hits) / 60e9)
    assert seconds(fetch_plan, device(**{"dram.row": "8 B"}))[1] == pytest.approx(fetch_plan.dram_bytes / 60e9)


def test_compute_by_bytes_of_weights_and_the_time_to_choose(tiny_trace):
    fetch_plan = make(tiny_trace())
    by_bytes = device(**{"compute.weights": "20 GB/s", "compute.selection": "3 M/s"})
    chosen = np.array([{"input": 16, "neuron": 24}.get(step, 0) for step in fetch_plan.step])
    used = fetch_plan.dram_bytes + fetch_plan.flash_bytes
    assert seconds(fetch_plan, by_bytes)[2] == pytest.approx(used / 20e9 + chosen / 3e6)
    same = device(**{"compute.throughput": "80 GFLOP/s"})  # 4 bits: 4 operations a byte
    assert service_times(fetch_plan, by_bytes).prefill[2] == pytest.approx(service_times(fetch_plan, same).prefill[2])
    with pytest.raises(InputError, match="give either throughput or weights"):
        device(**{"compute.weights": "20 GB/s", "compute.throughput": "1 TFLOP/s"})


def test_a_hot_device_sustains_a_share_of_everything(tiny_trace):
    fetch_plan = make(tiny_trace())
    fields = {
        "flash.command_time": "5 us",
        "flash.latency": "7 us",
        "flash.overlap": 2,
        "compute.throughput": "1 GFLOP/s",
    }
    cool = device(**fields, **{"sustained.flash": 0.5, "sustained.compute": 0.25})
    cold, hot = seconds(fetch_plan, cool), seconds(fetch_plan, cool.hot())
    assert hot == pytest.approx(cold * np.array([2, 1, 4])[:, None, None])
    curved = device(**{"flash": {"read_curves": CURVES, "lanes": 4}, "sustained.flash": 0.5})
    assert seconds(fetch_plan, curved.hot())[0] == pytest.approx(2 * seconds(fetch_plan, curved)[0])
    with pytest.raises(InputError, match="hot: device x does not say what it sustains"):
        device().hot()


@pytest.mark.parametrize(
    "flash",
    [
        {
            "read_bandwidth": "2 GB/s",
            "command_time": "9 us",
            "overlap": 2.5,
            "latency": "30 us",
            "batch_overhead": "1 ms",
        },
        {"read_curves": CURVES, "lanes": 4, "page": "4 KiB"},
        {"read_curve": CURVES[1]},
    ],
)
def test_scaled_flash_takes_its_share_of_the_time_of_larger_reads(flash):
    whole = parse_flash({"flash": flash, "name": "x"})
    part = whole.scaled(0.125)
    for size in (500, 4000, 70_000):
        assert part.batch_time([3], [3 * size]) == pytest.approx(0.125 * whole.batch_time([3], [24 * size]))
    assert part.break_even(512) == pytest.approx(0.125 * whole.break_even(4096))
    assert part.page == max(1, whole.page / 8)


def test_pages_that_did_not_fit_come_back_slowly(tiny_trace):
    fetch_plan = make(tiny_trace(), dram=3000)
    small = device(**{"dram.capacity": "4 kB", "dram.free": "2.4 kB", "dram.paging": "0.1 GB/s"})
    assert page_fault_share(3000, small) == pytest.approx(0.2)
    assert page_fault_share(2400, small) == page_fault_share(100, small) == 0
    slow = 0.2 * fetch_plan.dram_bytes / 1e8
    assert seconds(fetch_plan, small)[1] == pytest.approx(fetch_plan.dram_bytes / 60e9 + slow)
    with pytest.raises(InputError, match="free: is more than the capacity"):
        device(**{"dram.capacity": "4 kB", "dram.free": "5 kB"})


def test_more_dram_than_is_free_is_refused_unless_paging_has_a_rate(tiny_trace):
    trace, policy = tiny_trace(), load_policy("dip")
    tight = device(**{"dram.capacity": "4 kB", "dram.free": "2.4 kB"})
    with pytest.raises(InputError, match=r"dram: 3 kB is more than the 2\.4 kB that device x has free; .*dram\.paging"):
        dipsim.simulate(trace, policy, tight, dram="3 kB")
    assert dipsim.simulate(trace, policy, tight).plan.setting.dram_bytes == 2400, "by default all that is free"
    paging = tight.replace(**{"dram.paging": "1 GB/s"})
    assert dipsim.simulate(trace, policy, paging, dram="3 kB").summary()["page_fault_share"] == pytest.approx(0.2)


@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("layout", ["columns", "rows", "popularity", "auto"])
@pytest.mark.parametrize("name", ["dip-ca", "magnitude"])
def test_engine_and_recurrence_agree_with_everything_switched_on(tiny_trace, timing, layout, name):
    data = {
        "name": "all",
        "flash": {"read_curves": CURVES, "lanes": 4, "page": "512 B", "batch_overhead": "3 us"},
        "dram": {"capacity": "4 kB", "bandwidth": "1 GB/s", "free": "2.5 kB", "paging": "80 MB/s", "row": "20 B",
                 "flash_copies": 2},
        "compute": {"weights": "0.5 GB/s", "selection": "30 M/s"},
        "sustained": {"flash": 0.7, "dram": 0.9, "compute": 0.4},
    }  # fmt: skip
    every = parse(Device, data, "all").hot()
    fetch_plan = make(
        tiny_trace(tokens=16, starts=(0, 9)),
        name,
        dram=2900.0,
        start="warm",
        layout=layout,
        page=every.flash.page,
        flash=every.flash,
    )
    assert fetch_plan.tokens == 5 + 4
    simulated, closed = engine.run(fetch_plan, every, timing), timeline(fetch_plan, every, timing)
    assert simulated.latency_s == pytest.approx(closed.latency_s, rel=1e-12)
    assert simulated.parts_s == pytest.approx(closed.parts_s, abs=1e-9 * closed.latency_s.max())
    assert simulated.ttft_s == pytest.approx(closed.ttft_s, rel=1e-12)
