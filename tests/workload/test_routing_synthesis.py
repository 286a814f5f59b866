"""Synthetic routing: reproducible, drawn a layer at a time, and like the recorded routing it was fitted to."""

import json
import re
import runpy
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml

from dipsim.basics.errors import InputError
from dipsim.memory.unit_cache import Requests, replay_requests
from dipsim.workload import Trace, fit, routing_fit
from dipsim.workload.recipe import Recipe, Router
from dipsim.workload.recorded import write_routing
from dipsim.workload.routing import NOT_ROUTED, Routing
from dipsim.workload.routing_synthetic import memory, router_at, sample_logits, sample_noise
from dipsim.workload.shape import ModelShape
from dipsim.workload.trace import Header

FITTED = ("qwen3-30b-a3b", "gemma-4-26b-a4b")
LIKE = ("mixtral-8x7b", "gpt-oss-20b", "gpt-oss-120b", "deepseek-v3", "deepseek-v4-flash", "qwen3.5-397b-a17b")
MODEL = {
    "name": "tiny-moe",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "mixture": {"num_experts": 40, "num_experts_per_tok": 3, "moe_intermediate_size": 8, "dense_layers": [1]},
}
DENSE = {key: value for key, value in MODEL.items() if key != "mixture"}
SIGNAL = dict.fromkeys(("scale_spread", "scale_tail", "mean", "mean_spread", "mean_tail", "tail"), 0.1)
DENSE_ROW = {"depth": 0} | dict.fromkeys(
    ("mlp_input", "gate_proj", "up_proj"), SIGNAL | {"scale": 0.5, "correlation": 0.4}
)
ROW = {"depth": 0.5, "skew": 0.7, "correlation": 0.35, "scale": 1.7}


@pytest.fixture
def recipe(tmp_path):
    """Writes a recipe file with these keys changed (None removes one); returns its path."""

    def make(name="recipe.yaml", **changes):
        data = {"model": MODEL, "tokens": 60, "seed": 3, "routing": [ROW]} | changes
        path = tmp_path / name
        path.write_text(yaml.safe_dump({key: value for key, value in data.items() if value is not None}))
        return path

    return make


def router(**changes):
    return Router(**ROW | changes)


def logits(tokens=2000, experts=100, seed=5, **changes):
    noise = sample_noise(tokens, np.random.default_rng((seed, 0)))
    return sample_logits(router(**changes), noise, experts, np.random.default_rng((seed, 1)))


def chosen(values, k=5):
    return np.argsort(-values, axis=1)[:, :k]


def use(values, k=5, span=200):
    """`again` and `shared`, mean of the spans."""
    spans = chosen(values, k).reshape(-1, span, k)
    return np.mean([routing_fit.used(ids, values.shape[1]) for ids in spans], axis=0)


def test_a_recipe_opens_as_a_trace(recipe):
    opened = Trace.open(recipe(prompt=7))
    assert (opened.name, opened.tokens, opened.layers, opened.prompts) == ("recipe", 60, [0, 2, 3], ((0, 7),))
    assert opened.header.source == {"synthetic": True, "seed": 3}
    routing = opened.layer(2)
    assert (routing.experts, routing.k, routing.layer, routing.where) == (40, 3, 2, opened.path)
    assert routing.logits.shape == (60, 40)
    assert routing.logits.dtype == np.float32
    assert not routing.logits.flags.writeable
    assert routing.routed.all()
    assert ((routing.weights > 0).sum(axis=1) == 3).all()
    assert Trace.open(recipe()).prompts == ()
    with pytest.raises(InputError, match="layer 1: has no mixture"):
        opened.layer(1)


def test_the_same_seed_gives_the_same_values_whatever_else_was_drawn(recipe):
    first = Trace.open(recipe()).layer(3).logits
    again = Trace.open(recipe())
    again.layer(0)
    assert np.array_equal(again.layer(3).logits, first)
    assert np.array_equal(again.layer(3).logits, first)
    assert not np.array_equal(Trace.open(recipe(seed=4)).layer(3).logits, first)


def test_the_values_stay_what_they_were(recipe):
    """Draws are part of what a recipe promises; a change of them changes every result."""
    drawn = Trace.open(recipe()).layer(2, 2).logits
    assert drawn[1, :4] == pytest.approx([0.22899908, -2.5724933, -3.6801891, -0.27849895], rel=1e-5)


