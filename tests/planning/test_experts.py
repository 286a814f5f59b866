"""Plans of mixtures of experts: by hand, against a phone's recordings and its authors' replay."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_mixture
from tiny_mixture import SHAPE, chosen, routing, shape

from dipsim.basics.errors import InputError
from dipsim.planning.fetch_plan import Setting
from dipsim.planning.planner import plan
from dipsim.sparsity.plugins import load_policy
from dipsim.workload import Trace
from dipsim.workload.routing import Routing

EXPERT = 192.0
DATA = Path(__file__).resolve().parents[2] / "benchmarks/data/oneplus-15r"
PHONE = {"qwen": "qwen3-30b-a3b", "gemma": "gemma-4-26b-a4b"}


def make(trace, experts=6, rule="lru", policy="experts", scope="model", start="cold", tokens=None, **options):
    """The plan with a cache of so many experts."""
    parameters = options.pop("parameters", {})
    static = trace.shape.static_bytes(trace.longest_sequence(tokens)) + trace.shape.whole_mlp_bytes.sum()
    setting = Setting(
        load_policy(policy, **parameters), static + experts * EXPERT, rule, start=start, scope=scope, **options
    )
    return plan(trace, [setting], tokens)[0]


def found_and_missed(made):
    """Experts found and missed, [T, L]."""
    found, missed = made.units
    return found[:, made.is_mlp].astype(int).tolist(), missed[:, made.is_mlp].astype(int).tolist()


def test_hits_over_the_model_by_hand(tmp_path):
    """Three layers, 2 of 8 experts, room for 7 experts: a token's six, and one of the token before."""
    layers = [chosen([0, 1], [0, 2], [0, 1]), chosen([3, 4], [3, 4], [3, 5]), chosen([6, 7], [5, 7], [6, 7])]
    found, missed = found_and_missed(make(tiny_mixture.write(tmp_path / "t.safetensors", layers=layers), 7))
    assert found == [[0, 0, 0], [1, 2, 1], [1, 1, 1]]
    assert missed == [[2, 2, 2], [1, 0, 1], [1, 1, 1]]


def test_a_cache_a_layer_divides_the_budget_evenly(tmp_path):
    """Room for 9 experts: 3 a layer. Layer 0 uses 4 experts in turn, layer 1 three, layer 2 the same two."""
    layers = [chosen([0, 1], [2, 3], [0, 1]), chosen([0, 1], [1, 2], [2, 0]), chosen([6, 7], [6, 7], [7, 6])]
    made = make(tiny_mixture.write(tmp_path / "t.safetensors", layers=layers), 9, scope="layer")
    found, _ = found_and_missed(made)
    assert found == [[0, 0, 0], [0, 1, 2], [1, 2, 2]]
    assert made.peak_cache_bytes[made.is_mlp].tolist() == [3 * EXPERT, 3 * EXPERT, 2 * EXPERT]


def test_a_prompt_is_one_batch_a_layer_and_is_not_counted(tmp_path):
    """Two prompt tokens use experts 0, 1, 2 of layer 0, each once; the third token finds two of them."""
    layers = [chosen([0, 1], [1, 2], [0, 1]), chosen([0, 1], [0, 1], [2, 3]), chosen([4, 5], [5, 4], [5, 4])]
    trace = tiny_mixture.write(tmp_path / "t.safetensors", layers=layers, prompts=((0, 2),))
    made = make(trace, 7, start="warm")
    assert made.tokens == 1
    assert made.warm_up == 2
    assert (made.encoded.wanted, made.encoded.found) == (7, 0)
    assert found_and_missed(made)[0] == [[2, 0, 2]]
    assert made.encoded.reads.sum(axis=1).tolist() == [9, 6, 6]
    cold = make(trace, 7, start="cold")
    assert found_and_missed(cold) == ([[0, 0, 0]], [[2, 2, 2]])
    assert cold.encoded is None


