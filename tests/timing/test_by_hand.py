"""Times worked out on paper, on a device with a cost of a command and a model with its own bits for each part.

Three of eight neurons of down_proj are read; gate_proj and up_proj are read whole. `tests/hand.py` has the sizes.
"""

import numpy as np
import pytest
from hand import HAND, MICRO, STARTS, hand_trace
from oracles import device

from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.results.result import Result
from dipsim.sparsity.plugins import load_policy
from dipsim.timing import engine
from dipsim.timing.recurrence import encoding_time, timeline
from dipsim.timing.service import compute_seconds, page_fault_share, service_times
from dipsim.timing.timeline import PREFILL, TIMINGS

RUNS = {"engine": engine.run, "recurrence": timeline}
CACHED = 352.0  # B: 80 of lm_head, 96 of attention, 96 of 3 positions, 64 of matrices read whole, 4 columns a layer
STREAMED = 184.0  # B: 96 of 3 positions, and half of lm_head and attention


def make(folder, dram, eviction="lru", **options):
    setting = Setting(load_policy("magnitude", fraction=0.375), dram, eviction, stream_static=True, **options)
    return plan(hand_trace(folder), [setting])[0]


# With room for four columns, the tokens miss 3, 1, 2, 3, 2 columns of each layer, in 1, 1, 2, 1, 2 runs.
FLASH = np.array([32, 24, 48, 32, 48])  # 2 layers x (10 us a run + 2 B a column)
DRAM = np.array([27.2, 31.2, 34, 27.2, 30.8])  # 240 B static, 32 B a position, 4 B a hit
COMPUTE = np.array([60.8, 64, 67.2, 60.8, 64])  # 576 operations, and 32 a position
# Without room, all of them miss 3, in 1, 2, 3, 1, 3 runs. 4 commands bring attention, 2 the matrices, 1 lm_head.
FLASH_STREAMED = np.array([314, 334, 354, 314, 354])  # 2 x (24 + 40 + 32 + 20 + 6 + 10 a run) + 40 + 10
DRAM_STREAMED = np.array([12, 15.2, 18.4, 12, 15.2])  # 88 B static, and 32 B a position


@pytest.mark.parametrize("run", RUNS)
def test_a_token_with_a_cache(tmp_path, run):
    """5 tokens in 651.2 us: 7,678 tokens/s."""
    fetch_plan = make(tmp_path, CACHED)
    serial, concurrent = (RUNS[run](fetch_plan, HAND, timing) for timing in ("serial", "concurrent"))
    assert serial.latency_s / MICRO == pytest.approx(FLASH + DRAM + COMPUTE)
    assert serial.parts_s / MICRO == pytest.approx(np.stack([FLASH, DRAM, COMPUTE, 0 * FLASH], axis=1))
    assert serial.busy_s / MICRO == pytest.approx(np.stack([FLASH, DRAM, COMPUTE], axis=1))
    assert Result(fetch_plan, HAND, serial).tokens_per_s == pytest.approx(5 / 651.2e-6)
    assert serial.elapsed_s == pytest.approx(651.2e-6)
    hidden = np.array([0, 0.8, 0.4, 0, 0.4])  # the hits, behind the misses
    assert concurrent.latency_s / MICRO == pytest.approx(FLASH + DRAM + COMPUTE - hidden)
    assert concurrent.parts_s[:, 1] / MICRO == pytest.approx(DRAM - hidden)


@pytest.mark.parametrize("run", RUNS)
def test_a_token_whose_weights_are_streamed(tmp_path, run):
    """Half of lm_head and of attention comes from Flash, at 8 bits the one and 16 the other."""
    fetch_plan = make(tmp_path, STREAMED)
    serial, concurrent = (RUNS[run](fetch_plan, HAND, timing) for timing in ("serial", "concurrent"))
    assert serial.latency_s / MICRO == pytest.approx(FLASH_STREAMED + DRAM_STREAMED + COMPUTE)
    assert concurrent.latency_s / MICRO == pytest.approx(FLASH_STREAMED + COMPUTE)  # each step reads longer from Flash
    assert fetch_plan.peak_dram_bytes == pytest.approx(184)
    assert fetch_plan.flash_reads.sum(axis=1).tolist() == [2 * (4 + 2 + runs) + 1 for runs in (1, 2, 3, 1, 3)]


@pytest.mark.parametrize("run", RUNS)
def test_the_second_sequence_begins_with_a_prompt_of_its_own(tmp_path, run):
    """The prompt reads the MLP: 2 x (3 commands + 48 B), 272 B from DRAM, and 688 operations: 252 us."""
    found = RUNS[run](make(tmp_path, CACHED), HAND, "serial")
    assert found.ttft_s / MICRO == pytest.approx(156 + 27.2 + 68.8)
    assert found.start_s / MICRO == pytest.approx(np.array([252, 372, 491.2, 640.4 + 252, 760.4 + 252]))


@pytest.mark.parametrize("timing", TIMINGS)
def test_two_sequences_are_the_same_by_events_and_in_closed_form(tmp_path, timing):
    fetch_plan = make(tmp_path, STREAMED)
    simulated, closed = engine.run(fetch_plan, HAND, timing), timeline(fetch_plan, HAND, timing)
    assert closed.start_s == pytest.approx(simulated.start_s, rel=1e-12)
    assert closed.latency_s == pytest.approx(simulated.latency_s, rel=1e-12)
    assert closed.parts_s == pytest.approx(simulated.parts_s, rel=1e-9, abs=1e-15)
    assert closed.waited_s == pytest.approx(simulated.waited_s, rel=1e-9, abs=1e-15)
    prompts = [span.token for span in simulated.spans if span.step == PREFILL]
    assert sorted(set(prompts)) == list(STARTS)
    assert len(prompts) == 2 * 3