def test_fewer_tokens_are_a_prefix_of_more(recipe):
    whole = Trace.open(recipe(tokens=300)).layer(0).logits
    for tokens in (1, 7, 299):
        assert np.array_equal(Trace.open(recipe(tokens=300)).layer(0, tokens).logits, whole[:tokens])
    assert np.array_equal(Trace.open(recipe(tokens=20)).layer(0).logits, whole[:20])


def test_layers_have_routers_of_their_own_but_the_same_tokens(recipe):
    opened = Trace.open(recipe(tokens=3000))
    first, second = (opened.layer(layer).logits for layer in (0, 2))
    popularity = np.corrcoef(first.mean(axis=0), second.mean(axis=0))[0, 1]
    assert abs(popularity) < 0.35  # of 40 experts
    assert abs(np.corrcoef(first[:, 5], second[:, 5])[0, 1]) < 0.5
    size = [np.square(values - values.mean(axis=0)).sum(axis=1) for values in (first, second)]
    assert np.corrcoef(size)[0, 1] > 0.5  # what is large in one layer is so in the other


def test_a_router_is_what_its_numbers_say():
    values = np.concatenate([logits(seed=seed) for seed in range(20)], axis=1)
    mean = values.mean(axis=0)
    assert mean.std() / 1.7 == pytest.approx(0.7, rel=0.05)
    moving = values - mean
    assert moving.std() == pytest.approx(1.7, rel=0.03)
    for lag in (1, 2, 5, 10):
        found = (moving[lag:] * moving[:-lag]).mean() / moving.var()
        assert found == pytest.approx(1 / (1 + lag * (1 / 0.35 - 1)), abs=0.03), lag


def test_memory_is_what_it_says():
    assert (memory(0) == 0).all()
    for correlation in (0.1, 0.35, 0.8):
        assert memory(correlation).mean() == pytest.approx(correlation, abs=0.01)
        assert (np.diff(memory(correlation)) > 0).all()


def test_skew_and_correlation_move_what_they_should():
    plain = use(logits(correlation=0, skew=0))
    assert plain == pytest.approx([0.07] * 2, abs=0.01)  # k / 100, and some rows of the router are longer than others
    skewed = use(logits(correlation=0, skew=1.5))
    assert skewed.min() > 0.25
    assert skewed[0] == pytest.approx(skewed[1], abs=0.02)
    remembering = use(logits(correlation=0.8, skew=0))
    assert remembering[0] > 0.4
    assert remembering[1] < 0.1
    for name, values in {"skew": (0.2, 0.6, 1.2, 2), "correlation": (0.1, 0.3, 0.5, 0.7)}.items():
        again, shared = np.transpose([use(logits(**{name: value})) for value in values])
        assert (np.diff(again) > 0.05).all(), name
        assert (np.diff(shared) > 0.03).all() == (name == "skew")


def test_scale_spreads_weights_and_leaves_the_choice():
    low, high = logits(scale=0.5), logits(scale=1.5)
    assert np.array_equal(chosen(low), chosen(high))
    shares = [Routing(100, 5, values).weights.max(axis=1).mean() for values in (low, high)]
    assert 0.2 < shares[0] < shares[1] - 0.1


def test_popularity_has_nothing_to_do_with_the_index():
    counts = np.bincount(chosen(logits(experts=1000)).ravel(), minlength=1000)
    assert abs(np.corrcoef(counts, np.arange(1000))[0, 1]) < 0.1


def test_statistics_are_interpolated_by_depth():
    low, high = router(depth=0.2), router(depth=0.6, skew=1.5, scale=0.7)
    assert router_at([low, high], 0) == low.model_copy(update={"depth": 0})
    assert router_at([low, high], 1) == high.model_copy(update={"depth": 1})
    middle = router_at([low, high], 0.3)
    assert (middle.skew, middle.correlation, middle.scale) == pytest.approx((0.9, 0.35, 1.45))


def test_depth_counts_the_layers_with_a_mixture(recipe):
    rows = [ROW | {"depth": depth, "skew": skew, "correlation": 0} for depth, skew in ((0, 0), (1, 8))]
    opened = Trace.open(recipe(routing=rows, tokens=400))
    spread = [opened.layer(layer).logits.mean(axis=0).std() / 1.7 for layer in (0, 2, 3)]
    assert spread == pytest.approx([0, 4, 8], rel=0.25, abs=0.2)


