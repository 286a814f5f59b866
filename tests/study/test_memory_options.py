"""How an experiment says where columns lie, how caches start, and what a device costs."""

import pytest
import yaml
from tiny import SHAPE

from dipsim.basics import assets
from dipsim.basics.errors import InputError
from dipsim.basics.fields import parse
from dipsim.basics.files import sha256
from dipsim.figures.sweep import draw_sweep
from dipsim.figures.sweep_table import read_sweep
from dipsim.results.quality import lookup, memory_of, read_quality
from dipsim.study.experiment import Experiment
from dipsim.study.run import run
from dipsim.study.sweep import sweep
from dipsim.timing.device import Device
from dipsim.workload import Trace
from dipsim.workload.recorded import write_trace

POLICIES = ["dense", {"dip": {"keep": 0.75}}]


def make(trace, /, **fields):
    data = {"trace": str(trace.path), "dram": {"mlp_fraction": 0.5}, "policies": POLICIES}
    return parse(Experiment, data | fields, "exp.yaml")


def test_a_layout_that_pins_brings_its_eviction_unless_another_is_asked_for(tiny_trace):
    trace = tiny_trace()
    assert [make(trace, layout=name).eviction_rule(SHAPE) for name in ("columns", "bundled", "popularity", "auto")] == [
        "lfu", "lfu", "pinned", "pinned",
    ]  # fmt: skip
    assert make(trace, layout="popularity", eviction="lru").eviction_rule(SHAPE) == "lru"
    with pytest.raises(InputError, match=r"layout: auto chooses what to pin, and eviction lfu lets it change"):
        run(make(trace, layout="auto", eviction="lfu"))
    with pytest.raises(InputError, match=r"layout: 'nope' is not one of auto, bundled, .*, nor the path of a learned"):
        run(make(trace, layout="nope"))


def test_a_device_is_scaled_to_the_columns_of_a_larger_model_and_may_be_hot(tiny_trace):
    trace = tiny_trace()
    device = make(trace, device="oneplus-12", scale_to="phi-3-medium").load_hardware(SHAPE)
    assert device.name == "oneplus-12 (scaled to phi-3-medium)"
    assert device.flash.command_time == pytest.approx(12e-6 * 16 / 5120)
    assert device.flash.page == round(4096 * 16 / 5120)
    assert device.flash.read_bandwidth == 1.717e9
    hot = make(trace, hot=True, hardware={"sustained.flash": 0.5}).load_hardware(SHAPE)
    assert (hot.name, hot.flash.read_bandwidth) == ("paper (hot)", 0.5e9)


def test_a_plan_depends_on_the_device_only_where_reads_have_a_cost(tiny_trace):
    trace = tiny_trace()
    for device, fields, expected in (
        ("paper", {}, [None, None]),
        ("oneplus-12", {}, [None, "flash"]),
        ("oneplus-12", {"read_through": False}, [None, None]),
    ):
        results = run(make(trace, device=device, **fields))
        assert [result.plan.setting.flash and "flash" for result in results] == expected, "dense reads all, anyway"
        assert [result.plan.setting.page for result in results] == [1, Device.load(device).flash.page]


def test_no_policy_reads_longer_than_everything(tiny_trace):
    """On a device whose reads cost far more than these columns, each fetch falls back to one read of all."""
    for layout in ("columns", "rows", "bundled"):
        dense, dip = run(make(tiny_trace(), device="oneplus-12", layout=layout, start="cold", eviction="none"))
        assert dip.plan.reads.sum() <= dip.plan.tokens * 2 * (2 + 1)  # layers x (gate and up, down)
        assert dip.tokens_per_s > 0.6 * dense.tokens_per_s, layout


def test_layouts_and_starts_can_be_swept(tiny_trace, tmp_path):
    experiment = make(
        tiny_trace(tokens=20), device="oneplus-12",
        sweep={"layout": ["columns", "popularity"], "start": ["warm", "cold"], "flash.page": ["1 B", "4 KiB"]},
    )  # fmt: skip
    with pytest.raises(
        InputError, match=r"layout: popularity, start: cold.*is learned from tokens that are not counted"
    ):
        sweep(experiment, tmp_path)
    table = sweep(experiment.model_copy(update={"sweep": experiment.sweep | {"start": ["warm"]}}), tmp_path)
    assert len(table) == 2 * 2 * 2
    assert set(table["eviction"]) == {"lfu", "pinned"}
    paged = table[(table["policy"] != "dense") & (table["layout"] == "popularity")].sort_values("flash.page")
    assert paged["read_amplification"].is_monotonic_increasing
    for row in table.to_dict("records"):
        page = {"flash.page": row["flash.page"]}
        chosen = make(tiny_trace(tokens=20), device="oneplus-12", layout=row["layout"], hardware=page)
        alone = {result.policy: result.tokens_per_s for result in run(chosen)}
        assert row["tokens_per_s"] == pytest.approx(alone[row["policy"]], rel=1e-12)


