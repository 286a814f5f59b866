"""Fetch plans worked out on paper: bytes, reads, operations and what is held. `tests/hand.py` has the sizes."""

from dataclasses import replace

import numpy as np
import pytest
from hand import SHAPE, hand_trace

from dipsim.basics.errors import InputError
from dipsim.planning.fetch_plan import Setting, warm_up_tokens
from dipsim.planning.planner import CpuPlanner, plan
from dipsim.sparsity.plugins import load_policy
from dipsim.workload.recorded import write_trace
from dipsim.workload.trace import Activations, Header, Trace

CACHED, STREAMED = 352.0, 184.0  # B: room for 4 columns a layer; half of lm_head and attention in DRAM
STEPS = ("attention", "whole", "neuron")
PLUGIN = """from dipsim import Group, Policy
class Mine(Policy):
    def groups(self, shape): return (Group("neuron", ("up_proj", "down_proj"), "neuron", 3),)
    def scores(self, group, acts): return abs(acts.glu)
    def static_bytes(self, shape): return 64.0
"""


def make(trace, dram=CACHED, eviction="lru", tokens=None, policy=None, **options):
    policy = policy or load_policy("magnitude", fraction=0.375)
    return plan(trace, [Setting(policy, dram, eviction, **options)], tokens)[0]


def test_bytes_of_each_step(tmp_path):
    found = make(hand_trace(tmp_path))
    assert found.step == STEPS * 2 + ("lm_head",)
    assert found.layer.tolist() == [0, 0, 0, 1, 1, 1, 2]
    kept = [[48 + 16 * seen, 32, 0] * 2 + [80] for seen in (1, 2, 3, 1, 2)]
    assert found.dram_static.tolist() == kept
    hits, misses = np.array([0, 4, 2, 0, 2]), np.array([6, 2, 4, 6, 4])
    for position in (2, 5):
        assert found.dram_hits[:, position].tolist() == hits.tolist()
        assert found.flash_misses[:, position].tolist() == misses.tolist()
        assert found.reads[:, position].tolist() == [
            [0, 1, 0, 0],
            [1, 0, 0, 0],
            [2, 0, 0, 0],
            [0, 1, 0, 0],
            [2, 0, 0, 0],
        ]
    assert found.dram_hits.sum() == 2 * hits.sum()
    assert found.read_bytes.sum(axis=2)[:, 2].tolist() == misses.tolist()
    assert found.flash_gaps.any() == found.flash_static.any() == found.static_reads.any() == False  # noqa: E712
    assert found.ranked.tolist() == [0, 0, 8] * 2 + [0]
    assert found.unit_bytes.tolist() == found.piece_bytes.tolist() == [0, 0, 2] * 2 + [0]
    assert found.peak_cache_bytes.tolist() == [0, 0, 8] * 2 + [0]
    assert found.admits


def test_operations_of_each_step_at_its_own_bits(tmp_path):
    """Two for each weight: 48 of attention, 64 read whole, 12 in 3 columns, 40 of lm_head; 16 for each position."""
    found = make(hand_trace(tmp_path))
    assert found.flops.tolist() == [[96 + 16 * seen, 128, 24] * 2 + [80] for seen in (1, 2, 3, 1, 2)]


def test_streamed_weights_take_so_many_reads(tmp_path):
    found = make(hand_trace(tmp_path), STREAMED, stream_static=True)
    assert found.flash_static.tolist() == [[24, 32, 0] * 2 + [40]] * 5
    assert found.static_reads.tolist() == [4, 2, 0, 4, 2, 0, 1]
    assert found.dram_static.tolist() == [[24 + 16 * seen, 0, 0] * 2 + [40] for seen in (1, 2, 3, 1, 2)]
    assert (found.peak_dram_bytes, found.admits) == (184, True)


def test_a_cache_holds_the_most_that_a_single_sequence_used(tmp_path):
    """The first uses 6 columns, the second 5, both together 8."""
    found = make(hand_trace(tmp_path), 272 + 64 + 32)
    assert found.budget.capacities == (8,)
    assert found.peak_cache_bytes.tolist() == [0, 0, 12] * 2 + [0]
    assert found.peak_dram_bytes == 272 + 64 + 2 * 12
    assert make(hand_trace(tmp_path), 272 + 64 + 32, start="filled").peak_cache_bytes.sum() == 32


