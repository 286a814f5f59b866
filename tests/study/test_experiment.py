import json

import pandas as pd
import pytest
import yaml
from tiny import SHAPE

import dipsim
from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.study.experiment import Experiment, MlpFraction
from dipsim.study.run import run, write_run
from dipsim.timing.device import Device


def make(recorded, /, **fields):
    data = {"trace": str(recorded.path), "dram": {"mlp_fraction": 0.5}, "policies": ["dense", {"dip": {"keep": 0.75}}]}
    data["start"] = "cold"
    return parse(Experiment, data | fields, "exp.yaml")


def test_results_agree_with_their_tables(tiny_trace, tmp_path):
    chosen = make(tiny_trace())
    results = run(chosen)
    write_run(chosen, results, tmp_path / "out", timeline=True)
    summaries = json.loads((tmp_path / "out/summary.json").read_text())
    tokens, layers = (pd.read_csv(tmp_path / "out" / name) for name in ("tokens.csv", "layers.csv"))
    assert [s["policy"] for s in summaries] == ["dense", "dip(keep=0.75)"]
    for result, summary in zip(results, summaries, strict=True):
        rows = tokens[tokens.policy == result.policy]
        assert summary["tokens_per_s"] == pytest.approx(len(rows) / rows.latency_s.sum())
        assert rows[["flash_s", "dram_s", "compute_s", "wait_s"]].sum().sum() == pytest.approx(rows.latency_s.sum())
        assert summary["flash_bytes_per_token"] == pytest.approx(rows.flash_bytes.mean())
        assert summary["mlp_fraction_read"] == pytest.approx(rows.mlp_fraction_read.mean())
        by_layer = layers[layers.policy == result.policy]
        read = by_layer.mlp_dram_bytes_per_token + by_layer.mlp_flash_bytes_per_token
        assert summary["hit_rate"] == pytest.approx((by_layer.hit_rate * read).sum() / read.sum())
        assert summary["utilisation"]["flash"] <= 1
        assert summary["bandwidth_bytes_per_s"]["flash"] == pytest.approx(1e9)
        assert summary["peak_dram_bytes"] <= summary["dram_bytes"]
        assert summary["perplexity"] is summary["energy_j_per_token"] is None
    assert summaries[0]["hit_rate"] == pytest.approx(0.5)
    assert summaries[0]["mlp_fraction_read"] == 1


def test_the_written_experiment_runs_again_to_the_same_bytes(tiny_trace, tmp_path):
    chosen = make(tiny_trace())
    write_run(chosen, run(chosen), tmp_path / "a")
    again = Experiment.load(tmp_path / "a/experiment.yaml")
    assert again == chosen
    write_run(again, run(again), tmp_path / "b")
    for name in ("summary.json", "tokens.csv", "layers.csv", "spans.csv", "provenance.json", "experiment.yaml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_timeline_opens_as_trace_events_and_an_old_one_does_not_stay(tiny_trace, tmp_path):
    chosen = make(tiny_trace())
    results = run(chosen, timeline=True)
    write_run(chosen, results, tmp_path, timeline=True)
    events = json.loads((tmp_path / "timeline.json").read_text())["traceEvents"]
    complete = [e for e in events if e["ph"] == "X" and e["cat"] not in ("tokens", "waiting")]
    assert len(complete) == sum(len(r.timeline.spans) for r in results)
    assert {e["args"]["name"] for e in events if e["name"] == "process_name"} == {"dense", "dip(keep=0.75)"}
    tracks = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert set(tracks) == {(e["pid"], e["tid"]) for e in events if e["ph"] == "X"}  # no track is empty
    flash = [e for e in complete if tracks[e["pid"], e["tid"]] == "Flash: demand" and e["pid"] == 0]
    assert sum(e["dur"] for e in flash if "prompt" not in e["name"]) / 1e6 == pytest.approx(
        results[0].timeline.busy_s[:, 0].sum()
    )
    assert {e["name"] for e in events if e.get("cat") == "tokens"} == {f"token {token}" for token in range(12)}
    write_run(chosen, results, tmp_path)
    assert not (tmp_path / "timeline.json").exists()


def test_dram_by_share_and_by_size(tiny_trace):
    trace = tiny_trace()
    static = SHAPE.static_bytes(12)
    assert trace.longest_sequence() == trace.longest_sequence(99) == 12
    assert make(trace).dram_bytes(SHAPE, 12, Device.load("paper")) == static + SHAPE.mlp_bytes / 2
    assert make(trace, dram="2 kB").dram == 2000.0
    assert make(trace, dram={"mlp_fraction": 1}).dram == MlpFraction(1.0)
    by_share, by_size = (
        run(make(trace, dram=d))[1] for d in ({"mlp_fraction": 0.5}, f"{static + SHAPE.mlp_bytes / 2} B")
    )
    assert by_share.summary() == by_size.summary()
    everything = run(make(trace, dram=None))[0]
    assert everything.plan.setting.dram_bytes == 8e9
    assert everything.hit_rate == 1


def test_energy_is_reported_only_where_the_device_says(tiny_trace, tmp_path):
    path = tmp_path / "dev.yaml"
    data = {"name": "dev", "flash": {"read_bandwidth": "1 GB/s"}, "dram": {"capacity": "1 GB", "bandwidth": "10 GB/s"}}
    data["energy"] = {"flash": "100 pJ/B", "dram": "10 pJ/B", "compute": "1 pJ/FLOP"}
    data["compute"] = {"throughput": "1 TFLOP/s"}
    path.write_text(yaml.safe_dump(data))
    summary = run(make(tiny_trace(), device=str(path)))[0].summary()
    flops = 2 * 8 / 4 * (SHAPE.mlp_bytes + SHAPE.attention_bytes) + 2 * SHAPE.lm_head_bytes
    flops += 4 * SHAPE.num_hidden_layers * SHAPE.hidden_size * 6.5  # the mean length seen by 12 tokens
    joules = 100 * summary["flash_bytes_per_token"] + 10 * summary["dram_bytes_per_token"] + flops
    assert summary["energy_j_per_token"] == pytest.approx(joules * 1e-12)


@pytest.mark.parametrize("energy", [{"flash": "1 pJ/B"}, {"flash": "1 pJ/B", "dram": "1 pJ/B"}])
def test_energy_that_is_not_wholly_known_is_unknown(tiny_trace, energy):
    device = Device.load("paper").replace(energy=energy, compute={"throughput": "1 TFLOP/s"})
    assert dipsim.simulate(tiny_trace(), dipsim.load_policy("dip"), device).summary()["energy_j_per_token"] is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"eviction": "LFU"}, "simulate: eviction"),
        ({"timing": "foo"}, "simulate: timing"),
        ({"dram": float("nan")}, "simulate: dram"),
        ({"dram": float("inf")}, "simulate: dram"),
        ({"dram": -1}, "simulate: dram"),
        ({"dram": "60"}, "simulate: dram: '60' has no unit"),
        ({"dram": "900 GB"}, "more than the 8 GB of device paper"),
        ({"tokens": 2.5}, "simulate: tokens"),
        ({"tokens": True}, "simulate: tokens"),
        ({"prompt": -300}, "simulate: prompt"),
        ({"evicton": "lfu"}, "evicton: unknown key"),
    ],
)
def test_simulate_checks_what_it_is_given(tiny_trace, options, complaint):
    with pytest.raises(InputError, match=complaint):
        dipsim.simulate(tiny_trace(), dipsim.load_policy("dip"), dipsim.Device.load("paper"), **options)