@pytest.mark.slow
def test_a_perplexity_is_shown_only_for_masks_of_the_same_memory():
    trace = Trace.open("smollm2-135m")
    rows = read_quality(trace)
    assert rows

    def shown(name, parameters, **fields):
        data = {"trace": "smollm2-135m", "dram": {"mlp_fraction": 0.5}, "tokens": 4, "policies": [{name: parameters}]}
        (result,) = run(parse(Experiment, data | fields, "x"))
        assert lookup(rows, result.plan) == (result.perplexity, result.standard_error)
        return result.perplexity, memory_of(result.plan)

    aware = {"keep": 0.75, "gamma": 0.5}
    assert shown("dip-ca", aware)[0] is not None
    assert shown("dip-ca", aware, start="filled") == (None, '{"start": "filled"}')
    assert shown("dip-ca", aware, layout="popularity") == (None, '{"calibration": null, "layout": "popularity"}')
    assert shown("dip-ca", aware, layout="popularity", device="oneplus-12")[1].count("flash") == 0
    on_one, on_other = (shown("dip-ca", aware, layout="auto", device=d)[1] for d in ("oneplus-12", "pc-nvme-gen4"))
    assert on_one != on_other, "auto pins by the device"
    priced = shown("worth", {"sensitivity": "smollm2-135m"}, layout="popularity", device="oneplus-12")[1]
    assert sha256(assets.find("sensitivities", "smollm2-135m")) in priced
    assert shown("dip", {"keep": 0.75}, layout="popularity", device="oneplus-12")[0] is not None, "masks are the same"
    assert shown("dip", {"keep": 0.75, "free": True}, device="oneplus-12")[0] is None
    pages = [shown("dip", {"free": True}, read_through=False, device=d)[1] for d in ("oneplus-12", "paper")]
    assert ['"page": 4096.0' in memory for memory in pages] == [True, False]


@pytest.fixture(scope="module")
def third(tmp_path_factory):
    """Every third layer of the shipped trace: all depths of a real model, at a third of the time."""
    whole, path = Trace.open("smollm2-135m"), tmp_path_factory.mktemp("third") / "third.safetensors"
    chosen = range(0, whole.shape.num_hidden_layers, 3)
    header = whole.header.model_copy(
        update={"model": whole.shape.model_copy(update={"num_hidden_layers": len(chosen)})}
    )
    write_trace(path, header, [whole.layer(index) for index in chosen], dtype="float32")
    return path


@pytest.mark.slow
@pytest.mark.parametrize("device", ["oneplus-12", "paper", "pc-nvme-gen4", "pi5-nvme"])  # hardware.md has all
@pytest.mark.parametrize("scale_to", [None, "phi-3-medium"])
def test_with_auto_no_policy_loses_to_dense_by_more_than_its_overheads(third, device, scale_to):
    policies = ["dense", *({"dip": {"keep": keep}} for keep in (0.9, 0.5)), {"dip-ca": {"keep": 0.75}},
                {"magnitude": {"fraction": 0.5}}, {"gate": {"fraction": 0.7}}, {"up": {"fraction": 0.7}}]  # fmt: skip
    data = {"trace": str(third), "device": device, "scale_to": scale_to, "layout": "auto", "tokens": 96}
    dense, *pruned = run(parse(Experiment, data | {"dram": {"mlp_fraction": 0.5}, "policies": policies}, "x"))
    for result in pruned:
        assert result.tokens_per_s > 0.97 * dense.tokens_per_s, result.policy
    if device == "paper":
        assert pruned[1].tokens_per_s > 2 * dense.tokens_per_s


def test_the_schema_and_a_file_know_the_options(tmp_path, tiny_trace):
    path = tmp_path / "e.yaml"
    data = make(tiny_trace(), layout="bundled", start="filled", read_through=False, hot=False).resolved()
    path.write_text(yaml.safe_dump(data))
    again = Experiment.load(path)
    assert (again.layout, again.start, again.read_through) == ("bundled", "filled", False)
    assert {"layout", "start", "calibration", "read_through", "scale_to", "hot"} <= set(
        Experiment.model_json_schema()["properties"]
    )
    with pytest.raises(InputError, match="start"):
        make(tiny_trace(), start="lukewarm")


def test_every_shipped_device_says_what_is_free_and_loads_its_dram_with_what_it_reads():
    for name in set(assets.names("devices")) - {"paper"}:
        device = Device.load(name)
        assert device.dram.free is not None, name
        assert device.dram.flash_copies >= 1 or "dram.flash_copies" in device.sources, name
        assert device.flash.page == 4096, name


@pytest.mark.slow
def test_the_figures_of_a_sweep_tell_layouts_and_starts_apart(tiny_trace, tmp_path):
    sweep(make(tiny_trace(tokens=20), sweep={"layout": ["columns", "bundled"], "start": ["warm", "cold"],
                                             "dram": ["3 kB", "4 kB"]}), tmp_path)  # fmt: skip
    table = read_sweep(tmp_path / "sweep.csv")
    assert set(table["case"]) == {f"layout {a} · start {b}" for a in ("columns", "bundled") for b in ("warm", "cold")}
    assert (table["speedup"] > 0).all()
    assert draw_sweep(tmp_path)