def test_the_last_layer_of_a_prompt_computes_its_last_token_alone(tmp_path):
    """As engines do: the rows of the others are marked, and want nothing."""
    last = Routing(8, 2, ids=np.array([[-1, -1], [2, 3], [2, 4]]), recorded_weights=np.array([[0, 0], [2, 1], [1, 1]]))
    even = np.array([[0.6, 0.4]] * 3)
    others = ([[0, 1], [1, 2], [0, 1]], [[0, 1]] * 3)
    layers = [Routing(8, 2, ids=np.array(ids), recorded_weights=even) for ids in others]
    layers.append(last)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", layers=layers, prompts=((0, 2),))
    made = make(trace, 8, start="warm")
    assert made.encoded.wanted == 3 + 2 + 2
    assert found_and_missed(made)[0] == [[2, 2, 1]]
    assert make(trace, 8, start="warm", policy="fewer-experts", parameters={"experts": 1}).encoded.wanted == 2 + 1 + 1


def test_every_sequence_begins_with_an_empty_cache(tmp_path):
    layers = [chosen([0, 1], [0, 1], [0, 1])] * 3
    trace = tiny_mixture.write(tmp_path / "t.safetensors", layers=layers, starts=(0, 2))
    assert found_and_missed(make(trace, 24))[0] == [[0, 0, 0], [2, 2, 2], [0, 0, 0]]


def test_bytes_reads_and_pages(tmp_path):
    """Experts of 192 bytes in 3 tensors of 64, on pages of 50 bytes: 2 pages each, or one more where they may begin
    anywhere, or 4 for all three in one piece.
    """
    layers = [chosen([0, 1], [0, 2])] * 3
    trace = tiny_mixture.write(tmp_path / "t.safetensors", layers=layers)
    made = make(trace, 24, page=50.0)
    mlp = made.is_mlp
    assert made.flash_misses[:, mlp].tolist() == [[2 * EXPERT] * 3, [EXPERT] * 3]
    assert made.flash_read_bytes[:, mlp].tolist() == [[600.0] * 3, [300.0] * 3]
    assert made.reads[..., 1][:, mlp].tolist() == [[6] * 3, [3] * 3]
    assert made.dram_hits[:, mlp].tolist() == [[0.0] * 3, [EXPERT] * 3]
    assert made.flops[:, mlp].tolist() == [[2 * 2 * EXPERT * 2] * 3] * 2
    anywhere = tiny_mixture.write(tmp_path / "a.safetensors", of=shape(aligned=False), layers=layers)
    assert make(anywhere, 24, page=50.0).flash_read_bytes[0, mlp].tolist() == [6 * 114.0] * 3
    bundled = make(anywhere, 24, page=50.0, layout="bundled")
    assert bundled.flash_read_bytes[0, mlp].tolist() == [400.0] * 3
    assert bundled.reads.sum(axis=2)[0, mlp].tolist() == [2] * 3
    two = tiny_mixture.write(tmp_path / "2.safetensors", of=shape(expert_tensors=2), layers=layers)
    assert make(two, 24, page=50.0).reads.sum(axis=2)[0, mlp].tolist() == [4] * 3


def test_measured_sizes_shared_experts_and_dense_layers(tmp_path):
    """Layer 1 has no mixture, the others a shared expert of 4 neurons; then all sizes as measured."""
    of = shape(dense_layers=(1,), shared_intermediate_size=4)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=of, layers=[chosen([0, 1], [0, 1])] * 2)
    made = make(trace, 99)
    whole = np.array([name == "whole" for name in made.step])
    assert made.dram_static[0, whole].tolist() == [3 * 16 * 4 / 2, 3 * 16 * 24 / 2, 3 * 16 * 4 / 2]
    expert = np.array([name == "expert" for name in made.step])
    assert made.flash_misses[0, expert].tolist() == [2 * EXPERT, 0, 2 * EXPERT]
    assert found_and_missed(make(trace, 99))[0][1] == [0, 2, 0, 0, 0, 2]
    assert of.mlp_bytes == 2 * 8 * EXPERT + 2 * 96 + 576
    measured = shape(expert_bytes=(100, 200, 300), dense_bytes=(1000, 2000, 3000))
    trace = tiny_mixture.write(tmp_path / "m.safetensors", of=measured, layers=[chosen([0, 1])] * 3)
    made = make(trace, 99)
    assert made.flash_misses[0, made.is_mlp].tolist() == [200, 400, 600]
    attention = made.dram_static[0, made.is_attention] - measured.kv_position_bytes
    assert attention.tolist() == [1000, 2000, 3000]
    assert measured.working_set_bytes == 1200


