"""Experiments and sweeps of what depends on the clock: what is asked for, what comes out, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import tiny_mixture
import yaml
from tiny_mixture import SHAPE

from dipsim.basics.errors import InputError
from dipsim.planning.planner import CpuPlanner
from dipsim.study import passes
from dipsim.study.clock_options import ClockOptions
from dipsim.study.experiment import Experiment
from dipsim.study.keys import point_key
from dipsim.study.points import points
from dipsim.study.run import check, run, write_run
from dipsim.study.sweep import sweep
from dipsim.timing.device import Device

PHONE = """
name: tiny-phone
flash: { read_bandwidth: 1 MB/s, latency: 20 us, queue_depth: 2 }
dram: { capacity: 1 GB, bandwidth: 1 GB/s, flash_copies: 1 }
compute: { throughput: 1 GFLOP/s, layer: 300 us }
energy: { flash: 100 pJ/B, dram: 10 pJ/B, compute: 1 pJ/FLOP }
"""
ORACLE = {"by": {"oracle": {"recall": 0.75}}, "units": 2, "buffer": "800 B"}
SIZE = SHAPE.static_bytes(12)


@pytest.fixture
def make(tmp_path):
    trace = tiny_mixture.write(tmp_path / "tiny.safetensors")
    (tmp_path / "phone.yaml").write_text(PHONE)

    def experiment(**options):
        base = {
            "trace": str(trace.path),
            "device": str(tmp_path / "phone.yaml"),
            "dram": f"{SIZE + 3000} B",
            "start": "cold",
            "policies": ["experts"],
        }
        return Experiment(**base | options)

    return experiment


def test_defaults_depend_on_nothing(make):
    assert not make().on_clock
    assert not make(prefetch=ORACLE | {"when": "never"}).on_clock
    assert not make(speculate={"draft": 0, "acceptance": 0.5}).on_clock
    for option in ({"prefetch": ORACLE}, {"speculate": {"draft": 1, "acceptance": 0.5}}, {"streams": 2},
                   {"contention": True}):  # fmt: skip
        assert make(**option).on_clock, option


def test_a_prefetch_takes_its_buffer_from_the_cache_and_its_reads_cost_energy(make):
    """800 bytes of 3000: the cache has 2200. A guess that is read costs 100 + 10 pJ a byte, as any read."""
    (with_it,), (without,) = run(make(prefetch=ORACLE)), run(make())
    assert with_it.plan.budget.cache_bytes == without.plan.budget.cache_bytes - 800 == 2200
    assert with_it.plan.peak_dram_bytes <= SIZE + 3000
    summary, tokens = with_it.summary(), with_it.tokens()
    guessed = summary["guessed_flash_bytes_per_token"]
    assert guessed == pytest.approx(with_it.plan.guessed.bytes.sum() / 12)
    assert tokens["flash_bytes"].sum() == pytest.approx((with_it.plan.flash_read_bytes.sum()) + 12 * guessed)
    plain = with_it.plan.flash_read_bytes.sum() * 110e-12 + with_it.plan.dram_bytes.sum() * 10e-12
    plain += with_it.plan.flops.sum() * 1e-12
    assert tokens["energy_j"].sum() == pytest.approx(plain + 12 * guessed * 110e-12)
    assert summary["energy_j_per_token"] == pytest.approx(tokens["energy_j"].mean())
    assert summary["flash_reads_per_token"] == pytest.approx(tokens["flash_reads"].mean())
    fates = summary["guesses_per_token"]
    assert fates["useful"] == pytest.approx(tokens["guesses_useful"].mean())
    assert fates["useful"] + fates["late"] > 0
    used, missed = 12 * (fates["useful"] + fates["late"]), with_it.plan.units[1].sum()
    assert summary["guess_recall"] == pytest.approx(used / (used + missed))
    assert summary["guess_precision"] == pytest.approx(used / (used + 12 * fates["wasted"]))
    assert with_it.hit_rate > without.hit_rate - 0.1
    assert summary["dram_budget"]["buffer_bytes"] == 800


def test_streams_are_told_apart(make):
    (result,) = run(make(streams=3, timing="pipelined"))
    summary, tokens = result.summary(), result.tokens()
    assert tokens["stream"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    each = tokens.groupby("stream")["latency_s"].sum()
    assert result.tokens_per_s == pytest.approx(12 / each.max())
    assert [stream["tokens_per_s"] for stream in summary["streams"]] == pytest.approx((4 / each).tolist())
    assert sum(stream["tokens_per_s"] for stream in summary["streams"]) >= result.tokens_per_s * (1 - 1e-9)
    assert summary["waited_s"]["flash"] > 0
    assert summary["dram_budget"]["kv_cache_bytes"] == 3 * SHAPE.kv_cache_bytes(12)


def test_tokens_per_second_count_those_accepted(make):
    (result,) = run(make(speculate={"draft": 3, "acceptance": 1.0}))
    assert result.plan.tokens == 12
    assert result.plan.rows == 3
    assert result.tokens()["accepted"].tolist() == [4, 4, 4]
    summary = result.summary()
    assert summary["tokens_per_verification"] == 4
    assert summary["latency_s"]["mean"] == pytest.approx(1 / summary["tokens_per_s"])
    assert sum(summary["parts_s"].values()) == pytest.approx(1 / summary["tokens_per_s"])


def test_what_is_written_is_the_same_again_and_shows_every_kind(make, tmp_path):
    chosen = make(prefetch=ORACLE, contention=True, timing="concurrent")
    for name in "ab":
        write_run(chosen, run(chosen, timeline=True), tmp_path / name, timeline=True)
    for name in ("summary.json", "tokens.csv", "spans.csv", "timeline.json", "experiment.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert Experiment.load(tmp_path / "a/experiment.yaml") == chosen
    events = json.loads((tmp_path / "a/timeline.json").read_text())["traceEvents"]
    kinds = {event["cat"] for event in events if event["ph"] == "X"}
    assert kinds >= {"tokens", "demand", "guess", "fill"}
    tracks = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    read = [e for e in events if tracks.get(e.get("tid"), "").startswith(("Flash", "DRAM")) and e["ph"] == "X"]
    assert read
    assert all(event["args"]["bytes"] > 0 for event in read)
    guess = next(event["name"] for event in events if event.get("cat") == "guess")
    assert guess.startswith("token ")
    assert " layer " in guess
    assert guess.endswith("expert guess")
    busy: dict[int, float] = {}
    for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"]):
        assert event["ts"] >= busy.get(event["tid"], 0.0) - 1e-2, tracks[event["tid"]]  # nothing overlaps on a track
        busy[event["tid"]] = event["ts"] + event["dur"]
    assert (pd.read_csv(tmp_path / "a/spans.csv")["kind"].unique() != "").all()


GRID = {
    "prefetch": ORACLE | {"when": "idle"},
    "sweep": {"prefetch.when": ["never", "idle", "eager"], "oracle.recall": [0.0, 1.0], "prefetch.units": [1, 2]},
}


def test_a_sweep_uses_the_engine_where_it_must(make, tmp_path):
    """`never` depends on no parameter of a guess: one row. The others are what single runs find."""
    chosen = make(**GRID)
    table = sweep(chosen, tmp_path / "one", workers=1)
    assert table["prefetch.when"].tolist() == ["never"] + ["idle"] * 4 + ["eager"] * 4
    assert table["on_clock"].tolist() == [False] + [True] * 8
    never = table.iloc[0]
    (plain,) = run(make())
    assert never["tokens_per_s"] == pytest.approx(plain.tokens_per_s, rel=1e-12)
    assert np.isnan(never["guesses_useful_per_token"])
    wanted = ORACLE | {"when": "idle", "units": 2, "by": {"oracle": {"recall": 1.0}}}
    (single,) = run(make(prefetch=wanted))
    row = table[(table["prefetch.when"] == "idle") & (table["oracle.recall"] == 1) & (table["prefetch.units"] == 2)]
    assert row["tokens_per_s"].item() == single.tokens_per_s
    assert row["guesses_useful_per_token"].item() == single.summary()["guesses_per_token"]["useful"]
    assert row["flash_waited_s"].item() == single.summary()["waited_s"]["flash"]


@pytest.mark.slow
def test_every_swept_option_has_its_column(make):
    swept = {"streams": [1, 2], "turns": ["first-come", "round-robin"], "contention": [False, True]}
    told = [tuple(point.columns[name] for name in swept) for point in points(make(sweep=swept))]
    assert len(told) == len(set(told)) == 7  # of the eight, one stream without contention takes no turns


@pytest.mark.slow
def test_workers_find_the_same_and_a_users_prefetcher_is_found(make, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dipsim import Prefetcher\n\n\nclass Mine(Prefetcher):\n    '''The first.'''\n\n    first: int = 0\n\n"
        "    def scores(self, known):\n        scores = 0.0 * known.uses\n        scores[self.first] = 1\n"
        "        return scores\n"
    )
    monkeypatch.chdir(tmp_path)
    chosen = make(
        prefetch={"by": "./mine.py", "buffer": "400 B"}, sweep={"mine.first": [0, 3], "prefetch.lanes": [1, 2]}
    )
    chosen = chosen.model_copy(
        update={"prefetch": make(prefetch={"by": {"./mine.py": {"first": 0}}, "buffer": "400 B"}).prefetch}
    )
    one, two = (sweep(chosen, tmp_path / name, workers=count) for name, count in (("one", 1), ("two", 2)))
    pd.testing.assert_frame_equal(one, two)
    assert len(set(one["tokens_per_s"])) > 1
    before = [point.key for point in points(chosen)]
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "\n")
    assert not set(before) & {point.key for point in points(chosen)}


def test_a_prefetcher_that_changes_under_a_sweep_leaves_no_wrong_row(make, tmp_path, monkeypatch):
    code = (
        "from dipsim import Prefetcher\n\n\nclass Mine(Prefetcher):\n    first: int = 0\n\n"
        "    def scores(self, known):\n        scores = 0.0 * known.uses\n        scores[self.first] = 1\n"
        "        return scores\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(code)
    chosen = make(prefetch={"by": str(file), "buffer": "400 B"}, sweep={"prefetch.lanes": [1, 2]})
    simulate, ran = passes.run_on_clock, []

    def changed(*rest, **options):
        ran.append(1)
        file.write_text(code if len(ran) < 2 else code.replace("= 1", "= -1"))
        return simulate(*rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(passes, "run_on_clock", changed)
        with pytest.raises(InputError, match="was changed during the sweep"):
            sweep(chosen, tmp_path / "out")
    assert len(list((tmp_path / "out/points").glob("*.json"))) == 1
    file.write_text(code)
    pd.testing.assert_frame_equal(sweep(chosen, tmp_path / "out"), sweep(chosen, tmp_path / "alone"))


def test_only_a_cpu_plans_on_the_clock(make, tmp_path):
    class Eager(CpuPlanner):
        """Says that it is able to plan everything, and must not be asked to."""

        def fill(self, *_):
            raise AssertionError

    chosen = make(prefetch=ORACLE, sweep={"prefetch.units": [1, 2]})
    assert len(sweep(chosen, tmp_path / "s", planners=(Eager(), CpuPlanner()))) == 2


def test_the_key_of_a_point_knows_what_depends_on_the_clock():
    paper = Device.load("paper")
    options = [
        ClockOptions(),
        ClockOptions(streams=2),
        ClockOptions(streams=2, turns="round-robin"),
        ClockOptions(contention=True),
        *(
            ClockOptions(prefetch={"by": by, "when": when})
            for by in ("popular", "oracle")
            for when in ("idle", "eager")
        ),
        ClockOptions(speculate={"draft": 2, "acceptance": 0.5}),
    ]
    keys = [point_key("p", paper, "serial", each) for each in options]
    assert len(set(keys)) == len(keys)
    assert point_key("p", paper, "serial", ClockOptions(prefetch={"by": "popular", "when": "never"})) == keys[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefetch": ORACLE | {"by": {"oracle": {"recall": 1.5}}}}, "oracle: recall"),
        ({"prefetch": ORACLE | {"by": {"oracle": {"precision": 0}}}}, "oracle: precision"),
        ({"prefetch": ORACLE | {"by": "clairvoyant"}}, "clairvoyant: no such prefetcher; shipped: next-layer, oracle"),
        ({"prefetch": ORACLE | {"buffer": "100 B"}}, "prefetch: buffer: 100 B does not hold the 192 B"),
        ({"prefetch": ORACLE | {"buffer": "1 MB"}}, "prefetch: buffer: 1 MB do not fit into"),
        ({"streams": 3, "tokens": 2}, "streams: 3 streams of 2 tokens"),
        ({"speculate": {"draft": 2, "acceptance": 0.5}, "tokens": 1}, "speculate: the trace has one token to decode"),
        ({"prefetch": ORACLE, "eviction": "belady"}, "belady needs to know all masks beforehand"),
    ],
)
def test_what_cannot_run_is_refused_before_a_layer_is_read(make, options, words):
    with pytest.raises(InputError, match=words):
        check(make(**options))
    with pytest.raises(InputError, match=words):
        points(make(**options, sweep={"timing": ["serial", "pipelined"]}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"streams": 9}, "streams"),
        ({"streams": 0}, "streams"),
        ({"turns": "random"}, "turns"),
        ({"prefetch": ORACLE | {"when": "later"}}, "prefetch.when"),
        ({"prefetch": ORACLE | {"lanes": 0}}, "prefetch.lanes"),
        ({"speculate": {"draft": 2, "acceptance": 1.2}}, "speculate.acceptance"),
        ({"speculate": {"draft": 2}}, "speculate.acceptance"),
        ({"prefetch": {"units": 3}}, "prefetch.by"),
    ],
)
def test_bad_fields_are_named(tmp_path, options, words, cli_run):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({"trace": "qwen3-30b-a3b", "policies": ["experts"], **options}))
    status, _, error = cli_run("run", path, "--out", tmp_path / "out")
    assert status == 2
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "out").exists()
