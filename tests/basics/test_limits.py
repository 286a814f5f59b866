"""What would not fit into memory is refused before it is begun, with the estimate that says so."""

import resource

import pytest
import yaml

from dipsim.basics import limits
from dipsim.basics.errors import InputError
from dipsim.planning.planner import plan
from dipsim.study.experiment import Experiment
from dipsim.study.grid import grid
from dipsim.study.run import check, run
from dipsim.timing.device import Device
from dipsim.workload import Trace

MODEL = {
    **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 32},
}


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe of a model with other sizes, of so many tokens; returns its path."""

    def write(tokens=10, **sizes):
        path = tmp_path / "r.yaml"
        path.write_text(
            yaml.safe_dump({"model": MODEL | sizes, "tokens": tokens, "like": "smollm2-135m-synthetic", "seed": 1})
        )
        return path

    return write


def test_the_least_limit_counts(monkeypatch, tmp_path):
    machine = limits.memory_bytes()
    container = tmp_path / "memory.max"
    monkeypatch.setattr(limits, "_CONTAINER", container)
    container.write_text("max\n")
    assert limits.memory_bytes() >= machine
    container.write_text("1000000\n")
    assert limits.memory_bytes() == 1e6
    monkeypatch.setattr(resource, "getrlimit", lambda _: (4000, 5000))
    assert limits.memory_bytes() == 4000
    limits.check_memory(4000, "a plan", "ask for less")
    with pytest.raises(InputError, match=r"^a plan: at least 4\.1 kB of memory, and there are 4 kB; ask for less$"):
        limits.check_memory(4100, "a plan", "ask for less")


def test_plans_that_are_made_side_by_side_are_counted_together(recipe, monkeypatch):
    """A plan of dense has 48 bytes a token and step, of one step in 2 layers: 96 kB of a thousand tokens."""
    monkeypatch.setattr(limits, "memory_bytes", lambda: 300_000)
    experiment = Experiment.model_validate({"trace": str(recipe(1000)), "policies": ["dense"]})
    run(experiment)
    trace = experiment.open_trace()
    settings = 4 * experiment.settings(experiment.load_policies(), trace.shape, 1000, Device.load("paper"))
    with pytest.raises(
        InputError, match=r"^4 plans of 1000 tokens of r?.*: at least 384 kB of memory, and there are 300"
    ):
        plan(trace, settings)


@pytest.mark.parametrize("tokens", [10**6, None])
def test_check_and_run_refuse_the_same(recipe, monkeypatch, tokens):
    """A plan of a million tokens has 48 bytes a token and step, of 3 steps in 2 layers, and 256 of activations."""
    data = {"trace": str(recipe(10**9)), "policies": ["dip"], "dram": {"mlp_fraction": 0.5}, "tokens": tokens}
    experiment = Experiment.model_validate(data | {"hardware": {"dram.capacity": "900 TB"}})
    monkeypatch.setattr(limits, "memory_bytes", lambda: 5e8)
    for call in (check, run):
        with pytest.raises(
            InputError, match=f"{tokens or 10**9} tokens of r?.*: at least 5?44 [MG]B of memory, and there"
        ):
            call(experiment)


def test_a_layer_of_a_recipe_must_fit(recipe, monkeypatch):
    trace = Trace.open(recipe(10**6))
    assert trace.layer(0, 3).glu.shape == (3, 24)
    monkeypatch.setattr(limits, "memory_bytes", lambda: 2e8)
    with pytest.raises(
        InputError, match=r"r\.yaml: 1000000 tokens of a layer: at least 256 MB of memory, and there are 200"
    ):
        trace.layer(0)


@pytest.mark.parametrize(
    ("tokens", "sizes", "complaint"),
    [
        (10**24, {}, r"tokens: must be less than or equal to 1000000000 \(got 1000000000000000000000000\)"),
        (10, {"num_hidden_layers": 10**6}, r"model\.num_hidden_layers: must be less than or equal to 10000"),
        (10, {"hidden_size": 10**9, "intermediate_size": 10**9}, None),
    ],
)
def test_absurd_sizes_of_a_recipe(recipe, monkeypatch, tokens, sizes, complaint):
    monkeypatch.setattr(limits, "memory_bytes", lambda: 32e9)
    with pytest.raises(
        InputError, match=complaint or r"1 tokens of a layer: at least 44 GB of memory, and there are 32"
    ):
        Trace.open(recipe(tokens, **sizes)).layer(0, 1)


def test_a_grid_of_a_billion_points_is_not_expanded(tiny_trace, monkeypatch):
    swept = {"dram": [f"{size} kB" for size in range(1000)], "tokens": list(range(1, 1001)), "prompt": list(range(500))}
    experiment = Experiment.model_validate(
        {"trace": str(tiny_trace().path), "policies": ["dense", "dip"], "sweep": swept}
    )
    monkeypatch.setattr(limits, "memory_bytes", lambda: 32e9)
    with pytest.raises(
        InputError,
        match=r"^sweep: sweep: 1,000,000,000 points: at least 5e\+03 GB of memory, and there are 32 GB; list fewer",
    ):
        grid(experiment)