def test_units_of_unequal_size_share_one_budget_in_bytes(tmp_path):
    """Experts of 100, 200 and 300 bytes: 1,199 bytes do not hold a token's six, and one of layer 0 must leave."""
    of = shape(expert_bytes=(100, 200, 300), dense_bytes=(0, 0, 0))
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=of, layers=[chosen([0, 1], [1, 0])] * 3)
    static = of.static_bytes(2)
    made = [
        plan(trace, [Setting(load_policy("experts"), static + size, "lru", scope="model")])[0] for size in (1200, 1199)
    ]
    assert [found_and_missed(each)[0][1] for each in made] == [[2, 2, 2], [1, 1, 1]]


def test_all_budgets_and_rules_in_one_pass_are_those_of_single_plans(tmp_path):
    trace = tiny_mixture.write(tmp_path / "t.safetensors", tokens=40, prompts=((0, 5),))
    static = SHAPE.static_bytes(40)
    settings = [
        Setting(load_policy("experts"), static + room * EXPERT, rule, start="warm", scope=scope)
        for rule in ("lru", "lfu", "belady", "pinned", "none")
        for scope in ("model", "layer")
        for room in (2, 7, 13, 24)
    ]
    together = plan(trace, settings)
    for setting, made in zip(settings, together, strict=True):
        (alone,) = plan(trace, [setting])
        assert (made.dram_hits == alone.dram_hits).all()
        assert made.peak_dram_bytes == alone.peak_dram_bytes
    found = {(s.eviction, s.scope, s.dram_bytes): m.units[0].sum() for s, m in zip(settings, together, strict=True)}
    assert all(hits == 0 for (rule, *_), hits in found.items() if rule == "none")
    for (rule, scope, size), hits in found.items():
        assert rule == "pinned" or hits <= found["belady", scope, size]  # which must admit every expert
        assert hits <= found[rule, scope, static + 24 * EXPERT]


def test_pinned_experts_are_those_of_the_prompt(tmp_path):
    """Room for three: expert 0 of layer 0 is used twice, then the first used once: 1 of layer 0, 0 of layer 1."""
    layers = [chosen([0, 1], [0, 2], [0, 1]), chosen([0, 1], [2, 3], [0, 1]), chosen([4, 5], [6, 7], [4, 5])]
    trace = tiny_mixture.write(tmp_path / "t.safetensors", layers=layers, prompts=((0, 2),))
    made = make(trace, 3, rule="pinned", start="warm")
    assert found_and_missed(made)[0] == [[2, 0, 0]]
    assert not made.admits
    bare = tiny_mixture.write(tmp_path / "b.safetensors", layers=layers)
    with pytest.raises(InputError, match="pinned: experts are pinned by their use in tokens that are not counted"):
        make(bare, 3, rule="pinned")


def test_policies_that_see_the_cache(tmp_path):
    """drop-cold leaves out a cold expert of little weight, never the most wanted, never a resident one."""
    weights = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4]])
    one = Routing(8, 2, ids=np.array([[0, 1], [1, 2], [3, 2]]), recorded_weights=weights)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", layers=[one] * 3)
    made = make(trace, 24, policy="drop-cold", parameters={"share": 0.3})
    assert found_and_missed(made) == ([[0, 0, 0]] * 3, [[1, 1, 1], [1, 1, 1], [2, 2, 2]])
    high = make(trace, 24, policy="drop-cold", parameters={"share": 0.95})
    assert found_and_missed(high)[1] == [[1, 1, 1]] * 3  # the most wanted alone
    same = make(trace, 24, policy="drop-cold", parameters={"share": 0.05})
    assert found_and_missed(same) == found_and_missed(make(trace, 24))


