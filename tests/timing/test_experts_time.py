"""What experts cost in time: lanes, a batch, a layer, filling the cache, and reads beside compute. Each by hand."""

import numpy as np
import pytest
import tiny_mixture
from oracles import device, parse_flash
from tiny_mixture import SHAPE, chosen

from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.timing import engine
from dipsim.timing.recurrence import timeline
from dipsim.timing.service import service_times
from dipsim.timing.timeline import TIMINGS, Resource

EXPERT = 192.0
CURVES = {1: [["100 B", "1 MB/s"], ["1 kB", "1 MB/s"]], 2: [["100 B", "1.5 MB/s"], ["1 kB", "1.5 MB/s"]],
          4: [["100 B", "2 MB/s"], ["1 kB", "2 MB/s"]]}  # fmt: skip
LAYERS = [chosen([0, 1], [0, 2], [3, 4]), chosen([0, 1], [1, 0], [1, 2]), chosen([6, 7], [5, 7], [6, 7])]


@pytest.fixture
def trace(tmp_path):
    return tiny_mixture.write(tmp_path / "t.safetensors", layers=LAYERS)


def make(trace, room=24, rule="lru", **options):
    static = SHAPE.static_bytes(trace.tokens)
    setting = Setting(load_policy("experts"), static + room * EXPERT, rule, scope="model", **options)
    return plan(trace, [setting])[0]


@pytest.mark.parametrize(("reads", "rate"), [(1, 1.0), (2, 1.5), (3, None), (4, 2.0), (5, None), (8, 2.0), (400, 2.0)])
def test_a_batch_that_leaves_lanes_idle_is_as_fast_as_those_that_are_busy(reads, rate):
    """Of 4 lanes, 3 reads keep 3 busy; 5 reads take two rounds, 2.5 on average: between the tables, in logarithms."""
    flash = parse_flash({"flash": {"read_curves": CURVES, "lanes": 4}, "name": "x"})
    busy = reads / np.ceil(reads / 4)
    between = 1.5e6 * (2 / 1.5) ** (np.log(busy / 2) / np.log(2))
    seconds = flash.batch_time([reads], [reads * 500.0])
    assert reads * 500 / seconds == pytest.approx(rate * 1e6 if rate else between)
    alone = parse_flash({"flash": {"read_curves": {4: CURVES[4]}, "lanes": 4}, "name": "x"})
    assert alone.batch_time([1], [500.0]) == pytest.approx(500 / 2e6)


def test_a_rate_of_weights_brings_them_from_dram_itself(trace):
    made = make(trace)
    dev = device(**{"compute.weights": "1 MB/s", "dram.flash_copies": 1})
    service = service_times(made, dev)
    assert service.dram_static.sum() == 0
    assert service.dram == pytest.approx(made.flash_read_bytes / dev.dram.bandwidth)
    assert service.compute == pytest.approx((made.dram_bytes + made.flash_bytes) / 1e6)


def test_a_layer_costs_its_time_and_a_cache_its_filling(trace):
    plain = {"compute.weights": "1 MB/s"}
    made = make(trace)
    bare = service_times(made, device(**plain)).compute
    more = service_times(made, device(**plain, **{"compute.layer": "3 ms", "dram.fill": "0.5 MB/s"})).compute
    assert (more - bare)[:, made.is_attention] == pytest.approx(np.full((3, 3), 3e-3))
    assert (more - bare)[:, made.is_mlp] == pytest.approx(made.flash_misses[:, made.is_mlp] / 0.5e6)
    filled = device(**plain, **{"dram.fill": "0.5 MB/s"})
    none = make(trace, rule="none")
    assert service_times(none, filled).compute == pytest.approx(service_times(none, device(**plain)).compute)


def test_reads_interrupt_compute_where_they_run_beside_it(trace):
    """Six reads a layer at the first token: 6 ms each where all three resources run side by side, nothing elsewhere."""
    made = make(trace)
    calm = device(**{"compute.weights": "1 MB/s"})
    interrupted = device(**{"compute.weights": "1 MB/s", "compute.interrupt": "1 ms"})
    for timing in TIMINGS:
        more = timeline(made, interrupted, timing).latency_s - timeline(made, calm, timing).latency_s
        wanted = made.flash_reads.sum(axis=1) * 1e-3 if timing == "pipelined" else np.zeros(3)
        assert more == pytest.approx(wanted, abs=1e-12)
    assert made.flash_reads[0].tolist() == [0, 6, 0, 6, 0, 6, 0]
    simulated = engine.run(made, interrupted, "pipelined")
    spans = [span for span in simulated.spans if span.kind == "interrupt"]
    assert [(s.resource, s.step, s.bytes) for s in spans if s.token == 0] == [
        ("compute", step, 0) for step in (1, 3, 5)
    ]
    assert [s.end_s - s.start_s for s in spans if s.token == 0] == pytest.approx([6e-3] * 3)
    assert len(spans) == np.count_nonzero(made.flash_reads)