def test_ten_thousand_tokens_are_drawn_at_once():
    begin = time.perf_counter()
    logits(tokens=10_000, experts=128)
    assert time.perf_counter() - begin < 1  # 0.06 s on an idle machine


@pytest.mark.parametrize("name", [*(f"{name}-synthetic" for name in FITTED), *LIKE])
def test_shipped_recipes_open(name):
    opened = Trace.open(name)
    assert opened.layers == Trace.open(name).shape.is_mixture.nonzero()[0].tolist()
    last = opened.layer(opened.layers[-1], 2)
    assert last.logits.shape == (2, opened.shape.experts.num_experts)
    assert np.isfinite(last.logits).all()
    if name in LIKE:
        assert opened.recipe.like == fit.ROUTING_LIKE


@pytest.mark.parametrize(
    ("name", "billions"),
    [("mixtral-8x7b", 46.70), ("gpt-oss-20b", 20.91), ("deepseek-v3", 671.03)],  # as published
)
def test_shipped_sizes_add_up(name, billions):
    shape = Trace.open(name).shape
    bits = shape.bits
    values = (
        shape.mlp_bytes / bits.mlp + shape.attention_bytes / bits.attention + 2 * shape.lm_head_bytes / bits.lm_head
    )
    assert 8 * values / 1e9 == pytest.approx(billions, abs=0.005)


