"""Experiments on experts from their file to their folder: the cache's seam, the cliff, sweeps, figures."""

import json

import pandas as pd
import pytest
import tiny_mixture
from tiny_mixture import SHAPE

from dipsim.basics.errors import InputError
from dipsim.study.experiment import Experiment
from dipsim.study.points import points
from dipsim.study.run import cliff, run
from dipsim.study.sweep import sweep

EXPERT = 192.0


@pytest.fixture
def experiment(tmp_path):
    """Makes an experiment on a random trace of 30 tokens, the first 6 of them a prompt."""
    path = tmp_path / "mixture.safetensors"
    tiny_mixture.write(path, tokens=30, prompts=((0, 6),))

    def make(**options):
        given = {"trace": str(path), "device": "paper", "policies": ["experts"]}
        return Experiment.model_validate(given | options)

    return make


def test_the_cache_alone_is_what_dram_holds_besides_the_rest(experiment):
    """1,344 bytes for seven experts; the same as that much more DRAM than the static parts."""
    (by_cache,) = run(experiment(cache={"size": "1344 B", "scope": "model"}))
    static = SHAPE.static_bytes(30)
    (by_dram,) = run(experiment(dram=f"{static + 1344} B"))
    assert by_cache.summary() == by_dram.summary()
    assert by_cache.plan.budget.cache_bytes == 7 * EXPERT
    (layer,) = run(experiment(cache={"size": "1344 B", "scope": "layer"}))
    assert layer.plan.setting.scope == "layer"
    assert layer.hit_rate != by_cache.hit_rate


def test_the_summary_tells_both_hit_rates_in_experts(experiment):
    (result,) = run(experiment(cache={"size": "1920 B"}, eviction="lfu"))
    summary, plan = result.summary(), result.plan
    found, missed = (part.sum() for part in plan.units)
    assert summary["hit_rate"] == found / (found + missed)
    every = found + missed + plan.encoded.wanted
    assert summary["hit_rate_with_prompt"] == (found + plan.encoded.found) / every
    assert summary["hit_rate_with_prompt"] < summary["hit_rate"]
    assert summary["working_set_bytes"] == 6 * EXPERT
    assert summary["flash_bytes_per_token"] == missed * EXPERT / 24
    assert (summary["tokens"], summary["warm_up_tokens"]) == (24, 6)
    assert result.layers()["experts_per_token"].tolist() == [2, 2, 2]
    assert result.experts()["tokens"].sum() == 24 * 6


def test_the_default_rule_is_lru_over_the_model_and_lfu_for_columns(experiment, tiny_trace):
    (result,) = run(experiment(cache={"size": "1344 B"}))
    assert (result.plan.setting.eviction, result.plan.setting.scope) == ("lru", "model")
    given = {"trace": str(tiny_trace().path), "policies": ["dip"], "cache": {"size": "800 B"}}
    dense = Experiment.model_validate(given)
    (result,) = run(dense)
    assert (result.plan.setting.eviction, result.plan.setting.scope) == ("lfu", "layer")
    assert result.plan.setting.dram_bytes == result.plan.shape.static_bytes(12) + 800


def test_the_cliff_is_told_before_and_warned_of(experiment):
    """512 B of lm_head, 448 B of attention and router a layer, 48 B of KV cache a position, a token's six experts."""
    above = cliff(experiment(cache={"size": "1152 B"}))
    assert SHAPE.static_bytes(30) + 6 * EXPERT == 512 + 3 * 448 + 30 * 48 + 1152
    assert above == (
        "One token uses 1.15 kB of experts. With less than 4.45 kB of DRAM a recency cache over all layers (lru, slru) "
        "does not hold them, and hits next to nothing."
    )
    below = cliff(experiment(cache={"size": "1151 B"}))
    assert below == f"{above}\nWarning: 4.45 kB of DRAM lie below that."


def test_shared_experts_come_before_the_cache_and_the_cliff(tmp_path):
    """A shared expert of 4 neurons has 96 bytes in each of two layers; the third has a dense MLP of 576."""
    of = tiny_mixture.shape(shared_intermediate_size=4, dense_layers=(2,))
    path = tmp_path / "shared.safetensors"
    tiny_mixture.write(path, of=of, tokens=10)
    given = {"trace": str(path), "device": "paper", "policies": ["experts"], "cache": {"size": "768 B"}}
    experiment = Experiment.model_validate(given)
    (result,) = run(experiment)
    assert result.plan.setting.dram_bytes == of.static_bytes(10) + 2 * 96 + 576 + 768
    assert result.plan.budget.cache_bytes == 768
    assert result.plan.budget.whole_resident_bytes == 768
    assert result.plan.cliff_dram_bytes == of.static_bytes(10) + 768 + 4 * EXPERT
    assert "Warning" not in (cliff(experiment) or "")