def test_summary_reports_resources_and_budget(tiny_trace):
    summary = run(make(tiny_trace(), policies=["magnitude"], dram={"mlp_fraction": 0.8}))[0].summary()
    budget = summary["dram_budget"]
    whole, cache = 2 / 3 * SHAPE.mlp_bytes, budget["cache_bytes"]
    assert budget["whole_resident_bytes"] == pytest.approx(whole)
    assert budget["capacity_columns"] == {"neuron": int((0.8 - 2 / 3) * 3 * SHAPE.intermediate_size)}
    assert cache + budget["unused_bytes"] == pytest.approx(0.8 * SHAPE.mlp_bytes - whole)
    hit_rate_of_down = (summary["hit_rate"] * (2 / 3 + 0.5 / 3) - 2 / 3) / (0.5 / 3)
    assert summary["hit_rate_mean_of_matrices"] == pytest.approx((1 + 1 + hit_rate_of_down) / 3)
    assert summary["utilisation"]["flash"] + summary["utilisation"]["dram"] == pytest.approx(1)


def test_python_interface(tiny_trace):
    trace, device = tiny_trace(), dipsim.Device.load("paper")
    policy = dipsim.load_policy("dip-ca", keep=0.75, gamma=0.5)
    result = dipsim.simulate(trace, policy, device, dram="3 kB", start="cold", eviction="lru", timing="pipelined")
    assert result.tokens_per_s > 0
    assert len(result.tokens()) == trace.tokens
    assert (
        dipsim.simulate(trace, policy, device, dram=3000, start="cold", eviction="lru", timing="pipelined").summary()
        == result.summary()
    )


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"dram": 60}, r"exp\.yaml: dram: 60 has no unit"),
        ({"dram": "60"}, r"dram: '60' has no unit"),
        ({"dram": {"mlp_fraction": 2}}, "share of the MLP"),
        ({"dram": {"mlp": 0.5}}, "share of the MLP"),
        ({"dram": "-1 MB"}, "dram: .*more than 0"),
        ({"tokens": 0}, "tokens"),
        ({"tokens": 3.5}, "tokens"),
        ({"prompt": -1}, "prompt"),
        ({"eviction": "nonesuch"}, "eviction"),
        ({"timing": "parallel"}, "timing"),
        ({"policies": []}, "policies"),
        ({"policies": "dip"}, "policies"),
        ({"policies": [3]}, "3 is not a policy"),
        ({"policies": [{"dip": 3}]}, "is not a policy"),
        ({"policies": [{"dip": {}, "dense": {}}]}, "is not a policy"),
        ({"polices": ["dip"]}, "polices: unknown key"),
        ({"trace": None}, "trace"),
    ],
)
def test_bad_experiments(tiny_trace, fields, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        make(tiny_trace(), **fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"dram": "9 GB"}, "more than the 8 GB of device paper"),
        ({"dram": "100 B"}, "is less than the"),
        ({"tokens": 13}, "tokens: 13 asked for"),
        ({"policies": ["dip", "dip"]}, "dip is there twice"),
        ({"policies": ["dip-ca"], "eviction": "belady"}, "belady needs to know"),
        ({"policies": [{"dip": {"keep": 7}}]}, "keep"),
        ({"device": "nope"}, "no such device"),
        ({"trace": "nope"}, "no such trace"),
    ],
)
def test_experiments_that_cannot_run(tiny_trace, fields, complaint):
    with pytest.raises(InputError, match=complaint):
        run(make(tiny_trace(), **fields))
