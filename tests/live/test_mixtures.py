"""Mixtures of experts on small random models: recorded, and in the closed loop against the planner and by hand."""

from collections import OrderedDict
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import yaml

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

from safetensors.numpy import load_file  # noqa: E402
from tiny_models import IDS, MIXTURES, SIZES, TEXT, make, save  # noqa: E402

from dipsim.basics.errors import InputError  # noqa: E402
from dipsim.basics.fields import parse  # noqa: E402
from dipsim.live import adapt as training  # noqa: E402
from dipsim.live.evaluate import evaluate, row  # noqa: E402
from dipsim.live.experts import rerouted  # noqa: E402
from dipsim.live.models import LoadedModel, hooked, load  # noqa: E402
from dipsim.live.perplexity import calibrate, measure, nll  # noqa: E402
from dipsim.live.record import collect_routing, record  # noqa: E402
from dipsim.live.routers import Router, find_routers  # noqa: E402
from dipsim.live.sensitivity import learn_sensitivity  # noqa: E402
from dipsim.live.train_predictor import train_predictor  # noqa: E402
from dipsim.planning.builder import PlanBuilder  # noqa: E402
from dipsim.planning.fetch_plan import Setting  # noqa: E402
from dipsim.planning.planner import plan  # noqa: E402
from dipsim.results import quality  # noqa: E402
from dipsim.sparsity.plugins import load_policy  # noqa: E402
from dipsim.study.experiment import Experiment  # noqa: E402
from dipsim.workload import Trace  # noqa: E402
from dipsim.workload.recorded import write_routing  # noqa: E402
from dipsim.workload.shape import ModelShape  # noqa: E402
from dipsim.workload.trace import Header  # noqa: E402

FAMILIES = tuple(MIXTURES)
WHERE = {"Mixtral": [0, 1, 2], "Qwen2Moe": [0, 2], "Qwen3Moe": [1, 3], "Olmoe": [0, 1, 2]}  # the mixtures
NORMALISED = ("Mixtral", "Qwen3Moe")
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
LENGTH = 10
FIELDS = (
    "dram_static",
    "flash_static",
    "dram_hits",
    "flash_misses",
    "flash_gaps",
    "reads",
    "read_bytes",
    "flops",
    "peak_cache_bytes",
    "uses",
)


def loaded(family, dtype=torch.float64, **changes):
    model = make(family, **changes).to(dtype)
    model.set_experts_implementation("eager")  # the only one in float64
    shape = ModelShape.from_config(model.config.to_dict(), name="tiny")
    return LoadedModel(model, None, shape, [], {}, find_routers(model))


def tokens(sequences=2, length=LENGTH):
    return torch.randint(2, SIZES["vocab_size"], (sequences, length), generator=torch.Generator().manual_seed(1))


def setting(name, shape, part=0.5, eviction="lru", scope="layer", start="cold", **parameters):
    """A cache for a part of all experts, beside what every token reads."""
    static = shape.static_bytes(LENGTH) + shape.whole_mlp_bytes.sum()
    dram = static + part * shape.experts.num_experts * shape.expert_bytes.sum()
    return Setting(load_policy(name, **parameters), dram, eviction, scope=scope, start=start)


def recorded(tiny, ids, folder):
    """The trace of the unchanged model."""
    path = folder / "t.safetensors"
    header = Header(model=tiny.shape, sequence_starts=tuple(range(0, ids.numel(), ids.shape[1])))
    write_routing(path, header, collect_routing(tiny, ids.tolist()))
    return Trace.open(path)


def unchanged(tiny, ids):
    with torch.inference_mode():
        return nll(tiny, ids)


def equal_plans(first, second):
    for field in FIELDS:
        assert np.array_equal(getattr(first, field), getattr(second, field)), field


def hit_rate(found):
    hits, misses = found.units
    return hits.sum() / (hits.sum() + misses.sum())