def test_a_sweep_of_the_cache_in_bytes(experiment, tmp_path):
    sizes = ["576 B", "1152 B", "1920 B"]
    grid = experiment(sweep={"cache.size": sizes, "eviction": ["lru", "belady"]})
    table = sweep(grid, tmp_path / "out")
    static = SHAPE.static_bytes(30)
    assert table["dram_bytes"].tolist() == [static + size for size in (576, 576, 1152, 1152, 1920, 1920)]
    assert (table["cliff_dram_bytes"] == static + 6 * EXPERT).all()
    assert table["hit_rate"].iloc[0] == 0
    best = table[table["eviction"] == "belady"]["hit_rate"].to_numpy()
    assert (best >= table[table["eviction"] == "lru"]["hit_rate"].to_numpy()).all()
    again = pd.read_csv(tmp_path / "out/sweep.csv")
    assert again["hit_rate"].tolist() == table["hit_rate"].tolist()
    for point, row in zip(points(grid), table.itertuples(), strict=True):
        assert point.key == row.key


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"dram": "1 GB", "cache": {"size": "1 MB"}}, "give either dram or cache.size, not both"),
        ({"cache": {"size": "1 MB", "scope": "token"}}, "cache.scope: must be 'layer' or 'model'"),
        ({"cache": {"size": "many"}}, "cache.size: 'many' is not a number with a unit"),
        ({"cache": "1 MB"}, "cache: must be"),
        ({"policies": ["dense"], "cache": {"size": "2 kB"}}, "policy dense: reads every expert of every layer"),
        ({"layout": "rows", "cache": {"size": "2 kB"}}, "layout: rows lays columns out"),
    ],
)
def test_wrong_caches_are_one_line(tmp_path, cli_run, experiment, options, complaint):
    import yaml

    path = tmp_path / "wrong.yaml"
    given = {"trace": experiment().trace, "device": "paper", "policies": ["experts"]} | options
    path.write_text(yaml.safe_dump(given))
    status, _, err = cli_run("run", path, "--out", tmp_path / "out")
    assert status == 2
    assert complaint in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_on_the_command_line_writes_tables_and_figures(tmp_path, cli_run, experiment):
    path = tmp_path / "mine.yaml"
    path.write_text(f"trace: {experiment().trace}\ndevice: paper\npolicies: [experts, {{drop-cold: {{share: 0.4}}}}]\n")
    status, out, _ = cli_run("run", path, "--cache", "1344 B", "--eviction", "lfru", "--out", tmp_path / "out")
    assert status == 0
    assert out.startswith("One token uses 1.15 kB of experts.")
    assert "lfru over the model" in out
    folder = tmp_path / "out"
    assert (folder / "experts_by_layer.png").stat().st_size > 5000
    uses = pd.read_csv(folder / "experts.csv")
    assert uses[uses["policy"] == "experts"]["tokens"].sum() == 24 * 6
    summary = json.loads((folder / "summary.json").read_text())
    assert [each["scope"] for each in summary] == ["model", "model"]
    assert summary[1]["flash_bytes_per_token"] < summary[0]["flash_bytes_per_token"]
    status, _, err = cli_run("run", path, "--policy", "experts", "--dram", "1 GB", "--cache", "1 kB")
    assert status == 2
    assert "give either dram or cache.size" in err


def test_a_sweep_draws_the_cliff(tmp_path, experiment):
    from dipsim.figures.sweep import draw_sweep

    sweep(experiment(sweep={"cache.size": ["576 B", "1152 B", "1920 B"]}), tmp_path / "out")
    drawn = draw_sweep(tmp_path / "out")
    assert [path.name for path in drawn] == ["dram.png", "dram.svg"]
    assert drawn[1].read_text().count("one token's experts") == 2


def test_a_planner_of_columns_leaves_experts_to_the_cpu(experiment):
    pytest.importorskip("torch")
    from dipsim.gpu.planner import GpuPlanner
    from dipsim.planning.fetch_plan import Setting
    from dipsim.planning.planner import plan
    from dipsim.sparsity.plugins import load_policy

    trace = experiment().open_trace()
    setting = Setting(load_policy("experts"), SHAPE.static_bytes(30) + 1344, "lru", scope="model")
    planner = GpuPlanner("cpu")
    assert not planner.able(trace, setting, 30)
    (mine,), (theirs,) = plan(trace, [setting]), plan(trace, [setting], planner=planner)
    assert (mine.dram_hits == theirs.dram_hits).all()


def test_scope_model_needs_experts(tiny_trace):
    wrong = Experiment.model_validate(
        {"trace": str(tiny_trace().path), "policies": ["dip"], "cache": {"size": "800 B", "scope": "model"}}
    )
    with pytest.raises(InputError, match="cache: scope: model is one cache of experts"):
        run(wrong)