@pytest.mark.parametrize(("timing", "expected"), [("serial", 421.2), ("concurrent", 402.8), ("pipelined", 334)])
def test_the_prompt_of_streamed_weights(tmp_path, timing, expected):
    """156 us for the MLP and 178 for what is streamed; 184 B from DRAM; 688 operations."""
    fetch_plan = make(tmp_path, STREAMED)
    assert timeline(fetch_plan, HAND, timing).ttft_s / MICRO == pytest.approx(expected)
    assert engine.run(fetch_plan, HAND, timing).ttft_s / MICRO == pytest.approx(expected)
    service = service_times(fetch_plan, HAND)
    assert service.prefill / MICRO == pytest.approx([334, 18.4, 68.8])
    assert service.prefill_bytes.tolist() == [96 + 88, 184, 0]
    assert encoding_time([334, 18.4, 68.8], timing) == pytest.approx(expected)


def test_a_longer_prompt_and_copies_over_the_bus(tmp_path):
    """5 positions: 2 x 288 weights of each, 80 of lm_head, and 4 x 2 x 4 x 15 of pairs of positions."""
    fetch_plan = make(tmp_path, STREAMED + 160, prompt=5)  # 32 B a position
    copied = HAND.replace(**{"dram.flash_copies": 2})
    service = service_times(fetch_plan, copied)
    assert service.prefill / MICRO == pytest.approx([334, 34.4 + 0.2 * (96 + 88), (2880 + 80 + 480) / 10])
    assert service.prefill_bytes.tolist() == [184, 344 + 2 * 184, 0]
    first = service.by_resource()[:, 0].sum(axis=1)  # what its steps take from Flash, DRAM and compute
    read = 2 * (24 + 32 + 6) + 40
    assert first / MICRO == pytest.approx([314, 0.1 * (88 + 32 * 6 + 2 * read), (576 + 32 * 6) / 10])


def test_compute_by_bytes_with_what_a_layer_a_choice_and_a_fill_cost(tmp_path):
    """What it uses comes with it: DRAM moves only what it copies."""
    changes = {"layer": "3 us", "selection": "4 M/s", "weights": "2 MB/s"}
    dev = device(
        flash={"read_bandwidth": "1 MB/s"}, compute=changes, dram={"capacity": "1 kB", "bandwidth": "10 MB/s",
                                                                   "flash_copies": 1, "fill": "5 MB/s"}
    )  # fmt: skip
    fetch_plan = make(tmp_path, CACHED)
    service = service_times(fetch_plan, dev)
    missed = np.array([12, 4, 8, 12, 8])
    used = 240 + 32 * np.array([1, 2, 3, 1, 2]) + 12  # B of 6 columns, wherever they come from
    assert service.dram.sum(axis=1) / MICRO == pytest.approx(0.1 * missed)
    assert service.dram_static.sum() == 0
    assert service.compute.sum(axis=1) / MICRO == pytest.approx(used / 2 + 2 * 3 + 2 * 8 / 4 + missed / 5)
    assert make(tmp_path, CACHED, "pinned").admits is False
    kept = compute_seconds(make(tmp_path, CACHED, "pinned"), dev).sum(axis=1)
    assert kept / MICRO == pytest.approx(used / 2 + 2 * 3 + 2 * 8 / 4)  # nothing enters, so nothing is filled


def test_reads_that_interrupt_compute_count_only_beside_it(tmp_path):
    """A read costs 2 us; the tokens have 2, 2, 4, 2 and 4."""
    dev = HAND.replace(**{"compute.interrupt": "2 us"})
    fetch_plan = make(tmp_path, CACHED)
    service = service_times(fetch_plan, dev)
    interrupted = np.array([4, 4, 8, 4, 8])
    assert service.interrupts.sum(axis=1) / MICRO == pytest.approx(interrupted)
    assert service.by_resource("pipelined")[2].sum(axis=1) / MICRO == pytest.approx(COMPUTE + interrupted)
    assert service.by_resource("concurrent")[2].sum(axis=1) / MICRO == pytest.approx(COMPUTE)
    for run in RUNS.values():
        alone, beside = (run(fetch_plan, each, "pipelined") for each in (HAND, dev))
        assert (beside.busy_s - alone.busy_s)[:, 2] / MICRO == pytest.approx(interrupted)
        assert (beside.latency_s - alone.latency_s > 3e-6).all()


def test_short_columns_and_missing_memory(tmp_path):
    """A column of 2 B takes as long as 8 B; of 352 B, 88 page in at 1 MB/s."""
    fetch_plan = make(tmp_path, CACHED)
    rows = service_times(fetch_plan, HAND.replace(**{"dram.row": "8 B"}))
    hits = 4 * np.array([0, 2, 1, 0, 1])
    assert rows.dram.sum(axis=1) / MICRO == pytest.approx(0.4 * hits)
    paging = HAND.replace(**{"dram.free": "264 B", "dram.paging": "1 MB/s"})
    assert page_fault_share(352, paging) == pytest.approx(0.25)
    paged = service_times(fetch_plan, paging)
    resident = 10 * DRAM
    assert paged.by_resource()[1].sum(axis=1) / MICRO == pytest.approx(DRAM + 0.25 * resident)