@pytest.mark.parametrize(
    ("name", "billions"), [("gpt-oss-120b", 116.8), ("deepseek-v4-flash", 284), ("qwen3.5-397b-a17b", 397)]
)
def test_sizes_whose_attention_is_rounded_are_near_those_published(name, billions):
    shape, bits = Trace.open(name).shape, Trace.open(name).shape.bits
    values = shape.mlp_bytes / bits.mlp + shape.attention_bytes / bits.attention
    assert 8 * (values + 2 * shape.lm_head_bytes / bits.lm_head) / 1e9 == pytest.approx(billions, rel=0.002)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"routing": None}, "give either like or routing"),
        ({"like": "mixtral-8x7b"}, "give either like or routing"),
        ({"routing": []}, "routing: must not be empty"),
        ({"routing": [ROW, ROW]}, "routing: the depths must rise"),
        ({"routing": [ROW | {"depth": -1}]}, r"routing\.0\.depth"),
        ({"routing": [ROW | {"skew": -0.1}]}, r"routing\.0\.skew: .*greater than or equal to 0"),
        ({"routing": [ROW | {"skew": float("nan")}]}, r"routing\.0\.skew"),
        ({"routing": [ROW | {"correlation": 1}]}, r"routing\.0\.correlation: .*less than 1"),
        ({"routing": [ROW | {"scale": 0}]}, r"routing\.0\.scale: .*greater than 0"),
        ({"routing": [ROW | {"noise": 1}]}, r"routing\.0\.noise: unknown key"),
        ({"routing": [{"depth": 0}]}, r"routing\.0\.skew: is required but missing"),
        ({"prompt": -1}, "prompt"),
        ({"prompt": 60}, "prompt: 60 of 60 tokens; leave one or more to decode"),
        ({"statistics": [DENSE_ROW]}, "statistics: are those of a dense model; give routing"),
        ({"model": DENSE}, "routing: is that of a mixture of experts; give statistics"),
        ({"model": DENSE, "routing": None}, "give either like or statistics"),
        ({"model": DENSE, "routing": None, "statistics": [DENSE_ROW], "prompt": 3}, "prompt: is only for a model with"),
        ({"routing": None, "like": "phi-3-mini"}, "phi-3-mini has no routing of its own; name a recipe that has"),
        ({"routing": None, "like": "mixtral-8x7b"}, "mixtral-8x7b has no routing of its own"),
        ({"routing": None, "like": "smollm2-135m-synthetic"}, "has no statistics of its own|has no routing of its own"),
        ({"routing": None, "like": "qwen3-30b-a3b"}, "has no routing of its own"),
        ({"model": DENSE, "routing": None, "like": fit.ROUTING_LIKE}, "has no statistics of its own"),
    ],
)
def test_impossible_recipes(recipe, changes, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        Trace.open(recipe(**changes))
    assert "\n" not in str(error.value)


def test_like_may_be_a_file_beside_the_recipe(recipe):
    base = Trace.open(recipe("base.yaml"))
    opened = Trace.open(recipe(routing=None, like="base.yaml"))
    assert np.array_equal(opened.layer(2).logits, base.layer(2).logits)


def test_a_recipe_survives_writing(recipe, tmp_path):
    for original in (Recipe.load(recipe(prompt=4)), Recipe.load(recipe(routing=None, like="mixtral-8x7b"))):
        original.write(tmp_path / "copy.yaml")
        assert Recipe.load(tmp_path / "copy.yaml") == original


def record(path, values, k=5, weights=True, ids=True, **header):
    """Write a trace of these logits, one [T, E] a layer, as ids and perhaps weights, or as logits."""
    mixture = {"num_experts": values[0].shape[1], "num_experts_per_tok": k, "moe_intermediate_size": 8}
    shape = ModelShape(**MODEL | {"num_hidden_layers": len(values), "mixture": mixture})
    layers = []
    for layer in values:
        order = np.argsort(-layer, axis=1, kind="stable")[:, :k]
        shares = np.take_along_axis(Routing(layer.shape[1], k, layer).weights, order, axis=1)
        layers.append(
            Routing(layer.shape[1], k, ids=order, recorded_weights=shares if weights else None)
            if ids
            else Routing(layer.shape[1], k, layer)
        )
    write_routing(path, Header(model=shape, **header), layers)
    return Trace.open(path)


KNOWN = ({"skew": 0.4, "correlation": 0.5, "scale": 0.6}, {"skew": 1.3, "correlation": 0.2, "scale": 2.1})


@pytest.mark.slow
def test_a_fit_finds_what_was_drawn(tmp_path):
    """Two routers, each drawn twenty times: a single one tells its skew to 0.2 and its scale to 11 % only."""
    values = [logits(128, 128, seed, **known) for known in KNOWN for seed in range(100, 120)]
    trace = record(tmp_path / "known.safetensors", values, k=6)
    found = routing_fit.fit_routing(trace)
    assert [row.depth for row in found] == pytest.approx(np.arange(40) / 39, abs=1e-4)
    for rows, known in zip((found[:20], found[20:]), KNOWN, strict=True):
        for name, tolerance in {"skew": 0.1, "correlation": 0.03, "scale": 0.15}.items():
            mean = np.mean([getattr(row, name) for row in rows])
            assert mean == pytest.approx(known[name], abs=tolerance), name
    assert routing_fit.fit_routing(trace) == found


@pytest.mark.slow
def test_a_fit_of_logits_is_that_of_their_choices(tmp_path):
    values = [logits(40, 30)]
    found = [
        routing_fit.fit_routing(record(tmp_path / f"{ids}.safetensors", values, ids=ids))[0] for ids in (True, False)
    ]
    assert found[0].model_dump() == pytest.approx(found[1].model_dump(), rel=1e-3)


@pytest.mark.slow
def test_a_fit_without_weights_has_no_scale_of_its_own(tmp_path):
    values = [logits(50, 30)]
    known, unknown = (
        routing_fit.fit_routing(record(tmp_path / f"{weights}.safetensors", values, weights=weights))[0]
        for weights in (True, False)
    )
    assert known.scale == pytest.approx(1.7, rel=0.3)
    assert unknown == known.model_copy(update={"scale": 1.0})
    one = routing_fit.fit_routing(record(tmp_path / "one.safetensors", values, k=1))[0]
    assert one.scale == 1


@pytest.mark.slow
def test_a_fit_leaves_prompts_out_and_keeps_the_first(tmp_path):
    values = logits(80, 30)
    alone = routing_fit.fit_routing(record(tmp_path / "alone.safetensors", [values[40:]]))
    recorded = record(
        tmp_path / "prompt.safetensors", [np.concatenate([values[:40][::-1], values[40:]])], prompts=((0, 40),)
    )
    found = fit.fit(recorded)
    assert found.routing == alone
    assert (found.prompt, found.tokens, found.statistics) == (40, 80, None)
    assert found.source["fitted_to"] == "prompt"
    later = fit.fit(record(tmp_path / "later.safetensors", [values], prompts=((60, 70),)))
    assert later.prompt == 0


def test_spans_do_not_cross_prompts_and_sequences(tmp_path):
    trace = record(
        tmp_path / "spans.safetensors",
        [logits(300, 60)],
        sequence_starts=(0, 150),
        prompts=((0, 10), (60, 100), (150, 190)),
    )
    assert routing_fit.decoded_spans(trace) == [range(190, 300)]
    trace = record(tmp_path / "two.safetensors", [logits(200, 60)], sequence_starts=(0, 40, 120))
    assert routing_fit.decoded_spans(trace) == [range(40, 120), range(120, 200)]
    trace = record(tmp_path / "long.safetensors", [logits(600, 60)])
    assert routing_fit.decoded_spans(trace) == [range(256), range(256, 512)]


def test_a_fit_refuses_what_says_nothing(tmp_path):
    with pytest.raises(InputError, match=r"short\.safetensors: has 31 tokens decoded one by one; a fit needs 32"):
        fit.fit(record(tmp_path / "short.safetensors", [logits(31, 60)]))
    with pytest.raises(InputError, match="has 20 tokens decoded one by one"):
        fit.fit(record(tmp_path / "prompt.safetensors", [logits(60, 60)], prompts=((20, 40),)))
    with pytest.raises(InputError, match="has 0 tokens decoded one by one"):
        fit.fit(record(tmp_path / "all.safetensors", [logits(60, 60)], prompts=((0, 60),)))
    ids = chosen(logits(50, 60))
    ids[[3, 45]] = NOT_ROUTED
    routing = Routing(60, 5, ids=ids, layer=2, where="holes.safetensors")
    with pytest.raises(InputError, match=r"holes\.safetensors: layers\.2: token 45: has no experts; import it again"):
        routing_fit.recorded_use(routing, [range(10, 50)])


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTED)
def test_the_shipped_routing_is_the_fit_of_the_shipped_trace(name):
    done = []
    recorded = Trace.open(name)
    fitted = fit.fit(recorded, lambda _what, *step: done.append(step))
    shipped = Trace.open(f"{name}-synthetic").recipe
    assert done[-1] == (len(recorded.layers),) * 2
    assert fitted.model_copy(update={"routing": shipped.routing}) == shipped
    for ours, theirs in zip(fitted.routing, shipped.routing, strict=True):
        assert ours.model_dump() == pytest.approx(theirs.model_dump(), rel=2e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("config", "like"),
    [
        ({"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2}, fit.ROUTING_LIKE),
        ({"model_type": "mistral"}, fit.LIKE),
    ],
)
def test_a_config_json_gets_the_shipped_statistics_of_its_kind(tmp_path, config, like):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: DENSE[key] for key in DENSE if key != "name"} | config))
    made = fit.from_config(path, tokens=9, seed=2)
    assert (made.like, made.description) == (like, f"Synthetic, {like} at this size")
    made.write(tmp_path / "mine.yaml")
    opened = Trace.open(tmp_path / "mine.yaml")
    assert len(opened.layers) == 4
    assert opened.tokens == 9
    opened.layer(3)