@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("rule", ["lru", "lfu", "lfru", "slru", "s3-fifo"])
def test_cache_prior_without_strength_is_the_router_itself(tmp_path, scope, rule):
    """One path steps token by token, the other replays requests: they must agree, prompts included."""
    prompts = ((0, 6), (10, 13), (13, 14), (20, 22))  # later turns begin with prompts of their own
    trace = tiny_mixture.write(tmp_path / "t.safetensors", tokens=30, kind="logits", prompts=prompts, starts=(0, 20))
    prior = make(trace, 9, rule=rule, scope=scope, start="warm", policy="cache-prior", parameters={"strength": 0.0})
    router = make(trace, 9, rule=rule, scope=scope, start="warm")
    assert found_and_missed(prior) == found_and_missed(router)
    assert (prior.encoded.wanted, prior.encoded.found) == (router.encoded.wanted, router.encoded.found)
    assert (prior.uses == router.uses).all()
    assert prior.peak_cache_bytes == pytest.approx(router.peak_cache_bytes)
    strong = make(trace, 9, rule=rule, scope=scope, start="warm", policy="cache-prior", parameters={"strength": 9.0})
    assert strong.units[0].sum() > router.units[0].sum()


def test_cache_prior_by_hand(tmp_path):
    """z' = z + strength D [resident or among the top 1]; D is 3 at the first token, (3 + 1) / 2 = 2 at the second.

    The third would make it 5; it wants experts 2 and 3 by far.
    """
    logits = np.array([[3, 2, 0, 0], [0, 0.2, 1, 0.9], [0, 0, 11, 11]], dtype=np.float32)
    of = shape(num_experts=4)
    trace = tiny_mixture.write(tmp_path / "t.safetensors", of=of, layers=[Routing(4, 2, recorded_logits=logits)] * 3)
    used = {
        strength: make(trace, 12, policy="cache-prior", parameters={"strength": strength}).uses[0].tolist()
        for strength in (0.3, 0.4)
    }
    assert used == {0.3: [1, 1, 2, 2], 0.4: [1, 2, 2, 1]}  # of the second token, 0.2 + 2 * strength against 0.9


def test_fewer_experts_are_those_of_largest_weight(tmp_path):
    ids, weights = np.array([[0, 1], [2, 3]]), np.array([[0.4, 0.6], [0.7, 0.3]])
    layers = [Routing(8, 2, ids=ids, recorded_weights=weights)] * 3
    trace = tiny_mixture.write(tmp_path / "t.safetensors", layers=layers)
    made = make(trace, 24, policy="fewer-experts", parameters={"experts": 1})
    assert np.flatnonzero(made.uses[1]).tolist() == [1, 2]
    assert made.working_set_bytes == 3 * EXPERT


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"policy": "dense"}, "policy dense: reads every expert of every layer"),
        ({"policy": "dip"}, "policy dip: chooses columns in group input, and tiny-mixture is a mixture of experts"),
        ({"policy": "fewer-experts", "parameters": {"experts": 3}}, "experts: 3 is more than the 2"),
        ({"policy": "cache-prior"}, "has no logits of the router"),
        ({"layout": "auto", "rule": "pinned"}, "layout: auto lays columns out; experts lie as columns or bundled"),
        ({"rule": "optimal"}, "optimal takes columns of one size; use belady"),
        ({"start": "filled"}, "start: filled: holds the columns of lowest index"),
        ({"policy": "drop-cold", "rule": "belady"}, "belady needs to know all masks beforehand"),
        ({"policy": "drop-cold", "rule": "pinned", "start": "warm"}, "pinned: drop-cold chooses by what is resident"),
    ],
)
def test_what_makes_no_sense_with_experts_is_one_line(tmp_path, change, complaint):
    trace = tiny_mixture.write(tmp_path / "t.safetensors", prompts=((0, 4),))
    with pytest.raises(InputError, match=complaint):
        make(trace, 5, **change)