@pytest.mark.parametrize("timing", TIMINGS)
def test_what_is_interrupted_gives_static_transfers_time(trace, timing):
    """With compute by operations, attention comes from a slow DRAM, ahead of its layer: engine and recurrence agree."""
    made = make(trace, room=7)
    rates = {"dram.bandwidth": "1 MB/s", "compute.throughput": "40 MFLOP/s", "compute.interrupt": "90 us"}
    dev = device(**{"flash.read_bandwidth": "4 MB/s"}, **rates)
    simulated, closed = engine.run(made, dev, timing), timeline(made, dev, timing)
    assert closed.latency_s == pytest.approx(simulated.latency_s, rel=1e-12)
    assert closed.parts_s == pytest.approx(simulated.parts_s, rel=1e-9, abs=1e-15)


@pytest.mark.parametrize("timing", TIMINGS)
def test_engine_and_recurrence_agree_with_everything_on(trace, timing):
    made = make(trace, room=7, page=50.0)
    dev = device(**{
        "flash": {"read_curves": CURVES, "lanes": 4, "batch_overhead": "20 us", "page": "50 B"}, "dram.fill": "3 MB/s",
        "compute": {"weights": "2 MB/s", "layer": "0.1 ms", "interrupt": "70 us"}, "dram.flash_copies": 1,
    })  # fmt: skip
    simulated, closed = engine.run(made, dev, timing), timeline(made, dev, timing)
    assert closed.latency_s == pytest.approx(simulated.latency_s, rel=1e-12)
    assert closed.parts_s == pytest.approx(simulated.parts_s, rel=1e-9, abs=1e-15)
    assert closed.busy_s == pytest.approx(simulated.busy_s, rel=1e-12)
    assert simulated.busy_s[:, Resource.COMPUTE].sum() == pytest.approx(
        sum(span.end_s - span.start_s for span in simulated.spans if span.resource == "compute" and span.step >= 0)
    )


def test_time_to_first_token_reads_what_the_prompt_misses(tmp_path):
    """Seven experts of the prompt, in 3 reads each; without a prompt, the two experts a layer of the first token."""
    of = tiny_mixture.shape(expert_tensors=3)
    trace = tiny_mixture.write(tmp_path / "p.safetensors", of=of, layers=LAYERS, prompts=((0, 2),))
    dev = device(**{"flash": {"read_bandwidth": "1 MB/s", "batch_overhead": "1 ms"}})
    warm = service_times(make(trace, start="warm"), dev)
    assert warm.prefill[Resource.FLASH] == pytest.approx(3e-3 + (3 + 2 + 3) * EXPERT / 1e6)
    later = tiny_mixture.write(tmp_path / "l.safetensors", of=of, layers=LAYERS, prompts=((0, 1), (1, 3))[:1])
    assert service_times(make(later, start="warm"), dev).prefill[Resource.FLASH] == pytest.approx(
        3e-3 + 6 * EXPERT / 1e6
    )
    one_by_one = make(tiny_mixture.write(tmp_path / "w.safetensors", tokens=12), room=3, start="warm")
    assert one_by_one.warm_up == 6  # no prompt: so many positions can use all 8 experts of each layer, once
    assert service_times(one_by_one, dev).prefill[Resource.FLASH] == pytest.approx(3e-3 + 3 * 8 * EXPERT / 1e6)
    cold = service_times(make(tiny_mixture.write(tmp_path / "c.safetensors", layers=LAYERS)), dev)
    assert cold.prefill[Resource.FLASH] == pytest.approx(3e-3 + 6 * EXPERT / 1e6)


def test_a_hot_device_takes_longer_for_a_layer():
    dev = device(**{"compute.weights": "8 GB/s", "compute.layer": "1 ms", "sustained.compute": 0.5}).hot()
    assert dev.compute.weights == 4e9
    assert dev.compute.layer == 2e-3