@pytest.mark.parametrize("eviction", ["lru", "lfu", "belady"])
def test_the_replay_of_the_benchmark_is_that_of_the_simulator(checkout, eviction):
    replay = runpy.run_path(str(checkout / "benchmarks/synthesis_routing.py"))["replay"]
    ids = chosen(logits(150, 40), 4)
    for capacity in (3, 4, 9, 25):
        hits = replay_requests(Requests(ids.ravel(), 4 * np.arange(1, 151)), np.ones(40), capacity, eviction)[0]
        assert replay(ids.tolist(), eviction, capacity) == hits.reshape(150, 4).sum(axis=1).tolist()


def test_the_benchmark_takes_a_prompt_for_one_batch(checkout):
    benchmark = runpy.run_path(str(checkout / "benchmarks/synthesis_routing.py"))
    ids = np.array([[0, 1], [NOT_ROUTED] * 2, [1, 2], [2, 3], [0, 4], [9, 8]])
    found = benchmark["hits"](Routing(10, 2, ids=ids), ((0, 3),), 3)
    assert found[0] == [1, 1, 0]


@pytest.mark.slow
def test_every_hit_rate_is_within_the_bound_and_the_page_is_current(checkout):
    command = [sys.executable, checkout / "benchmarks/synthesis_routing.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(checkout)})
    assert done.returncode == 0, done.stderr
    page = (checkout / "docs/background/synthesis.md").read_text(encoding="utf-8")
    shown = page.split("<!-- routing -->")[1].split("<!-- end of routing -->")[0]
    number = re.compile(r"[+-]?[0-9]+\.[0-9]+")
    assert number.sub("", done.stdout).split() == number.sub("", shown).split()
    printed, written = (np.array(number.findall(text), dtype=float) for text in (done.stdout, shown))
    assert np.abs(printed - written).max() <= 0.21, "run `python benchmarks/synthesis_routing.py --write`"
