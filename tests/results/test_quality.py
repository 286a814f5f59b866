"""The quality table: exact matches only, and what a perplexity budget buys."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import yaml
from tiny import SHAPE

from dipsim.basics import assets
from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.figures import pareto
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.results import quality
from dipsim.results.quality import Measured
from dipsim.sparsity.plugins import load_policy
from dipsim.study.experiment import Experiment
from dipsim.study.run import run
from dipsim.workload import Trace


def measured(trace, name, share=0.5, eviction="lfu", perplexity=20.0, speed=10.0, **parameters):
    setting = Setting(load_policy(name, **parameters), SHAPE.static_bytes(12) + share * SHAPE.mlp_bytes, eviction)
    (fetch_plan,) = plan(trace, [setting])
    row = Measured(
        policy=name, parameters=quality.parameters(setting), mlp_fraction=quality.mlp_fraction(fetch_plan),
        eviction=eviction, tokens=100, length=50, perplexity=perplexity, standard_error=0.1, hit_rate=0.5,
        mlp_fraction_read=0.5, device="paper", timing="serial", tokens_per_s=speed, text="t.txt", model="tiny",
        bits=quality.bits_of(SHAPE),
    )  # fmt: skip
    return row, fetch_plan


def test_a_perplexity_is_shown_only_for_exactly_its_setting(tiny_trace):
    trace = tiny_trace()
    aware, at_half = measured(trace, "dip-ca", keep=0.5, gamma=0.5)
    assert quality.lookup([aware], at_half) == (20.0, 0.1)
    for changes in ({"keep": 0.6}, {"gamma": 0.4}, {"fixed_top_n": 1}, {"share": 0.51}, {"eviction": "lru"}):
        _, other = measured(trace, "dip-ca", **({"keep": 0.5, "gamma": 0.5} | changes))
        assert quality.lookup([aware], other) == (None, None)
    blind, _ = measured(trace, "dip", keep=0.5)
    for changes in ({}, {"share": 0.2}, {"eviction": "lru"}):
        _, same = measured(trace, "dip", keep=0.5, **changes)
        assert quality.lookup([blind], same) == (20.0, 0.1)  # its masks do not see the cache
    assert quality.lookup([blind], measured(trace, "dip", keep=0.51)[1]) == (None, None)


def test_no_perplexity_for_another_model_a_plugin_or_an_adapted_model(tiny_trace, tmp_path):
    row, fetch_plan = measured(tiny_trace(), "dip", keep=0.5)
    assert quality.lookup([replace(row, model="other")], fetch_plan) == (None, None)
    assert quality.lookup([replace(row, adapter="lora")], fetch_plan) == (None, None)
    plugin = tmp_path / "dip.py"
    plugin.write_text("from dipsim.policies.dip import Dip as Shipped\nclass Dip(Shipped): pass")
    own = replace(fetch_plan, setting=replace(fetch_plan.setting, policy=load_policy(plugin, keep=0.5)))
    assert quality.lookup([row], own) == (None, None)
    recorded = Trace.open("smollm2-135m-synthetic")
    assert quality.read_quality(recorded) == []


def test_run_takes_it_from_the_table_beside_the_trace(tiny_trace):
    trace = tiny_trace()
    row, _ = measured(trace, "dip", keep=0.75, perplexity=17.5)
    experiment = {
        "trace": str(trace.path),
        "dram": {"mlp_fraction": 0.5},
        "policies": ["dense", {"dip": {"keep": 0.75}}],
    }
    chosen = parse(Experiment, experiment, "exp")
    assert [r.perplexity for r in run(chosen)] == [None, None]
    quality.write_quality([row], trace.path.with_name("tiny.quality.csv"))
    assert quality.read_quality(trace) == [row]
    dense, dip = run(chosen)
    assert (dense.perplexity, dip.perplexity, dip.standard_error) == (None, 17.5, 0.1)
    assert json.loads(json.dumps(dip.summary()))["perplexity"] == 17.5
    trace.path.with_name("tiny.quality.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match=r"tiny\.quality\.csv: column policy: is missing"):
        run(chosen)


@pytest.mark.slow
def test_the_shipped_table_covers_the_quickstart_and_its_own_experiments():
    rows = quality.read_quality(Trace.open("smollm2-135m"))
    results = run(Experiment.load(assets.find("examples", "quickstart")))
    assert all(result.perplexity for result in results)
    examples = assets.directory("examples")
    accuracy = yaml.safe_load((examples / "accuracy.yaml").read_text())
    keeps, gammas = yaml.safe_load((examples / "paper/gamma.yaml").read_text())["sweep"].values()
    more = len(keeps) * (len(gammas) - 1)  # both have the gamma 0.5
    assert len(rows) == len(accuracy["policies"]) * len(accuracy["sweep"]["dram"]) + more
    at_half = {row.parameters: row.perplexity for row in rows if row.policy == "dip-ca" and row.mlp_fraction == 0.5}
    for keep in keeps:
        costs = [
            at_half[json.dumps({"fixed_top_n": 0, "free": False, "gamma": gamma, "keep": keep, "warmup": 0})]
            for gamma in gammas
        ]
        assert costs[-1] == max(costs)  # the smallest gamma costs most
    (dense,) = {row.perplexity for row in rows if row.policy == "dense"}
    assert dense == pytest.approx(16.80, abs=0.005)
    assert all(row.perplexity >= dense - 3 * row.standard_error for row in rows)


def table(*rows):
    names = ("policy", "parameters", "mlp_fraction", "perplexity", "tokens_per_s")
    return pd.DataFrame(rows, columns=names).assign(eviction="lfu", device="paper", timing="serial")


def test_front_and_speedups():
    data = table(
        ("dense", "{}", 0.5, 10.0, 100.0),
        ("dip", '{"keep": 0.9}', 0.5, 10.05, 110.0),
        ("dip", '{"keep": 0.8}', 0.5, 10.4, 130.0),
        ("dip", '{"keep": 0.7}', 0.5, 10.5, 120.0),
        ("dip", '{"keep": 0.5}', 0.5, 15.0, 200.0),
    )
    assert pareto.front(data[data.policy == "dip"]).perplexity.tolist() == [15.0, 10.4, 10.05]
    (row,) = pareto.speedups(data).to_dict("records")
    assert (row["+0.1"], row["+0.2"], row["+0.5"], row["+1.0"]) == ("1.10x", "1.10x", "1.30x", "1.30x")
    assert row["+0.5 setting"] == "dip(keep=0.8)"
    (nothing,) = pareto.speedups(data.drop(index=[1, 2, 3])).to_dict("records")
    assert nothing["+1.0"] == ""


def test_the_figure_is_drawn_the_same_twice(tiny_trace, tmp_path):
    trace = tiny_trace()
    rows = [measured(trace, "dense", perplexity=10.0)[0], measured(trace, "dip", perplexity=11.0, speed=14)[0]]
    rows += [replace(rows[1], mlp_fraction=0.7), replace(rows[0], mlp_fraction=0.7)]
    data = pd.DataFrame([vars(row) for row in rows])
    images = []
    for name in ("a", "b"):
        paths = pareto.draw_pareto(data, tmp_path / name)
        images.append([path.read_bytes() for path in paths])
        assert [path.name for path in paths] == ["pareto.png", "pareto.svg"]
    assert images[0] == images[1]
    assert b"DRAM for 70% of the MLP" in images[0][1]


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        *(("perplexity", value, "is not a number from 1e-30") for value in ("0", "-1", "nan", "inf", "", "1e300")),
        ("standard_error", "-0.1", "is not a number from 0"),
        ("hit_rate", "2", "is not a number from 0 to 1"),
        ("tokens", "1.5", "is not a whole number from 1"),
        ("tokens_per_s", "0", "is not a number from 1e-30"),
        ("parameters", "[]", "its parameters are no JSON object"),
        ("parameters", "[" * 900, "its parameters are no JSON object"),
    ],
)
def test_a_table_of_impossible_values_is_refused(tiny_trace, column, value, complaint):
    trace = tiny_trace()
    row, _ = measured(trace, "dip", keep=0.75)
    path = trace.path.with_name("tiny.quality.csv")
    quality.write_quality([row, row], path)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.loc[1, column] = value
    table.to_csv(path, index=False)
    with pytest.raises(InputError) as error:
        quality.read_quality(trace)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "row 2: " in message
    assert complaint in message
    assert message.endswith("; make the table again with `python -m dipsim evaluate`")


def test_a_column_that_a_quality_table_does_not_have(tiny_trace):
    trace = tiny_trace()
    row, _ = measured(trace, "dip", keep=0.75)
    path = trace.path.with_name("tiny.quality.csv")
    quality.write_quality([row], path)
    path.write_text(path.read_text().replace("eviction", "evict"))
    with pytest.raises(InputError, match="column eviction: is missing"):
        quality.read_quality(trace)
    quality.write_quality([row], path)
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([f"{first},more", *(f"{line},1" for line in rest)]))
    with pytest.raises(InputError, match="'more' is no column of a quality table"):
        quality.read_quality(trace)