def test_what_a_policy_keeps_for_itself(tmp_path):
    """64 B of 16 bits, half of them in each layer; 3 columns of two matrices are 12 B."""
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    policy, trace = load_policy(path), hand_trace(tmp_path)
    found = make(trace, 272 + 64 + 32, "none", policy=policy)
    assert found.budget.policy_bytes == 64
    assert found.dram_static[0].tolist() == [48 + 16 + 32, 16, 0] * 2 + [80]
    assert found.flops[0].tolist() == [96 + 16 + 2 * 16, 64, 48] * 2 + [80]
    assert found.reads[1].sum(axis=1).tolist() == [0, 0, 4] * 2 + [0]  # 2 runs in each of two matrices
    assert found.flash_misses[1].tolist() == [0, 0, 12] * 2 + [0]
    assert (found.budget.cache_bytes, found.budget.capacities, found.admits) == (0, (0,), False)
    with pytest.raises(InputError, match="does not hold the KV cache of 3 positions"):
        make(trace, 96 + 63, policy=policy, stream_static=True)
    assert make(trace, 96 + 64, policy=policy, stream_static=True).budget.streamed_static_bytes == 176


@pytest.mark.parametrize("tokens", [0, -1, 6])
def test_tokens_that_there_are_not(tmp_path, tokens):
    with pytest.raises(InputError, match=f"tokens: {tokens} asked for, the trace hand has 5; ask for 1 to that"):
        make(hand_trace(tmp_path), tokens=tokens)


def test_fewer_tokens_are_the_first_ones(tmp_path):
    trace = hand_trace(tmp_path)
    whole = make(trace)
    for tokens in (1, 3, 4, 5):
        fewer = make(trace, CACHED, tokens=tokens)
        assert (fewer.tokens, fewer.sequence_starts) == (tokens, (0, 3) if tokens > 3 else (0,))
        assert fewer.flash_misses.tolist() == whole.flash_misses[:tokens].tolist()


def test_progress_tells_each_layer(tmp_path):
    said = []
    settings = [Setting(load_policy("magnitude", fraction=0.375), CACHED, eviction) for eviction in ("lru", "none")]
    plans = plan(hand_trace(tmp_path), settings, progress=lambda *now: said.append(now))
    assert said == [("planning layers", 1, 2), ("planning layers", 2, 2)]
    assert plans[0].dram_hits.sum() == 16
    assert plans[1].dram_hits.sum() == 0
    assert not CpuPlanner.all_together
    assert CpuPlanner().able(None, settings[0], 5)
    assert plan(hand_trace(tmp_path), []) == []
    (some,) = plan(hand_trace(tmp_path), settings[:1], layers=1)
    assert some.flash_misses[:, 2].any()
    assert not some.flash_misses[:, 5].any()


def test_each_sequence_of_a_policy_that_sees_its_cache_begins_anew(tmp_path):
    """The same 4 tokens twice: the factor of `dip-ca` falls, and the cache fills, from the start of each."""
    rng = np.random.default_rng(2)
    once = [Activations(*(rng.standard_normal((4, size)).astype(np.float32) for size in (4, 8, 8))) for _ in range(2)]
    names = ("mlp_input", "gate_proj", "up_proj")
    twice = [Activations(*(np.concatenate([getattr(acts, name)] * 2) for name in names)) for acts in once]
    path = tmp_path / "twice.safetensors"
    write_trace(path, Header(model=SHAPE, sequence_starts=(0, 4)), twice, "float32")
    trace = Trace.open(path)
    hits = {}
    for warmup in (0, 3):
        policy = load_policy("dip-ca", keep=0.5, gamma=0.1, warmup=warmup)
        found = make(trace, SHAPE.static_bytes(4) + 48, policy=policy)
        assert found.dram_hits[4:].tolist() == found.dram_hits[:4].tolist()
        assert not found.dram_hits[4].any()
        hits[warmup] = found.dram_hits.sum()
    assert hits[0] > hits[3] > 0  # a weaker preference at first


