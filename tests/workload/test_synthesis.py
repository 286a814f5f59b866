"""Synthetic traces: reproducible, lazy, without order, and like the recorded trace they were fitted to."""

import csv
import json
import re
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import yaml
from tiny import SHAPE, activations

from dipsim.basics.errors import InputError
from dipsim.memory.cache import replay
from dipsim.sparsity.ranking import top_k
from dipsim.workload import Trace, fit
from dipsim.workload.recipe import Depth, Recipe, Signal
from dipsim.workload.recorded import write_trace
from dipsim.workload.synthetic import sample_signal, statistics_at
from dipsim.workload.trace import TENSORS, Header

SHIPPED = {  # and rows of statistics
    **dict.fromkeys(("phi-3-medium", "phi-3-mini", "smollm2-135m-synthetic", "turbosparse-mistral"), 30),
    **{"llama-3-8b": 32, "mistral-7b": 32, "llama-2-13b": 40},
}
SIGNAL = Signal(
    scale=0.5, scale_spread=0.2, scale_tail=0.1, mean=-0.4, mean_spread=0.6, mean_tail=0.1, tail=0.05, correlation=0.4
)
ROW = {"depth": 0.5} | dict.fromkeys(TENSORS, SIGNAL.model_dump())
MODEL = SHAPE.model_dump(exclude_defaults=True)


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe file with these keys changed (None removes one); returns its path."""

    def make(name="recipe.yaml", **changes):
        data = {"model": MODEL, "tokens": 20, "seed": 3, "statistics": [ROW]} | changes
        path = tmp_path / name
        path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
        return path

    return make


def values(opened, layer=0, tokens=None):
    return [getattr(opened.layer(layer, tokens), name) for name in TENSORS]


def same(left, right):
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_a_recipe_opens_as_a_trace(recipe):
    opened = Trace.open(recipe())
    assert (opened.name, opened.tokens, opened.shape, opened.sequence_starts) == ("recipe", 20, SHAPE, (0,))
    assert opened.header.source == {"synthetic": True, "seed": 3}
    assert [a.shape for a in values(opened)] == [(20, 16), (20, 24), (20, 24)]
    assert all(a.dtype == np.float32 and np.isfinite(a).all() for a in values(opened))
    assert not any(a.flags.writeable for a in values(opened))
    with pytest.raises(InputError, match="layer 2: the trace has 2"):
        opened.layer(2)


def test_the_same_seed_gives_the_same_values_whatever_else_was_drawn(recipe):
    first = values(Trace.open(recipe()), 1)
    again = Trace.open(recipe())
    again.layer(0)
    assert same(values(again, 1), first)
    assert same(values(again, 1), first)
    assert not same(values(Trace.open(recipe(seed=4)), 1), first)


def test_fewer_tokens_are_a_prefix_of_more(recipe):
    whole = values(Trace.open(recipe(tokens=50)), 1)
    for tokens in (1, 7, 49):
        assert same(values(Trace.open(recipe(tokens=50)), 1, tokens), [a[:tokens] for a in whole])
    assert same(values(Trace.open(recipe(tokens=20)), 1), [a[:20] for a in whole])


def test_layers_and_signals_are_independent(recipe):
    opened = Trace.open(recipe(tokens=1000))
    drawn = [a[:, :16] for layer in (0, 1) for a in values(opened, layer)]
    noise = np.corrcoef([(a - a.mean(axis=0)).ravel() for a in drawn])
    assert np.abs(noise - np.eye(6)).max() < 0.04
    means = np.array([a.mean(axis=0) for a in drawn])
    assert len(np.unique(means)) == means.size


def test_popularity_has_nothing_to_do_with_the_index():
    masks = top_k(np.abs(sample_signal(SIGNAL, 200, 2000, np.random.default_rng(0))), 600)
    popularity = masks.sum(axis=0)
    assert abs(np.corrcoef(popularity, np.arange(2000))[0, 1]) < 0.06
    shuffled = masks[:, np.random.default_rng(1).permutation(2000)]
    for eviction in ("lru", "lfu"):
        hits, wanted = replay(masks, 700, eviction).sum(), masks.sum()
        assert hits / wanted == pytest.approx(replay(shuffled, 700, eviction).sum() / wanted, abs=0.01)


def test_statistics_are_interpolated_by_depth():
    low, high = SIGNAL, SIGNAL.model_copy(update={"scale": 1.5, "tail": 0.15})
    rows = [Depth(depth=d, **dict.fromkeys(TENSORS, s)) for d, s in ((0.2, low), (0.6, high))]
    assert statistics_at(rows, 0).up_proj == statistics_at(rows, 0.2).up_proj == low
    assert statistics_at(rows, 1).up_proj == high
    assert statistics_at(rows, 0.3).gate_proj.scale == pytest.approx(0.75)
    assert statistics_at(rows, 0.5).mlp_input.tail == pytest.approx(0.125)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_open(name):
    opened = Trace.open(name)
    assert opened.name == name
    assert len(opened.statistics) == SHIPPED[name]
    assert opened.shape.name == name.removesuffix("-synthetic")
    last = values(opened, opened.shape.num_hidden_layers - 1, 2)
    assert all(np.isfinite(a).all() for a in last)


@pytest.mark.parametrize(("name", "model", "layer"), [("llama-3-8b", "Llama-3-8B", 1),
                                                      ("mistral-7b", "Mistral-7B", 24),
                                                      ("llama-2-13b", "Llama-2-13B", 38)])  # fmt: skip
def test_three_models_have_their_own_marginals_and_smollm2s_popularity(name, model, layer, checkout):
    opened, like = Trace.open(name), Trace.open(fit.LIKE).statistics
    with (checkout / "benchmarks/data/teal/quantiles.csv").open() as file:
        rows = {
            row["tensor"]: row for row in csv.DictReader(file) if (row["model"], row["layer"]) == (model, str(layer))
        }

    def largest(trace, signal):
        sizes = np.abs(getattr(trace.layer(layer, 16), signal))
        wanted = {float(key[1:]) / 100: float(value) for key, value in rows[signal].items() if key[0] == "q"}
        return np.abs(np.log(np.quantile(sizes, list(wanted)) / np.median(sizes) / list(wanted.values()))).max()

    assert largest(opened, "mlp_input") < 0.04
    assert largest(opened, "glu") < 0.06
    assert largest(replace(opened, statistics=like), "glu") > 0.15
    changed = {"mlp_input": {"tail", "scale_spread"}, "gate_proj": {"scale", "mean"}, "up_proj": set()}
    for index, row in enumerate(opened.statistics):
        there = statistics_at(like, index / (len(opened.statistics) - 1))
        for tensor in TENSORS:
            kept = set(Signal.model_fields) - changed[tensor]
            ours, theirs = (getattr(each, tensor).model_dump(include=kept) for each in (row, there))
            assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
def test_the_shipped_marginals_are_the_fit_of_the_measured(checkout, monkeypatch):
    monkeypatch.syspath_prepend(str(checkout / "benchmarks"))
    import marginals

    name, layer = "mistral-7b", 24
    after, like = marginals.opened(name), marginals.opened(fit.LIKE).statistics
    wanted = marginals.measured(name)
    start = marginals.shortened(statistics_at(like, layer / 31))
    found = marginals.fit_layer(start, {signal: quantiles[layer] for signal, quantiles in wanted.items()})
    for tensor in TENSORS:
        shipped = getattr(after.statistics[layer], tensor).model_dump()
        assert getattr(found, tensor).model_dump() == pytest.approx(shipped, rel=0.02, abs=1e-3)
    before = replace(after, statistics=like)
    rows = marginals.agreement({name: (wanted, marginals.drawn(before), marginals.drawn(after))})
    page = (checkout / "docs/background/synthesis.md").read_text(encoding="utf-8")
    for row in rows:
        assert f"| {' | '.join(row)} |" in page, "run `python benchmarks/marginals.py --write`"


def test_a_large_model_is_drawn_a_layer_at_a_time():
    opened = Trace.open("phi-3-medium")
    tracemalloc.start()
    try:
        for layer in range(3):
            acts = opened.layer(layer, tokens=50)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    layer_bytes = sum(getattr(acts, name).nbytes for name in TENSORS)
    assert layer_bytes == 4 * 50 * (5120 + 2 * 17920)
    assert peak < 2.5 * layer_bytes  # the one that is kept, the one that is drawn, and a few rows


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tokens": 0}, "tokens: .*greater than 0"),
        ({"seed": -1}, "seed"),
        ({"surprise": 1}, "surprise: unknown key"),
        ({"model": None}, "model: is required but missing"),
        ({"statistics": None}, "give either like or statistics"),
        ({"like": "phi-3-mini"}, "give either like or statistics"),
        ({"statistics": []}, "statistics: must not be empty"),
        ({"statistics": [ROW, ROW]}, "depths must rise"),
        ({"statistics": [ROW | {"depth": 1.5}]}, r"statistics\.0\.depth"),
        ({"statistics": [ROW | {"up_proj": SIGNAL.model_dump() | {"tail": 0.5}}]}, r"up_proj\.tail: .*less than 0\.5"),
        ({"statistics": [ROW | {"up_proj": SIGNAL.model_dump() | {"tail": -0.1}}]}, r"up_proj\.tail"),
        ({"statistics": [ROW | {"up_proj": SIGNAL.model_dump() | {"correlation": 1}}]}, r"up_proj\.correlation"),
        ({"statistics": [ROW | {"up_proj": SIGNAL.model_dump() | {"scale": 0}}]}, r"up_proj\.scale"),
        ({"statistics": [ROW | {"up_proj": SIGNAL.model_dump() | {"scale": float("nan")}}]}, r"up_proj\.scale"),
        ({"statistics": [ROW | {"up_proj": SIGNAL.model_dump() | {"kurtosis": 1}}]}, r"up_proj\.kurtosis: unknown"),
        ({"statistics": None, "like": "nonesuch"}, "nonesuch: no such trace"),
        ({"statistics": None, "like": "nonesuch.yaml"}, "no such file"),
        ({"statistics": None, "like": "smollm2-135m"}, "has no statistics of its own"),
        ({"statistics": None, "like": "phi-3-mini"}, "has no statistics of its own"),
        ({"statistics": None, "like": "recipe.yaml"}, "has no statistics of its own"),
    ],
)
def test_impossible_recipes(recipe, changes, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        Trace.open(recipe(**changes))
    assert "\n" not in str(error.value)


def test_like_may_be_a_file_beside_the_recipe(recipe):
    recipe("base.yaml")
    assert same(values(Trace.open(recipe(statistics=None, like="base.yaml"))), values(Trace.open(recipe())))


def test_a_recipe_survives_writing(recipe, tmp_path):
    for original in (Recipe.load(recipe()), Recipe.load(recipe(statistics=None, like="phi-3-mini"))):
        original.write(tmp_path / "copy.yaml")
        assert Recipe.load(tmp_path / "copy.yaml") == original


def test_a_fit_finds_what_was_drawn():
    found = fit.fit_signal(sample_signal(SIGNAL, 1000, 3000, np.random.default_rng(5)))
    for name, tolerance in {"scale": 0.02, "scale_spread": 0.02, "mean": 0.05, "mean_spread": 0.05}.items():
        assert getattr(found, name) == pytest.approx(getattr(SIGNAL, name), abs=tolerance), name
    for name in ("scale_tail", "mean_tail", "tail", "correlation"):
        assert getattr(found, name) == pytest.approx(getattr(SIGNAL, name), abs=0.04), name


def test_a_fit_does_not_correlate_across_sequences():
    signal = SIGNAL.model_copy(update={"correlation": 0.9, "mean": 0, "mean_spread": 0})
    pairs = np.concatenate([sample_signal(signal, 2, 500, np.random.default_rng(seed)) for seed in range(100)])
    assert fit.fit_signal(pairs, range(0, 200, 2)).correlation > 0.8
    assert fit.fit_signal(pairs).correlation < 0.6


def test_a_fit_refuses_what_says_nothing(tiny_trace, tmp_path):
    with pytest.raises(InputError, match="12 tokens; a fit needs 32"):
        fit.fit(tiny_trace())
    acts = activations(tokens=40)
    acts[1].up_proj[:] = 1
    path = tmp_path / "constant.safetensors"
    write_trace(path, Header(model=SHAPE), acts)
    with pytest.raises(InputError, match=r"constant\.safetensors: layers\.1\.up_proj: fewer than two neurons"):
        fit.fit(Trace.open(path))


@pytest.mark.slow
def test_the_shipped_statistics_are_the_fit_of_the_shipped_trace():
    done = []
    fitted = fit.fit(Trace.open("smollm2-135m"), lambda _what, *step: done.append(step))
    shipped = Trace.open(fit.LIKE).recipe
    assert done[-1] == (30, 30)
    assert fitted.model_copy(update={"statistics": shipped.statistics}) == shipped
    for ours, theirs in zip(fitted.statistics, shipped.statistics, strict=True):
        for name in TENSORS:
            wanted = getattr(theirs, name).model_dump()
            assert getattr(ours, name).model_dump() == pytest.approx(wanted, rel=2e-3, abs=1e-5)


def test_any_config_json_makes_a_recipe(tmp_path):
    path = tmp_path / "config.json"
    config = {key: MODEL[key] for key in MODEL if key != "name"} | {"model_type": "mine", "hidden_act": "silu"}
    path.write_text(json.dumps(config))
    fit.from_config(path, tokens=9, seed=2).write(tmp_path / "mine.yaml")
    opened = Trace.open(tmp_path / "mine.yaml")
    assert (opened.tokens, opened.shape) == (9, SHAPE.model_copy(update={"name": "mine"}))
    for content, complaint in (("{", "is not JSON"), ("[]", "not a JSON object"), ("{}", "required but missing")):
        path.write_text(content)
        with pytest.raises(InputError, match=complaint):
            fit.from_config(path)
    with pytest.raises(InputError, match="cannot be read"):
        fit.from_config(tmp_path / "none.json")


@pytest.mark.slow
def test_every_hit_rate_is_within_the_bound_and_the_page_is_current(checkout):
    command = [sys.executable, checkout / "benchmarks/synthesis.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(checkout)})
    assert done.returncode == 0, done.stderr
    page = (checkout / "docs/background/synthesis.md").read_text(encoding="utf-8")
    shown = page.split("<!-- table -->")[1].split("<!-- end -->")[0]
    number = re.compile(r"[+-]?[0-9]+\.[0-9]+")
    assert number.sub("", done.stdout).split() == number.sub("", shown).split()
    printed, written = (np.array(number.findall(text), dtype=float) for text in (done.stdout, shown))
    assert np.abs(printed - written).max() <= 0.11, "run `python benchmarks/synthesis.py --write`"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()]
    middle = [row for row in rows if len(row) == 7 and row[1] in ("0.5", "0.85")]  # of every policy, LFU and LRU
    assert len(middle) == 8
    assert max(abs(float(points)) for row in middle for points in row[5:]) < 1
