"""The clock: closed forms, and the engine against the recurrences of bounds.py on random plans."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles import bounds, device, random_plan, reference_seconds
from tiny import SHAPE

from dipsim.planning.builder import PlanBuilder
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.timing import engine
from dipsim.timing.device import Device
from dipsim.timing.recurrence import latency, prefill_time, timeline
from dipsim.timing.service import service_times
from dipsim.timing.timeline import TIMINGS

PAPER = Device.load("paper")
STATIC = SHAPE.static_bytes(12)


@pytest.mark.parametrize("name", ["dense", "magnitude", "gate", "up", "dip", "dip-ca"])
@pytest.mark.parametrize("share", [0, 0.5, 1])
@pytest.mark.parametrize("timing", ["serial", "concurrent"])
def test_without_compute_the_reference_formula(tiny_trace, name, share, timing):
    setting = Setting(load_policy(name), STATIC + share * SHAPE.mlp_bytes, "lru")
    fetch_plan = plan(tiny_trace(), [setting])[0]
    timeline = engine.run(fetch_plan, PAPER, timing)
    expected = reference_seconds(fetch_plan, PAPER, timing == "concurrent")
    assert timeline.latency_s == pytest.approx(expected, rel=1e-9)


def test_zero_cache_dense_by_hand(tiny_trace):
    """One token: every MLP byte from Flash, every static byte from DRAM, numbers worked out on paper."""
    fetch_plan = plan(tiny_trace(), [Setting(load_policy("dense"), STATIC)], tokens=1)[0]
    mlp = 3 * 2 * 16 * 24 * 0.5  # 1152 bytes
    static = 16 * 32 + 2 * 16 * 16 * 3 * 0.5 + 2 * 2 * 16 * 0.5  # lm_head, attention, one position of KV cache
    # the budget is for 12 positions; what one token leaves free holds a little of the MLP
    spare = 11 * 2 * 2 * 16 * 0.5
    timeline = engine.run(fetch_plan, PAPER, "serial")
    assert timeline.latency_s[0] == pytest.approx((mlp - spare) / 1e9 + (static + spare) / 60e9, rel=1e-12)
    assert timeline.ttft_s == pytest.approx(mlp / 1e9 + static / 60e9, rel=1e-12)


def test_everything_resident_needs_no_flash(tiny_trace):
    fetch_plan = plan(tiny_trace(), [Setting(load_policy("dense"), STATIC + SHAPE.mlp_bytes)])[0]
    timeline = engine.run(fetch_plan, PAPER, "serial")
    kv = SHAPE.kv_cache_bytes(1) * np.arange(1, 13)
    expected = (SHAPE.lm_head_bytes + SHAPE.attention_bytes + SHAPE.mlp_bytes + kv) / 60e9
    assert timeline.latency_s == pytest.approx(expected, rel=1e-12)
    assert timeline.parts_s[:, 0].sum() == timeline.busy_s[:, 0].sum() == 0


def test_two_tokens_second_finds_the_first(tiny_trace):
    trace = tiny_trace()
    fetch_plan = plan(trace, [Setting(load_policy("dip"), STATIC + SHAPE.mlp_bytes, "lru")], tokens=2)[0]
    common = 0.0
    for layer in range(SHAPE.num_hidden_layers):
        acts = trace.layer(layer)
        for values, k, column in ((acts.mlp_input, 9, 2 * 24 / 2), (acts.glu, 8, 16 / 2)):
            first, second = (set(np.argsort(-np.abs(row), kind="stable")[:k].tolist()) for row in values[:2])
            common += len(first & second) * column
    read = (2 * 9 * 24 + 8 * 16) / 2 * SHAPE.num_hidden_layers
    static = SHAPE.lm_head_bytes + SHAPE.attention_bytes
    timeline = engine.run(fetch_plan, PAPER, "serial")
    assert timeline.latency_s[0] == pytest.approx((static + SHAPE.kv_cache_bytes(1)) / 60e9 + read / 1e9, rel=1e-9)
    second = (static + SHAPE.kv_cache_bytes(2) + common) / 60e9 + (read - common) / 1e9
    assert timeline.latency_s[1] == pytest.approx(second, rel=1e-9)


TWINS = device(
    **{
        "flash.read_bandwidth": "5 GB/s",
        "flash.command_time": "0 us",
        "flash.overlap": 2.0,
        "dram.bandwidth": "5 GB/s",
        "dram.flash_copies": 1,
        "compute.throughput": "1 GFLOP/s",
    }
)
PLANS = st.builds(
    partial(random_plan, SHAPE),
    st.integers(0, 2**32),
    st.integers(1, 4),
    st.sampled_from(["dense", "magnitude", "dip"]),
    st.sampled_from([0, 0.3, 0.8, 1.0]),
)
TIMING = st.sampled_from(TIMINGS)
DEVICES = st.builds(
    lambda flash, dram, compute, command, copies: device(
        **{
            "flash.read_bandwidth": f"{flash} GB/s",
            "flash.command_time": f"{command} us",
            "flash.overlap": 2.0,
            "dram.bandwidth": f"{dram} GB/s",
            "dram.flash_copies": copies,
            "compute.throughput": f"{compute} GFLOP/s",
        }
    ),
    st.floats(0.1, 10),
    st.floats(0.5, 100),
    st.floats(0.1, 100),
    st.sampled_from([0, 5, 100]),
    st.sampled_from([0, 1, 2]),
)


def told_apart(parts, dev):
    """What held tokens up, [T, parts]. Where Flash and DRAM are as fast, rounding says which of them ended last."""
    flash, dram, *others = parts.T
    return np.array([flash + dram, *others] if dev.flash.peak_bandwidth == dev.dram.bandwidth else parts.T)


@settings(deadline=None)
@given(PLANS, DEVICES, st.sampled_from(TIMINGS))
@example(random_plan(SHAPE, 0, 1, "dense", 0.8), TWINS, "concurrent")  # Flash and DRAM end together, but for rounding
def test_engine_equals_the_recurrence_and_stays_within_the_bounds(fetch_plan, dev, timing):
    service = service_times(fetch_plan, dev)
    simulated = engine.run(fetch_plan, dev, timing)
    assert simulated.latency_s == pytest.approx(latency(service, timing), rel=1e-12)
    assert simulated.ttft_s == pytest.approx(prefill_time(service, timing), rel=1e-12)
    closed = timeline(fetch_plan, dev, timing)
    assert told_apart(closed.parts_s, dev) == pytest.approx(told_apart(simulated.parts_s, dev), rel=1e-9, abs=1e-15)
    assert closed.start_s == pytest.approx(simulated.start_s, rel=1e-12)
    assert closed.busy_s == pytest.approx(simulated.busy_s, rel=1e-12)
    low, high = bounds(service)
    assert closed.waited_s == pytest.approx(simulated.waited_s, rel=1e-9, abs=1e-15)
    ahead = simulated.ttft_s * len(fetch_plan.sequence_starts)  # a token may begin with what came before it
    assert simulated.latency_s.sum() + ahead >= low.sum() * (1 - 1e-12)
    assert (simulated.latency_s <= high * (1 + 1e-12)).all()


@settings(deadline=None)
@given(PLANS, DEVICES, st.sampled_from(TIMINGS))
def test_books_balance(fetch_plan, dev, timing):
    """Conservation, causality, monotone clock, and every second accounted for."""
    timeline = engine.run(fetch_plan, dev, timing)
    assert timeline.parts_s.sum(axis=1) == pytest.approx(timeline.latency_s, rel=1e-9)
    assert (timeline.parts_s >= 0).all()
    assert pytest.approx(service_times(fetch_plan, dev).by_resource().sum(axis=2), rel=1e-9) == timeline.busy_s.T
    assert (timeline.busy_s.sum(axis=0) <= timeline.latency_s.sum() * (1 + 1e-9)).all()
    ends = timeline.start_s + timeline.latency_s
    assert timeline.start_s[1:] == pytest.approx(ends[:-1])
    copied = fetch_plan.dram_bytes + dev.dram.flash_copies * fetch_plan.flash_bytes
    for name, moved in (("flash", fetch_plan.flash_bytes), ("dram", copied)):
        spans = [span for span in timeline.spans if span.resource == name]
        assert all(s.request_s <= s.start_s <= s.end_s for s in spans)
        slack = 1e-12 * (ends[-1] + timeline.ttft_s)
        assert all(a.end_s <= b.start_s + slack for a, b in pairwise(spans))  # one at a time
        assert sum(s.bytes for s in spans if s.step >= 0) == pytest.approx(moved.sum())


@settings(deadline=None)
@given(PLANS, DEVICES, st.sampled_from(["flash.read_bandwidth", "dram.bandwidth", "compute.throughput"]), TIMING)
def test_faster_hardware_is_never_slower(fetch_plan, dev, field, timing):
    unit = "GFLOP/s" if field.startswith("compute") else "GB/s"
    faster = dev.replace(**{field: f"1000 {unit}"})
    before, after = (latency(service_times(fetch_plan, d), timing) for d in (dev, faster))
    assert (np.cumsum(after) <= np.cumsum(before) * (1 + 1e-12)).all()


def test_pipelining_helps_and_concurrency_too(tiny_trace):
    fetch_plan = plan(tiny_trace(), [Setting(load_policy("dip"), STATIC + SHAPE.mlp_bytes / 2)])[0]
    dev = device(**{"compute.throughput": "1 GFLOP/s", "dram.bandwidth": "2 GB/s"})
    serial, concurrent, pipelined = (engine.run(fetch_plan, dev, timing).latency_s.sum() for timing in TIMINGS)
    assert pipelined < concurrent < serial


def test_encoding_a_prompt_by_hand(tiny_trace):
    """8 positions, DRAM 50 bytes short of the static parts: what is streamed is read from Flash for the prompt too."""
    kv = SHAPE.kv_cache_bytes(8 + 12)
    short = SHAPE.static_bytes(8 + 12) - 50
    setting = Setting(load_policy("dip"), short, "lru", prompt=8, stream_static=True)
    fetch_plan = plan(tiny_trace(), [setting])[0]
    dev = device(**{"compute.throughput": "1 GFLOP/s", "dram.flash_copies": 1})
    mlp, attention, head = 3 * 2 * 16 * 24, 2 * 16 * 16 * 3, 16 * 32  # values
    flash = (mlp / 2 + 50) / 1e9
    dram = (attention / 2 + head + kv - 50 + mlp / 2 + 50) / 60e9
    pairs = 2 * 16 * 8 * 9 / 2  # layers x query size x positions that see each other
    compute = (2 * (mlp + attention) * 8 + 2 * head + 4 * pairs) / 1e9
    for timing, expected in (
        ("serial", flash + dram + compute),
        ("concurrent", max(flash, dram) + compute),
        ("pipelined", max(flash, dram, compute)),
    ):
        assert engine.run(fetch_plan, dev, timing).ttft_s == pytest.approx(expected, rel=1e-12)


def test_matrices_read_whole_cost_their_commands_and_latency(tiny_trace):
    fetch_plan = plan(tiny_trace(), [Setting(load_policy("dense"), STATIC)], tokens=1)[0]
    dev = device(**{"flash.latency": "1 ms", "flash.command_time": "1 us"})
    spare = STATIC - SHAPE.static_bytes(1)
    transfer = (SHAPE.mlp_bytes - spare) / 1e9
    assert engine.run(fetch_plan, dev, "serial").busy_s[0, 0] == pytest.approx(2 * (1e-3 + 3e-6) + transfer, rel=1e-9)


def test_spans_are_kept_of_the_tokens_asked_for(tiny_trace):
    fetch_plan = plan(tiny_trace(), [Setting(load_policy("dip"), STATIC)])[0]
    every, some = engine.run(fetch_plan, PAPER, "serial"), engine.run(fetch_plan, PAPER, "serial", traced=(5,))
    assert some.spans == [span for span in every.spans if span.token == 5]
    assert (some.latency_s == every.latency_s).all()


def test_prefetch_waits_in_the_queue_that_it_shares():
    """Step 0 is busy on Flash for 10 ms; the 2 ms of DRAM of step 1 are asked for at 0 and hidden behind it."""
    builder = PlanBuilder(SHAPE, Setting(load_policy("dip"), SHAPE.static_bytes(1)), 1, (0,))
    arrays = builder.arrays
    for name in ("flops", "dram_static"):
        arrays[name][:] = 0
    arrays["flash_misses"][0, 0] = arrays["read_bytes"][0, 0, 0] = 10e6
    arrays["reads"][0, 0, 0] = 1
    arrays["dram_static"][0, 1], arrays["dram_hits"][0, 1] = 120e6, 60e6
    fetch_plan = builder.finish()
    timeline = engine.run(fetch_plan, PAPER, "pipelined")
    assert timeline.latency_s[0] == pytest.approx(0.011)
    requests = [(s.resource, s.request_s - timeline.ttft_s) for s in timeline.spans if s.step >= 0]
    assert requests == [
        ("dram", pytest.approx(0)),
        ("flash", pytest.approx(0)),
        ("dram", pytest.approx(0.010)),
    ]
    serial = engine.run(fetch_plan, PAPER, "serial")
    assert serial.latency_s[0] == pytest.approx(0.013)


def test_flash_traffic_can_load_the_dram_bus(tiny_trace):
    fetch_plan = plan(tiny_trace(), [Setting(load_policy("dip"), STATIC)])[0]
    dev = device(**{"dram.bandwidth": "1 GB/s"})
    direct, copied = (engine.run(fetch_plan, dev.replace(**{"dram.flash_copies": n}), "serial") for n in (0, 2))
    extra = 2 * fetch_plan.flash_bytes.sum() / 1e9
    assert copied.latency_s.sum() - direct.latency_s.sum() == pytest.approx(extra)


def test_what_is_ahead_of_a_token_may_follow_from_long_before_its_last_steps():
    """DRAM needs 1.99 ms a step, compute 2 ms: DRAM gains 10 us on compute in each of 37 steps."""
    shape = SHAPE.model_copy(update={"num_hidden_layers": 12})
    builder = PlanBuilder(shape, Setting(load_policy("dip"), shape.static_bytes(5) + 1), 5, (0,))
    builder.arrays["flops"][:], builder.arrays["dram_static"][:] = 2e6, 1.99e-3 * 60e9
    fetch_plan, dev = builder.finish(), device(**{"compute.throughput": "1 GFLOP/s"})
    simulated, closed = (call(fetch_plan, dev, "pipelined") for call in (engine.run, timeline))
    assert closed.latency_s == pytest.approx(simulated.latency_s, rel=1e-12)
    assert closed.waited_s == pytest.approx(simulated.waited_s, rel=1e-9, abs=1e-15)