def test_a_sequence_that_is_cut_within_its_prompt_counts_nothing(tmp_path):
    trace = tiny_mixture.write(tmp_path / "t.safetensors", tokens=30, starts=(0, 20), prompts=((20, 30),))
    assert make(trace, 9, tokens=25).tokens == 20


def test_what_policies_need_and_a_trace_lacks_is_one_line(tmp_path):
    bare = tiny_mixture.write(tmp_path / "bare.safetensors", kind="bare")
    for policy, parameters in (("drop-cold", {}), ("fewer-experts", {"experts": 1})):
        with pytest.raises(InputError, match="has neither weights nor logits of the router"):
            make(bare, 5, policy=policy, parameters=parameters)
    with pytest.raises(InputError, match="tokens: the first 4 are all of the prompt"):
        make(tiny_mixture.write(tmp_path / "p.safetensors", prompts=((0, 4),)), 5, tokens=4)


def test_experts_on_a_dense_model_are_one_line(tiny_trace):
    trace = tiny_trace()
    with pytest.raises(InputError, match="tiny has no experts; use a policy for dense MLPs"):
        plan(trace, [Setting(load_policy("experts"), 1e6)])
    with pytest.raises(InputError, match="scope: model is one cache of experts"):
        plan(trace, [Setting(load_policy("dip"), 1e6, scope="model")])


def test_weights_of_logits_are_shares_of_the_chosen():
    (layer, *_) = routing(kind="logits", tokens=3)
    weights, logits = layer.weights, layer.logits
    for token in range(3):
        best = np.argsort(-logits[token])[:2]
        share = np.exp(logits[token, best]) / np.exp(logits[token, best]).sum()
        assert weights[token, best] == pytest.approx(share)
        assert np.count_nonzero(weights[token]) == 2


@pytest.mark.parametrize(("short", "recorded", "to_the_byte"), [("qwen", 74.88, 127), ("gemma", 76.78, 6)])
def test_the_hits_and_bytes_that_the_phone_recorded(short, recorded, to_the_byte):
    trace = Trace.open(PHONE[short])
    (made,) = phone_plans(trace, [4000], "lru", "model")
    found, missed = (part.sum() for part in made.units)
    assert round(100 * (found + made.encoded.found) / (found + missed + made.encoded.wanted), 2) == recorded
    measured = pd.read_csv(DATA / f"{short}_traced.csv", comment="#")["read_bytes"].to_numpy()
    read = np.rint(made.flash_read_bytes.sum(axis=1))
    assert (read == measured).sum() == to_the_byte
    assert read.sum() == pytest.approx(measured.sum(), rel=4e-5)


@pytest.mark.parametrize(
    ("name", "rule", "scope"),
    [("lru", "lru", "model"), ("lfu", "lfu", "model"), ("belady", "belady", "model"), ("layer", "lru", "layer"),
     ("layerlfu", "lfu", "layer")],
)  # fmt: skip
@pytest.mark.parametrize("short", ["qwen", "gemma"])
@pytest.mark.slow
def test_every_row_of_the_hit_curves_of_the_engines_authors(short, name, rule, scope):
    """Hits with the prompt, of decoded tokens, and MiB read without padding, to the digits published."""
    trace, table = Trace.open(PHONE[short]), pd.read_csv(DATA / f"{short}.curve.csv")
    rows = list(table[table["policy"] == name].itertuples())
    for row, made in zip(rows, phone_plans(trace, [row.budget_mib for row in rows], rule, scope), strict=True):
        found, missed = (part.sum() for part in made.units)
        every = found + missed + made.encoded.wanted
        assert 100 * (found + made.encoded.found) / every == pytest.approx(row.hit_pct_cum, abs=6e-4)
        assert 100 * found / (found + missed) == pytest.approx(row.hit_pct_decode, abs=6e-4)


def phone_plans(trace, budgets, rule, scope):
    """Plans with caches of so many MiB, one each."""
    drams = [trace.shape.static_bytes(trace.tokens) + mib * 2**20 for mib in budgets]
    policy = load_policy("experts")
    return plan(trace, [Setting(policy, dram, rule, start="warm", page=4096, scope=scope) for dram in drams])