@pytest.mark.parametrize(("length", "warm"), [(1, 0), (2, 1), (5, 2), (128, 64), (129, 64), (1000, 64)])
def test_half_of_a_sequence_warms_up_at_most(length, warm):
    assert warm_up_tokens("warm", length) == warm
    assert warm_up_tokens("cold", length) == warm_up_tokens("filled", length) == 0


def test_tokens_that_warm_up_are_left_out_of_every_figure(tmp_path):
    """One of the first three tokens, and one of the last two."""
    trace = hand_trace(tmp_path)
    cold, warm = make(trace), make(trace, start="warm")
    kept = [1, 2, 4]
    for name in ("dram_static", "dram_hits", "flash_misses", "flops", "reads"):
        assert getattr(warm, name).tolist() == getattr(cold, name)[kept].tolist(), name
    assert (warm.warm_up, warm.sequence_starts, warm.rows) == (1, (0, 2), 3)


def test_prompts_are_what_comes_before_the_tokens_that_are_counted(tmp_path):
    plain = hand_trace(tmp_path)
    trace = replace(plain, header=plain.header.model_copy(update={"prompts": ((0, 2), (3, 4))}))
    found = make(trace)
    assert found.dram_hits.tolist() == make(plain).dram_hits[[2, 4]].tolist()
    assert (found.warm_up, found.rows) == (2, 2)
    with pytest.raises(InputError, match="tokens: the first 2 are all of the prompt; ask for more"):
        make(trace, tokens=2)
    assert make(trace, tokens=3).rows == 1


def test_dip_reads_inputs_in_two_matrices_and_its_neurons_in_one(tmp_path):
    """Of 4 inputs the 2 largest, with 8 B each; the values rise, so they are always the last two."""
    policy = load_policy("dip", keep=0.5)
    assert [group.k for group in policy.groups(SHAPE)] == [2, 2]
    found = make(hand_trace(tmp_path), 272 + 96, policy=policy)
    assert found.budget.capacities == (4, 8)
    inputs = found.step.index("input")
    assert found.flash_misses[:, inputs].tolist() == [16, 0, 0, 16, 0]
    assert found.dram_hits[:, inputs].tolist() == [0, 16, 16, 0, 16]
    assert found.reads[:, inputs].sum(axis=1).tolist() == [2, 0, 0, 2, 0]
    assert found.flops[0, inputs] == 2 * 2 * 16
    assert (found.unit_bytes[inputs], found.piece_bytes[inputs], found.ranked[inputs]) == (8, 4, 4)
    neurons = found.step.index("neuron")
    assert found.flash_misses[:, neurons].tolist() == [4, 0, 2, 4, 4]  # of {0,1} {0,1} {1,3}, then {5,6} {0,2}


@pytest.mark.parametrize(("eviction", "good"), [("none", True), ("pinned", True), ("lru", False), ("lfu", False)])
def test_a_price_needs_a_fixed_set_in_dram(tmp_path, eviction, good):
    trace, policy = hand_trace(tmp_path), load_policy("worth", price=1.0)
    if good:
        assert make(trace, policy=policy, eviction=eviction).rows == 5
    else:
        with pytest.raises(InputError, match="chooses by what reading costs, which needs a fixed set"):
            make(trace, policy=policy, eviction=eviction)


def test_options_that_do_not_fit(tmp_path):
    trace = hand_trace(tmp_path)
    with pytest.raises(InputError, match="start: filled: the eviction pinned has its own columns"):
        make(trace, eviction="pinned", start="filled")
    with pytest.raises(InputError, match="scope: model is one cache of experts"):
        make(trace, scope="model")
    with pytest.raises(InputError, match="eviction: belady needs to know all masks beforehand"):
        make(trace, eviction="belady", policy=load_policy("dip-ca", keep=0.5))
    assert make(trace, eviction="belady").dram_hits.sum() >= make(trace).dram_hits.sum()
