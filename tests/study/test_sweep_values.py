"""Every figure of a sweep's table, worked out on paper; and passes, their costs and their order."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from hand import DEVICE, SHAPE, activations, hand_trace

from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.planning.planner import CpuPlanner
from dipsim.study import passes
from dipsim.study.experiment import Experiment
from dipsim.study.passes import RESULTS, compute, split
from dipsim.study.points import points
from dipsim.study.sweep import sweep
from dipsim.workload.recorded import write_trace
from dipsim.workload.trace import Header

MAGNITUDE = {"magnitude": {"fraction": 0.375}}
# What tests/timing/test_by_hand.py finds for 352 B of DRAM (4 columns a layer are cached) and 184 B (weights streamed).
LATENCY = {352: [120, 119.2, 149.2, 120, 142.8], 184: [386.8, 413.2, 439.6, 386.8, 433.2]}  # us
BUSY = {352: (184, 150.4, 316.8), 184: (1670, 72.8, 316.8)}  # us of Flash, DRAM and compute
BYTES = {352: (44, 1504), 184: (5 * 88 + 5 * 64 + 5 * 12, 728)}  # from Flash, and over the bus
READS = {352: 14, 184: 5 * (2 * 6 + 1) + 2 * 10}


@pytest.fixture
def make(tmp_path):
    trace = hand_trace(tmp_path)
    (tmp_path / "hand.yaml").write_text(yaml.safe_dump(DEVICE))

    def experiment(**fields):
        base = {"trace": str(trace.path), "device": str(tmp_path / "hand.yaml"), "policies": ["dense", MAGNITUDE],
                "start": "cold", "eviction": "lru", "read_through": False, "stream_static": True,
                "sweep": {"dram": ["352 B", "184 B"]}}  # fmt: skip
        return parse(Experiment, base | fields, "exp.yaml")

    return experiment


def test_every_figure_of_a_row(make, tmp_path):
    table = sweep(make(), tmp_path / "out").set_index(["policy", "dram_bytes"])
    for size in (352, 184):
        row, latency = table.loc[("magnitude(fraction=0.375)", size)], sorted(LATENCY[size])
        total = sum(latency)
        assert row.tokens_per_s == pytest.approx(5e6 / total)
        assert row.latency_mean_s * 1e6 == pytest.approx(total / 5)
        assert row.latency_p50_s * 1e6 == pytest.approx(latency[2])
        assert row.latency_p95_s * 1e6 == pytest.approx(latency[3] + 0.8 * (latency[4] - latency[3]))
        assert row.latency_p99_s * 1e6 == pytest.approx(latency[3] + 0.96 * (latency[4] - latency[3]))
        assert row.ttft_s * 1e6 == pytest.approx({352: 252, 184: 421.2}[size])
        busy = np.array(BUSY[size]) / total
        assert [row.flash_utilisation, row.dram_utilisation, row.compute_utilisation] == pytest.approx(busy.tolist())
        flash, dram = BYTES[size]
        assert (row.flash_bytes_per_token, row.dram_bytes_per_token) == pytest.approx((flash / 5, dram / 5))
        assert row.flash_reads_per_token == pytest.approx(READS[size] / 5)
        assert row.mean_read_bytes == pytest.approx(flash / READS[size])
        assert row.read_amplification == 1
        assert row.hit_rate == pytest.approx({352: 336 / 380, 184: 0}[size])
        assert row.mlp_fraction_read == pytest.approx(76 / 96)
        assert row.peak_dram_bytes == size
        assert row.energy_j_per_token * 1e9 == pytest.approx((2 * flash + dram + 3 * 3168) / 5)
        assert row.flash_waited_s == 0
        assert row.mlp_fraction_in_dram == pytest.approx({352: 80 / 96, 184: 0}[size])
        guessed = [row[f"guesses_{fate}_per_token"] for fate in ("useful", "late", "wasted", "dropped")]
        assert [*guessed, row.guessed_flash_bytes_per_token] == [None] * 5
        said = ("device", "model", "layout", "start", "eviction", "timing", "scope", "prompt", "tokens", "calibration")
        assert [row[name] for name in said] == ["hand", "hand", "columns", "cold", "lru", "serial", "layer", 0, 5, ""]
        assert [row.stream_static, row.read_through, row.on_clock] == [True, False, False]
        assert (row.flash_bandwidth_bytes_per_s, row.dram_bandwidth_bytes_per_s) == (1e6, 1e7)
        price = (row.perplexity, row.perplexity_standard_error, row.perplexity_source)
        assert price == (None, None, "not measured")
        assert (row.working_set_bytes, row.cliff_dram_bytes) == (None, None)


def test_dense_reads_everything(make, tmp_path):
    """80 of its 96 B are in DRAM; the rest takes three commands a layer and 16 us: 76 us of Flash a token."""
    row = sweep(make(), tmp_path / "out").set_index(["policy", "dram_bytes"]).loc[("dense", 352)]
    seen = np.array([1, 2, 3, 1, 2])
    latency = 76 + 0.1 * (176 + 80 + 32 * seen) + 0.1 * (2 * (96 + 192) + 80 + 32 * seen)
    assert row.tokens_per_s == pytest.approx(5e6 / latency.sum())
    assert row.hit_rate == pytest.approx(80 / 96)
    assert row.flash_reads_per_token == 6


def test_the_table_that_is_written_is_the_table(make, tmp_path):
    found = sweep(make(), tmp_path / "out")
    written = pd.read_csv(tmp_path / "out/sweep.csv")
    assert list(written.columns) == list(found.columns)
    assert set(RESULTS) < set(written.columns)
    for name in ("tokens_per_s", "hit_rate", "flash_utilisation", "latency_p99_s"):
        assert written[name].tolist() == found[name].tolist()
    again = sweep(make(), tmp_path / "out")  # from what was kept
    pd.testing.assert_frame_equal(again, found)


def test_progress_counts_points_and_those_from_before(make, tmp_path):
    said = []
    sweep(make(), tmp_path / "out", progress=lambda *now: said.append(now))
    assert said[0] == ("points", 0, 4)
    assert said[-1] == ("points", 4, 4)
    layers = [(done, of) for what, done, of in said if what == "planning layers"]
    assert layers[-1] == (4, 4)  # two plans of two layers; dense looks at none
    said.clear()
    more = make(sweep={"dram": ["352 B", "184 B", "300 B"]})
    sweep(more, tmp_path / "out", progress=lambda *now: said.append(now))
    assert said[0] == ("points, 4 of them from before", 4, 6)
    assert said[-1] == ("points, 4 of them from before", 6, 6)
    assert not (tmp_path / "out/points/layers").exists()


def test_columns_of_what_is_swept(make):
    swept = {"flash.read_bandwidth": ["1 MB/s", "2 MB/s"], "timing": ["serial", "pipelined"], "tokens": [2, 4]}
    found = points(make(dram="352 B", sweep=swept))
    assert len(found) == 2 * 2 * 2 * 2
    assert [point.columns["flash.read_bandwidth"] for point in found] == ["1 MB/s"] * 8 + ["2 MB/s"] * 8
    assert [point.columns["flash_bandwidth_bytes_per_s"] for point in found] == [1e6] * 8 + [2e6] * 8
    assert [point.columns["tokens"] for point in found[:4]] == [2, 2, 4, 4]
    assert "timing" in found[0].columns
    assert [point.columns["policy"] for point in found[:2]] == ["dense", "magnitude(fraction=0.375)"]
    assert [point.planned.layers for point in found[:2]] == [0, 2]
    assert len({point.key for point in found}) == 16
    assert len({point.planned.key for point in found}) == 4
    arrays = found[1].planned.empty
    positions, floats = 7, 8
    by_token = 6 * positions * floats + positions * 4 * (4 + floats)  # 4 classes of reads, of 4 B, and of their bytes
    assert found[1].planned.bytes == 2 * by_token + 5 * positions * floats + positions * 8
    assert arrays.rows == 2


def test_a_pass_costs_tokens_layers_and_what_is_aware(make):
    every = {"policies": ["dense", MAGNITUDE, {"dip-ca": {"keep": 0.5}}]}
    found = split(points(make(**every)), 1)
    assert [(each.jobs[0].policy, each.layers, each.cost) for each in found] == [
        ("dense", 0, 0),
        ("dip-ca", 2, 5 * 2 * 3 * 2),
        ("magnitude", 2, 5 * 2 * 2),
    ]
    assert [len(each.jobs) for each in found] == [2, 2, 2]
    assert [len(each.jobs) for each in split(points(make(**every)), 3)] == [2, 2, 2]  # 6 plans, 2 for each of 3 workers
    assert [len(each.jobs) for each in split(points(make(**every)), 6)] == [2, 1, 1, 1, 1]
    assert [each.tokens for each in split(points(make(tokens=3)), 1)] == [3, 3]


def test_shares_of_workers_are_rounded_up(make):
    wanted = points(make(sweep={"dram": [f"{size} B" for size in range(300, 305)]}))  # 10 plans, of which 5 take time
    for workers, expected in ((2, [5]), (3, [3, 2]), (7, [2, 2, 1]), (10, [1] * 5)):
        assert [len(each.jobs) for each in split(wanted, workers) if each.layers] == expected, workers


def test_layers_are_kept_of_what_is_planned_one_by_one(make, tmp_path):
    class AllTogether(CpuPlanner):
        all_together = True

    wanted = points(make())
    assert [each.kept for each in split(wanted, 1, kept=tmp_path)] == [tmp_path] * 2
    assert [each.kept for each in split(wanted, 1, AllTogether(), tmp_path)] == [None] * 2


def test_a_pass_is_no_larger_than_its_planner_wants(make, monkeypatch):
    wanted = points(make(sweep={"dram": [f"{size} B" for size in range(300, 305)]}))
    size = wanted[1].planned.bytes
    for most, expected in ((5 * size, [5]), (4.99 * size, [3, 2]), (2 * size, [2, 2, 1]), (size, [1] * 5)):
        monkeypatch.setattr(CpuPlanner, "max_plan_bytes", most)
        aware = [len(each.jobs) for each in split(wanted, 1) if each.layers]
        assert aware == expected
        assert [len(each.jobs) for each in split(wanted, 1) if not each.layers] == [5]


def test_a_pass_ticks_for_each_plan_of_each_layer(make):
    dense, magnitude = split(points(make()), 1)
    ticks = []
    rows = compute(magnitude, ticks.append)
    assert ticks == [2, 2]
    assert len(rows) == 2
    assert set(next(iter(rows.values()))) == set(RESULTS)
    ticks.clear()
    assert len(compute(dense, ticks.append)) == 2
    assert sum(ticks) == 0


def test_a_pass_whose_trace_has_changed_is_refused(make, tmp_path):
    _, magnitude = split(points(make()), 1)
    write_trace(tmp_path / "hand.safetensors", Header(model=SHAPE), activations(), "float32")  # one sequence, not two
    with pytest.raises(InputError, match=r"hand\.safetensors, magnitude or a file that they read was changed during"):
        compute(magnitude)


def test_a_plan_is_made_anew_only_for_what_it_depends_on(make, tmp_path, monkeypatch):
    made = []
    plan = passes.plan
    monkeypatch.setattr(passes, "plan", lambda trace, settings, *rest, **more: made.extend(settings) or plan(
        trace, settings, *rest, **more))  # fmt: skip
    swept = {"timing": ["serial", "concurrent"], "dram.bandwidth": ["10 MB/s", "20 MB/s"], "prompt": [0, 3]}
    table = sweep(make(dram="600 B", policies=[MAGNITUDE], sweep=swept), tmp_path / "out")
    assert [setting.prompt for setting in made] == [0, 3]
    assert len(table) == 8
    assert (table.groupby(["timing", "prompt"])["tokens_per_s"].diff().dropna() > 0).all()  # a faster bus
    assert table["key"].is_unique


def test_a_kept_point_is_what_was_found_and_its_checksum(make, tmp_path):
    table = sweep(make(), tmp_path / "out")
    for row in table.itertuples():
        kept = json.loads((tmp_path / f"out/points/{row.key}.json").read_text())
        assert set(kept) == {*RESULTS, "checksum"}
        assert kept["tokens_per_s"] == row.tokens_per_s
    provenance = json.loads((tmp_path / "out/provenance.json").read_text())
    assert {"policy dense", "policy magnitude"} < set(provenance["sha256"])


def test_rows_on_the_clock_are_those_of_the_closed_form(make, tmp_path):
    """One stream with contention: nothing is copied and no cache takes anything in, so nothing meets."""
    plain = sweep(make(policies=[MAGNITUDE], eviction="none"), tmp_path / "plain")
    clocked = sweep(make(policies=[MAGNITUDE], eviction="none", contention=True), tmp_path / "clocked")
    assert clocked["on_clock"].all()
    assert not set(plain["key"]) & set(clocked["key"])
    for name in ("tokens_per_s", "hit_rate", "flash_utilisation", "ttft_s"):
        assert clocked[name].tolist() == pytest.approx(plain[name].tolist())
    found = split(points(make(policies=[MAGNITUDE], contention=True)), 1)
    assert [(len(each.jobs), each.cost) for each in found] == [(1, 5 * 2 * 30)] * 2
    ticks = []
    assert len(compute(found[0], ticks.append)) == 1
    assert ticks == [2]


def test_a_measured_perplexity_stands_in_its_row(make, tmp_path):
    """For the setting that was measured, of this model; others are not measured."""
    measured = {"policy": "magnitude", "parameters": '{"fraction": 0.375}', "mlp_fraction": 0.5, "eviction": "lru",
                "tokens": 5, "length": 5, "perplexity": 12.5, "standard_error": 0.25, "hit_rate": 0.5,
                "mlp_fraction_read": 0.5, "device": "hand", "timing": "serial", "tokens_per_s": 1.0, "text": "t",
                "model": "hand", "adapter": "", "memory": ""}  # fmt: skip
    pd.DataFrame([measured]).to_csv(tmp_path / "hand.quality.csv", index=False)
    table = sweep(make(), tmp_path / "out").set_index("policy")
    assert table.loc["magnitude(fraction=0.375)", "perplexity"].tolist() == [12.5, 12.5]
    assert table.loc["magnitude(fraction=0.375)", "perplexity_standard_error"].tolist() == [0.25, 0.25]
    assert table.loc["dense", "perplexity"].isna().all()
    assert table["perplexity_source"].tolist() == ["not measured", "measured"] * 2


def test_only_options_and_hardware_have_columns_of_their_own(make):
    (first, *_) = points(make(sweep={"dram": ["352 B"], "eviction": ["lru"], "magnitude.fraction": [0.5]}))
    assert {"dram", "magnitude.fraction"} & set(first.columns) == set()
    guess = {"by": {"oracle": {"recall": 0.5}}, "units": 1}
    swept = {"cache.size": ["80 B", "90 B"], "streams": [1, 2], "prefetch.when": ["never", "idle"],
             "oracle.recall": [0.25]}  # fmt: skip
    found = points(make(sweep=swept, prefetch=guess, policies=[MAGNITUDE]))
    assert [point.columns["cache.size"] for point in found] == ["80 B"] * 4 + ["90 B"] * 4
    assert [point.columns["streams"] for point in found[:4]] == [1, 1, 2, 2]
    assert [point.columns["prefetch.when"] for point in found[:2]] == ["never", "idle"]
    assert {point.columns["oracle.recall"] for point in found} == {0.25}
    assert [point.on_clock for point in found[:4]] == [False, True, True, True]