@pytest.mark.parametrize("family", FAMILIES)
def test_routers_are_found_where_the_shape_has_mixtures(family):
    tiny = loaded(family)
    assert [router.layer for router in tiny.routers] == WHERE[family]
    assert np.flatnonzero(tiny.shape.is_mixture).tolist() == WHERE[family]
    assert {router.normalised for router in tiny.routers} == {family in NORMALISED}
    for router in tiny.routers:
        assert router.module is tiny.model.model.layers[router.layer].mlp.gate
    turned = loaded(family, norm_topk_prob=family not in NORMALISED)
    assert {router.normalised for router in turned.routers} == {family == "Mixtral" or family not in NORMALISED}


def sigmoid(gate, x):
    logits = x @ gate.weight.T
    likely, ids = logits.sigmoid().topk(2, dim=-1)
    return logits, likely, ids


def biased(gate, x):
    logits = x @ gate.weight.T
    ids = (logits + 9 * (torch.arange(6) == 3)).topk(2, dim=-1).indices
    likely = logits.softmax(-1).gather(-1, ids)
    return logits, likely / likely.sum(-1, keepdim=True), ids


@pytest.mark.parametrize(
    "forward",
    [
        sigmoid,
        biased,
        lambda gate, x: x @ gate.weight.T,
        lambda _gate, x: (x, x),
        lambda gate, x: (x @ gate.weight.T, None, None),
        lambda _gate, _x, _bias: None,
    ],
)
def test_a_router_that_chooses_otherwise_is_refused(forward):
    model = make("Mixtral")
    gate = model.model.layers[1].mlp.gate
    gate.forward = partial(forward, gate)
    with pytest.raises(
        InputError, match="MixtralForCausalLM: layer 1: its router does not choose by softmax"
    ) as caught:
        find_routers(model)
    assert "\n" not in str(caught.value)


def test_dense_models_have_no_routers():
    assert find_routers(make("Llama")) == find_routers(make("Phi3")) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_logits_are_those_of_the_models_own_routers(family, tmp_path):
    model = make(family)
    folder = save(tmp_path / "Tiny MoE", model)
    (tmp_path / "text.txt").write_text(TEXT)
    calls = []
    header = record(
        folder, tmp_path / "text.txt", tmp_path / "t.safetensors", tokens=25, sequence_length=10,
        progress=lambda _what, *at: calls.append(at),
    )  # fmt: skip
    trace = Trace.open(tmp_path / "t.safetensors")
    assert trace.header == header
    assert (trace.tokens, trace.sequence_starts) == (25, (0, 10, 20))
    assert trace.layers == WHERE[family]
    assert trace.shape == ModelShape.from_config(model.config.to_dict(), name="tiny-moe")
    assert header.source["dtype"] == "float32"
    assert calls == [(done + 1, 3 * len(WHERE[family])) for done in range(3 * len(WHERE[family]))]
    with torch.no_grad():
        own = [model(torch.tensor([IDS[i : i + 10][: 25 - i]]), output_router_logits=True) for i in (0, 10, 20)]
    for place, layer in enumerate(WHERE[family]):
        routing = trace.layer(layer)
        expected = torch.cat([each.router_logits[place].reshape(-1, routing.experts) for each in own])
        np.testing.assert_allclose(routing.logits, expected, rtol=1e-5, atol=1e-5)
        assert routing.k == MIXTURES[family]["num_experts_per_tok"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_next_router_makes_of_an_input_is_recorded(family, tmp_path, cli_run):
    """And all else that is recorded stays as it is, to the bit."""
    model = make(family)
    folder = save(tmp_path / "model", model)
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ["record", "--model", folder, "--text", tmp_path / "text.txt", "--tokens", 20, "--sequence-length", 12]
    for name, option in (("without", []), ("with", ["--next-layer"])):
        status, _, err = cli_run(*arguments, "--out", tmp_path / f"{name}.safetensors", *option)
        assert (status, err) == (0, "")
    without, found = (load_file(tmp_path / f"{name}.safetensors") for name in ("without", "with"))
    assert found.keys() - without.keys() == {f"layers.{layer}.next_layer" for layer in WHERE[family][:-1]}
    for name, values in without.items():
        assert found[name].tobytes() == values.tobytes()
    gates, seen = [model.model.layers[layer].mlp.gate for layer in WHERE[family]], {}
    with torch.no_grad(), hooked((gate, lambda gate, x, _: seen.setdefault(gate, []).append(x[0])) for gate in gates):
        for ids in (IDS[:12], IDS[12:20]):
            model(torch.tensor([ids]))
    trace = Trace.open(tmp_path / "with.safetensors")
    for layer, gate, following in zip(WHERE[family], gates, gates[1:], strict=False):
        x = torch.cat([each.reshape(-1, 32) for each in seen[gate]]).double()
        expected = x @ following.weight.detach().double().T
        np.testing.assert_allclose(trace.layer(layer).next_layer, expected, rtol=1e-4, atol=1e-4)
    assert trace.layer(WHERE[family][-1]).next_layer is None


def test_the_next_router_normalises_its_input_as_it_does_its_own():
    model = make("Olmoe")
    gates = [layer.mlp.gate for layer in model.model.layers]
    plain = type(gates[1]).forward
    gates[1].forward = lambda x: plain(gates[1], torch.nn.functional.layer_norm(3 * x + 1, x.shape[-1:]))
    shape = ModelShape.from_config(model.config.to_dict(), name="tiny")
    tiny, seen, calls = LoadedModel(model, None, shape, [], {}, find_routers(model)), [], []
    with hooked([(gates[0], lambda _gate, x, _: seen.append(x[0].reshape(-1, 32)))]):
        first, second, last = collect_routing(tiny, [IDS[:9]], lambda _what, *at: calls.append(at), next_layer=True)
    assert calls == [(1, 3), (2, 3), (3, 3)]
    (x,) = seen
    mean, deviation = x.mean(-1, keepdim=True), x.std(-1, keepdim=True, correction=0)
    expected = (x - mean) / deviation @ gates[1].weight.T
    np.testing.assert_allclose(first.next_layer, expected.detach(), rtol=1e-3, atol=1e-3)
    assert second.next_layer.shape == (9, 10)
    assert last.next_layer is None


def test_the_only_mixture_has_no_next_one(tmp_path):
    folder = save(tmp_path / "model", make("Qwen2Moe", mlp_only_layers=[0, 1]))
    (tmp_path / "text.txt").write_text(TEXT)
    with pytest.raises(InputError, match=r"model: has only one mixture of experts, and so no next one; leave --next"):
        record(folder, tmp_path / "text.txt", tmp_path / "t.safetensors", tokens=8, next_layer=True)
    assert not (tmp_path / "t.safetensors").exists()


def test_routing_is_recorded_in_float32_only(tmp_path, cli_run):
    folder = save(tmp_path / "model", make("Olmoe"))
    (tmp_path / "text.txt").write_text(TEXT)
    arguments = ["record", "--model", folder, "--text", tmp_path / "text.txt", "--out", tmp_path / "t.safetensors"]
    status, out, err = cli_run(*arguments, "--tokens", 20, "--dtype", "int8")
    assert (status, out) == (2, "")
    assert err == "error: trace dtype 'int8': the routing of a mixture of experts is float32; leave --dtype out\n"
    status, out, err = cli_run(*arguments, "--tokens", 20, "--torch-dtype", "bfloat16")
    assert (status, err) == (0, "")
    assert "20 tokens of model" in out
    assert Trace.open(tmp_path / "t.safetensors").tokens == 20


def by_hand(block, x, weights):
    """A block's output [n, d] for x [n, d], each expert computed for all tokens and weighted by weights [n, E]."""
    total = torch.zeros_like(x)
    for expert in range(weights.shape[1]):
        gate, up = (x @ block.experts.gate_up_proj[expert].T).chunk(2, dim=-1)
        output = (torch.nn.functional.silu(gate) * up) @ block.experts.down_proj[expert].T
        total += weights[:, expert : expert + 1] * output
    if hasattr(block, "shared_expert"):
        total += torch.sigmoid(block.shared_expert_gate(x)) * block.shared_expert(x)
    return total


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_chosen_is_weighed_by_the_models_own_rule(family, implementation):
    """Any set of experts, of any size from none to all, another for each token."""
    model = make(family)
    model.set_experts_implementation(implementation)
    router = find_routers(model)[1]
    block = model.model.layers[router.layer].mlp
    random = torch.Generator().manual_seed(3)
    x = torch.randn(1, 12, 32, generator=random)
    experts = router.module.num_experts
    masks = torch.rand(12, experts, generator=random) < torch.arange(12)[:, None] / 11
    assert masks.sum(1)[[0, -1]].tolist() == [0, experts]
    likely = (x[0] @ router.module.weight.T).softmax(-1)
    own = likely.sort(descending=True)[0][:, : router.module.top_k].sum(-1, keepdim=True)
    chosen = (likely * masks).sum(-1, keepdim=True).clamp(min=1e-30)
    for fewer in (False, True):
        rule = 1 / chosen if family in NORMALISED else own / chosen if fewer else 1
        weights = likely * masks * rule

        def hook(_module, _inputs, output, fewer=fewer):
            return output[0], *router.reroute(*output[:2], masks, fewer)

        with torch.no_grad(), hooked([(router.module, hook)]):
            found = block(x)[0]
        torch.testing.assert_close(found, by_hand(block, x[0], weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_routers_own_choice_is_the_unchanged_model_exactly(family, implementation):
    tiny, ids = loaded(family, torch.float32), tokens()
    tiny.model.set_experts_implementation(implementation)
    expected = unchanged(tiny, ids)
    k = MIXTURES[family]["num_experts_per_tok"]
    for name, parameters in (("experts", {}), ("fewer-experts", {"experts": k})):
        losses, _ = measure(tiny, ids, [setting(name, tiny.shape, **parameters)])
        assert np.array_equal(losses, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_closed_loop_of_the_routers_own_choice_is_the_open_loop(family, tmp_path):
    tiny, ids = loaded(family), tokens()
    trace = recorded(tiny, ids, tmp_path)
    several = [
        setting("experts", tiny.shape, share, eviction, scope, start)
        for scope in ("layer", "model")
        for share, eviction, start in (
            (0.3, "lru", "cold"),
            (0.7, "lru", "warm"),
            (0.6, "lfu", "cold"),
            (0.5, "belady", "cold"),
            (0.5, "pinned", "warm"),
            (0.5, "none", "cold"),
        )
    ]
    losses, closed = measure(tiny, ids, several)
    assert np.array_equal(losses, unchanged(tiny, ids))
    for found, expected in zip(closed, plan(trace, several), strict=True):
        equal_plans(found, expected)
    assert len({round(hit_rate(found), 6) for found in closed}) > 6
    assert closed[1].tokens == 2 * LENGTH / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_experts(family, tmp_path):
    tiny, ids = loaded(family), tokens()
    one = setting("fewer-experts", tiny.shape, experts=1)
    losses, (found,) = measure(tiny, ids, [one])
    assert np.abs(losses - unchanged(tiny, ids)).max() > 0.01
    hits, misses = found.units
    assert ((hits + misses).sum(axis=1) == len(WHERE[family])).all()
    assert (found.uses.sum(axis=1)[WHERE[family]] == ids.numel()).all()
    (open_loop,) = plan(recorded(tiny, ids, tmp_path), [one])
    first = found.layer == WHERE[family][0]  # sees what a recorded trace holds
    assert np.array_equal(found.dram_hits[:, first], open_loop.dram_hits[:, first])
    assert np.array_equal(found.uses[WHERE[family][0]], open_loop.uses[WHERE[family][0]])


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_experts_weigh_together_what_all_did(family, monkeypatch):
    tiny, ids = loaded(family), tokens()
    losses, _ = measure(tiny, ids, [setting("fewer-experts", tiny.shape, experts=2 if family == "Olmoe" else 1)])

    def forward(plain, x):
        logits, weights, ids = plain(x)
        kept = weights[:, : 2 if family == "Olmoe" else 1]
        return logits, kept * weights.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True), ids[:, : kept.shape[1]]

    for router in tiny.routers:
        monkeypatch.setattr(router.module, "forward", partial(forward, router.module.forward))
    assert losses == pytest.approx(unchanged(tiny, ids), rel=1e-6)


@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_that_sees_the_cache_and_does_not_mind_is_the_routers_own_choice(family, scope, tmp_path):
    tiny, ids = loaded(family), tokens()
    own = setting("experts", tiny.shape, 0.6, scope=scope, start="warm")
    _, (expected,) = measure(tiny, ids, [own])
    dense = unchanged(tiny, ids)
    for name, parameters in (("drop-cold", {"share": 1e-12}), ("cache-prior", {"strength": 0})):
        used = replace(own, policy=load_policy(name, **parameters))
        losses, (found,) = measure(tiny, ids, [used])
        assert losses == pytest.approx(dense, rel=1e-12)
        equal_plans(found, replace(expected, peak_cache_bytes=found.peak_cache_bytes))  # LRU's is bounded, not counted
        (open_loop,) = plan(recorded(tiny, ids, tmp_path), [used])
        equal_plans(found, open_loop)


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_that_minds_reads_less_at_another_perplexity(family, scope):
    tiny, ids = loaded(family), tokens()
    dense = unchanged(tiny, ids)
    _, (own,) = measure(tiny, ids, [setting("experts", tiny.shape, 0.6, scope=scope)])
    for name, parameters in (("drop-cold", {"share": 0.4}), ("cache-prior", {"strength": 10})):
        losses, (found,) = measure(tiny, ids, [setting(name, tiny.shape, 0.6, scope=scope, **parameters)])
        assert found.flash_misses.sum() < own.flash_misses.sum()
        assert np.abs(losses - dense).max() > 1e-3
        if name == "cache-prior":
            assert hit_rate(found) > hit_rate(own)
            assert found.uses.sum() == own.uses.sum()
        else:
            assert found.uses.sum() < own.uses.sum()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "parameters"), [("drop-cold", {"share": 0.35}), ("cache-prior", {"strength": 0.4})])
@pytest.mark.parametrize(("family", "eviction"), [*zip(FAMILIES, ("lru", "lfu", "lru", "lfu"), strict=True)])
def test_at_once_equals_token_by_token_with_a_kv_cache(family, name, parameters, eviction):
    """Caches that serve a layer each do not care in which order tokens and layers come."""
    tiny, ids = loaded(family), tokens(3)
    used = setting(name, tiny.shape, 0.4, eviction, **parameters)
    expected, (at_once,) = measure(tiny, ids, [used])
    builder = PlanBuilder(tiny.shape, used, ids.numel(), (0, 10, 20))
    with torch.inference_mode(), rerouted(tiny.routers, [builder]):
        losses = nll(tiny, ids, step=1)
    assert losses == pytest.approx(expected, rel=1e-9, abs=1e-11)
    equal_plans(builder.finish(), at_once)


class Remembers:
    """Experts of one size by their last use, the oldest first; a token's own are never thrown out by itself."""

    def __init__(self, capacity):
        self.capacity, self.held, self.most = capacity, OrderedDict(), 0

    def ask(self, wanted):
        hits = sum(unit in self.held for unit in wanted)
        for unit in wanted:
            self.held.pop(unit, None)
            self.held[unit] = None
        while len(self.held) > max(self.capacity, len(wanted)):
            self.held.popitem(last=False)
        self.most = max(self.most, len(self.held))
        return hits


@pytest.mark.parametrize("scope", ["layer", "model"])
@pytest.mark.parametrize("family", FAMILIES)
def test_drop_cold_by_hand(family, scope, monkeypatch):
    """Replay the logits that the routers gave through a list of experts: the same choices, the same hits."""
    tiny, ids, share = loaded(family), tokens(2, 8), 0.35
    seen = []
    plain = Router.reroute

    def watched(self, logits, own, masks, fewer):
        seen.append((self.layer, logits.float().numpy().copy(), masks.numpy().copy()))
        return plain(self, logits, own, masks, fewer)

    monkeypatch.setattr(Router, "reroute", watched)
    used = setting("drop-cold", tiny.shape, 0.5, scope=scope, share=share)
    _, (found,) = measure(tiny, ids, [used])
    layers, experts = WHERE[family], tiny.shape.experts.num_experts
    logits, masks = (np.zeros((2, 8, len(layers), experts), dtype) for dtype in (np.float32, bool))
    for layer in layers:
        for values, kept in ((logits, 1), (masks, 2)):
            parts = [call[kept].reshape(2, -1, experts) for call in seen if call[0] == layer]
            values[:, :, layers.index(layer)] = np.concatenate(parts, axis=1)
    assert len(seen) == len(layers) * (8 if scope == "model" else 1)
    room = int(found.budget.cache_bytes / tiny.shape.expert_bytes.max() / (1 if scope == "model" else len(layers)))
    hits, most = np.zeros((2, 8, len(layers)), dtype=int), np.zeros((2, len(layers)), dtype=int)
    for sequence in range(2):
        caches = [Remembers(room)] * len(layers) if scope == "model" else [Remembers(room) for _ in layers]
        for token in range(8):
            for place in range(len(layers)):
                z = logits[sequence, token, place].astype(float)
                best = np.argsort(-z)[: tiny.shape.experts.num_experts_per_tok].tolist()
                weights = dict(zip(best, np.exp(z[best]) / np.exp(z[best]).sum(), strict=True))
                wanted = [
                    (place, expert) for expert in best
                    if expert == best[0] or weights[expert] >= share or (place, expert) in caches[place].held
                ]  # fmt: skip
                assert sorted(expert for _, expert in wanted) == np.flatnonzero(masks[sequence, token, place]).tolist()
                hits[sequence, token, place] = caches[place].ask(wanted)
        most[sequence] = [cache.most for cache in caches]
    where = np.isin(found.layer, layers) & (np.array(found.step) == "expert")
    assert np.array_equal(found.units[0][:, where], hits.reshape(16, -1))
    held = most.max(axis=0) / (len(layers) if scope == "model" else 1)
    assert found.peak_cache_bytes[where] == pytest.approx(held * tiny.shape.expert_bytes[layers])
    assert 0 < hits.sum() < masks.sum() < logits.size * tiny.shape.experts.num_experts_per_tok / experts


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_a_policy_knows_its_position(scope, tmp_path):
    """One that leaves all but one expert out from the seventh token of each sequence on."""
    plugin = tmp_path / "late.py"
    plugin.write_text(
        "from dipsim import top_k\nfrom dipsim.policies.experts import Experts\nclass Late(Experts):\n"
        " few: bool = False\n"
        " def at(self, position): return self.model_copy(update={'few': position >= 6})\n"
        " def select(self, group, scores, resident): return top_k(scores, 1 if self.few else group.k)\n"
    )
    tiny = loaded("Qwen3Moe")
    _, (found,) = measure(tiny, tokens(), [setting(plugin, tiny.shape, scope=scope)])
    hits, misses = found.units
    assert (hits + misses).sum(axis=1).tolist() == 2 * [*6 * [3 * 2], *4 * [2]]


def test_a_policy_sees_the_tokens_of_its_own_sequence():
    """Sequences side by side are evaluated as each of them alone."""
    tiny, ids = loaded("Olmoe"), tokens(3)
    for scope in ("layer", "model"):
        used = setting("cache-prior", tiny.shape, 0.4, scope=scope, strength=0.6)
        losses, (together,) = measure(tiny, ids, [used])
        alone = [measure(tiny, each[None], [used]) for each in ids]
        assert losses == pytest.approx(np.concatenate([each for each, _ in alone]), rel=1e-9)
        assert np.array_equal(together.dram_hits, np.concatenate([each.dram_hits for _, (each,) in alone]))


@pytest.mark.slow
def test_evaluate_measures_a_grid_and_its_rows_are_found_again(tmp_path):
    tiny, ids = loaded("Qwen2Moe"), tokens()
    data = {
        "trace": "unused",
        "start": "cold",
        "policies": ["experts", {"fewer-experts": {"experts": 2}}, {"cache-prior": {"strength": 0.7}}],
        "sweep": {"dram": [{"mlp_fraction": 0.5}, {"mlp_fraction": 0.8}], "cache.scope": ["layer", "model"]},
    }
    found = evaluate(tiny, ids, parse(Experiment, data, "exp"))
    assert len(found) == 2 * 2 * 3
    rows = [row(result, LENGTH, "t.txt", "tiny") for _, result in found]
    trace = recorded(tiny, ids, tmp_path)
    for _, result in found:
        used = result.plan.setting
        (open_loop,) = plan(trace, [used])
        assert quality.lookup(rows, open_loop) == (
            pytest.approx(result.perplexity, abs=1e-4),
            pytest.approx(result.standard_error, abs=1e-4),
        )
        mine = [each for each in rows if each.memory == quality.memory_of(open_loop)]
        assert len(mine) == (2 if used.policy.name == "cache-prior" and used.scope == "model" else 10)
    by = {(r.policy, r.plan.setting.scope, round(r.plan.setting.dram_bytes)): r for _, r in found}
    assert len({r.perplexity for (policy, *_), r in by.items() if policy.startswith("fewer")}) == 1
    assert len({r.perplexity for (policy, *_), r in by.items() if policy.startswith("cache")}) == 3
    for (policy, *_), result in by.items():
        assert (result.standard_error == 0) == (policy == "experts")
        assert result.perplexity == pytest.approx(np.exp(unchanged(tiny, ids).mean()), rel=1e-12) or policy != "experts"


@pytest.mark.slow
def test_the_command_line_records_evaluates_and_runs(tmp_path, monkeypatch, cli_run):
    monkeypatch.chdir(tmp_path)
    model = save(tmp_path / "model", make("Qwen3Moe"))
    (tmp_path / "text.txt").write_text(" ".join(f"w{(i * i) % 50}" for i in range(100)))
    data = {"trace": "./t.safetensors", "dram": {"mlp_fraction": 0.8}, "start": "cold"}
    data["policies"] = ["experts", {"fewer-experts": {"experts": 1}}, {"drop-cold": {"share": 0.5}}]
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(data))
    options = ["--model", model, "--text", "text.txt"]
    sizes = ["--sequences", 4, "--length", 20, "--dtype", "float64"]
    status, out, err = cli_run("evaluate", "exp.yaml", *options, *sizes, "--out", "out")
    assert (status, err) == (0, "")
    assert "Best speed-up over experts" in out
    assert "out: quality.csv, summary.json, pareto.png, pareto.svg" in out
    table = pd.read_csv("out/quality.csv", keep_default_na=False).set_index("policy")
    assert table.memory.tolist() == ["", "", '{"scope": "model"}']
    assert table.standard_error["experts"] == 0
    assert table.hit_rate["drop-cold"] > table.hit_rate["experts"]
    assert cli_run("record", *options, "--tokens", 80, "--sequence-length", 20, "--out", "t.safetensors")[0] == 0
    (tmp_path / "out/quality.csv").rename(tmp_path / "t.quality.csv")
    status, out, err = cli_run("run", "exp.yaml", "--out", "run")
    assert (status, err) == (0, "")
    for perplexity in table.perplexity:
        assert f"{perplexity:.2f}" in out


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"policies": ["dense"]}, "policy dense: reads every expert of every layer, and model is a mixture of experts"),
        ({"policies": [{"dip": {"keep": 0.5}}]}, "chooses columns in group input, and model is a mixture of experts"),
        ({"policies": [{"fewer-experts": {"experts": 5}}]}, "experts: 5 is more than the 4 that the model takes"),
        ({"dram": "1 kB"}, "dram: 1 kB is less than the"),
        ({"eviction": "pinned"}, "eviction: pinned: drop-cold chooses by what is resident; use lru or lfu"),
        ({"eviction": "belady"}, "eviction: belady needs to know all masks beforehand"),
        ({"layout": "coactivation"}, "layout: coactivation"),
        ({"start": "filled"}, "start: filled"),
        ({"policies": ["experts", "low-bit"]}, "policy low-bit: perplexity with low-bit experts is not measured"),
        ({"policies": ["./mine.py"]}, "group expert: experts are chosen without a threshold; give a k"),
    ],
)
def test_bad_input_to_evaluate_is_one_line(tmp_path, monkeypatch, cli_run, change, complaint):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "mine.py").write_text(
        "from dipsim import Group\nfrom dipsim.policies.experts import Experts\nclass Mine(Experts):\n"
        " def groups(self, shape):\n"
        "  return [Group('expert', ('gate_proj', 'up_proj', 'down_proj'), 'expert', 2, threshold=True)]\n"
    )
    data = {"trace": "x", "policies": ["drop-cold"], "dram": {"mlp_fraction": 0.5}} | change
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(data))
    model = save(tmp_path / "model", make("Olmoe"))
    arguments = ["exp.yaml", "--model", model, "--text", "text.txt", "--sequences", 2, "--length", 8]
    status, out, err = cli_run("evaluate", *arguments)
    assert (status, out) == (2, "")
    assert complaint in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_what_needs_columns_refuses_a_mixture(tmp_path, cli_run):
    tiny, ids = loaded("Mixtral"), tokens()
    complaint = "tiny: is a mixture of experts; {} needs a model with dense MLPs"
    trace = recorded(tiny, ids, tmp_path)
    for task, call in {
        "adapt": lambda: training.adapt(tiny, ids, load_policy("experts")),
        "learn-sensitivity": lambda: learn_sensitivity(tiny, ids, tmp_path / "out.safetensors"),
        "train-predictor": lambda: train_predictor(trace, tmp_path / "out.safetensors"),
    }.items():
        with pytest.raises(InputError, match=complaint.format(task)):
            call()
    for command, trained in (("train-predictor", "out.safetensors"), ("learn-layout", "out.layout.safetensors")):
        status, out, err = cli_run(command, trace.path, "--out", tmp_path / trained)
        assert (status, out) == (2, "")
        assert "of experts" in err
        assert err.count("\n") == 1
    assert not list(tmp_path.glob("out*"))


def test_settings_of_a_policy_that_sees_the_cache_are_evaluated_alone_and_thresholds_refused():
    tiny, ids = loaded("Mixtral"), tokens()
    with pytest.raises(InputError, match="evaluate one setting at a time"):
        measure(tiny, ids, [setting("drop-cold", tiny.shape, size) for size in (0.3, 0.6)])
    assert calibrate(tiny, ids, load_policy("experts")) == []


def test_a_config_that_names_other_mixtures_than_the_model_has_is_refused(tmp_path, monkeypatch):
    folder = save(tmp_path / "model", make("Qwen2Moe"))
    assert load(folder).routers
    monkeypatch.setattr("dipsim.live.models.find_routers", lambda model: find_routers(model)[:1])
    with pytest.raises(InputError, match=r"its routers are not in the layers where config\.json has"):
        load(folder)
